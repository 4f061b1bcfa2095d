//! Tablets over gRPC: the service that serves [`TabletLeader`](super::TabletLeader)s by name, and the client that is
//! one. What a tablet answers, its errors included, is the same on both sides of the wire; a lost connection or a passed
//! deadline is [`TabletError::Indeterminate`](super::TabletError::Indeterminate).

mod client;
mod convert;
mod error;
mod service;
#[cfg(test)]
mod tests;

pub use client::GrpcTablet;
pub use service::{Tablets, tablet_service};
