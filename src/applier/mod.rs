//! The runtime: the async shell around the pure machines. It moves bytes, runs outputs, and is the one place that
//! spawns.

mod copier;
mod driver;
mod ended;
mod executor;
pub mod leader;
pub mod leader_grpc;
mod leader_local;
mod log_thread;
mod poller;
mod probes;
mod pull;
mod recovery;
mod streams;
mod tablets;
