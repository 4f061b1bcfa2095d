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
    /// Whether a stream's puller was heard a moment ago.
    #[must_use]
    pub fn is_alive(&self, stream: SourceTabletId, now: HybridTime) -> bool {
        let heard = self.heard.get(&stream);
        heard.is_some_and(|heard| heard.seconds_behind(now) * 1000.0 <= PULLER_SILENT_MS as f64)
    }
}
