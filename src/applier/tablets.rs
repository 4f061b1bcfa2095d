//! The replica tablets as the applier's tasks share them.

use super::ended::Trouble;
use crate::coordinator::{Decided, TabletMap};
use crate::limits::DECISIONS_WAITING;
use crate::tablet::{TabletError, TabletLeader};
use crate::wal::{HybridTime, LogPosition, ReplicaTabletId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// The replica tablets by name, and where they live.
#[derive(Clone)]
pub struct Tablets {
    by_name: Arc<BTreeMap<String, Arc<dyn TabletLeader>>>,
    here: bool,
}

/// One replica tablet under the log's number.
#[derive(Clone)]
pub(super) struct Tablet {
    pub(super) id: ReplicaTabletId,
    pub(super) name: String,
    pub(super) leader: Arc<dyn TabletLeader>,
    here: bool,
}

impl Tablets {
    /// Tablets by name. `here` says whether they live in this process, which must end when one's storage fails.
    #[must_use]
    pub fn new(tablets: impl IntoIterator<Item = (String, Arc<dyn TabletLeader>)>, here: bool) -> Self {
        Self { by_name: Arc::new(tablets.into_iter().collect()), here }
    }

    /// The tablets of a map, in its order.
    ///
    /// # Errors
    /// The map names a tablet that the configuration does not.
    pub(super) fn of(&self, map: &TabletMap) -> Result<Vec<Tablet>, String> {
        let tablets = map.tablets.iter().map(|mapped| {
            let leader = self.by_name.get(&mapped.name).cloned().ok_or_else(|| {
                format!(
                    "the log's map names replica tablet {:?}, which is not in the configuration; add it to \
                     [[replica.tablets]]",
                    mapped.name
                )
            })?;
            Ok(Tablet { id: mapped.id, name: mapped.name.clone(), leader, here: self.here })
        });
        tablets.collect()
    }
}

impl Tablet {
    /// What an error of this tablet means for whoever met it.
    pub(super) fn trouble(&self, error: &TabletError) -> Trouble {
        Trouble::of_tablet(&self.name, self.here, error)
    }
}

/// Decisions on their way from the leader to one replica tablet.
#[derive(Debug, Default)]
pub(super) struct ApplyQueue {
    state: Mutex<Gathered>,
    /// What waits here or at the executor.
    waiting: AtomicUsize,
    moved: Notify,
}

/// What gathered while the tablet was busy.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// The decisions, positions rising.
    pub(super) work: VecDeque<Decided>,
    /// Every decision at or below this one that concerns the tablet was handed over.
    pub(super) through: LogPosition,
    /// The newest safe time at or below `through`.
    pub(super) safe_time: HybridTime,
    /// The newest decision for any tablet: a transaction is forgotten once *every* tablet has durably applied the log up
    /// to its decision, also one that had nothing to do for it.
    pub(super) decided: LogPosition,
    /// No more will come.
    pub(super) closing: bool,
}

impl ApplyQueue {
    /// Hands decisions over, all of them up to `through`.
    pub(super) fn hand_over(
        &self,
        work: &mut Vec<Decided>,
        through: LogPosition,
        safe_time: HybridTime,
        decided: LogPosition,
    ) {
        self.waiting.fetch_add(work.len(), Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if work.is_empty() && state.through == through {
            return;
        }
        state.work.extend(work.drain(..));
        state.through = through;
        state.safe_time = safe_time;
        state.decided = decided;
        drop(state);
        self.moved.notify_one();
    }

    /// No more will come: the executor ends once the tablet has applied everything durably.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.moved.notify_one();
    }

    /// Moves everything that gathered behind `kept`.
    pub(super) fn take_into(&self, kept: &mut VecDeque<Decided>) -> Gathered {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        kept.append(&mut state.work);
        Gathered { work: VecDeque::new(), ..*state }
    }

    /// Waits until something was handed over.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// The tablet has made this many durable.
    pub(super) fn done(&self, decisions: usize) {
        self.waiting.fetch_sub(decisions, Ordering::Relaxed);
    }

    /// Whether so many wait that pulling should pause.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > DECISIONS_WAITING
    }
}
