//! Integration tests, all in one binary: linking is what costs time.

mod coordinator_golden;
mod coordinator_props;
mod scripts;
