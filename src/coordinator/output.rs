//! What the coordinator asks of the world, and what it answers.

use super::decided::Decided;
use crate::wal::{Epoch, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TransactionId};

/// Something to do. An output is yielded only once everything that it rests on is durable, so it may run at once.
/// Outputs for one tablet come in log order. After a crash all of them come again that may not have happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Hand a decision to a replica tablet.
    Apply {
        /// The tablet.
        tablet: ReplicaTabletId,
        /// The decision and its position.
        decided: Decided,
    },
    /// Read these servers' flush positions, then call `handle_round` with this `begun_after`. At most one is on its way.
    TakeRound {
        /// The last entry that was closed when it was asked for.
        begun_after: LogPosition,
        /// The streams whose servers are asked.
        of: Vec<SourceTabletId>,
    },
    /// Every slot stands: read each server's flush position, then what is prepared there, then the flush position again,
    /// and call `handle_fence`.
    TakeFence {
        /// The streams whose servers are asked.
        of: Vec<SourceTabletId>,
    },
    /// Transactions of the fence's list that have not ended in the stream: if they are gone from the server, read its
    /// flush position after that and call `handle_fence_resolved`.
    CheckPrepared {
        /// The stream.
        stream: SourceTabletId,
        /// Which.
        transactions: Vec<SourceTransactionId>,
    },
    /// Ask the source whether it knows these transactions as running; report a `NotRunning` fact once the stream has
    /// passed the position that it answers.
    CheckRunning {
        /// The stream that would carry their Commit record.
        stream: SourceTabletId,
        /// Which.
        transactions: Vec<SourceTransactionId>,
    },
    /// The stream must move past a position that its server has flushed: ping it, then nudge it.
    Nudge {
        /// The stream.
        stream: SourceTabletId,
    },
}

/// An answer that may be given only once the log is durable up to `after`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promise<T> {
    /// The log position to wait for.
    pub after: LogPosition,
    /// The answer.
    pub value: T,
}

/// Why an input was refused. Nothing of it was taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// It does not follow what is held.
    #[error("the log holds {held}, the report follows {follows}")]
    OutOfOrder {
        /// The checkpoint held.
        held: OpId,
        /// What the report follows.
        follows: OpId,
    },
    /// A higher puller epoch was given out for the stream.
    #[error("fenced: puller epoch {held} has this stream")]
    Fenced {
        /// The higher epoch.
        held: Epoch,
    },
    /// It cannot be true (C1, C2): the stream stops by name.
    #[error("{0}")]
    Damage(String),
    /// No such stream, or it left.
    #[error("no stream {0} takes part: the configuration of the transaction leader does not name it")]
    UnknownStream(String),
    /// This log has not made it.
    #[error(
        "{stream}: {found} is there already, and was not made by this untorn, whose log never asked for it: another one may \
         need what it carries. If none does, drop it: untorn source drop --config FILE --tablet {stream}"
    )]
    ForeignSlot {
        /// The stream's name.
        stream: String,
        /// What is there.
        found: String,
    },
}

/// What a puller needs to open its stream.
#[derive(Clone, PartialEq, Debug)]
pub struct StreamOpening {
    /// The stream's number.
    pub stream: SourceTabletId,
    /// The puller's epoch.
    pub puller: Epoch,
    /// Resume strictly after this position.
    pub checkpoint: OpId,
    /// What the log says was stored at each tablet.
    pub stored: Vec<(ReplicaTabletId, OpId)>,
    /// Branches that were reported and have not ended.
    pub open_branches: Vec<OpenBranchView>,
    /// Where the slot starts, once it stands.
    pub slot: Option<OpId>,
    /// What tells the stream's server from another; empty before the slot stands.
    pub identity: String,
}

/// A branch that was reported and has not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenBranchView {
    /// The transaction's id as the stream named it.
    pub transaction: SourceTransactionId,
    /// What the source will end it by, where that is not the transaction's id.
    pub label: Option<String>,
    /// Where it opened.
    pub opened: OpId,
    /// How many of its Write records were reported.
    pub records: u64,
    /// Whether its Applying record was.
    pub applying: bool,
    /// untorn's number of the transaction it belongs to, as far as is known.
    pub belongs_to: TransactionId,
}
