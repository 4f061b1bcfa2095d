//! How far pulling may run ahead of the replica tablets.
//!
//! What is pulled much earlier than it is applied is written to table files and read again, and takes the processor from
//! the tablets meanwhile: a backlog would drain later for it. So streams go slowly while a tablet that takes decisions
//! has many before it. One that takes none, because it is away or refuses, holds up nobody: its part costs disk, and the
//! source need not keep its WAL.

use super::tablets::ApplyQueue;
use crate::limits::DECISIONS_AHEAD;
use std::sync::Arc;

/// The queues of the replica tablets, for a poller. None where another process leads.
pub(super) struct Ahead(Vec<Arc<ApplyQueue>>);

impl Ahead {
    pub(super) fn of(queues: &[Arc<ApplyQueue>]) -> Arc<Self> {
        Arc::new(Self(queues.to_vec()))
    }

    /// Whether a tablet has so many decisions before it that streams are to go slowly.
    pub(super) fn is_far(&self) -> bool {
        self.far().is_some()
    }

    /// Waits until such a tablet has come nearer.
    pub(super) async fn nearer(&self) {
        if let Some(queue) = self.far() {
            queue.hears_down_to(DECISIONS_AHEAD).await;
        }
    }

    fn far(&self) -> Option<&ApplyQueue> {
        self.0.iter().map(Arc::as_ref).find(|queue| queue.unheard() > DECISIONS_AHEAD)
    }
}
