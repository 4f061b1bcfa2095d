//! Forgetting (C13): a finished transaction is kept until nothing of it can come again.
//!
//! It goes when every replica tablet that it wrote to has durably applied its decision, every branch has ended, and every stream that
//! spoke of it has acknowledged that to the source. With a common clock a Commit record may stand in several streams, so
//! it is also kept until safe time has passed it: from then on a Commit record of that time can only be a repetition.

use super::entry::{Outcome, Release};
use super::state::State;
use super::transaction::Transaction;
use crate::wal::{HybridTime, OpId, SourceTabletId, SourceTransactionId, TransactionId};

impl State {
    /// Whether a Commit record of this time repeats what was forgotten: nothing new can commit at or below safe time.
    pub(super) fn is_finished(&self, source: &SourceTransactionId, time: HybridTime) -> bool {
        self.safe.is_some_and(|(_, safe)| time <= safe) && self.transactions.find(source).is_none()
    }

    /// Whether every branch has ended, and every stream that spoke of the transaction has acknowledged that to the source.
    /// A tablet that was split has ended all of its branches.
    pub(super) fn is_told(&self, transaction: &Transaction) -> bool {
        let aborted = transaction.decision.is_some_and(|decision| decision.outcome == Outcome::Abort);
        let left = |stream: SourceTabletId| self.stream(stream).is_some_and(|record| record.left);
        transaction.branches.iter().all(|b| !b.unacknowledged && (b.ended || b.bystander || aborted || left(b.stream)))
    }

    /// Every replica tablet that holds writes of the transaction has durably applied its decision.
    pub(super) fn fold_all_applied(&mut self, id: TransactionId) {
        if let Some(found) = self.transactions.get_mut(id) {
            found.applied = true;
        }
        self.forget_if_finished(id);
    }

    pub(super) fn fold_acknowledged(&mut self, stream: SourceTabletId, acknowledged: OpId) {
        let Some(record) = self.streams.get_mut(stream.0 as usize) else { return };
        record.acknowledged = record.acknowledged.max(acknowledged);
        let acknowledged = record.acknowledged;
        while let Some(record) = self.streams.get_mut(stream.0 as usize) {
            if record.unacknowledged.front().is_none_or(|(at, _)| *at > acknowledged) {
                return;
            }
            let Some((_, id)) = record.unacknowledged.pop_front() else { return };
            let Some(found) = self.transactions.get_mut(id) else { continue };
            let waiting = found.branches.iter_mut().find(|b| b.stream == stream && b.unacknowledged);
            if let Some(branch) = waiting {
                if branch.mentioned > acknowledged {
                    // The stream spoke of it again since: it waits for that, too.
                    record.unacknowledged.push_back((branch.mentioned, id));
                } else {
                    branch.unacknowledged = false;
                    self.forget_if_finished(id);
                }
            }
        }
    }

    pub(super) fn forget_if_finished(&mut self, id: TransactionId) {
        let Some(found) = self.transactions.get(id) else { return };
        let Some(decision) = found.decision else { return };
        if !found.applied || !self.is_told(found) {
            return;
        }
        if let (Release::CommonClock, Outcome::Commit(time)) = (self.release, decision.outcome)
            && self.safe.is_none_or(|(_, safe)| safe < time)
        {
            self.above_safe.insert((time, id));
            return;
        }
        let Some(found) = self.transactions.remove(id) else { return };
        let id_bytes = &found.source.id;
        if let Some(later) = self.reused.get_mut(id_bytes) {
            later.retain(|other| *other != id);
            let rest = later.clone();
            if rest.is_empty() {
                self.reused.remove(id_bytes);
            }
            rest.into_iter().for_each(|id| self.candidate(id));
        }
    }
}
