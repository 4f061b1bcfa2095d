//! The order of reports that arrive over the network.
//!
//! Several reports of a stream may be on their way, and each call is a task of its own at the server: they may overtake
//! each other there. A report says which position it follows, so it waits here until the one before it was handed in.

use crate::coordinator::Report;
use crate::limits::REPORT_ORDER_MS;
use crate::wal::{Epoch, OpId, SourceTabletId};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// For each stream that was opened here: its puller, and the position up to which reports were handed in.
#[derive(Default)]
pub struct ReportOrder(Mutex<BTreeMap<SourceTabletId, (Epoch, watch::Sender<OpId>)>>);

impl ReportOrder {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SourceTabletId, (Epoch, watch::Sender<OpId>)>> {
        // Nothing that holds the lock can leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A puller opened the stream: its first report follows `after`.
    pub fn opened(&self, stream: SourceTabletId, puller: Epoch, after: OpId) {
        let mut streams = self.lock();
        if streams.get(&stream).is_none_or(|(held, _)| *held < puller) {
            streams.insert(stream, (puller, watch::Sender::new(after)));
        }
    }

    /// Returns when this report's turn has come, or when it is plain that the one before it is lost: the leader then
    /// answers that the report is out of order. One of another puller has no turn to wait for.
    pub async fn turn(&self, report: &Report) {
        let handed_in = self
            .lock()
            .get(&report.stream)
            .filter(|(puller, _)| *puller == report.puller)
            .map(|held| held.1.subscribe());
        if let Some(mut handed_in) = handed_in {
            let turn = handed_in.wait_for(|position| *position >= report.follows);
            let _ = tokio::time::timeout(Duration::from_millis(REPORT_ORDER_MS), turn).await;
        }
    }

    /// A puller's report up to this position was handed in.
    pub fn handed_in(&self, stream: SourceTabletId, puller: Epoch, upto: OpId) {
        if let Some((_, position)) = self.lock().get(&stream).filter(|(held, _)| *held == puller) {
            position.send_replace(upto);
        }
    }
}
