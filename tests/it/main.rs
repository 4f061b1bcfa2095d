//! The integration tests, in one binary: linking is what costs time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests: a call that fails is a failed test")]

mod check_connect;
mod cli;
mod coordinator_golden;
mod coordinator_props;
mod dashboards;
mod demo;
mod docs;
mod every_row;
mod failover;
mod full_disk;
mod helm;
mod log_owners;
mod loop_disk;
mod moved_rows;
mod one_writer;
mod operators;
mod page;
mod postgres_copies;
mod postgres_e2e;
mod postgres_faults;
mod postgres_life;
mod postgres_waits;
mod power_cut;
mod power_cut_tablet;
mod processes;
mod pullers;
mod quick_start;
mod replica_copies;
mod replica_life;
mod replica_options;
mod replica_postgres;
mod replica_servers;
mod runtime;
mod script;
mod scripts;
mod secrets;
mod slot_life;
mod source_postgres;
mod support;
mod tls;
mod verify;
