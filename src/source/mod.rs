//! Sources: where streams come from.
//!
//! A [`Source`] opens streams and answers questions about the servers behind them. A [`Stream`] yields what its source
//! tablet sent, in order; it keeps its connection alive by itself while nobody calls it (an applier that stalls must
//! not look like a dead client), for which `open` hands back a future that the applier spawns.

pub mod cdc;
pub mod postgres;

use crate::coordinator::PublishedTable;
use crate::flow::Retention;
use crate::wal::{
    Column, DroppedChunks, HybridTime, Key, OpId, Row, SourceBatch, SourceTabletId, SourceTransactionId, StagedChunk,
    TableSchema,
};
use async_trait::async_trait;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Where a stream is to be resumed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resume {
    /// The log's number of the stream, which the ids of its branches carry.
    pub stream: SourceTabletId,
    /// [`NewSlot::identity`] as it was when the slot was created; empty when it is not known. Another server behind the
    /// same address is refused; to a CDC service it is the reader's name.
    pub identity: String,
    /// Strictly after this position.
    pub after: OpId,
    /// Branches that are open there: the source must be able to name them again when they end.
    pub open_branches: Vec<OpenBranch>,
}

/// A branch that was reported and has not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenBranch {
    /// The transaction as the stream named it.
    pub transaction: SourceTransactionId,
    /// What the source ends it by, where that is not the transaction's id: see [`crate::wal::Record::Applying`].
    pub label: Option<String>,
    /// Where it opened.
    pub opened: OpId,
    /// How many of its Write records were taken so far.
    pub records: u64,
    /// Whether its Applying record was taken.
    pub applying: bool,
}

/// What a stream hands over.
#[derive(Clone, PartialEq, Debug)]
pub enum StreamEvent {
    /// A run of records with positions.
    Batch(SourceBatch),
    /// A chunk of a transaction that has not ended.
    Chunk(StagedChunk),
    /// Chunks handed over before that go nowhere.
    Dropped(DroppedChunks),
}

/// Why a stream cannot go on.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    /// It may work again after a while: a server that is down, a slot in use, a password that is being changed. The text
    /// says what, where and how to mend it.
    #[error("{0}")]
    Retry(String),
    /// It will not work until somebody mends it: damage, a checkpoint that is gone, a missing publication. The stream
    /// stops by name; the text says what, where and how to mend it.
    #[error("{0}")]
    Stop(String),
}

/// The catalog of tables, which the log keeps. A stream asks it before it yields the first write under a new shape.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// The number and version of a table with these columns, given by the log if it does not have them yet. `relation` is
    /// what the stream calls the table, where it is about to send changes of it; `None` for whoever only copies it.
    async fn table(&self, name: &str, columns: Vec<Column>, relation: Option<u32>) -> Result<TableSchema, SourceError>;
}

/// A future that the applier spawns for a stream's connection; it ends when the stream is dropped.
pub type Keeper = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An open stream.
#[async_trait]
pub trait Stream: Send {
    /// What comes next. Waits for it; cancel-safe.
    async fn next(&mut self) -> Result<StreamEvent, SourceError>;

    /// Everything at or below this position is durable at the replica and in the log: the source may forget it.
    fn acknowledge(&mut self, upto: OpId);

    /// What was really told to the source so far; at or below the last `acknowledge`.
    fn acknowledged(&self) -> OpId;

    /// [`NewSlot::identity`] of the server that answers, where it may differ from [`Resume::identity`] although the stream
    /// goes on: a standby took its server's place.
    fn identity(&self) -> Option<&str> {
        None
    }
}

/// A table of a publication, and about how large it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotTable {
    /// How its server describes it.
    pub published: PublishedTable,
    /// About how many rows it has, where known.
    pub estimate: Option<u64>,
}

/// What a server held at one position of its stream. It lasts as long as this value.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// Transactions whose commit lies at or below this position are in it, all others are not.
    fn position(&self) -> OpId;

    /// The publication's tables, as the snapshot has them.
    fn tables(&self) -> &[SnapshotTable];

    /// Begins to read a table, over a connection of its own.
    async fn read(&self, table: &str, catalog: Arc<dyn Catalog>) -> Result<Box<dyn CopyReader>, SourceError>;
}

/// A table of a snapshot that is being read.
#[async_trait]
pub trait CopyReader: Send {
    /// Its shape.
    fn schema(&self) -> &TableSchema;

    /// About how many rows it has, where known.
    fn estimate(&self) -> Option<u64>;

    /// The next rows, and about how many bytes they took on the way; `None` after the last.
    async fn next(&mut self) -> Result<Option<(Vec<(Key, Row)>, usize)>, SourceError>;
}

/// A slot that was created, and what it takes to copy what came before it.
pub struct NewSlot {
    /// The stream carries every transaction that commits above this position; all others are in the copy.
    pub start: OpId,
    /// What tells this server from another that took its place, or (`cdc`) this replica from the server's other readers.
    pub identity: String,
    /// What the server held there; `None` where the stream carries everything.
    pub snapshot: Option<Box<dyn Snapshot>>,
}

/// What is prepared on a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// The gid.
    pub gid: String,
    /// The transaction that it names, as the stream would.
    pub transaction: SourceTransactionId,
    /// When it was prepared.
    pub since: HybridTime,
}

/// Where streams come from: one for each `[[source.tablets]]`.
#[async_trait]
pub trait Source: Send + Sync {
    /// The source tablet's name in the configuration.
    fn name(&self) -> &str;

    /// The stream's slot, if one is there, in words: one that the log never asked for is another's.
    async fn found_slot(&self) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    /// Makes sure that the stream can be read from its start, and takes the snapshot for the initial copy. Drops and
    /// creates again a slot of which the log does not know that it stands: its creation was cut off.
    async fn create_slot(&self) -> Result<NewSlot, SourceError>;

    /// A snapshot of now. Its position lies above the end of everything that was prepared when it was asked for.
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        Err(SourceError::Stop(format!("{} has nothing to copy: its stream carries everything", self.name())))
    }

    /// The publication's tables as they are now, and a position that the server has flushed since; `None` for sources
    /// whose streams carry everything from the first record on.
    async fn publication(&self) -> Result<Option<(Vec<PublishedTable>, OpId)>, SourceError> {
        Ok(None)
    }

    /// Opens the stream. The second part is spawned by the caller.
    async fn open(&self, resume: Resume, catalog: Arc<dyn Catalog>) -> Result<(Box<dyn Stream>, Keeper), SourceError>;

    /// A position that the server has flushed by now, for discovery rounds and fences. `None` for sources with a common
    /// clock, which need neither.
    async fn flushed(&self) -> Result<Option<OpId>, SourceError> {
        Ok(None)
    }

    /// What is prepared on the server right now, in this stream's database; nothing ever with a common clock.
    async fn prepared(&self) -> Result<Vec<Prepared>, SourceError> {
        Ok(Vec::new())
    }

    /// Which of these transactions the source no longer knows as running, and a position of this stream that was
    /// reached when it said so: once the stream has passed it, their Commit record can no longer come (C8).
    async fn not_running(
        &self,
        transactions: Vec<SourceTransactionId>,
    ) -> Result<(Vec<SourceTransactionId>, OpId), SourceError>;

    /// What the server keeps back for this stream; `None` where there is nothing to say.
    async fn retention(&self) -> Result<Option<Retention>, SourceError> {
        Ok(None)
    }

    /// The slot that [`Source::create_slot`] made is about to be written into the log: it must not be abandoned any more.
    fn slot_stands(&self) {}

    /// Drops the slot that [`Source::create_slot`] made, as far as that can be done, if its copy came to nothing.
    async fn abandon_slot(&self) {}

    /// The tables that the server publishes, by name; `None` for sources whose rows cannot be read but as a stream.
    async fn published(&self) -> Result<Option<Vec<String>>, SourceError> {
        Ok(None)
    }

    /// A table's rows, in one statement that sees one moment of the server; with keys, only the rows that have them.
    /// `None` where the server does not publish it.
    async fn rows(&self, _table: &str, _keys: Option<&[Key]>) -> Result<Option<Box<dyn CopyReader>>, SourceError> {
        Ok(None)
    }

    /// The number of the oldest transaction that is open on the server, prepared ones among them, and the number that
    /// the next one gets: once the oldest is at or above a number that was once the next, everything open then has ended.
    async fn open_transactions(&self) -> Result<(u64, u64), SourceError> {
        Ok((0, 0))
    }

    /// Makes a stream move that stays short of `wanted` although the server has flushed it (an empty transactional
    /// message, for PostgreSQL).
    async fn nudge(&self) -> Result<(), SourceError> {
        Ok(())
    }
}
