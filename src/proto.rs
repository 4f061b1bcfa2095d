//! The messages and services of `proto/`, generated.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// The CDC service: what a source serves.
pub mod cdc {
    tonic::include_proto!("untorn.cdc.v1");
}
/// The tablet service: what a replica tablet's leader serves.
pub mod tablet {
    tonic::include_proto!("untorn.tablet.v1");
}
/// The transaction leader's service, and the transaction record.
pub mod transaction {
    tonic::include_proto!("untorn.transaction.v1");
}
/// The admin service.
pub mod admin {
    tonic::include_proto!("untorn.admin.v1");
}
