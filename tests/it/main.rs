//! The integration tests, in one binary: linking is what costs time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests: a call that fails is a failed test")]

mod source_postgres;
mod support;
