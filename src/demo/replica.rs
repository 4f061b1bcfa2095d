//! What the demo needs of the replica: read points, reads of its tablets, and why anything waits.

use crate::tablet::{ReadPage, ReadPoint, ReadRequest, TabletError};
use crate::wal::{HybridTime, TableId};
use async_trait::async_trait;

/// A running replica.
#[async_trait]
pub trait Replica: Send + Sync {
    /// How many replica tablets there are.
    fn tablets(&self) -> usize;

    /// The log's number of a table; `None` until its name was heard.
    fn table(&self, name: &str) -> Option<TableId>;

    /// Every transaction that is decided; `None` before anything may be shown.
    fn latest(&self) -> Option<ReadPoint>;

    /// The source as it was at safe time; `None` before the first safe point.
    fn safe(&self) -> Option<ReadPoint>;

    /// Waits until safe time is above this one and says what it is: what was committed at or below it is visible to
    /// whoever asks for `safe`. `None` once the replica has ended.
    async fn safe_above(&self, time: HybridTime) -> Option<HybridTime>;

    /// Reads a page from one replica tablet.
    ///
    /// # Errors
    /// See [`TabletError`].
    async fn read(&self, tablet: usize, request: ReadRequest) -> Result<ReadPage, TabletError>;

    /// What the pipeline is doing, for people.
    async fn status(&self) -> Status;

    /// Waits until the pipeline ends by itself, and says why.
    async fn failed(&self) -> String;

    /// Stops the pipeline.
    async fn stop(self)
    where
        Self: Sized;
}

/// What the pipeline is doing: a part of what `status` shows.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Status {
    /// The streams in order.
    pub streams: Vec<StreamStatus>,
    /// The stream that holds safe time back.
    pub held_by: Option<String>,
    /// Transactions that wait for Applying or Commit records.
    pub waiting_to_commit: u64,
    /// Transactions that have neither yet.
    pub pending: u64,
    /// Decided and not yet applied everywhere.
    pub committed_not_applied: u64,
    /// The transaction that waits longest.
    pub oldest: Option<Oldest>,
}

/// One stream.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StreamStatus {
    /// Its source tablet's name.
    pub name: String,
    /// What its puller does: `running`, `waiting`, `stopped`, ….
    pub state: String,
    /// Its lag.
    pub lag_seconds: f64,
}

/// The transaction that waits longest, and for whom.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Oldest {
    /// The source's id.
    pub transaction: String,
    /// Since when.
    pub since_seconds: f64,
    /// The source tablet that it waits for, where it is one.
    pub tablet: Option<String>,
    /// What it waits for, in a sentence.
    pub text: String,
}
