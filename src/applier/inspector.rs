//! A running applier as others look at it.

use super::host::Clock;
use super::inputs::{Input, Inputs};
use super::leader::{LeaderError, StreamState};
use super::reads::Reader;
use super::shown::{Finished, Pullers};
use super::streams::{Progress, SharedBudget, StreamSide};
use super::tablets::ApplyQueue;
use crate::coordinator::Coordinator;
use crate::metrics::{
    BUDGET, BUDGET_USED, PROVISIONAL_BYTES, PROVISIONAL_OLDEST, PROVISIONAL_RECORDS, STREAM, STREAM_IN_WORK, TABLET,
};
use crate::source::Source;
use crate::wal::{Epoch, HybridTime, SourceTabletId};
use ::metrics::gauge;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// How long a scrape waits for a tablet.
const STATS_DEADLINE: Duration = Duration::from_millis(500);

/// What a running applier can be asked. Clones are cheap.
#[derive(Clone)]
pub struct Inspector {
    pub(super) led: Option<LedView>,
    pub(super) streams: Vec<Arc<StreamSide>>,
    pub(super) budget: Arc<SharedBudget>,
    pub(super) clock: Clock,
}

/// The part that only a process has that owns the transaction records.
#[derive(Clone)]
pub(super) struct LedView {
    pub(super) inputs: Inputs,
    pub(super) reader: Reader,
    pub(super) pullers: watch::Receiver<Pullers>,
    pub(super) epoch: Epoch,
    pub(super) queues: Vec<Arc<ApplyQueue>>,
    pub(super) finished: Arc<Finished>,
}

impl Inspector {
    /// Reads of the replica; `None` where another process leads.
    #[must_use]
    pub fn reader(&self) -> Option<Reader> {
        self.led.as_ref().map(|led| led.reader.clone())
    }

    /// The epoch of this process' ownership of the log; `None` where another process leads.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.led.as_ref().map(|led| led.epoch)
    }

    /// Looks at the transaction leader's machine, between two inputs. What is asked must be quick.
    ///
    /// # Errors
    /// Another process leads, or the leader has ended.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Coordinator, HybridTime) -> T + Send + 'static,
    ) -> Result<T, LeaderError> {
        match &self.led {
            Some(led) => led.inputs.look(look).await,
            None => Err(LeaderError::Unavailable("it lives in another process; ask that one".into())),
        }
    }

    /// Asks for copies of tables: of a stream, of a table, or of one's part of the other. Answers them by stream and name,
    /// or why there are none.
    ///
    /// # Errors
    /// Another process leads, or the leader has ended.
    pub async fn recopy(
        &self,
        stream: Option<&str>,
        table: Option<&str>,
    ) -> Result<Result<Vec<(String, String)>, String>, LeaderError> {
        let named = |side: &&Arc<StreamSide>| stream.is_some_and(|name| name == side.name);
        let side = self.streams.iter().find(named);
        let (stream, table) = (stream.map(str::to_owned), table.map(str::to_owned));
        let asked = match &self.led {
            Some(led) => led.inputs.ask(|reply| Input::Recopy { stream, table, reply }).await,
            None => Err(LeaderError::Unavailable("it lives in another process; ask that one".into())),
        };
        if let Some(side) = side.filter(|_| matches!(asked, Ok(Ok(_)))) {
            side.try_again();
        }
        asked
    }

    /// Sets the gauges that only the runtime knows: the budget, and what the replica tablets hold.
    pub async fn set_gauges(&self) {
        let (used, total) = self.budget();
        gauge!(BUDGET).set(total as f64);
        gauge!(BUDGET_USED).set(used as f64);
        for (index, side) in self.streams.iter().enumerate() {
            gauge!(STREAM_IN_WORK, STREAM => side.name.clone()).set(self.budget.held_by(index) as f64);
        }
        let Some(reader) = self.reader() else { return };
        for tablet in reader.tablets.named() {
            // A tablet that does not answer keeps its last numbers; its absence shows in what waits for it.
            let asked = tokio::time::timeout(STATS_DEADLINE, tablet.leader.stats()).await;
            if let Ok(Ok(stats)) = asked {
                gauge!(PROVISIONAL_RECORDS, TABLET => tablet.name.clone()).set(stats.provisional_records as f64);
                gauge!(PROVISIONAL_BYTES, TABLET => tablet.name.clone()).set(stats.provisional_bytes as f64);
            }
        }
        let oldest = |coordinator: &Coordinator, now: HybridTime| {
            let since = coordinator.oldest_undecided();
            since.map_or(0.0, |since| since.seconds_behind(now))
        };
        if let Ok(seconds) = self.look(oldest).await {
            gauge!(PROVISIONAL_OLDEST).set(seconds);
        }
    }

    /// The sources of this process' configuration, in its order.
    #[must_use]
    pub fn sources(&self) -> Vec<Arc<dyn Source>> {
        self.streams.iter().map(|side| Arc::clone(&side.source)).collect()
    }

    /// The streams of this process' configuration, in its order, and how far it has pulled each.
    pub fn all_progress(&self) -> impl Iterator<Item = (String, Progress)> {
        self.streams.iter().map(|side| (side.name.clone(), side.progress()))
    }

    /// How far this process has pulled a stream; `None` for one that it does not have.
    #[must_use]
    pub fn progress(&self, name: &str) -> Option<Progress> {
        self.streams.iter().find(|side| side.name == name).map(|side| side.progress())
    }

    /// What a stream's puller says that it does, wherever it lives; one that was not heard for long is gone. Where another
    /// process leads, this process' own.
    #[must_use]
    pub fn stream_state(&self, stream: SourceTabletId, name: &str) -> StreamState {
        match &self.led {
            Some(led) => {
                let pullers = led.pullers.borrow();
                let alive = pullers.is_alive(stream, self.clock.now());
                pullers.states.get(&stream).filter(|_| alive).cloned()
            }
            None => self.progress(name).map(|progress| progress.state),
        }
        .unwrap_or_default()
    }

    /// When a stream's puller was heard last, wherever it lives; `None` where another process leads.
    #[must_use]
    pub fn heard(&self, stream: SourceTabletId) -> Option<HybridTime> {
        self.led.as_ref().and_then(|led| led.pullers.borrow().heard.get(&stream).copied())
    }

    /// Transactions committed and aborted since this process started; none where another process leads.
    #[must_use]
    pub fn finished(&self) -> [u64; 2] {
        let Some(LedView { finished, .. }) = &self.led else { return [0, 0] };
        [&finished.committed, &finished.aborted].map(|count| count.load(Ordering::Relaxed))
    }

    /// Bytes of records on their way, and how many there may be.
    #[must_use]
    pub fn budget(&self) -> (usize, usize) {
        self.budget.in_use()
    }
}
