//! What the transaction leader of this process shows.

use super::leader::StreamState;
use crate::coordinator::{ReadPoint, TabletMap};
use crate::wal::{HybridTime, SourceTabletId, TableSchema};
use std::collections::BTreeMap;
use std::sync::Arc;

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

/// What the leader says of its streams, beside what its machine knows.
#[derive(Clone, Debug, Default)]
pub struct Pullers {
    /// What each stream's puller says that it does.
    pub states: BTreeMap<SourceTabletId, StreamState>,
    /// When each stream's puller said so last.
    pub heard: BTreeMap<SourceTabletId, HybridTime>,
    /// Streams that the machine stopped, and why: their pullers must open them again.
    pub stopped: BTreeMap<SourceTabletId, String>,
}
