//! Which transaction does a branch belong to, when a source may use an id again?
//!
//! With a common clock the source says the incarnation itself. A PostgreSQL gid may be used again as soon as it is
//! resolved, and nothing in a stream says which use a PREPARE belongs to. Three rules tell the uses apart (trace 32):
//!
//! 1. A transaction that has a branch in this stream which ended, or that is decided, takes no further branch: the
//!    PREPARE belongs to a later use. Of those that take it, it is the oldest's: streams lag.
//! 2. A branch that was prepared later than another one's COMMIT PREPARED, by more than the clocks may differ, is of a
//!    later use: whoever prepares everything before it commits anything cannot have made it. Every COMMIT PREPARED is asked,
//!    because the one that is heard first may be the later use's.
//! 3. A branch that is rolled back leaves its transaction. If the others roll back too, each has ended and been
//!    discarded; if one commits, the one that was rolled back was of another use. So a decision that nobody's end was waited
//!    for, because its stream is still on its way in, takes no branch of that stream which has not ended.

use super::joining::Joining;
use super::state::State;
use super::stream::Place;
use super::transaction::{Branch, Transaction};
use crate::planted::{Bug, planted};
use crate::wal::{BranchId, HybridTime, OpId, SourceTabletId, SourceTransactionId, TransactionId};

impl State {
    /// The uses of an id that are not forgotten, oldest first.
    pub(super) fn uses(&self, source: &SourceTransactionId) -> Vec<TransactionId> {
        let first = self.transactions.find(&SourceTransactionId { id: source.id.clone(), incarnation: 0 });
        first.into_iter().chain(self.reused.get(&source.id).into_iter().flatten().copied()).collect()
    }

    /// The transaction of exactly this id and incarnation, begun if it is not known (common clock).
    pub(super) fn identified(&mut self, source: &SourceTransactionId) -> TransactionId {
        let found = self.transactions.find(source);
        found.unwrap_or_else(|| self.transactions.create(source.clone(), self.time))
    }

    /// The transaction that holds this branch.
    pub(super) fn holder(
        &self,
        source: &SourceTransactionId,
        stream: SourceTabletId,
        opened: OpId,
    ) -> Option<TransactionId> {
        let holds = |id: &TransactionId| self.transactions.get(*id).is_some_and(|t| t.branch(stream, opened).is_some());
        self.uses(source).into_iter().rev().find(holds)
    }

    /// The transaction that a new branch belongs to, begun if it is a new use of its id: the oldest that takes it, because
    /// a stream that lags may bring a branch of a use after others have come and gone.
    pub(super) fn joined(
        &mut self,
        source: &SourceTransactionId,
        stream: SourceTabletId,
        prepared_at: HybridTime,
        after: Option<TransactionId>,
    ) -> TransactionId {
        let skew_micros = self.clock_skew_micros;
        let uses = self.uses(source);
        let from = uses.iter().position(|id| Some(*id) == after).map_or(0, |place| place + 1);
        let takes = |id: &&TransactionId| {
            self.transactions.get(**id).is_some_and(|t| takes_branch(t, stream, prepared_at, skew_micros))
        };
        let found = uses[from..].iter().find(takes).copied();
        found.unwrap_or_else(|| self.new_use(source, uses.last().copied()))
    }

    /// A new use of an id, right after this one in time.
    fn new_use(&mut self, source: &SourceTransactionId, after: Option<TransactionId>) -> TransactionId {
        let uses = self.uses(source);
        let incarnations = uses.iter().filter_map(|id| self.transactions.get(*id)).map(|t| t.source.incarnation);
        let incarnation = incarnations.max().map_or(0, |highest| highest + 1);
        let id = self.transactions.create(SourceTransactionId { id: source.id.clone(), incarnation }, self.time);
        if incarnation > 0 {
            let later = self.reused.entry(source.id.clone()).or_default();
            let place = later.iter().position(|other| Some(*other) == after).map_or(0, |place| place + 1);
            later.insert(place, id);
        }
        id
    }

    /// One branch of the transaction, `by` where that is known, was committed at this time: branches that were prepared too late to belong to it
    /// leave for a later use (rule 2). Asked at every COMMIT PREPARED, and when the time of a PREPARE becomes known only
    /// after the branch's first records.
    pub(super) fn split_off_later_use(&mut self, id: TransactionId, committed_at: HybridTime, by: Option<BranchId>) {
        let skew_micros = self.clock_skew_micros;
        let Some(found) = self.transactions.get_mut(id).filter(|t| t.decision.is_none()) else { return };
        let source = found.source.clone();
        let is_later =
            |branch: &Branch| Some(branch.id()) != by && is_later(branch.prepared_at, committed_at, skew_micros);
        let later: Vec<Branch> = found.branches.iter().filter(|b| is_later(b)).cloned().collect();
        if later.is_empty() {
            return;
        }
        found.branches.retain(|branch| !is_later(branch));
        // The Commit record was the later use's, which was heard first. Its discovery needs every stream to pass a
        // position that was read after it, and this branch's end lies below: so it is not decided yet.
        let commit = later.iter().any(|branch| branch.ended).then(|| found.commit.take()).flatten();
        let moved = commit.as_ref().map(|_| self.new_use(&source, Some(id)));
        for branch in later {
            let next = moved.unwrap_or_else(|| self.joined(&source, branch.stream, branch.prepared_at, Some(id)));
            self.move_branch(branch, id, next);
        }
        if let (Some(next), Some(commit)) = (moved, commit) {
            self.undecided.remove(&(commit.time, id));
            self.undecided.insert((commit.time, next));
            self.discovery.rename(id, next);
            let starts = self.transactions.get_mut(id).is_some_and(|t| std::mem::take(&mut t.starts));
            if let Some(found) = self.transactions.get_mut(next) {
                (found.commit, found.starts) = (Some(commit), starts);
            }
        }
    }

    /// The transaction is about to be committed, and nobody waited for a stream that is on its way in: whatever that one has
    /// prepared under the id and not ended may be of another use, and is told apart by how it ends (rule 3). If it is
    /// committed, it counts by itself; nobody sees anything of the stream before all of that is decided.
    pub(super) fn part_from_streams_on_their_way_in(&mut self, id: TransactionId) {
        let Some(found) = self.transactions.get(id).filter(|t| t.decision.is_none()) else { return };
        let is_on_its_way_in = |stream: SourceTabletId| {
            let joining = self.stream(stream).and_then(|record| record.joining.as_ref());
            matches!(joining, Some(Joining::Copying | Joining::Counted))
        };
        let parts = |branch: &&Branch| !branch.ended && !branch.bystander && is_on_its_way_in(branch.stream);
        let apart: Vec<Branch> = found.branches.iter().filter(parts).cloned().collect();
        if apart.is_empty() {
            return;
        }
        let source = found.source.clone();
        if let Some(found) = self.transactions.get_mut(id) {
            found.branches.retain(|branch| !apart.iter().any(|other| other.id() == branch.id()));
        }
        let next = self.new_use(&source, Some(id));
        for branch in apart {
            self.move_branch(branch, id, next);
        }
    }

    fn move_branch(&mut self, branch: Branch, from: TransactionId, to: TransactionId) {
        if let Some(record) = self.stream_mut(branch.stream) {
            for place in &mut record.places {
                let moved = match place {
                    Place::Prepare { opened, .. } => *opened == branch.opened,
                    Place::Commit { .. } => branch.ended,
                };
                let (Place::Prepare { transaction, .. } | Place::Commit { transaction }) = place;
                if moved && *transaction == from {
                    *transaction = to;
                }
            }
        }
        if let Some(owner) = self.by_branch.get_mut(&branch.id()) {
            *owner = to;
        }
        let (stream, opened, mentioned) = (branch.stream, branch.opened, branch.mentioned);
        if let Some(transaction) = self.transactions.get_mut(to) {
            transaction.branches.push(Branch { unacknowledged: false, ..branch });
        }
        self.mention(to, stream, Some(opened), mentioned);
        self.candidate(to);
    }

    /// An earlier use of the transaction's id that has not ended in every stream.
    pub(super) fn earlier_use(&self, transaction: &Transaction) -> Option<&Transaction> {
        if transaction.source.incarnation == 0 {
            return None;
        }
        let unended = |t: &&Transaction| t.branches.iter().any(|b| !b.ended);
        let earlier = self.uses(&transaction.source).into_iter().take_while(|id| *id != transaction.id);
        earlier.filter_map(|id| self.transactions.get(id)).find(unended)
    }
}

fn is_later(prepared_at: HybridTime, committed_at: HybridTime, skew_micros: u64) -> bool {
    prepared_at.micros() > committed_at.micros().saturating_add(skew_micros)
}

fn takes_branch(transaction: &Transaction, stream: SourceTabletId, prepared_at: HybridTime, skew_micros: u64) -> bool {
    if planted(Bug::GidJoinsAnyUse) {
        return transaction.decision.is_none();
    }
    transaction.decision.is_none()
        && !transaction.doomed
        && !transaction.branches.iter().any(|b| b.stream == stream && b.ended)
        && !transaction.commit.as_ref().is_some_and(|c| is_later(prepared_at, c.time, skew_micros))
}
