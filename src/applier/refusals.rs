//! What people do about a write that a replica refuses: they see it, mend it and have it tried again, or give its
//! transaction up.

use super::inspector::Inspector;
use super::tablets::{ApplyQueue, Hold};
use crate::coordinator::Coordinator;
use crate::wal::{HybridTime, TransactionId};
use std::sync::Arc;
use tracing::warn;

/// A transaction that was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// Which.
    pub transaction: Given,
    /// Transactions decided after it that wrote rows that it wrote, as far as they have reached the replica.
    pub dependents: Vec<Given>,
}

/// What is tried again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retried {
    /// Replica tablets that did not take decisions.
    pub tablets: Vec<String>,
    /// Streams that had stopped.
    pub streams: Vec<String>,
}

/// A transaction by untorn's id and the source's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// untorn's id.
    pub transaction: TransactionId,
    /// The source's id; empty where it is forgotten.
    pub source_id: String,
}

fn given(coordinator: &Coordinator, transaction: TransactionId) -> Given {
    let found = coordinator.explain(&transaction.to_string());
    Given { transaction, source_id: found.into_iter().next().map_or_else(String::new, |found| found.source_id) }
}

impl Inspector {
    /// Why replica tablets do not take decisions; none that do, and none where another process leads.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        self.led.iter().flat_map(|led| &led.queues).filter_map(|queue| queue.held()).collect()
    }

    /// Has every replica tablet that does not take decisions, and every stream of this process that stopped, tried again at
    /// once; answers their names.
    #[must_use]
    pub fn retry(&self) -> Retried {
        let held = self.led.iter().flat_map(|led| &led.queues).filter_map(|queue| Some((queue, queue.held()?)));
        let again = |(queue, hold): (&Arc<ApplyQueue>, Hold)| {
            queue.try_again();
            hold.tablet
        };
        let tablets = held.map(again).collect();
        let stopped = self.streams.iter().filter(|side| side.try_again());
        Retried { tablets, streams: stopped.map(|side| side.name.clone()).collect() }
    }

    /// Gives up the transaction that a replica tablet refuses.
    ///
    /// # Errors
    /// No tablet refuses it, for people.
    pub async fn skip(&self, transaction: &str) -> Result<Skipped, String> {
        let name = transaction.to_owned();
        let fitting = move |coordinator: &Coordinator, _: HybridTime| {
            coordinator.explain(&name).iter().map(|found| found.id).collect::<Vec<_>>()
        };
        let fitting = self.look(fitting).await.map_err(|error| error.to_string())?;
        for queue in self.led.iter().flat_map(|led| &led.queues) {
            let Some(Hold { tablet, refused: Some(write), .. }) = queue.held() else { continue };
            if !fitting.contains(&write.transaction) {
                continue;
            }
            let reader = self.reader();
            let named = reader.iter().flat_map(|reader| reader.tablets.named()).find(|named| named.name == tablet);
            let Some(named) = named else { continue };
            let dependents = named.leader.skip(write.transaction).await.map_err(|error| error.to_string())?;
            let names = move |coordinator: &Coordinator, _: HybridTime| Skipped {
                transaction: given(coordinator, write.transaction),
                dependents: dependents.iter().map(|&dependent| given(coordinator, dependent)).collect(),
            };
            let skipped = self.look(names).await.map_err(|error| error.to_string())?;
            warn!(
                tablet, transaction = %skipped.transaction.transaction, source_id = %skipped.transaction.source_id,
                dependents = skipped.dependents.len(), "the refused transaction is skipped, as somebody said"
            );
            queue.try_again();
            return Ok(skipped);
        }
        let refused: Vec<_> = self.holds().into_iter().filter_map(|hold| hold.refused).collect();
        let hint = match refused.first() {
            Some(write) => format!("refused is {}", write.transaction),
            None => "no transaction is refused".to_owned(),
        };
        Err(format!("the replica does not refuse {transaction}: {hint}; only what is refused can be skipped"))
    }
}
