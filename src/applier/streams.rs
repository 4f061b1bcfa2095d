//! What the applier's tasks share of one stream.

use super::leader::{LeaderError, StreamOpened, StreamState, Wanted};
use crate::flow::Budget;
use crate::limits::COPY_SAID_EVERY_MS;
use crate::source::{Snapshot, Source};
use crate::wal::{Epoch, HybridTime, OpId, SourceTabletId, SourceTransactionId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// One stream of the configuration.
pub(super) struct StreamSide {
    pub(super) name: String,
    pub(super) source: Arc<dyn Source>,
    progress: Mutex<Progress>,
    not_running: Mutex<Vec<(OpId, Vec<SourceTransactionId>)>>,
    told: Mutex<Told>,
    opened: Mutex<Option<Arc<StreamOpened>>>,
    /// A new slot's snapshot, on its way from the poller to the copier, and the base of its rows.
    snapshot: Mutex<Option<(HybridTime, Box<dyn Snapshot>)>>,
    /// There may be something to copy.
    to_copy: Notify,
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
    /// The copies on their way.
    pub copy: CopyProgress,
}

/// How far the copies of a stream's tables are that are on their way now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CopyProgress {
    /// For each table the rows so far, and about how many there are, where known.
    pub tables: BTreeMap<String, (u64, Option<u64>)>,
    /// Rows a second over the last few seconds.
    pub rate: u64,
    /// Why the last attempt was cut off.
    pub cause: Option<String>,
    /// Rows since the rate was last looked at, and when that was.
    counted: (u64, Duration),
    /// When the log said how far they are.
    said: Duration,
}

/// How long rows are counted before they make a rate.
const RATE_OVER: Duration = Duration::from_secs(2);

impl CopyProgress {
    /// A table's rows are about to come.
    pub(super) fn expect(&mut self, table: &str, estimate: Option<u64>) {
        self.tables.insert(table.to_owned(), (0, estimate));
    }

    /// Rows of a table came; `now` counts from the copy's beginning.
    pub(super) fn took(&mut self, table: &str, rows: u64, now: Duration) {
        self.tables.entry(table.to_owned()).or_default().0 += rows;
        self.counted.0 += rows;
        let over = now.saturating_sub(self.counted.1);
        if over >= RATE_OVER || self.rate == 0 && over > Duration::ZERO {
            self.rate = (self.counted.0 as f64 / over.as_secs_f64()) as u64;
            self.counted = (0, now);
        }
    }

    /// Whether the log is to say how far they are; once in a while.
    pub(super) fn is_to_be_said(&mut self, now: Duration) -> bool {
        let due = now.saturating_sub(self.said) >= Duration::from_millis(COPY_SAID_EVERY_MS);
        if due {
            self.said = now;
        }
        due
    }

    /// How long the rest takes at the present rate, where both are known.
    #[must_use]
    pub fn seconds_left(&self) -> Option<u64> {
        let (rows, total) = self.rows();
        let left = total?.saturating_sub(rows);
        (self.rate > 0 && left > 0).then(|| left.div_ceil(self.rate))
    }

    /// No copy is on its way.
    pub(super) fn end(&mut self) {
        *self = Self { cause: self.cause.take(), ..Self::default() };
    }

    /// Rows so far, and in all where that is known of every table.
    #[must_use]
    pub fn rows(&self) -> (u64, Option<u64>) {
        let total = self.tables.values().map(|(rows, total)| total.map(|total| total.max(*rows))).sum();
        (self.tables.values().map(|(rows, _)| rows).sum(), total)
    }
}

/// The copies' part of a stream's progress, while it is held.
pub(super) struct CopyProgressGuard<'a>(MutexGuard<'a, Progress>);

impl std::ops::Deref for CopyProgressGuard<'_> {
    type Target = CopyProgress;

    fn deref(&self) -> &CopyProgress {
        &self.0.copy
    }
}

impl std::ops::DerefMut for CopyProgressGuard<'_> {
    fn deref_mut(&mut self) -> &mut CopyProgress {
        &mut self.0.copy
    }
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
            snapshot: Mutex::default(),
            to_copy: Notify::new(),
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

    /// The copies on their way, to be looked at or changed.
    pub(super) fn copy_progress(&self) -> CopyProgressGuard<'_> {
        CopyProgressGuard(self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This process' puller has the stream.
    pub(super) fn opens(&self, opened: Arc<StreamOpened>) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
    }

    /// As what this process' puller has the stream, or had it last.
    pub(super) fn opened(&self) -> Option<Arc<StreamOpened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hands a new slot's snapshot to the copier.
    pub(super) fn hand_over(&self, base: HybridTime, snapshot: Box<dyn Snapshot>) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some((base, snapshot));
        self.to_copy.notify_one();
    }

    /// What [`StreamSide::hand_over`] was given.
    pub(super) fn take_snapshot(&self) -> Option<(HybridTime, Box<dyn Snapshot>)> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until the stream is open, or a snapshot was handed over: whichever comes second lets the copy begin.
    pub(super) async fn to_copy(&self) {
        self.to_copy.notified().await;
    }

    /// What this process' puller does.
    pub(super) fn says(&self, state: StreamState) {
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

    /// The session is to end and the stream to be opened again, because who leads has changed since.
    pub(super) fn open_again(&self, cause: String) {
        self.told().end.get_or_insert(LeaderError::Unavailable(cause));
        self.wake.notify_one();
    }

    /// Why the session must end.
    pub(super) fn take_end(&self) -> Option<LeaderError> {
        self.told().end.take()
    }

    /// What [`StreamSide::says`] was told last, and as whom; while tables are copied, how far they are.
    pub(super) fn said(&self) -> Option<(SourceTabletId, Epoch, StreamState)> {
        let opened = self.opened()?;
        let Progress { state, copy, .. } = self.progress();
        let state = match state {
            StreamState::Running if !copy.tables.is_empty() => {
                let (rows, total) = copy.rows();
                StreamState::Copying { rows, total }
            }
            state => state,
        };
        Some((opened.stream, opened.puller, state))
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
