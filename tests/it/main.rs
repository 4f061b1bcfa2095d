//! The integration tests, in one binary: linking is what costs time.

mod power_cut;
mod runtime;
mod script;
