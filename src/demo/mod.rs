//! `untorn demo`.
pub mod auditor;
pub mod bank;
pub mod change;
pub mod history;
#[cfg(test)]
mod naive;
pub mod progress;
pub mod replica;
pub mod report;
pub mod screen;
pub mod universe;
pub mod users;
pub mod workload;
