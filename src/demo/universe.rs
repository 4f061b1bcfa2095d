//! The source universe: tablets, each with a WAL of change records, a common hybrid clock, and readers that see every
//! WAL late by a delay of its own.
//!
//! The delays are the point of the demo: a transaction's records become readable at different times in different
//! streams, so that a replica that shows what it has shows parts of transactions.

use super::change::{self, Change, Number};
use crate::limits::DEMO_WAL_BYTES;
use crate::tablet::change_log::{ChangeLog, ChangeLogError, ChangePage, NotRunning, ReadChanges};
use crate::wal::{HybridTime, OpId, SourceTransactionId};
use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Bytes that a record takes in a WAL.
const RECORD_BYTES: usize = size_of::<(Instant, Change)>();
/// The longest delay of a stream; tablet `i` of `n` draws from up to `(i + 1) / n` of it.
const DELAY_MAX: Duration = Duration::from_millis(30);
/// How long a stream keeps a delay before it draws the next.
const DELAY_KEPT: Duration = Duration::from_millis(40);
/// The WALs never change leaders, so every position has this term.
const TERM: u64 = 1;

/// The source universe.
pub struct Universe {
    names: Vec<String>,
    tablets: Vec<SourceTablet>,
    accounts: Vec<Bytes>,
    running: Mutex<FxHashSet<Number>>,
    backlog: AtomicUsize,
    /// Told whenever the backlog shrinks.
    forgotten: Notify,
}

/// One tablet.
struct SourceTablet {
    wal: Mutex<Wal>,
    /// Told whenever the WAL grows.
    grew: Notify,
}

/// A tablet's records from the oldest one that a reader has not acknowledged.
struct Wal {
    /// The records, with when each becomes readable.
    records: VecDeque<(Instant, Change)>,
    /// The index before the first record held.
    forgotten: u64,
    /// What each reader has acknowledged.
    acknowledged: FxHashMap<String, u64>,
    delay: Delay,
}

/// A stream's jittering delay.
struct Delay {
    random: SmallRng,
    most: Duration,
    now: Duration,
    until: Instant,
    /// The newest record's due time: records become readable in order.
    last_due: Instant,
}

impl Delay {
    /// When a record written now becomes readable.
    fn due(&mut self, now: Instant) -> Instant {
        if now >= self.until {
            self.now = self.most.mul_f64(self.random.random());
            self.until = now + DELAY_KEPT.mul_f64(self.random.random());
        }
        self.last_due = self.last_due.max(now + self.now);
        self.last_due
    }
}

/// What one step of the workload adds to the WALs.
#[derive(Default)]
pub struct Step {
    /// For each tablet, its records in order.
    pub records: Vec<Vec<Change>>,
    /// Transactions that begin in this step.
    pub began: Vec<Number>,
    /// Transactions that end in it.
    pub ended: Vec<Number>,
}

impl Step {
    /// An empty step for so many tablets.
    #[must_use]
    pub fn new(tablets: usize) -> Self {
        Self { records: vec![Vec::new(); tablets], ..Self::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is whole between any two statements, so a panic elsewhere leaves nothing to mend.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Universe {
    /// A universe of so many tablets and accounts; account `a` lives in tablet `a` modulo `tablets`.
    #[must_use]
    pub fn new(tablets: u16, accounts: u32, seed: u64) -> Self {
        let now = Instant::now();
        let new_tablet = |index: u16| {
            let delay = Delay {
                random: SmallRng::seed_from_u64(seed.wrapping_add(index.into())),
                most: DELAY_MAX * u32::from(index + 1) / u32::from(tablets),
                now: Duration::ZERO,
                until: now,
                last_due: now,
            };
            let records = VecDeque::from([(now, Change::Schema)]);
            let wal = Wal { records, forgotten: 0, acknowledged: FxHashMap::default(), delay };
            SourceTablet { wal: Mutex::new(wal), grew: Notify::new() }
        };
        Self {
            names: (1..=tablets).map(|number| format!("source-{number}")).collect(),
            tablets: (0..tablets).map(new_tablet).collect(),
            accounts: (0..accounts).map(|account| account.to_string().into()).collect(),
            running: Mutex::default(),
            backlog: AtomicUsize::new(usize::from(tablets) * RECORD_BYTES),
            forgotten: Notify::new(),
        }
    }

    /// The tablets' names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Adds a step to the WALs and empties it.
    pub fn append(&self, step: &mut Step) {
        lock(&self.running).extend(step.began.drain(..));
        let now = Instant::now();
        for (tablet, records) in self.tablets.iter().zip(&mut step.records) {
            if records.is_empty() {
                continue;
            }
            // Counted first, so that whoever forgets them finds them counted.
            self.backlog.fetch_add(records.len() * RECORD_BYTES, Ordering::Relaxed);
            let mut wal = lock(&tablet.wal);
            let due = wal.delay.due(now);
            wal.records.extend(records.drain(..).map(|record| (due, record)));
            drop(wal);
            tablet.grew.notify_waiters();
        }
        // Only now: whoever is told that a transaction does not run finds its end below the WAL's last position.
        let mut running = lock(&self.running);
        for number in step.ended.drain(..) {
            running.remove(&number);
        }
    }

    /// Waits while readers leave more unacknowledged than the source can keep.
    pub async fn room(&self) {
        loop {
            let shrunk = self.forgotten.notified();
            if self.backlog.load(Ordering::Relaxed) < DEMO_WAL_BYTES {
                return;
            }
            shrunk.await;
        }
    }

    /// Bytes that readers have not acknowledged.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    fn tablet(&self, name: &str) -> Result<&SourceTablet, ChangeLogError> {
        let found = self.names.iter().position(|held| held == name).and_then(|index| self.tablets.get(index));
        found.ok_or_else(|| ChangeLogError::NotFound(name.into()))
    }

    /// Forgets what every reader has acknowledged.
    fn acknowledge(&self, wal: &mut Wal, reader: &str, upto: OpId) {
        let end = wal.end();
        match wal.acknowledged.get_mut(reader) {
            Some(held) => *held = upto.index.min(end).max(*held),
            None => {
                wal.acknowledged.insert(reader.into(), upto.index.min(end));
            }
        }
        let Some(&least) = wal.acknowledged.values().min() else { return };
        let gone = least.saturating_sub(wal.forgotten);
        if gone > 0 {
            wal.records.drain(..gone as usize);
            wal.forgotten = least;
            self.backlog.fetch_sub(gone as usize * RECORD_BYTES, Ordering::Relaxed);
            self.forgotten.notify_one();
        }
    }

    /// The records of a page as they are sent.
    fn page(&self, after: OpId, changes: Vec<Change>) -> ChangePage {
        let mut page = ChangePage { upto: after, ..ChangePage::default() };
        page.records.reserve(changes.len());
        for change in changes {
            page.upto = OpId::new(TERM, page.upto.index + 1);
            page.records.push(change.record(page.upto, &self.accounts, &self.names));
        }
        page
    }
}

impl Wal {
    /// The last record's index.
    fn end(&self) -> u64 {
        self.forgotten + self.records.len() as u64
    }

    /// The readable records after a position.
    fn after(&self, after: OpId, max_bytes: usize) -> Result<Readable, ChangeLogError> {
        let Some(skip) = after.index.checked_sub(self.forgotten) else {
            return Err(ChangeLogError::Gone { after, oldest: OpId::new(TERM, self.forgotten) });
        };
        let now = Instant::now();
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for (due, change) in self.records.iter().skip(skip as usize) {
            if *due > now {
                return Ok(if changes.is_empty() { Readable::NoneUntil(*due) } else { Readable::Some(changes) });
            }
            bytes += change.sent_bytes();
            if bytes > max_bytes && !changes.is_empty() {
                break;
            }
            changes.push(change.clone());
        }
        Ok(if changes.is_empty() { Readable::None } else { Readable::Some(changes) })
    }
}

/// What a WAL has for a reader.
enum Readable {
    /// These records.
    Some(Vec<Change>),
    /// None until then.
    NoneUntil(Instant),
    /// None until one is written.
    None,
}

#[async_trait]
impl ChangeLog for Universe {
    async fn tablets(&self) -> Result<Vec<String>, ChangeLogError> {
        Ok(self.names.clone())
    }

    async fn read(&self, request: ReadChanges) -> Result<ChangePage, ChangeLogError> {
        let tablet = self.tablet(&request.tablet)?;
        let deadline = Instant::now() + request.wait;
        let schemas = if request.need_schemas { vec![change::schema()] } else { Vec::new() };
        if let Some(upto) = request.acknowledged {
            self.acknowledge(&mut lock(&tablet.wal), &request.reader, upto);
        }
        loop {
            let grew = tablet.grew.notified();
            let found = lock(&tablet.wal).after(request.after, request.max_bytes)?;
            let in_time = match found {
                Readable::Some(changes) => return Ok(ChangePage { schemas, ..self.page(request.after, changes) }),
                // The one wait for a time: it is the stream's delay.
                Readable::NoneUntil(due) => timeout_at(deadline, sleep_until(due)).await.is_ok(),
                Readable::None => timeout_at(deadline, grew).await.is_ok(),
            };
            if !in_time {
                return Ok(ChangePage { upto: request.after, schemas, ..ChangePage::default() });
            }
        }
    }

    async fn check_transactions(
        &self,
        tablet: &str,
        transactions: Vec<SourceTransactionId>,
    ) -> Result<NotRunning, ChangeLogError> {
        let tablet = self.tablet(tablet)?;
        let not_running = {
            let running = lock(&self.running);
            let runs = |t: &SourceTransactionId| change::number(t).is_some_and(|number| running.contains(&number));
            transactions.into_iter().filter(|transaction| !runs(transaction)).collect()
        };
        let as_of = OpId::new(TERM, lock(&tablet.wal).end());
        Ok(NotRunning { transactions: not_running, as_of })
    }
}

/// The universe's clock: the machine's, and never the same time twice. One owner, so that a time is taken and used
/// before the next one exists.
#[derive(Debug, Default)]
pub struct HybridClock {
    last: HybridTime,
}

impl HybridClock {
    /// A time above every one before.
    pub fn tick(&mut self) -> HybridTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = HybridTime::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        self.last = now.max(self.last.next());
        self.last
    }
}
