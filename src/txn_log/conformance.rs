//! What every engine must do: the trait's words as cases, run over each engine, also behind a bad network.
//!
//! A case is given empty storage and opens it through [`Unreliable`], so a caller chooses the faults. It speaks to the
//! log as the applier must: what is unavailable is asked again, what is indeterminate is read back. A broken promise
//! panics with the case's own words.

#![expect(clippy::unwrap_used, reason = "a suite of tests: a call that fails is a failed case")]

use super::{Fate, Faults, LogError, LogRecord, Opened, Snapshot, TransactionLog, Unreliable, read_back};
use crate::wal::{Epoch, LogPosition};
use bytes::Bytes;
use futures::future::BoxFuture;

/// How often a call is asked again before the case gives up: far beyond what any fault rate needs.
const TRIES: usize = 1_000;

/// Storage of one log, which can be opened again and again.
pub trait Storage: Sync {
    /// A new handle on the same storage.
    fn log(&self) -> Box<dyn TransactionLog>;

    /// Whether several handles may be open at once, and the newest fences the others. Otherwise a handle is dropped
    /// before the next one is opened.
    fn shared(&self) -> bool;
}

/// A case: its name as a sentence, and its body.
pub type Case = (&'static str, fn(Suite<'_>) -> BoxFuture<'_, ()>);

/// Every case.
pub const CASES: &[Case] = &[
    ("positions_are_dense", |s| Box::pin(positions_are_dense(s))),
    ("a_conflict_tells_the_next_position", |s| Box::pin(a_conflict_tells_the_next_position(s))),
    ("a_higher_epoch_fences_every_call", |s| Box::pin(a_higher_epoch_fences_every_call(s))),
    ("a_page_holds_at_least_one_entry", |s| Box::pin(a_page_holds_at_least_one_entry(s))),
    ("entries_of_any_size_come_back", |s| Box::pin(entries_of_any_size_come_back(s))),
    ("a_snapshot_replaces_the_one_before", |s| Box::pin(a_snapshot_replaces_the_one_before(s))),
    ("only_what_a_snapshot_includes_is_trimmed", |s| Box::pin(only_what_a_snapshot_includes_is_trimmed(s))),
    ("everything_outlives_a_reopen", |s| Box::pin(everything_outlives_a_reopen(s))),
    ("of_two_writers_exactly_one_wins", |s| Box::pin(of_two_writers_exactly_one_wins(s))),
    ("what_is_late_lands_once_or_never", |s| Box::pin(what_is_late_lands_once_or_never(s))),
    ("what_is_late_never_lands_after_a_takeover", |s| Box::pin(what_is_late_never_lands_after_a_takeover(s))),
];

/// Runs every case, each over fresh storage.
pub async fn run_all<S: Storage>(fresh: impl Fn() -> S, faults: Faults, seed: u64) {
    for (name, case) in CASES {
        tracing::info!(name, seed, "case");
        let storage = fresh();
        case(Suite { storage: &storage, faults, seed }).await;
    }
}

/// What a case is given.
#[derive(Clone, Copy)]
pub struct Suite<'a> {
    /// Empty storage.
    pub storage: &'a dyn Storage,
    /// What goes wrong.
    pub faults: Faults,
    /// Of the faults.
    pub seed: u64,
}

impl Suite<'_> {
    fn client(&self) -> Client {
        Client { log: Unreliable::new(self.storage.log(), self.faults, self.seed) }
    }

    /// A later owner: another handle beside the first where the storage allows it, else the same one, opened again.
    async fn take_over(&self, first: &mut Client) -> Epoch {
        if self.storage.shared() { self.client().open("second").await.epoch } else { first.open("second").await.epoch }
    }
}

/// A log as the applier must speak to it.
struct Client {
    log: Unreliable<Box<dyn TransactionLog>>,
}

impl Client {
    async fn open(&mut self, owner: &str) -> Opened {
        for _ in 0..TRIES {
            match self.log.open(owner).await {
                Err(LogError::Unavailable(_)) => {}
                answer => return answer.unwrap(),
            }
        }
        panic!("the log cannot be opened");
    }

    async fn put(&mut self, at: u64, epoch: Epoch, entry: &[u8]) -> Result<LogPosition, LogError> {
        self.settle(at, epoch, entry, false).await
    }

    /// Appends until it is known whether the entry stands there; `doubt`: an earlier try may yet land, or has.
    async fn settle(&mut self, at: u64, epoch: Epoch, entry: &[u8], mut doubt: bool) -> Result<LogPosition, LogError> {
        let position = LogPosition(at);
        for _ in 0..TRIES {
            match self.log.append(position, epoch, Bytes::copy_from_slice(entry)).await {
                Err(LogError::Unavailable(_)) => {}
                Err(LogError::Indeterminate(_)) => doubt = true,
                Err(error @ LogError::Conflict { .. }) if doubt => match self.fate(position, epoch, entry).await {
                    Fate::Happened => return Ok(position),
                    // Another entry holds it, or the positions have not come that far.
                    Fate::Not | Fate::Open => return Err(error),
                },
                answer => return answer,
            }
            if doubt && self.fate(position, epoch, entry).await == Fate::Happened {
                return Ok(position);
            }
        }
        panic!("the append never came to an end");
    }

    async fn fate(&mut self, position: LogPosition, epoch: Epoch, entry: &[u8]) -> Fate {
        for _ in 0..TRIES {
            match read_back(&mut self.log, position, epoch, entry).await {
                Err(LogError::Unavailable(_)) => {}
                answer => return answer.unwrap(),
            }
        }
        panic!("the log cannot be read");
    }

    async fn page(&mut self, from: u64, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        for _ in 0..TRIES {
            match self.log.read(LogPosition(from), max_bytes).await {
                Err(LogError::Unavailable(_)) => {}
                answer => return answer,
            }
        }
        panic!("the log cannot be read");
    }

    async fn all(&mut self, from: u64) -> Vec<LogRecord> {
        self.page(from, usize::MAX).await.unwrap()
    }

    /// Snapshots and trims may be done again, so a doubt is settled by doing so.
    async fn snapshot(&mut self, epoch: Epoch, at: u64, state: &[u8]) -> Result<(), LogError> {
        for _ in 0..TRIES {
            let snapshot = Snapshot { position: LogPosition(at), state: Bytes::copy_from_slice(state) };
            match self.log.write_snapshot(epoch, snapshot).await {
                Err(LogError::Unavailable(_) | LogError::Indeterminate(_)) => {}
                answer => return answer,
            }
        }
        panic!("the snapshot never came to an end");
    }

    async fn newest(&mut self) -> Option<(u64, Bytes)> {
        for _ in 0..TRIES {
            match self.log.read_snapshot().await {
                Err(LogError::Unavailable(_)) => {}
                answer => return answer.unwrap().map(|held| (held.position.0, held.state)),
            }
        }
        panic!("the snapshot cannot be read");
    }

    async fn trim(&mut self, epoch: Epoch, up_to: u64) -> Result<(), LogError> {
        for _ in 0..TRIES {
            match self.log.trim(epoch, LogPosition(up_to)).await {
                Err(LogError::Unavailable(_) | LogError::Indeterminate(_)) => {}
                answer => return answer,
            }
        }
        panic!("the trim never came to an end");
    }
}

fn text(number: u64) -> Vec<u8> {
    format!("entry {number}").into_bytes()
}

#[track_caller]
fn assert_next<T: std::fmt::Debug>(answer: Result<T, LogError>, next: u64) {
    assert!(matches!(answer, Err(LogError::Conflict { next: said, .. }) if said.0 == next), "{answer:?}, not {next}");
}

#[track_caller]
fn assert_fenced<T: std::fmt::Debug>(answer: Result<T, LogError>, by: Epoch) {
    assert!(matches!(answer, Err(LogError::Fenced { held }) if held == by), "{answer:?}, not fenced by {by}");
}

async fn positions_are_dense(suite: Suite<'_>) {
    let mut log = suite.client();
    let opened = log.open("first").await;
    assert_eq!(opened.last, LogPosition(0), "an empty log ends at 0");
    assert!(opened.epoch > Epoch(0), "epochs begin at 1");
    assert!(log.all(1).await.is_empty());
    for at in 1..=20 {
        assert_eq!(log.put(at, opened.epoch, &text(at)).await.unwrap(), LogPosition(at));
    }
    let records = log.all(1).await;
    assert_eq!(records.iter().map(|record| record.position.0).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    for record in records {
        assert_eq!((record.entry.to_vec(), record.epoch), (text(record.position.0), opened.epoch));
    }
}

async fn a_conflict_tells_the_next_position(suite: Suite<'_>) {
    let mut log = suite.client();
    let epoch = log.open("first").await.epoch;
    assert_next(log.put(0, epoch, b"before the first").await, 1);
    assert_next(log.put(2, epoch, b"would leave a hole").await, 1);
    log.put(1, epoch, b"one").await.unwrap();
    assert_next(log.put(1, epoch, b"another").await, 2);
    assert_next(log.put(3, epoch, b"would leave a hole").await, 2);
    assert_eq!(log.all(1).await.len(), 1, "a conflict stores nothing");
}

async fn a_higher_epoch_fences_every_call(suite: Suite<'_>) {
    let mut log = suite.client();
    let first = log.open("first").await.epoch;
    log.put(1, first, b"one").await.unwrap();
    let second = suite.take_over(&mut log).await;
    assert!(second > first);
    assert_fenced(log.put(2, first, b"two").await, second);
    assert_fenced(log.put(1, first, b"fenced comes before a conflict").await, second);
    assert_fenced(log.snapshot(first, 1, b"state").await, second);
    log.snapshot(second, 1, b"state").await.unwrap();
    assert_fenced(log.trim(first, 1).await, second);
    drop(log);
    let mut log = suite.client();
    let third = log.open("third").await.epoch;
    assert!(third > second, "epochs outlive a reopen");
    assert_fenced(log.put(2, second, b"two").await, third);
    log.put(2, third, b"two").await.unwrap();
    let epochs: Vec<Epoch> = log.all(1).await.iter().map(|record| record.epoch).collect();
    assert_eq!(epochs, [first, third], "an entry keeps its owner's epoch");
}

async fn a_page_holds_at_least_one_entry(suite: Suite<'_>) {
    let mut log = suite.client();
    let epoch = log.open("first").await.epoch;
    for at in 1..=10 {
        log.put(at, epoch, &[7; 100]).await.unwrap();
    }
    assert_eq!(log.page(1, 0).await.unwrap().len(), 1, "at least one");
    let mut from = 1;
    while from <= 10 {
        let page = log.page(from, 250).await.unwrap();
        assert!((1..=3).contains(&page.len()), "not many more than asked for: {}", page.len());
        assert_eq!(page[0].position.0, from, "in order, without a gap");
        from += page.len() as u64;
    }
    assert!(log.all(11).await.is_empty(), "empty at the end");
    assert!(log.all(1_000).await.is_empty(), "and beyond it");
}

async fn entries_of_any_size_come_back(suite: Suite<'_>) {
    let sizes = [0, 1, 3_999, 4_000, 4_001, 8_000, 70_000, 2 << 20, 0];
    let bytes = |at: usize| -> Vec<u8> { (0..sizes[at]).map(|i| (i * 31 + at * 7 + i / 253) as u8).collect() };
    let mut log = suite.client();
    let epoch = log.open("first").await.epoch;
    for at in 0..sizes.len() {
        log.put(at as u64 + 1, epoch, &bytes(at)).await.unwrap();
    }
    for reopened in [false, true] {
        if reopened {
            drop(log);
            log = suite.client();
            assert_eq!(log.open("second").await.last.0, sizes.len() as u64);
        }
        for (at, record) in log.all(1).await.iter().enumerate() {
            assert!(record.entry == bytes(at), "entry {} of {} bytes is another", at + 1, sizes[at]);
        }
    }
}

async fn a_snapshot_replaces_the_one_before(suite: Suite<'_>) {
    let mut log = suite.client();
    let epoch = log.open("first").await.epoch;
    assert_eq!(log.newest().await, None);
    log.snapshot(epoch, 0, b"of an empty log").await.unwrap();
    for at in 1..=3 {
        log.put(at, epoch, &text(at)).await.unwrap();
    }
    assert_next(log.snapshot(epoch, 4, b"beyond the end").await, 4);
    let large: Vec<u8> = (0..5 << 20).map(|i: u32| (i % 251) as u8).collect();
    log.snapshot(epoch, 2, &large).await.unwrap();
    assert_eq!(log.newest().await, Some((2, Bytes::from(large))));
    assert_next(log.snapshot(epoch, 1, b"going back").await, 4);
    log.snapshot(epoch, 2, b"").await.unwrap();
    assert_eq!(log.newest().await, Some((2, Bytes::new())), "the same position again, and an empty state");
    log.snapshot(epoch, 3, b"three").await.unwrap();
    assert_eq!(log.newest().await, Some((3, Bytes::from_static(b"three"))));
    assert_eq!(log.all(1).await.len(), 3, "a snapshot alone forgets nothing");
}

async fn only_what_a_snapshot_includes_is_trimmed(suite: Suite<'_>) {
    let mut log = suite.client();
    let epoch = log.open("first").await.epoch;
    for at in 1..=5 {
        log.put(at, epoch, &text(at)).await.unwrap();
    }
    assert_next(log.trim(epoch, 1).await, 6);
    log.snapshot(epoch, 3, b"three").await.unwrap();
    assert_next(log.trim(epoch, 4).await, 6);
    log.trim(epoch, 2).await.unwrap();
    log.trim(epoch, 2).await.unwrap();
    log.trim(epoch, 1).await.unwrap();
    assert_next(log.page(2, 100).await, 6);
    assert_next(log.page(0, 100).await, 6);
    assert_eq!(log.all(3).await.iter().map(|record| record.position.0).collect::<Vec<_>>(), [3, 4, 5]);
    log.snapshot(epoch, 5, b"five").await.unwrap();
    log.trim(epoch, 5).await.unwrap();
    assert!(log.all(6).await.is_empty());
    log.put(6, epoch, b"positions go on").await.unwrap();
    drop(log);
    let mut log = suite.client();
    assert_eq!(log.open("second").await.last, LogPosition(6));
    assert_next(log.page(5, 100).await, 7);
    assert_eq!(log.all(6).await.len(), 1);
}

async fn everything_outlives_a_reopen(suite: Suite<'_>) {
    let (mut id, mut before) = (None, Epoch(0));
    for round in 0..6_u64 {
        let mut log = suite.client();
        let opened = log.open("again").await;
        assert!(opened.epoch > before);
        assert_eq!(id.get_or_insert(opened.log_id.clone()), &opened.log_id, "the id is the log's for ever");
        assert_eq!(opened.last.0, round * 10);
        assert_eq!(log.newest().await.map(|(at, _)| at), (round > 0).then(|| round * 10 - 5));
        let first = if round > 0 { round * 10 - 4 } else { 1 };
        for (at, record) in (first..).zip(log.all(first).await) {
            assert_eq!((record.position.0, record.entry.to_vec()), (at, text(at)));
        }
        before = opened.epoch;
        for at in round * 10 + 1..=round * 10 + 10 {
            log.put(at, opened.epoch, &text(at)).await.unwrap();
        }
        log.snapshot(opened.epoch, round * 10 + 5, &text(round)).await.unwrap();
        log.trim(opened.epoch, round * 10 + 5).await.unwrap();
    }
}

/// Two handles with one epoch, as when a paused writer's request arrives beside its successor's.
async fn of_two_writers_exactly_one_wins(suite: Suite<'_>) {
    if !suite.storage.shared() {
        return; // There the second handle cannot be opened at all.
    }
    let mut clients = [suite.client(), suite.client()];
    clients[0].open("left").await;
    let epoch = clients[1].open("right").await.epoch;
    let mut outcomes: Vec<Vec<bool>> = Vec::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(who, client)| {
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(async {
                        let mut won = Vec::new();
                        for at in 1..=40 {
                            match client.put(at, epoch, format!("{who} at {at}").as_bytes()).await {
                                Ok(_) => won.push(true),
                                Err(LogError::Conflict { next, .. }) if next.0 > at => won.push(false),
                                other => panic!("{other:?}"),
                            }
                        }
                        won
                    })
                })
            })
            .collect();
        outcomes.extend(writers.into_iter().map(|writer| writer.join().unwrap()));
    });
    let records = clients[0].all(1).await;
    assert_eq!(records.len(), 40);
    for (i, record) in records.iter().enumerate() {
        assert_ne!(outcomes[0][i], outcomes[1][i], "{} was won by both or by none", record.position);
        let winner = usize::from(outcomes[1][i]);
        assert_eq!(record.entry, format!("{winner} at {}", i + 1).as_bytes());
    }
}

async fn what_is_late_lands_once_or_never(suite: Suite<'_>) {
    let mut log = suite.client();
    let epoch = log.open("first").await.epoch;
    for at in 1..=10 {
        log.log.set_faults(Faults::ALL_LATE);
        let answer = log.log.append(LogPosition(at), epoch, text(at).into()).await;
        assert!(matches!(answer, Err(LogError::Indeterminate(_))), "{answer:?}");
        log.log.set_faults(Faults::NONE);
        if at % 2 == 0 {
            assert!(log.log.deliver_late().await.unwrap() <= 1);
        }
        log.settle(at, epoch, &text(at), true).await.unwrap();
        assert_eq!(log.log.deliver_late().await.unwrap(), 0, "the entry stands there already");
    }
    assert_eq!(log.all(1).await.len(), 10);
}

async fn what_is_late_never_lands_after_a_takeover(suite: Suite<'_>) {
    let mut log = suite.client();
    let first = log.open("first").await.epoch;
    log.log.set_faults(Faults::ALL_LATE);
    let answer = log.log.append(LogPosition(1), first, Bytes::from_static(b"late")).await;
    assert!(matches!(answer, Err(LogError::Indeterminate(_))), "{answer:?}");
    log.log.set_faults(Faults::NONE);
    let second = suite.take_over(&mut log).await;
    assert_eq!(log.log.deliver_late().await.unwrap(), 0);
    assert!(log.all(1).await.is_empty(), "nothing of a fenced owner lands");
    log.put(1, second, b"the successor's").await.unwrap();
}
