//! What an assembler remembers of branches, between runs.

use crate::coordinator::{ApplyingFact, Fact};
use crate::limits::APPLIED_BRANCHES_REMEMBERED;
use crate::wal::{BranchId, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::VecDeque;

/// A branch that still takes records.
#[derive(Debug)]
pub(super) struct OpenBranch {
    pub(super) opened: OpId,
    /// Records of this run that no fact has said yet.
    pub(super) records: u64,
    /// Tablets that they went to.
    pub(super) tablets: SmallVec<[ReplicaTabletId; 4]>,
    /// Where its writes of this run stand: tablet and place among that tablet's branches.
    pub(super) places: SmallVec<[(usize, usize); 4]>,
    /// The run that `places` belongs to.
    pub(super) run: u64,
    /// Some of its records were stored before a crash: their keys are not compared again.
    pub(super) stored_before: bool,
}

impl OpenBranch {
    pub(super) fn at(opened: OpId) -> Self {
        Self { opened, records: 0, tablets: SmallVec::new(), places: SmallVec::new(), run: 0, stored_before: false }
    }

    pub(super) fn fact(
        &mut self,
        stream: SourceTabletId,
        transaction: SourceTransactionId,
        applying: Option<ApplyingFact>,
    ) -> Fact {
        let stored_before = std::mem::take(&mut self.stored_before);
        Fact::Branch {
            transaction,
            opened: self.opened,
            records: std::mem::take(&mut self.records),
            tablets: std::mem::take(&mut self.tablets).into_vec(),
            after: if stored_before { vec![BranchId::every_earlier(stream)] } else { Vec::new() },
            applying,
        }
    }
}

/// The branches of which this stream carried the Applying record last: it may come again, and then names the same one.
#[derive(Debug, Default)]
pub(super) struct AppliedBranches {
    pub(super) opened: FxHashMap<SourceTransactionId, OpId>,
    order: VecDeque<SourceTransactionId>,
}

impl AppliedBranches {
    pub(super) fn opened(&self, transaction: &SourceTransactionId) -> Option<OpId> {
        self.opened.get(transaction).copied()
    }

    pub(super) fn remember(&mut self, transaction: SourceTransactionId, opened: OpId) {
        if self.opened.insert(transaction.clone(), opened).is_none() {
            self.order.push_back(transaction);
        }
        if self.order.len() > APPLIED_BRANCHES_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.opened.remove(&oldest);
        }
    }
}
