//! What the applier's tasks share of one stream.

use super::leader::{LeaderError, StreamState, Wanted};
use crate::flow::Budget;
use crate::source::Source;
use crate::wal::{Epoch, HybridTime, OpId, SourceTabletId, SourceTransactionId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// One stream of the configuration.
pub(super) struct StreamSide {
    pub(super) name: String,
    pub(super) source: Arc<dyn Source>,
    progress: Mutex<Progress>,
    not_running: Mutex<Vec<(OpId, Vec<SourceTransactionId>)>>,
    told: Mutex<Told>,
    opened: Mutex<Option<(SourceTabletId, Epoch)>>,
    wake: Notify,
    again: Notify,
    pulled: AtomicBool,
}

/// What the transaction leader told this process' puller last.
#[derive(Default)]
struct Told {
    pause_for: Option<String>,
    to_check: Vec<SourceTransactionId>,
    /// Why the session must end.
    end: Option<LeaderError>,
}

/// How far a stream of this process has come.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// What its puller does.
    pub state: StreamState,
    /// Received from the source.
    pub received: OpId,
    /// Durable at the replica tablets and in the log.
    pub durable: OpId,
    /// Acknowledged to the source.
    pub checkpointed: OpId,
    /// This process' clock when the source answered last; zero before the first answer.
    pub answered_at: HybridTime,
    /// The epoch of the transaction leader that it was opened with; zero before that.
    pub owner: Epoch,
    /// Records taken since the process started.
    pub records: u64,
    /// Rows of the initial copy so far.
    pub copied_rows: u64,
    /// Rows of the initial copy in all, about, where known.
    pub copy_total: Option<u64>,
}

impl StreamSide {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        crate::metrics::begin_stream(source.name());
        Self {
            name: source.name().to_owned(),
            source,
            progress: Mutex::default(),
            not_running: Mutex::default(),
            told: Mutex::default(),
            opened: Mutex::default(),
            wake: Notify::new(),
            again: Notify::new(),
            pulled: AtomicBool::new(false),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note(&self, note: impl FnOnce(&mut Progress)) {
        note(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What this process' puller does, and as whom.
    pub(super) fn says(&self, stream: SourceTabletId, puller: Epoch, state: StreamState) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some((stream, puller));
        self.note(|progress| progress.state = state);
    }

    /// This process' puller has the stream no longer.
    pub(super) fn lost(&self) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins: nothing was told yet, and what is still answered to the one before counts no more.
    pub(super) fn begin(&self) {
        self.lost();
        *self.told() = Told::default();
    }

    /// The leader answered the puller's word.
    pub(super) fn hear(&self, puller: Epoch, answer: Result<Wanted, LeaderError>) {
        let current = self.said().is_some_and(|(_, said, _)| said == puller);
        let mut told = self.told();
        match answer {
            Ok(Wanted { pause_for, check_running }) => {
                told.pause_for = pause_for;
                told.to_check.extend(check_running);
            }
            Err(error @ (LeaderError::Stop(_) | LeaderError::Refused(_) | LeaderError::Fenced(_))) if current => {
                told.end = Some(error);
            }
            // Whoever could not be told is told the next time.
            Err(_) => {}
        }
        drop(told);
        self.wake.notify_one();
    }

    /// What the stream is to pause for.
    pub(super) fn pause_for(&self) -> Option<String> {
        self.told().pause_for.clone()
    }

    /// Transactions that the source is to be asked about.
    pub(super) fn take_to_check(&self) -> Vec<SourceTransactionId> {
        std::mem::take(&mut self.told().to_check)
    }

    /// Why the session must end.
    pub(super) fn take_end(&self) -> Option<LeaderError> {
        self.told().end.take()
    }

    /// What [`StreamSide::says`] was told last.
    pub(super) fn said(&self) -> Option<(SourceTabletId, Epoch, StreamState)> {
        let (stream, puller) = (*self.opened.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some((stream, puller, self.progress().state))
    }

    /// The source does not know these transactions; they are reported once the stream has passed the position.
    pub(super) fn not_running(&self, passed_at: OpId, transactions: Vec<SourceTransactionId>) {
        let mut waiting = self.not_running.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked again, the source says the same of a later position: the earlier one is enough.
        if !waiting.iter().any(|(_, held)| *held == transactions) {
            waiting.push((passed_at, transactions));
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Those whose position the stream has passed.
    pub(super) fn take_not_running(&self, passed: OpId) -> Vec<Vec<SourceTransactionId>> {
        let mut waiting = self.not_running.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = waiting.extract_if(.., |(at, _)| *at <= passed);
        taken.map(|(_, transactions)| transactions).collect()
    }

    /// Records of this stream are on their way from now on, or no longer.
    pub(super) fn pulled(&self, pulled: bool) {
        self.pulled.store(pulled, Ordering::Release);
    }

    /// Whether records of this stream are on their way.
    pub(super) fn is_pulled(&self) -> bool {
        self.pulled.load(Ordering::Acquire)
    }

    /// A stream that stopped is to be tried again at once; whether it has.
    pub(super) fn try_again(&self) -> bool {
        let stopped = matches!(self.progress().state, StreamState::Stopped { .. });
        if stopped {
            self.again.notify_one();
        }
        stopped
    }

    /// Waits for [`Self::try_again`].
    pub(super) async fn asked_again(&self) {
        self.again.notified().await;
    }

    /// Waits until `not_running` or `hear` was called.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

/// The byte budget that all streams share.
#[derive(Debug)]
pub(super) struct SharedBudget {
    budget: Mutex<Budget>,
    total: usize,
    freed: Notify,
}

impl SharedBudget {
    pub(super) fn new(total: usize, streams: usize) -> Self {
        Self { budget: Mutex::new(Budget::new(total, streams)), total, freed: Notify::new() }
    }

    /// Bytes in use, and how many there are.
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.budget.lock().unwrap_or_else(PoisonError::into_inner).in_use(), self.total)
    }

    /// Bytes that one stream has in use.
    pub(super) fn held_by(&self, stream: usize) -> usize {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).held_by(stream)
    }

    pub(super) fn may_pull(&self, stream: usize) -> bool {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).may_pull(stream)
    }

    pub(super) fn take(&self, stream: usize, bytes: usize) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(stream, bytes);
    }

    pub(super) fn give_back(&self, stream: usize, bytes: usize) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).give_back(stream, bytes);
        self.freed.notify_waiters();
    }

    /// Ends when somebody gives bytes back after this call.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }
}
