//! The order of reports that arrive over the network.
//!
//! Several reports of a stream may be on their way, and each call is a task of its own at the server: they may overtake
//! each other there. A report says which position it follows, so it waits here until the one before it was handed in.

use super::super::leader::{LeaderError, Reported, TransactionLeader};
use crate::coordinator::Report;
use crate::limits::REPORT_ORDER_MS;
use crate::wal::{Epoch, OpId, SourceTabletId};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
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

    /// Hands a report in when its turn has come; answers what the leader answers.
    ///
    /// # Errors
    /// The leader's.
    pub async fn hand_in(&self, leader: &dyn TransactionLeader, report: Report) -> Result<Reported, LeaderError> {
        self.turn(&report).await;
        let (stream, puller, upto) = (report.stream, report.puller, report.upto);
        let mut call = leader.report(report);
        // The first poll hands the report in; only then may the one behind it follow.
        let first = futures::poll!(call.as_mut());
        self.handed_in(stream, puller, upto);
        match first {
            Poll::Ready(result) => result,
            Poll::Pending => call.await,
        }
    }

    /// Returns when this report's turn has come, or when it is plain that the one before it is lost: the leader then
    /// answers that the report is out of order. One of another puller has no turn to wait for.
    async fn turn(&self, report: &Report) {
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
    fn handed_in(&self, stream: SourceTabletId, puller: Epoch, upto: OpId) {
        if let Some((_, position)) = self.lock().get(&stream).filter(|(held, _)| *held == puller) {
            // One that came twice, or too late, does not put back the turn of those behind it.
            position.send_if_modified(|held| {
                let rises = upto > *held;
                *held = upto.max(*held);
                rises
            });
        }
    }
}
