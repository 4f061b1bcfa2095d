//! The transaction leader over gRPC: the service that serves a [`TransactionLeader`](super::leader::TransactionLeader),
//! and the client that is one, for pollers in processes of their own.

mod client;
mod convert;
mod error;
mod order;
mod service;
#[cfg(test)]
mod tests;

pub use client::GrpcLeader;
pub use order::ReportOrder;
pub use service::transaction_service;
