//! The runtime: the async shell around the pure machines. It moves bytes, runs outputs, and is the one place that
//! spawns.

pub mod leader;
pub mod leader_grpc;
