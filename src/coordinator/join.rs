//! Which transaction does a branch belong to, when a source may use an id again?
//!
//! With a common clock the source says the incarnation itself. A PostgreSQL gid may be used again as soon as it is
//! resolved, and nothing in a stream says which use a PREPARE belongs to. Three rules tell the uses apart (trace 32):
//!
//! 1. A transaction that has a branch in this stream which ended, or that is decided, takes no further branch: the
//!    PREPARE begins a later use.
//! 2. A branch that was prepared later than another one's COMMIT PREPARED, by more than the clocks may differ, is of a
//!    later use: whoever prepares everything before it commits anything cannot have made it.
//! 3. A branch that is rolled back leaves its transaction. If the others roll back too, each has ended and been
//!    discarded; if one commits, the one that was rolled back was of another use.

use super::state::State;
use super::stream::Place;
use super::transaction::{Branch, Transaction};
use crate::wal::{HybridTime, OpId, SourceTabletId, SourceTransactionId, TransactionId};

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

    /// The transaction that a new branch belongs to, begun if it is a new use of its id.
    pub(super) fn joined(
        &mut self,
        source: &SourceTransactionId,
        stream: SourceTabletId,
        prepared_at: HybridTime,
    ) -> TransactionId {
        let skew_micros = self.clock_skew_micros;
        let newest = self.uses(source).pop();
        if let Some(id) = newest
            && self.transactions.get(id).is_some_and(|t| takes_branch(t, stream, prepared_at, skew_micros))
        {
            return id;
        }
        self.next_use(source, newest)
    }

    fn next_use(&mut self, source: &SourceTransactionId, newest: Option<TransactionId>) -> TransactionId {
        let incarnation = newest.and_then(|id| self.transactions.get(id)).map_or(0, |t| t.source.incarnation + 1);
        let id = self.transactions.create(SourceTransactionId { id: source.id.clone(), incarnation }, self.time);
        if incarnation > 0 {
            self.reused.entry(source.id.clone()).or_default().push(id);
        }
        id
    }

    /// When a transaction has its Commit record: branches that were prepared too late to belong to it leave for the next
    /// use (rule 2). At the first COMMIT PREPARED, and when the time of a PREPARE becomes known after the branch's first
    /// records.
    pub(super) fn split_off_later_use(&mut self, id: TransactionId) {
        let skew_micros = self.clock_skew_micros;
        let Some(transaction) = self.transactions.get_mut(id).filter(|t| t.decision.is_none()) else { return };
        let Some(committed_at) = transaction.commit.as_ref().map(|commit| commit.time) else { return };
        let source = transaction.source.clone();
        let mut later = Vec::new();
        transaction.branches.retain(|branch| {
            let stays = branch.ended || !is_later(branch.prepared_at, committed_at, skew_micros);
            if !stays {
                later.push(Branch { unacknowledged: false, ..branch.clone() });
            }
            stays
        });
        for branch in later {
            let next = self.joined(&source, branch.stream, branch.prepared_at);
            self.move_places(&branch, id, next);
            if let Some(owner) = self.by_branch.get_mut(&branch.id()) {
                *owner = next;
            }
            let (stream, opened, mentioned) = (branch.stream, branch.opened, branch.mentioned);
            if let Some(transaction) = self.transactions.get_mut(next) {
                transaction.branches.push(branch);
            }
            self.mention(next, stream, Some(opened), mentioned);
            self.candidate(next);
        }
    }

    fn move_places(&mut self, branch: &Branch, from: TransactionId, to: TransactionId) {
        let Some(record) = self.stream_mut(branch.stream) else { return };
        for place in &mut record.places {
            if let Place::Prepare { transaction, opened } = place
                && *transaction == from
                && *opened == branch.opened
            {
                *transaction = to;
            }
        }
    }

    /// An earlier use of the transaction's id that has not ended in every stream.
    pub(super) fn earlier_use(&self, transaction: &Transaction) -> Option<&Transaction> {
        if transaction.source.incarnation == 0 {
            return None;
        }
        let unended = |t: &&Transaction| t.id < transaction.id && t.branches.iter().any(|b| !b.ended);
        self.uses(&transaction.source).into_iter().filter_map(|id| self.transactions.get(id)).find(unended)
    }
}

fn is_later(prepared_at: HybridTime, committed_at: HybridTime, skew_micros: u64) -> bool {
    prepared_at.micros() > committed_at.micros().saturating_add(skew_micros)
}

fn takes_branch(transaction: &Transaction, stream: SourceTabletId, prepared_at: HybridTime, skew_micros: u64) -> bool {
    transaction.decision.is_none()
        && !transaction.doomed
        && !transaction.branches.iter().any(|b| b.stream == stream && b.ended)
        && !transaction.commit.as_ref().is_some_and(|c| is_later(prepared_at, c.time, skew_micros))
}
