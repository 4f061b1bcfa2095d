//! What everything in a simulated universe shares: time, chance, faults, and the trace of what happened.

use super::Ask;
use super::chance::Chance;
use super::faults::{Faults, Kind, WINDOW_MS};
use rustc_hash::FxHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use untorn::wal::HybridTime;

/// The wall clock at the start of every run, in microseconds.
const EPOCH_MICROS: u64 = 1_700_000_000_000_000;
/// Lines of the trace that are kept, where somebody wants to read it.
const TRACE_LINES: usize = 1 << 20;

/// One run's world. Clones are the same world.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    first_broken: Arc<Notify>,
    started: Instant,
    tracing: bool,
}

struct Inner {
    chance: Chance,
    faults: Faults,
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
    broken: Vec<String>,
    reached: BTreeMap<&'static str, u64>,
}

impl World {
    /// The world of a seed.
    pub fn new(ask: &Ask) -> Self {
        let mut chance = Chance::of(ask.seed);
        let drawn = Faults::draw(&mut chance).with(ask.with);
        let faults = ask.only.map_or(drawn, Faults::always);
        let inner = Inner {
            chance,
            faults,
            hash: 0,
            events: 0,
            lines: VecDeque::new(),
            broken: Vec::new(),
            reached: BTreeMap::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            first_broken: Arc::default(),
            started: Instant::now(),
            tracing: ask.tracing,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Microseconds since the run began.
    pub fn elapsed_micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap()
    }

    /// The true time.
    pub fn now(&self) -> HybridTime {
        HybridTime::from_micros(EPOCH_MICROS + self.elapsed_micros())
    }

    /// Asks chance.
    pub fn chance<T>(&self, ask: impl FnOnce(&mut Chance) -> T) -> T {
        ask(&mut self.inner().chance)
    }

    /// Whether this fault happens now, where its kind fires and `probability` says so; counts it.
    pub fn strikes(&self, kind: Kind, probability: f64) -> bool {
        let window = self.elapsed_micros() / 1000 / WINDOW_MS;
        let Inner { chance, faults, .. } = &mut *self.inner();
        faults.enter_window(window, chance);
        let strikes = faults.fires(kind) && chance.happens(probability);
        if strikes {
            faults.count(kind);
        }
        strikes
    }

    /// Whether the kind is active in this run.
    pub fn is_active(&self, kind: Kind) -> bool {
        self.inner().faults.is_active(kind)
    }

    /// Counts a fault that happened.
    pub fn struck(&self, kind: Kind) {
        self.inner().faults.count(kind);
    }

    /// From here on nothing goes wrong.
    pub fn heal(&self) {
        self.inner().faults.heal();
    }

    /// How often each fault happened.
    pub fn fault_counts(&self) -> BTreeMap<Kind, u64> {
        self.inner().faults.counts().clone()
    }

    /// A wait of between so many milliseconds.
    pub async fn sleep_ms(&self, first: u64, last: u64) {
        let millis = self.chance(|chance| chance.skewed(first, last));
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Notes an event: it goes into the trace's hash, and its text into the trace when somebody wants to read it.
    pub fn event(&self, what: impl Hash, text: impl FnOnce() -> String) {
        let at = self.elapsed_micros();
        let mut inner = self.inner();
        let mut hasher = FxHasher::default();
        (inner.hash, at, what).hash(&mut hasher);
        inner.hash = hasher.finish();
        inner.events += 1;
        // What follows the first failure explains nothing.
        if self.tracing && inner.broken.is_empty() {
            if inner.lines.len() == TRACE_LINES {
                inner.lines.pop_front();
            }
            inner.lines.push_back(format!("{:>10.3} {}", at as f64 / 1e6, text()));
        }
    }

    /// A state that a campaign must have met at least once.
    pub fn reached(&self, what: &'static str) {
        *self.inner().reached.entry(what).or_default() += 1;
    }

    /// What was reached, and how often.
    pub fn all_reached(&self) -> BTreeMap<&'static str, u64> {
        self.inner().reached.clone()
    }

    /// Something that must hold does not.
    pub fn broken(&self, what: String) {
        self.event((), || format!("BROKEN {what}"));
        self.inner().broken.push(what);
        self.first_broken.notify_one();
    }

    /// Waits until something does not hold: what happens after it explains nothing.
    pub async fn is_broken(&self) {
        self.first_broken.notified().await;
    }

    /// What did not hold.
    pub fn all_broken(&self) -> Vec<String> {
        self.inner().broken.clone()
    }

    /// The hash of everything that happened, and how many events that were.
    pub fn hash(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.hash, inner.events)
    }

    /// The end of the trace.
    pub fn lines(&self) -> Vec<String> {
        self.inner().lines.iter().cloned().collect()
    }
}
