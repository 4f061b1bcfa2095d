//! What the transaction leader of this process shows.

use super::leader::StreamState;
use crate::coordinator::{ReadPoint, TabletMap};
use crate::limits::PULLER_SILENT_MS;
use crate::wal::{HybridTime, SourceTabletId, TableSchema};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What readers need to know before they read, as of the newest durable entry.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The `latest` read point, once anything may be shown.
    pub latest: Option<ReadPoint>,
    /// The `safe` read point, once there is one.
    pub safe: Option<ReadPoint>,
    /// Every version of every table's shape.
    pub tables: Arc<Vec<TableSchema>>,
    /// The key → tablet map.
    pub map: Arc<TabletMap>,
}

/// Transactions that this process has finished since it started. The leader counts; anyone looks.
#[derive(Debug, Default)]
pub(super) struct Finished {
    pub(super) committed: AtomicU64,
    pub(super) aborted: AtomicU64,
}

/// What the leader says of its streams, beside what its machine knows.
#[derive(Clone, Debug, Default)]
pub struct Pullers {
    /// What each stream's puller says that it does.
    pub states: BTreeMap<SourceTabletId, StreamState>,
    /// When each stream's puller said so last.
    pub heard: BTreeMap<SourceTabletId, HybridTime>,
    /// Who each stream's puller is, for people.
    pub names: BTreeMap<SourceTabletId, String>,
}

impl Pullers {
    /// Whether a stream's puller was heard a moment ago. A clock that was set back since says nothing of it: whoever lives
    /// says so again within a second, and whoever is dead must not keep its stream until the clock has caught up.
    #[must_use]
    pub fn is_alive(&self, stream: SourceTabletId, now: HybridTime) -> bool {
        let apart = |heard: &HybridTime| heard.micros().abs_diff(now.micros());
        self.heard.get(&stream).map(apart).is_some_and(|micros| micros <= PULLER_SILENT_MS * 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_does_not_leave_a_stream_with_a_dead_puller() {
        let [stream, silent] = [SourceTabletId(0), SourceTabletId(1)];
        let at = |seconds: u64| HybridTime::from_micros(seconds * 1_000_000);
        let pullers = Pullers { heard: BTreeMap::from([(stream, at(600))]), ..Pullers::default() };
        assert!(pullers.is_alive(stream, at(600)) && pullers.is_alive(stream, at(605)));
        assert!(!pullers.is_alive(stream, at(606)));
        assert!(!pullers.is_alive(stream, at(10)), "heard at a time that has not come yet");
        assert!(!pullers.is_alive(silent, at(600)), "never heard");
    }
}
