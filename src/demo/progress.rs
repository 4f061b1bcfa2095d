//! What happened so far: the numbers that the screen, the plain lines and the report show.

use crate::wal::HybridTime;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

use super::workload::Committed;

/// Transactions that are committed and not yet visible, at least and at most: the source's users wait above the window.
const WINDOW: std::ops::RangeInclusive<usize> = 64..=1_500;
/// The window shrinks when a transaction took longer than this to become visible, and grows while none did.
const WINDOW_LATENCY: Duration = Duration::from_millis(60);
/// How often the window is looked at.
const WINDOW_PERIOD: Duration = Duration::from_millis(50);
/// The longest latency that is told apart, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

/// The numbers, shared by everything in the demo.
pub struct Progress {
    state: Mutex<State>,
    /// Told when transactions become visible.
    room: Notify,
    /// Told when the users begin.
    begun: Notify,
}

struct State {
    started: Instant,
    ended: Option<Instant>,
    committed: u64,
    visible: u64,
    visible_rows: u64,
    in_flight: VecDeque<(Committed, Instant)>,
    window: Window,
    /// Commit to visible in microseconds, of the whole run.
    latency: Histogram<u64>,
    /// The same since the last look.
    recent: Histogram<u64>,
    snapshots: u64,
    torn: u64,
    last_torn: Option<String>,
    refused: u64,
}

/// How many transactions may be on their way.
struct Window {
    size: usize,
    since: Instant,
    worst: Duration,
    /// Whether anybody waited for room.
    full: bool,
}

impl Window {
    fn saw(&mut self, worst: Duration, now: Instant) {
        self.worst = self.worst.max(worst);
        if now.duration_since(self.since) < WINDOW_PERIOD {
            return;
        }
        let size = match (self.worst > WINDOW_LATENCY, self.full) {
            (true, _) => self.size - self.size / 8,
            (false, true) => self.size + self.size / 32 + 1,
            (false, false) => self.size,
        };
        *self =
            Self { size: size.clamp(*WINDOW.start(), *WINDOW.end()), since: now, worst: Duration::ZERO, full: false };
    }
}

/// The numbers at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Numbers {
    /// How long the source's users have been at work.
    pub elapsed: Duration,
    /// Transactions that the source committed.
    pub committed: u64,
    /// Those of them that are visible at `safe`.
    pub visible: u64,
    /// Their writes.
    pub visible_rows: u64,
    /// Committed and not yet visible.
    pub in_flight: usize,
    /// How many of those there may be.
    pub window: usize,
    /// Commit to visible, of the whole run.
    pub latency: Latency,
    /// Commit to visible since the last look.
    pub recent: Latency,
    /// Snapshots that the auditor read.
    pub snapshots: u64,
    /// Those of them that were no state that the source ever had.
    pub torn: u64,
    /// What was wrong with the last one.
    pub last_torn: Option<String>,
    /// Reads that the replica refused or failed; they are no snapshots.
    pub refused: u64,
}

/// Percentiles in milliseconds; 0 where nothing was seen.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// 999 of 1,000 are faster.
    pub p999: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let milliseconds = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Self { p50: milliseconds(0.5), p99: milliseconds(0.99), p999: milliseconds(0.999) }
    }
}

/// A histogram could not be made.
#[derive(Debug, thiserror::Error)]
#[error("no histogram of latencies: {0}")]
pub struct NoHistogram(#[from] hdrhistogram::CreationError);

impl Progress {
    /// Nothing happened yet.
    ///
    /// # Errors
    /// Only if the bounds of the histogram are wrong.
    pub fn new() -> Result<Self, NoHistogram> {
        let now = Instant::now();
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?;
        let window = Window { size: 512, since: now, worst: Duration::ZERO, full: false };
        let state = State {
            started: now,
            ended: None,
            committed: 0,
            visible: 0,
            visible_rows: 0,
            in_flight: VecDeque::new(),
            window,
            latency: histogram.clone(),
            recent: histogram,
            snapshots: 0,
            torn: 0,
            last_torn: None,
            refused: 0,
        };
        Ok(Self { state: Mutex::new(state), room: Notify::new(), begun: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers for people: after a panic elsewhere they are as good as before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source's users begin: rates count from here.
    pub fn begin(&self) {
        self.state().started = Instant::now();
        self.begun.notify_one();
    }

    /// Waits until the users begin; for one that waits.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// The last of their transactions is visible: rates count up to here.
    pub fn end(&self) {
        self.state().ended.get_or_insert_with(Instant::now);
    }

    /// The source committed transactions just now; times rise.
    pub fn committed(&self, transactions: &[Committed]) {
        let now = Instant::now();
        let mut state = self.state();
        state.committed += transactions.len() as u64;
        state.in_flight.extend(transactions.iter().map(|&transaction| (transaction, now)));
    }

    /// Everything committed at or below this time is visible from now on.
    pub fn visible(&self, safe: HybridTime) {
        let now = Instant::now();
        let mut state = self.state();
        let mut worst = Duration::ZERO;
        while let Some((transaction, since)) = state.in_flight.front().copied().filter(|(t, _)| t.time <= safe) {
            state.in_flight.pop_front();
            let took = now.duration_since(since);
            worst = worst.max(took);
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            state.latency.saturating_record(micros);
            state.recent.saturating_record(micros);
            state.visible += 1;
            state.visible_rows += u64::from(transaction.rows);
        }
        if worst > Duration::ZERO {
            state.window.saw(worst, now);
            self.room.notify_one();
        }
    }

    /// How many more transactions may be committed now.
    #[must_use]
    pub fn room(&self) -> usize {
        let mut state = self.state();
        let room = state.window.size.saturating_sub(state.in_flight.len());
        state.window.full |= room == 0;
        room
    }

    /// Waits until transactions become visible.
    pub async fn more_room(&self) {
        self.room.notified().await;
    }

    /// The auditor read a snapshot; with what was wrong with it.
    pub fn snapshot(&self, torn: Option<String>) {
        let mut state = self.state();
        state.snapshots += 1;
        if torn.is_some() {
            state.torn += 1;
            state.last_torn = torn;
        }
    }

    /// The replica did not answer a read.
    pub fn refused(&self) {
        self.state().refused += 1;
    }

    /// The numbers now. With `look`, recent ones begin anew.
    #[must_use]
    pub fn numbers(&self, look: bool) -> Numbers {
        let mut state = self.state();
        let numbers = Numbers {
            elapsed: state.ended.unwrap_or_else(Instant::now).saturating_duration_since(state.started),
            committed: state.committed,
            visible: state.visible,
            visible_rows: state.visible_rows,
            in_flight: state.in_flight.len(),
            window: state.window.size,
            latency: Latency::of(&state.latency),
            recent: Latency::of(&state.recent),
            snapshots: state.snapshots,
            torn: state.torn,
            last_torn: state.last_torn.clone(),
            refused: state.refused,
        };
        if look {
            state.recent.reset();
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(times: &[u64]) -> Vec<Committed> {
        times.iter().map(|&time| Committed { time: HybridTime::from_u64(time), rows: 4 }).collect()
    }

    #[test]
    fn a_transaction_counts_as_visible_when_safe_time_reaches_it() {
        let progress = Progress::new().unwrap();
        progress.committed(&committed(&[10, 20, 30]));
        progress.visible(HybridTime::from_u64(9));
        assert_eq!(progress.numbers(false).visible, 0);
        progress.visible(HybridTime::from_u64(20));
        let numbers = progress.numbers(true);
        assert_eq!((numbers.committed, numbers.visible, numbers.visible_rows, numbers.in_flight), (3, 2, 8, 1));
    }

    #[test]
    fn the_window_shrinks_when_transactions_are_late_and_grows_when_users_wait() {
        let now = Instant::now();
        let mut window = Window { size: 800, since: now, worst: Duration::ZERO, full: true };
        window.saw(Duration::from_millis(10), now + WINDOW_PERIOD);
        assert_eq!(window.size, 826);
        window.saw(Duration::from_millis(100), now + WINDOW_PERIOD);
        assert_eq!(window.size, 826, "not before the period is over");
        window.saw(Duration::from_millis(1), now + WINDOW_PERIOD * 2);
        assert_eq!(window.size, 723);
        window.saw(Duration::from_millis(1), now + WINDOW_PERIOD * 3);
        assert_eq!(window.size, 723, "nobody waited");
    }

    #[test]
    fn torn_snapshots_are_counted_with_the_last_reason() {
        let progress = Progress::new().unwrap();
        progress.snapshot(None);
        progress.snapshot(Some("sum 3".into()));
        progress.snapshot(None);
        let numbers = progress.numbers(false);
        assert_eq!((numbers.snapshots, numbers.torn, numbers.last_torn.as_deref()), (3, 1, Some("sum 3")));
    }
}
