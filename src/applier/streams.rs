//! What the applier's tasks share of one stream.

use super::leader::StreamState;
use crate::flow::Budget;
use crate::source::Source;
use crate::wal::{Epoch, HybridTime, OpId, SourceTabletId, SourceTransactionId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// One stream of the configuration.
pub(super) struct StreamSide {
    pub(super) name: String,
    pub(super) source: Arc<dyn Source>,
    progress: Mutex<Progress>,
    not_running: Mutex<Vec<(OpId, Vec<SourceTransactionId>)>>,
    opened: Mutex<Option<(SourceTabletId, Epoch)>>,
    wake: Notify,
    pulled: AtomicBool,
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
    /// Rows of the initial copy so far.
    pub copied_rows: u64,
    /// Rows of the initial copy in all, about, where known.
    pub copy_total: Option<u64>,
}

impl StreamSide {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            name: source.name().to_owned(),
            source,
            progress: Mutex::default(),
            not_running: Mutex::default(),
            opened: Mutex::default(),
            wake: Notify::new(),
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

    /// Waits until `not_running` was called.
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
