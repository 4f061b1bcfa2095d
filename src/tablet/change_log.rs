//! What a CDC service serves: the change records of tablets, by name and by position.
//!
//! A [`ChangeLog`] is a tablet's own WAL (so that a replica can be a source) or the demo's source universe. Its records
//! are the protocol's own messages, in names instead of a log's numbers: whoever holds records keeps them in the form
//! in which they are sent, and the service adds nothing to the way.

use crate::proto::cdc::{CdcRecord, Schema};
use crate::wal::{OpId, SourceTransactionId};
use async_trait::async_trait;
use std::time::Duration;

/// Which records to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadChanges {
    /// The tablet's name.
    pub tablet: String,
    /// Who reads: what is above this reader's acknowledged position is kept for it.
    pub reader: String,
    /// Records strictly after this position.
    pub after: OpId,
    /// Everything at or below is durable at the reader and may be forgotten on its behalf; `None` says nothing new. It
    /// only rises: a lower one than before is ignored.
    pub acknowledged: Option<OpId>,
    /// About how many encoded bytes to answer at most; at least one record if there is one.
    pub max_bytes: usize,
    /// How long to wait for a record when there is none.
    pub wait: Duration,
    /// Whether to fill [`ChangePage::schemas`].
    pub need_schemas: bool,
}

/// A run of one tablet's records.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ChangePage {
    /// The records; positions are set, rise, and lie above [`ReadChanges::after`]. A table's Schema record comes before
    /// the first Write record that uses it, unless it is in `schemas`.
    pub records: Vec<CdcRecord>,
    /// The position to resume after: at or above the last record's, and at or above [`ReadChanges::after`].
    pub upto: OpId,
    /// When asked for: every shape that a record above [`ReadChanges::after`] may use and that no Schema record above it
    /// brings. All shapes ever used are a right answer.
    pub schemas: Vec<Schema>,
}

/// Which transactions a tablet does not know as running.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotRunning {
    /// Those of the asked ones that are not running: committed, aborted, or never heard of.
    pub transactions: Vec<SourceTransactionId>,
    /// How far the tablet's records went when that was so: whoever has read up to here without a Commit record of one
    /// of them will never read one.
    pub as_of: OpId,
}

/// Why records could not be read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ChangeLogError {
    /// There is no tablet of this name here.
    #[error("no tablet is named {0:?} here")]
    NotFound(String),
    /// The records after the asked position were forgotten: the reader needs a new copy.
    #[error("records after {after} are gone, the oldest that can be asked for are those after {oldest}")]
    Gone {
        /// What was asked for.
        after: OpId,
        /// The lowest position that can be asked for.
        oldest: OpId,
    },
    /// It may work again after a while: the tablet is starting, or its storage failed and its process is ending.
    #[error("{0}")]
    Unavailable(String),
}

/// The change records of one or more tablets. Calls come from many tasks at once.
#[async_trait]
pub trait ChangeLog: Send + Sync {
    /// The names of the tablets.
    async fn tablets(&self) -> Result<Vec<String>, ChangeLogError>;

    /// A page of records; empty when none came within [`ReadChanges::wait`]. Only records that are durable here are
    /// shown (C4). Cancel-safe: a call that is dropped leaves nothing behind but its acknowledgement.
    async fn read(&self, request: ReadChanges) -> Result<ChangePage, ChangeLogError>;

    /// Which of these transactions `tablet` does not know as running. The running ones are looked at *before* the
    /// position is taken, so that a Commit record in between lies at or below `as_of`.
    async fn check_transactions(
        &self,
        tablet: &str,
        transactions: Vec<SourceTransactionId>,
    ) -> Result<NotRunning, ChangeLogError>;
}
