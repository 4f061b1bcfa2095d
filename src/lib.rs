//! untorn keeps a replica universe in step with a source universe, across clusters, and never shows a torn transaction:
//! a transaction that wrote to many tablets becomes visible on the replica whole, or not at all.
//!
//! The rooms, from the ground up; a module uses only modules above it in this list:
//!
//! 1. [`wal`]: the vocabulary. 2. [`coordinator`]: the protocol, pure. 3. [`router`]: key → replica tablet, pure.
//! 4. [`mvcc`]: visibility and resolution rules, pure. 5. [`flow`]: a poller's bookkeeping, pure.
//! 6. [`postgres`]: how a PostgreSQL server is reached. 7. [`txn_log`]: the transaction log and its engines.
//! 8. [`tablet`]: replica tablets and their engines. 9. [`source`]: where streams come from. 10. [`applier`]: the runtime.
//!
//! Then the surfaces, [`demo`] among them.

pub mod access;
pub mod admin;
pub mod applier;
pub mod bench;
pub mod cli;
pub mod config;
pub mod coordinator;
pub mod demo;
pub mod docs;
pub mod flow;
pub mod limits;
pub mod metrics;
pub mod mvcc;
pub mod planted;
pub mod postgres;
pub mod proto;
pub mod router;
pub mod source;
pub mod tablet;
pub mod telemetry;
pub mod txn_log;
pub mod wal;
