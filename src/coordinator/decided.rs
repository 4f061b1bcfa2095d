//! What a decision asks of the replica's tablets, and where a reader stands among decisions.

use crate::wal::{BranchId, HybridTime, LogPosition, ReplicaTabletId, SourceTabletId, TableId, TransactionId};

/// What a decision asks of one tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// Turn these branches' provisional records into versions.
    Commit {
        /// The transaction.
        transaction: TransactionId,
        /// Its commit hybrid time.
        time: HybridTime,
        /// Its branches that wrote to this tablet, in the order in which they are to be applied; within one
        /// transaction a write beats another stream's delete of the same key.
        branches: Vec<BranchId>,
        /// Every replica tablet that it wrote to: the Commit record of this tablet's own WAL names them.
        tablets: Vec<ReplicaTabletId>,
    },
    /// What readers see of one stream's part of a table changes here.
    Turn {
        /// The stream.
        stream: SourceTabletId,
        /// The table.
        table: TableId,
        /// How.
        turn: Turn,
    },
    /// Throw these branches' provisional records away: aborted, or rolled back.
    Discard {
        /// Which.
        branches: Vec<BranchId>,
    },
}

impl Work {
    /// The branches that it speaks of.
    #[must_use]
    pub fn branches(&self) -> &[BranchId] {
        match self {
            Self::Commit { branches, .. } | Self::Discard { branches } => branches,
            Self::Turn { .. } => &[],
        }
    }

    /// The streams that carried what it is about.
    pub(super) fn streams(&self) -> impl Iterator<Item = SourceTabletId> + '_ {
        let turned = match self {
            Self::Turn { stream, .. } => Some(*stream),
            Self::Commit { .. } | Self::Discard { .. } => None,
        };
        self.branches().iter().map(|branch| branch.stream).chain(turned)
    }
}

/// A change of what readers see of one stream's part of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum Turn {
    /// Nothing yet: a copy with this base is on its way. Cells that its stream leaves out are filled from it.
    Begun {
        /// The hybrid time at which its rows stand.
        base: HybridTime,
    },
    /// From this place and time on, the copied rows at the base and what the stream wrote above it.
    Shown {
        /// The base.
        base: HybridTime,
        /// The time.
        time: HybridTime,
    },
    /// From this place and time on, nothing.
    Hidden {
        /// The time.
        time: HybridTime,
    },
}

/// One piece of work and the log position of the decision that asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decided {
    /// Where the decision stands in the log.
    pub position: LogPosition,
    /// What to do.
    pub work: Work,
}

/// How far a tablet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// It has heard the log up to here: reads see it.
    pub heard: LogPosition,
    /// It has applied the log up to here durably: a crash does not take it back.
    pub applied: LogPosition,
}

/// What a reader sees: exactly the transactions decided at or below `position` whose hybrid time is at or below `time`.
/// Fixed before the first tablet is read. `latest` is (a durable log position, [`HybridTime::MAX`]); `safe` is the safe
/// time and the position of the entry that established it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPoint {
    /// The log position.
    pub position: LogPosition,
    /// The hybrid time.
    pub time: HybridTime,
}
