//! The gate: what a transaction still lacks before it may be decided. The one place that says "not yet", asked by the
//! machine before it decides and by `explain` when somebody wants to know why.

use super::discovery::Start;
use super::entry::Release;
use super::fact::InvolvedStream;
use super::state::State;
use super::stream::Place;
use super::transaction::{Branch, Transaction};
use crate::planted::{Bug, planted};
use crate::wal::{BranchId, OpId, SourceTabletId, TransactionId};

/// What a transaction lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Its Commit record. The stream is the one expected to carry it, where that is known.
    Commit(Option<SourceTabletId>),
    /// An involved source tablet's Applying record (C1).
    Applying(SourceTabletId),
    /// Nothing is offered to readers before the start fence is passed; the stream is one that has not passed it.
    StartFence(Option<SourceTabletId>),
    /// Whether the branches seen are all there are; the stream is the one that has not come far enough, or none while no
    /// round was taken.
    Discovery(Option<SourceTabletId>),
    /// An earlier use of the same id has not ended in this stream.
    GidInUse(SourceTabletId),
    /// Its place lies beyond the consistent cut: in this stream something stands before it.
    Cut(SourceTabletId, Option<TransactionId>),
    /// An undecided transaction wrote one of its keys before it (`release = "atomic"`).
    EarlierWrite(TransactionId),
}

impl Missing {
    /// The stream that it waits for, where that is known.
    #[must_use]
    pub fn stream(self) -> Option<SourceTabletId> {
        match self {
            Self::Applying(stream) | Self::GidInUse(stream) | Self::Cut(stream, _) => Some(stream),
            Self::Commit(stream) | Self::StartFence(stream) | Self::Discovery(stream) => stream,
            Self::EarlierWrite(_) => None,
        }
    }
}

/// The position after this one.
fn next(at: OpId) -> OpId {
    OpId::new(at.term, at.index.saturating_add(1))
}

impl State {
    /// What the transaction lacks, or `None` if it may be decided.
    #[must_use]
    pub fn missing(&self, transaction: &Transaction) -> Option<Missing> {
        let Some(commit) = &transaction.commit else {
            let silent = transaction.branches.iter().find(|b| !b.applying && !b.bystander).map(|b| b.stream);
            return Some(Missing::Commit(
                transaction.carrier().or(silent).or(transaction.branches.first().map(|b| b.stream)),
            ));
        };
        if let Some(listed) = &commit.listed {
            let lacking = listed.iter().find(|involved| {
                let carried = self.carried(Some(transaction), involved.stream, None);
                !carried.complete || involved.records.is_some_and(|expected| expected != carried.records)
            });
            let lacking = lacking.filter(|_| !(planted(Bug::GateWithoutOne) && self.lacks_one(transaction, listed)));
            return lacking.map(|involved| Missing::Applying(self.who_lacks(transaction, involved.stream)));
        }
        if matches!(self.start, Start::Slots | Start::Fenced { .. }) {
            return Some(Missing::StartFence(self.fence_laggard()));
        }
        if !commit.discovered && !planted(Bug::NoDiscovery) {
            return Some(Missing::Discovery(self.discovery.laggard(|stream| self.head(stream))));
        }
        if let Some(branch) = transaction.branches.iter().find(|b| !b.applying) {
            return Some(Missing::Applying(branch.stream));
        }
        if let Some(earlier) = self.earlier_use(transaction) {
            let open = earlier.branches.iter().find(|b| !b.ended).map(|b| b.stream);
            return open.map(Missing::GidInUse);
        }
        match self.release {
            Release::CommonClock => None,
            Release::Ordered => self.outside_cut(transaction),
            Release::Atomic => self.earlier_writer(transaction).map(Missing::EarlierWrite),
        }
    }

    /// Whether all but one of the tablets that a Commit record names have reported.
    fn lacks_one(&self, transaction: &Transaction, listed: &[InvolvedStream]) -> bool {
        let lacks = |involved: &&InvolvedStream| !self.carried(Some(transaction), involved.stream, None).complete;
        listed.iter().filter(lacks).count() == 1
    }

    /// The stream to wait for: of a tablet that was split, the first child that has not reported.
    fn who_lacks(&self, transaction: &Transaction, stream: SourceTabletId) -> SourceTabletId {
        let children = self.stream(stream).map_or(&[][..], |record| &record.children);
        let silent = children.iter().find(|child| !self.carried(Some(transaction), **child, None).complete);
        silent.map_or(stream, |child| self.who_lacks(transaction, *child))
    }

    fn outside_cut(&self, transaction: &Transaction) -> Option<Missing> {
        if let Some(branch) = transaction.branches.iter().find(|b| !b.inside && !planted(Bug::CutWithoutPrepares)) {
            return Some(self.cut_held_in(branch.stream));
        }
        if self.at_cut(transaction) {
            return None;
        }
        transaction.branches.iter().find(|b| b.ended).map(|b| self.cut_held_in(b.stream))
    }

    fn cut_held_in(&self, stream: SourceTabletId) -> Missing {
        let first = self.stream(stream).and_then(|record| record.places.front()).and_then(|place| match place {
            Place::Commit { transaction } => Some(*transaction),
            Place::Prepare { .. } => None,
        });
        Missing::Cut(stream, first)
    }

    pub(super) fn earlier_writer(&self, transaction: &Transaction) -> Option<TransactionId> {
        if planted(Bug::WritersReordered) {
            return None;
        }
        transaction.branches.iter().find_map(|branch| {
            branch.after().iter().find_map(|after| {
                let every = *after == BranchId::every_earlier(branch.stream);
                let named =
                    if every { *after..branch.id() } else { *after..BranchId { opened: next(after.opened), ..*after } };
                let mut earlier = self.by_branch.range(named);
                earlier.find(|(other, id)| self.stands_before(**id, **other, branch)).map(|(_, id)| *id)
            })
        })
    }

    /// Whether a branch that may have written one of the keys of another did so before it: its locks kept every other
    /// writer out until it ended. One that had not ended when the other opened wrote other keys, whatever its tablets
    /// could tell; waiting for it, too, two transactions might wait for each other. None stands before a branch that was
    /// prepared before the slot stood: that one has held its locks since, and only opens where it ends.
    fn stands_before(&self, id: TransactionId, earlier: BranchId, branch: &Branch) -> bool {
        if branch.inside {
            return false;
        }
        let found = self.transactions.get(id).filter(|t| t.branch(branch.stream, branch.opened).is_none());
        let earlier = found.and_then(|t| t.branch(earlier.stream, earlier.opened));
        earlier.is_some_and(|earlier| earlier.ended && earlier.mentioned < branch.opened)
    }

    fn fence_laggard(&self) -> Option<SourceTabletId> {
        match &self.start {
            Start::Slots => self.streams.iter().find(|r| !r.left && r.slot.is_none()).map(|r| r.stream),
            Start::Fenced { fence, outstanding } => {
                let behind = fence.positions.iter().find(|(s, at)| self.head(*s).is_some_and(|head| head < *at));
                behind.map(|(s, _)| *s).or(outstanding.first().map(|o| o.stream))
            }
            Start::FirstCut { .. } | Start::Over => None,
        }
    }
}
