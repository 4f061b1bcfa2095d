//! Giving up a refused transaction: which later ones wrote rows that it wrote.

use super::{PostgresTablet, Server};
use crate::coordinator::{Decided, Work};
use crate::limits::REPLICA_RUN_BYTES;
use crate::tablet::TabletError;
use crate::tablet::engine::Cursor;
use crate::tablet::store::Store;
use crate::wal::{Key, TableId, TransactionId};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// The refused transaction among the decisions that it was handed over with.
pub(super) struct Refused {
    pub(super) number: usize,
    pub(super) work: Arc<[Decided]>,
}

type Row = (TableId, Key);

impl<S: Store> PostgresTablet<S> {
    /// Marks the refused transaction as given up, and answers its dependents.
    pub(super) async fn give_up(
        &self,
        server: &mut Server,
        transaction: TransactionId,
    ) -> Result<Vec<TransactionId>, TabletError> {
        let is_refused = |refused: &Refused| commit_of(&refused.work, refused.number) == Some(transaction);
        let Some(Refused { number, work }) = server.refused.take_if(|refused| is_refused(refused)) else {
            return Err(TabletError::Refused(format!("transaction {transaction} is not refused right now")));
        };
        let rows: FxHashSet<Row> = self.rows(&work, number).await?.into_iter().collect();
        let mut dependents = Vec::new();
        for later in number + 1..work.len() {
            let Some(transaction) = commit_of(&work, later) else { continue };
            if self.rows(&work, later).await?.iter().any(|row| rows.contains(row)) {
                dependents.push(transaction);
            }
        }
        server.skip = Some(transaction);
        Ok(dependents)
    }

    /// The rows that a decision's transaction wrote.
    async fn rows(&self, work: &Arc<[Decided]>, number: usize) -> Result<Vec<Row>, TabletError> {
        let (mut rows, mut at) = (Vec::new(), Cursor::at(number));
        while at.decision == number {
            let written = |staged: &[crate::tablet::engine::StagedWrites<'_>]| {
                let writes = staged.iter().flat_map(|staged| &staged.writes);
                Ok(writes
                    .map(|write| (write.table, Key(bytes::Bytes::copy_from_slice(write.key.0))))
                    .collect::<Vec<_>>())
            };
            let (more, next) =
                self.staging.staged(Arc::clone(work), at, number + 1, REPLICA_RUN_BYTES, written).await?;
            rows.extend(more);
            at = next;
        }
        Ok(rows)
    }
}

fn commit_of(work: &[Decided], number: usize) -> Option<TransactionId> {
    match work.get(number).map(|decided| &decided.work) {
        Some(Work::Commit { transaction, .. }) => Some(*transaction),
        _ => None,
    }
}
