//! What a daemon says of itself, and its rows: one model ([`status`], [`explain`]), served over gRPC and HTTP on one
//! port ([`server`]) and read by the command line ([`client`]).
//!
//! The runtime stands behind it as [`Inspect`]; nothing here looks into it any further.

pub mod client;
pub mod connect;
pub mod explain;
mod gauges;
pub mod health;
pub mod inspected;
mod page;
pub mod scan;
pub mod screen;
pub mod server;
pub mod status;
mod table;
mod timestamp;
pub mod top;
pub mod verify;
mod wire;

use crate::applier::{Retried, Skipped};
use async_trait::async_trait;
use explain::Explanation;
use futures::stream::BoxStream;
use scan::{Scan, ScanAt, ScanError};
use status::Status;
use verify::{Event, VerifyError};

/// How an answer is printed.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// Why nothing is copied again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecopyError {
    /// There is nothing of that name, or no copies at all.
    #[error("{0}")]
    Refused(String),
    /// Another process leads, or the leader has ended.
    #[error("{0}")]
    NotHere(String),
}

/// What a running daemon can be asked. Every call answers from what the process knows and waits for no server.
#[async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// What it does right now.
    async fn status(&self) -> Status;

    /// Whether the process does its part, with what a probe prints: [`Err`] says what is missing.
    ///
    /// # Errors
    /// It is not ready, and why.
    async fn readiness(&self) -> Result<String, String> {
        let status = self.status().await;
        if status.ready { Ok(status.to_string()) } else { Err(status.to_string()) }
    }

    /// Sets the gauges that show this process: called when somebody scrapes.
    async fn set_gauges(&self) {
        gauges::set(&self.status().await);
    }

    /// Every transaction that fits: untorn's id, the source's id, or `tablet:xid`. Empty when none does.
    async fn explain(&self, transaction: &str) -> Vec<Explanation>;

    /// The transactions that have waited to commit for longest, the oldest first; at most
    /// [`WAITING_LISTED`](crate::limits::WAITING_LISTED).
    async fn waiting(&self) -> Vec<Explanation>;

    /// All rows of a table at one read point, which is fixed before this answers.
    ///
    /// # Errors
    /// See [`ScanError`].
    async fn scan(&self, table: &str, at: ScanAt) -> Result<Scan, ScanError>;

    /// Gives up the transaction that the replica refuses.
    ///
    /// # Errors
    /// It refuses no such transaction.
    async fn skip(&self, transaction: &str) -> Result<Skipped, String> {
        Err(format!("{transaction} is not refused: nothing is replicated here"))
    }

    /// Tries again at once what the replica refused or could not take, and streams that stopped; answers their names.
    fn retry(&self) -> Retried {
        Retried::default()
    }

    /// Asks for copies of what is shown now: of a source tablet, one table of all of them, or one's part of the other.
    /// Answers them, by source tablet and table.
    ///
    /// # Errors
    /// See [`RecopyError`].
    async fn recopy(&self, _tablet: Option<&str>, _table: Option<&str>) -> Result<Vec<(String, String)>, RecopyError> {
        Err(RecopyError::Refused("nothing is replicated here".into()))
    }

    /// The tables that can be compared with the sources, by name.
    ///
    /// # Errors
    /// See [`VerifyError`].
    async fn verify_tables(&self) -> Result<Vec<String>, VerifyError>;

    /// Compares a table with its sources; the last event is the verdict.
    fn verify(&self, table: &str) -> BoxStream<'static, Result<Event, VerifyError>>;
}
