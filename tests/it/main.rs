//! The one integration test: one module a subject.

mod source_postgres;
mod support;
