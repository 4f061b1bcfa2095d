//! One transaction record: what is known of a transaction, and its life on the replica.

use super::entry::Outcome;
use super::fact::InvolvedStream;
use crate::wal::{
    BranchId, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TransactionId,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::fmt;

/// A transaction's life on the replica. It is not kept: it follows from the facts and the decision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Set by a Created record or a first write; waits for the first Applying or Commit record.
    Created,
    /// Set by a Pending record; waits as `Created` does.
    Pending,
    /// Set by the first Applying or Commit record; waits for its gate, and for its cut where there is no common clock.
    WaitingToCommit,
    /// Set by the decision; waits for the replica tablets to apply it.
    Committed,
    /// Set when every involved replica tablet has durably applied it; waits to be forgotten (C13).
    Applied,
    /// Set by the decision to abort, or once every branch was rolled back; waits to be forgotten.
    Aborted,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One source tablet's part of a transaction, as far as its stream was heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The stream.
    pub stream: SourceTabletId,
    /// Where it opened in the stream.
    pub opened: OpId,
    /// The last position at which the stream spoke of it: what must be acknowledged before it may be forgotten.
    pub mentioned: OpId,
    /// How many Write records were taken.
    pub records: u64,
    /// When it was prepared (PostgreSQL), else zero.
    pub prepared_at: HybridTime,
    /// The replica tablets that hold writes of it.
    pub tablets: SmallVec<[ReplicaTabletId; 4]>,
    /// What few branches have.
    pub extra: Option<Box<BranchExtra>>,
    /// Its Applying record has arrived.
    pub applying: bool,
    /// The stream carried the Created record, so it will carry the Commit or Aborted record.
    pub carrier: bool,
    /// The stream has carried records of the transaction itself (Created, Commit) but none of a branch.
    pub bystander: bool,
    /// Its end in the stream was heard: COMMIT PREPARED, an ordinary commit, or with a common clock the Applying record.
    pub ended: bool,
    /// Its PREPARE lies inside the cut (`release = "ordered"`), or before everything in the stream, because it was prepared
    /// before the slot stood and came with its COMMIT PREPARED.
    pub inside: bool,
    /// It waits in its stream's queue of ends that are not acknowledged yet.
    pub unacknowledged: bool,
}

/// What few branches have: apart, because a million branches may wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchExtra {
    /// What the source will end it by, where that is not the transaction's id.
    pub label: Option<Box<str>>,
    /// Earlier undecided branches of its stream that wrote one of its keys (`release = "atomic"`).
    pub after: Vec<BranchId>,
}

/// What the Commit record said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// The source's commit time; with several COMMIT PREPARED, the first one's.
    pub time: HybridTime,
    /// Who it names; `None`: found out by discovery, or only its own stream.
    pub listed: Option<Box<[InvolvedStream]>>,
    /// Whether everyone involved is known: at once, or when discovery is over.
    pub discovered: bool,
}

/// What was decided, and where it stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// How it ends.
    pub outcome: Outcome,
    /// The decision's place.
    pub position: LogPosition,
}

/// The transaction record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// untorn's number.
    pub id: TransactionId,
    /// The source's id, with the incarnation that the fold found where the source does not say it.
    pub source: SourceTransactionId,
    /// When the log first heard of it, by the leader's clock.
    pub since: HybridTime,
    /// A Pending record was heard.
    pub pending: bool,
    /// Its parts. Seldom more than four, and while it waits often the first only.
    pub branches: SmallVec<[Branch; 1]>,
    /// Its Commit record, once heard.
    pub commit: Option<CommitRecord>,
    /// The decision, once there is one.
    pub decision: Option<Decision>,
    /// Every replica tablet has durably applied the decision.
    pub applied: bool,
    /// The source says that it will never commit: it waits for the decision to abort.
    pub doomed: bool,
    /// It was committed at the source when the start fence was passed: nothing is shown before it is decided.
    pub starts: bool,
}

/// What a stream has carried of a transaction.
#[derive(Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) records: u64,
    pub(super) complete: bool,
}

impl Carried {
    pub(super) fn is_nothing(self) -> bool {
        self.records == 0 && !self.complete
    }
}

impl Transaction {
    /// What a stream has carried of it.
    pub(super) fn carried_by(&self, stream: SourceTabletId) -> Carried {
        let parts = self.branches.iter().filter(|b| b.stream == stream && !b.bystander);
        parts.fold(Carried::default(), |sum, branch| Carried {
            records: sum.records + branch.records,
            complete: sum.complete || branch.applying,
        })
    }

    pub(super) fn new(id: TransactionId, source: SourceTransactionId, since: HybridTime) -> Self {
        Self {
            id,
            source,
            since,
            pending: false,
            branches: SmallVec::new(),
            commit: None,
            decision: None,
            applied: false,
            doomed: false,
            starts: false,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        match self.decision.map(|d| d.outcome) {
            Some(Outcome::Abort) => Status::Aborted,
            Some(Outcome::Commit(_)) if self.applied => Status::Applied,
            Some(Outcome::Commit(_)) => Status::Committed,
            None if self.commit.is_some() || self.branches.iter().any(|b| b.applying) => Status::WaitingToCommit,
            None if self.pending => Status::Pending,
            None => Status::Created,
        }
    }

    /// The stream that will carry its Commit or Aborted record, once a Created record has said so.
    #[must_use]
    pub fn carrier(&self) -> Option<SourceTabletId> {
        self.branches.iter().find(|b| b.carrier).map(|b| b.stream)
    }

    /// The branch that opened there.
    #[must_use]
    pub fn branch(&self, stream: SourceTabletId, opened: OpId) -> Option<&Branch> {
        self.branches.iter().find(|b| b.stream == stream && b.opened == opened && !b.bystander)
    }

    pub(super) fn branch_mut(&mut self, stream: SourceTabletId, opened: OpId) -> Option<&mut Branch> {
        self.branches.iter_mut().find(|b| b.stream == stream && b.opened == opened && !b.bystander)
    }

    /// Every replica tablet that holds writes of it, in order and once.
    #[must_use]
    pub fn tablets(&self) -> SmallVec<[ReplicaTabletId; 8]> {
        let mut tablets: SmallVec<[ReplicaTabletId; 8]> = SmallVec::new();
        for tablet in self.branches.iter().flat_map(|b| &b.tablets) {
            if !tablets.contains(tablet) {
                tablets.push(*tablet);
            }
        }
        tablets.sort_unstable();
        tablets
    }
}

impl Branch {
    pub(super) fn new(stream: SourceTabletId, opened: OpId) -> Self {
        Self {
            stream,
            opened,
            mentioned: opened,
            records: 0,
            prepared_at: HybridTime::MIN,
            tablets: SmallVec::new(),
            extra: None,
            applying: false,
            carrier: false,
            bystander: false,
            ended: false,
            inside: false,
            unacknowledged: false,
        }
    }

    /// What the source will end it by, where that is not the transaction's id.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.extra.as_ref()?.label.as_deref()
    }

    /// Earlier undecided branches of its stream that wrote one of its keys (`release = "atomic"`).
    #[must_use]
    pub fn after(&self) -> &[BranchId] {
        self.extra.as_ref().map_or(&[], |extra| &extra.after)
    }

    /// How replica tablets call it.
    #[must_use]
    pub fn id(&self) -> BranchId {
        BranchId { stream: self.stream, opened: self.opened }
    }
}
