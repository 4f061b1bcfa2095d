//! The transaction log: one narrow contract, many engines.
//!
//! An entry is bytes to the log. One append is the commit of everything in it, so an engine must tell the truth about
//! every append: it did happen, it did not, or it is not known. State is a fold over the entries
//! ([`crate::coordinator`]), so an engine needs no more than this trait.
//!
//! Durable means durable: when `append` returns a position, a power cut does not take the entry away, and no reader is
//! shown it earlier. A failed durability barrier is final (C11): the engine answers [`LogError::Poisoned`] from then
//! on, and the process stops and recovers from what is on disk.
//!
#![doc = include_str!("../docs/transaction-log.md")]

pub mod conformance;
mod engine;
mod handle;
mod head;
mod memory;
mod owner;
mod read_back;
mod sled;
mod sqlite;
mod unreliable;
mod witness;

pub use engine::{EngineConfig, engine};
pub use memory::MemoryLog;
pub use read_back::{Fate, read_back};
pub use sled::SledLog;
pub use sqlite::SqliteLog;
pub use unreliable::{Faults, Unreliable};

use crate::wal::{Epoch, LogPosition};
use async_trait::async_trait;
use bytes::Bytes;

/// What `open` found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The new owner's epoch, above every one before it. Whoever holds a lower one is fenced from here on.
    pub epoch: Epoch,
    /// The log's own id, made when it was created and kept for ever. Replica tablets are bound to it.
    pub log_id: String,
    /// The last entry's position; 0 in an empty log.
    pub last: LogPosition,
}

/// One entry as `read` returns it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    /// Where it stands.
    pub position: LogPosition,
    /// Whose it is.
    pub epoch: Epoch,
    /// What was appended.
    pub entry: Bytes,
}

/// A snapshot of the fold's state, which replaces every entry at or below its position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The last position that it includes.
    pub position: LogPosition,
    /// The state's bytes.
    pub state: Bytes,
}

/// How an append or another call ended when it did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Determinate: another entry holds that position, or the position is not the next one. Nothing was stored.
    #[error("the log's next position is {next}, not {expected}")]
    Conflict {
        /// The position asked for.
        expected: LogPosition,
        /// The position that the next entry must ask for.
        next: LogPosition,
    },
    /// Determinate: a higher epoch is open. Nothing was stored, and nothing of this owner ever will be.
    #[error("fenced: epoch {held} has taken the log over")]
    Fenced {
        /// The higher epoch.
        held: Epoch,
    },
    /// It may have happened and it may not. Resolve it by reading back: it did happen if the position holds this very
    /// entry; it did not only if the position holds another, or a higher epoch is open. Never report it as either.
    #[error("outcome unknown: {0}")]
    Indeterminate(String),
    /// Determinate: it did not happen, and may be tried again later (a server that cannot be reached before anything
    /// was sent, say).
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// What the log holds cannot be read back: damage in the middle, or a newer format. Nothing may be served from it.
    #[error("the log is damaged: {0}")]
    Damaged(String),
    /// An I/O error or a failed barrier: final for this process (C11).
    #[error("the log's storage failed: {0}")]
    Poisoned(String),
}

/// The transaction log.
///
/// One caller at a time, who may give a call up only by dropping the log. Calls may block: the applier runs the log on
/// a thread of its own. Positions are dense: 1, 2, 3, ….
#[async_trait]
pub trait TransactionLog: Send {
    /// Takes the log over, creating it when there is none: every epoch given out before is fenced.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], [`LogError::Damaged`] or [`LogError::Poisoned`].
    async fn open(&mut self, owner: &str) -> Result<Opened, LogError>;

    /// Appends one entry at `expected`, durably, if that is the next position and `epoch` is the highest.
    ///
    /// # Errors
    /// Every kind; see [`LogError`] for what each leaves behind.
    async fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError>;

    /// Entries at and above `from`, in order, at least one if there is one, and not many more than `max_bytes`. Empty at
    /// the end. Positions at or below the last trim are gone.
    ///
    /// # Errors
    /// [`LogError::Conflict`] when `from` was trimmed away; else as `open`.
    async fn read(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError>;

    /// Stores a snapshot durably, in place of the one before. Its position must be held or trimmed.
    ///
    /// # Errors
    /// [`LogError::Conflict`] when its position is beyond the last entry or below the snapshot that is held, whose
    /// entries may be trimmed; else as `append`.
    async fn write_snapshot(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(), LogError>;

    /// The newest snapshot, if there is one.
    ///
    /// # Errors
    /// As `open`.
    async fn read_snapshot(&mut self) -> Result<Option<Snapshot>, LogError>;

    /// Forgets entries at or below `up_to`, which the newest snapshot must include. Idempotent; may be lost in a crash.
    ///
    /// # Errors
    /// [`LogError::Conflict`] when no snapshot includes `up_to`; else as `append`.
    async fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError>;
}

#[async_trait]
impl TransactionLog for Box<dyn TransactionLog> {
    async fn open(&mut self, owner: &str) -> Result<Opened, LogError> {
        (**self).open(owner).await
    }

    async fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError> {
        (**self).append(expected, epoch, entry).await
    }

    async fn read(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        (**self).read(from, max_bytes).await
    }

    async fn write_snapshot(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(), LogError> {
        (**self).write_snapshot(epoch, snapshot).await
    }

    async fn read_snapshot(&mut self) -> Result<Option<Snapshot>, LogError> {
        (**self).read_snapshot().await
    }

    async fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        (**self).trim(epoch, up_to).await
    }
}
