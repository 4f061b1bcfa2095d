//! Replica tablets: the contract, its engines, and how it is served.
//!
//! A tablet stores writes of undecided transactions as **provisional records**, keyed by branch, and turns them into
//! **versions** when it hears the decision. Nothing on a provisional record or version says "committed": the tablet
//! hears decisions in log order, and a read names the log position it is to see ([`ReadPoint`]), so a tablet that has
//! not heard the log up to there waits. Therefore a read point fixed before the first tablet is read shows every
//! tablet exactly the transactions decided at or below it (C3).
//!
//! Two orders meet here. Writes of one stream come in the stream's order, each batch naming the position that it
//! follows (C5). Decisions come in log order, each batch naming the log position that it follows.

pub mod cdc_service;
pub mod change_log;
#[cfg(test)]
pub mod conformance;
pub mod embedded;
pub mod engine;
pub mod format;
pub mod grpc;
pub mod keys;
pub mod memory;
pub mod postgres;
pub mod server;
pub mod store;

pub use crate::coordinator::{Applied, Decided, ReadPoint, ReleaseId, Turn, Work};
pub use crate::wal::{Adopt, BranchWrites, ChunkBatch, Conflict, DropChunks, FillRequest, ProvisionalBatch};
use crate::wal::{
    Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row, SourceTabletId, TableId, TableSchema,
    TransactionId,
};
use async_trait::async_trait;
use std::sync::Arc;

/// What a tablet holds of one stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamMark {
    /// The stream.
    pub stream: SourceTabletId,
    /// The highest position stored durably; records at or below it are dropped.
    pub stored: OpId,
    /// The highest puller epoch seen; batches of a lower one are refused.
    pub puller: Epoch,
}

/// What a tablet answers to a new owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// Its marks, one a stream that ever wrote to it, by stream.
    pub marks: Vec<StreamMark>,
    /// It has heard the log up to here; reads up to here do not wait.
    pub heard: LogPosition,
    /// It has applied the log up to here *durably*.
    pub applied: LogPosition,
}

/// A batch is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The position now held for the stream.
    pub mark: OpId,
    /// The conflicts asked for.
    pub conflicts: Vec<Conflict>,
}

/// Rows of a copy for one tablet: they become versions at once, at the copy's base, and stay unseen until the tablet hears
/// that they are shown ([`Turn::Shown`]). Each attempt has a base of its own, so a copier that was replaced does no harm.
#[derive(Clone, PartialEq, Debug)]
pub struct CopyBatch {
    /// The stream whose server the rows come from.
    pub stream: SourceTabletId,
    /// The owner's epoch.
    pub owner: Epoch,
    /// The hybrid time of the rows.
    pub base: HybridTime,
    /// Last batch of the copy at this tablet: cells that waited for the rows of this copy are filled now.
    pub last: bool,
    /// The table's shape.
    pub schema: TableSchema,
    /// The rows.
    pub rows: Vec<(Key, Row)>,
}

/// A run of decisions for one tablet, in log order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApplyBatch {
    /// The owner's epoch.
    pub owner: Epoch,
    /// The log position that this batch follows at this tablet: what it has heard before.
    pub follows: LogPosition,
    /// Every decision at or below this one that concerns this tablet is in this batch or an earlier one.
    pub through: LogPosition,
    /// The newest safe point at or below `through` that rests on nothing but what the tablet was told, for its own WAL and
    /// for collection.
    pub safe: Option<ReadPoint>,
    /// Whether a key has one writer, because no clock orders two. Then a stream that puts a row under a key where another
    /// stream's is, is refused from then on ([`TabletError::WrittenTwice`]), and a delete removes its own stream's row only.
    pub one_writer: bool,
    /// The work, positions rising.
    pub work: Vec<Decided>,
}

/// Which rows to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    /// The table.
    pub table: TableId,
    /// The read point.
    pub at: ReadPoint,
    /// Only this key.
    pub key: Option<Key>,
    /// Only keys above this one: the last key of the page before.
    pub after: Option<Key>,
    /// Every version at or below the read point, newest first in each key, deletes included, instead of the newest. Of
    /// one key (`key`) only the newest that fit in `max_bytes`; then `more_after` says that there are older ones.
    pub history: bool,
    /// About how many bytes to answer at most; at least one row if there is one.
    pub max_bytes: usize,
}

/// A version as a reader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VersionedRow {
    /// The key.
    pub key: Key,
    /// The row; `None` is a delete, which only a history shows.
    pub row: Option<Row>,
    /// The commit's hybrid time.
    pub time: HybridTime,
    /// The decision's log position; 0 for copied rows.
    pub position: LogPosition,
    /// The stream it came from.
    pub stream: SourceTabletId,
}

/// A page of rows in key order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadPage {
    /// The rows.
    pub rows: Vec<VersionedRow>,
    /// Set when there may be more: ask again with `after` set to this.
    pub more_after: Option<Key>,
}

/// What a tablet holds, for status and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TabletStats {
    /// Branches with provisional records.
    pub provisional_branches: u64,
    /// Provisional records (writes), those in staged chunks among them.
    pub provisional_records: u64,
    /// Their bytes.
    pub provisional_bytes: u64,
    /// Bytes on disk, all in all.
    pub disk_bytes: u64,
}

/// How a call on a tablet ended when it did not do what was asked.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum TabletError {
    /// Determinate: the batch does not follow what is held; nothing was stored. Send what follows this position.
    #[error("the tablet holds {held}, the batch follows {follows}")]
    OutOfOrder {
        /// The position held.
        held: OpId,
        /// The position that the batch follows.
        follows: OpId,
    },
    /// Determinate: the apply batch does not follow what was heard; nothing was done. Send what follows this position.
    #[error("the tablet has heard the log up to {heard}, the batch follows {follows}")]
    HeardOther {
        /// What it has heard.
        heard: LogPosition,
        /// What the batch follows.
        follows: LogPosition,
    },
    /// Determinate: a higher epoch (of an owner, or of this stream's puller) was seen; nothing was done.
    #[error("fenced: epoch {held} was seen")]
    Fenced {
        /// The higher epoch.
        held: Epoch,
    },
    /// Determinate: the chunk or the adoption does not match what is staged; the connection must start over.
    #[error("staged chunks do not match: {0}")]
    ChunksLost(String),
    /// Determinate: the tablet can never do this (bound to another log, a malformed batch, an unknown table, …).
    #[error("the tablet refuses: {0}")]
    Refused(String),
    /// Determinate: a write of a decided transaction is refused where it is to go. It is tried again with the same batch, and
    /// goes through once the cause is mended, or the transaction is skipped because somebody said so.
    #[error("{0}")]
    RefusedWrite(Box<RefusedWrite>),
    /// Determinate: this stream put a row under a key where another stream's row was, and nothing says which came first.
    /// Nothing more is taken from it while that row is there.
    #[error("key {key} of {table} was written by stream {first} as well")]
    WrittenTwice {
        /// The table's name.
        table: String,
        /// The key, for people.
        key: String,
        /// Whose row was there.
        first: SourceTabletId,
    },
    /// Determinate: the read point lies below what the tablet still keeps apart.
    #[error("the read point {asked} lies below {kept}, the oldest that is kept")]
    TooOld {
        /// What was asked for.
        asked: String,
        /// The oldest that can be asked for.
        kept: String,
    },
    /// It may have happened and it may not; ask again with the same batch, which the marks make harmless.
    #[error("the tablet did not answer: {0}")]
    Indeterminate(String),
    /// An I/O error or a failed barrier: final for the process that holds the tablet (C11).
    #[error("the tablet's storage failed: {0}")]
    Poisoned(String),
}

/// A write that a replica refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedWrite {
    /// Who refuses it.
    pub server: String,
    /// The transaction.
    pub transaction: TransactionId,
    /// Where its decision stands.
    pub position: LogPosition,
    /// Table and key of the row; empty where no single row is refused.
    pub key: String,
    /// The statement.
    pub statement: String,
    /// What the server said.
    pub message: String,
}

impl std::fmt::Display for RefusedWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { server, transaction, key, statement, message, .. } = self;
        let row = if key.is_empty() { String::new() } else { format!(", row {key}") };
        write!(
            f,
            "{server} refuses transaction {transaction}{row}: {message}; the statement: {statement}; mend the cause (`untorn \
             retry` tries at once), or give the transaction up with `untorn skip {transaction}`"
        )
    }
}

/// One moment of a table, read page by page.
#[async_trait]
pub trait Frozen: Send {
    /// The next rows, in key order; none once all of them were given.
    async fn next(&mut self) -> Result<Vec<VersionedRow>, TabletError>;
}

/// The log's word on releases (see [`ReleaseId`]).
#[async_trait]
pub trait Releases: Send + Sync {
    /// The last release of a tablet that was decided; everything that was said of it before is durable then.
    ///
    /// # Errors
    /// The log has another owner, or is not reached.
    async fn last(&self, tablet: ReplicaTabletId) -> Result<Option<ReleaseId>, TabletError>;

    /// Decides a release that every server has prepared, and answers once that is durable.
    ///
    /// # Errors
    /// Indeterminate: [`Releases::last`] says what came of it.
    async fn decide(
        &self,
        tablet: ReplicaTabletId,
        release: ReleaseId,
        through: LogPosition,
    ) -> Result<(), TabletError>;
}

/// The leader of one replica tablet. Calls may come from many tasks at once; batches of one stream come one after
/// another, and so do apply batches. A call that its caller drops has happened whole or not at all.
#[async_trait]
pub trait TabletLeader: Send + Sync {
    /// A new owner announces its epoch, *before* it reads what the tablet holds (C7). Binds a new tablet to the log; a
    /// tablet that is bound to another refuses.
    async fn announce(&self, log_id: &str, tablet: ReplicaTabletId, owner: Epoch) -> Result<Announced, TabletError>;

    /// A puller of a stream announces its epoch, before each connection, and learns the mark held for its stream. Chunks
    /// that earlier connections staged and nobody adopted are thrown away.
    async fn announce_puller(
        &self,
        stream: SourceTabletId,
        owner: Epoch,
        puller: Epoch,
    ) -> Result<StreamMark, TabletError>;

    /// Stores provisional records; answers once they are durable, with the mark in the same atomic batch.
    async fn write_provisional(&self, batch: ProvisionalBatch) -> Result<Stored, TabletError>;

    /// Stages a chunk. Its writes are filled already.
    async fn stage_chunk(&self, chunk: ChunkBatch) -> Result<(), TabletError>;

    /// Throws staged chunks away; none may be there. Need not last: whatever a crash brings back, the next puller's
    /// announcement throws away.
    async fn drop_chunks(&self, drop: DropChunks) -> Result<(), TabletError>;

    /// The row with its unchanged cells filled. Everything that the stream carried before it must be stored here.
    async fn fill(&self, request: FillRequest) -> Result<Row, TabletError>;

    /// Stores rows of a copy; answers once they are durable, because they come once and carry no numbers.
    async fn copy_rows(&self, batch: CopyBatch) -> Result<(), TabletError>;

    /// Applies decisions. Idempotent by transaction: a branch that is gone was applied.
    async fn apply(&self, batch: ApplyBatch) -> Result<Applied, TabletError>;

    /// Reads a page of rows, waiting until the tablet has heard the log up to the read point.
    async fn read(&self, request: ReadRequest) -> Result<ReadPage, TabletError>;

    /// Makes everything applied so far durable and says how far that is.
    async fn sync(&self) -> Result<Applied, TabletError>;

    /// What the tablet holds.
    async fn stats(&self) -> Result<TabletStats, TabletError>;

    /// Gives up the transaction that [`TabletError::RefusedWrite`] named, with the next [`Self::apply`]; answers which of
    /// the transactions decided after it wrote rows that it wrote, as far as they were handed over.
    async fn skip(&self, transaction: TransactionId) -> Result<Vec<TransactionId>, TabletError> {
        Err(TabletError::Refused(format!("it refuses no transaction, and {transaction} is not to be skipped")))
    }

    /// Where the decisions on its releases are put; told by an owner before it announces itself. A tablet that makes visible
    /// at one place has none.
    fn release_through(&self, _releases: Arc<dyn Releases>) {}

    /// Whether it keeps versions, so that [`Self::read`] serves any read point; else it is read by [`Self::freeze`].
    fn keeps_versions(&self) -> bool {
        true
    }

    /// Whether its readers are served anything yet: one that keeps no versions shows nothing before the first cut.
    fn is_shown(&self) -> bool {
        true
    }

    /// Holds one moment of a table at or after a log position, of a tablet that keeps no versions: all of its rows, or those
    /// of some keys.
    async fn freeze(
        &self,
        table: TableSchema,
        at: LogPosition,
        _keys: Option<&[Key]>,
    ) -> Result<Box<dyn Frozen>, TabletError> {
        Err(TabletError::Refused(format!(
            "table {} at {at}: it keeps versions, which are read page by page",
            table.name
        )))
    }
}
