//! The applier over logs and tablets in memory and a scripted source: whatever happens to it, readers see whole
//! transactions, and in the end everything is there once.

use crate::script::{Script, ScriptedSource, TABLE};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use untorn::admin::Inspect;
use untorn::admin::inspected::Inspected;
use untorn::applier::leader::StreamState;
use untorn::applier::{Applier, Components, CopyOptions, Ended, Leadership, NamedTablet, Reader, Tablets};
use untorn::coordinator::{ReadPoint, Settings};
use untorn::source::Source;
use untorn::tablet::engine::TabletOptions;
use untorn::tablet::memory::{self, MemoryStore};
use untorn::tablet::{TabletError, TabletLeader, VersionedRow};
use untorn::txn_log::{Faults, MemoryLog, TransactionLog, Unreliable};
use untorn::wal::{Cell, HybridTime};

/// How long anything may take before a test gives up: no property, only a bound.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What outlives an applier: the log, the tablets' stores, the source.
pub struct World {
    pub log: MemoryLog,
    stores: Vec<MemoryStore>,
    pub script: Arc<Script>,
    pub sources: Vec<Arc<ScriptedSource>>,
}

impl World {
    pub fn new(streams: usize, tablets: usize, transactions: u64, seed: u64) -> Self {
        Self::of(Script::generate(streams, transactions, seed), tablets)
    }

    pub fn of(script: Script, tablets: usize) -> Self {
        let script = Arc::new(script);
        let sources = (0..script.stream_count()).map(|stream| ScriptedSource::new(&script, stream)).collect();
        Self { log: MemoryLog::default(), stores: Vec::new(), script, sources }.with_tablets(tablets)
    }

    fn with_tablets(mut self, tablets: usize) -> Self {
        self.stores = (0..tablets).map(|_| MemoryStore::default()).collect();
        self
    }

    /// The tablets' processes, over what their stores hold.
    pub fn engines(&self) -> (Vec<Arc<dyn TabletLeader>>, Vec<JoinHandle<()>>) {
        let mut threads = Vec::new();
        let options = TabletOptions { keep_age: None, ..TabletOptions::default() };
        let engines = self.stores.iter().map(|store| {
            let (engine, workers) = memory::open(store.clone(), options).unwrap();
            threads.extend(workers.into_iter().map(|worker| std::thread::spawn(|| worker.run())));
            Arc::new(engine) as Arc<dyn TabletLeader>
        });
        (engines.collect(), threads)
    }

    /// The same by name.
    pub fn tablets(&self) -> (Tablets, Vec<JoinHandle<()>>) {
        let (engines, threads) = self.engines();
        (Self::named(engines), threads)
    }

    pub fn named(engines: Vec<Arc<dyn TabletLeader>>) -> Tablets {
        let named = engines.into_iter().enumerate().map(|(number, leader)| NamedTablet {
            name: format!("replica-{number}"),
            from_key: None,
            leader,
        });
        Tablets::new(named.collect::<Vec<_>>(), true)
    }

    pub fn components(&self, log: Box<dyn TransactionLog>, tablets: Tablets) -> Components {
        Components {
            leadership: Leadership::Here { log, settings: Settings::default() },
            tablets,
            sources: self.sources.iter().map(|source| Arc::clone(source) as Arc<dyn Source>).collect(),
            pull: None,
            copy: CopyOptions { rate: None, parallel: 1 },
            memory_budget: 1 << 20,
            owner: "test".into(),
        }
    }

    pub fn finish(&self) {
        self.sources.iter().for_each(|source| source.finish());
    }
}

fn balances(rows: &[VersionedRow]) -> BTreeMap<usize, i64> {
    let number = |cell: &Cell| match cell {
        Cell::Text(text) => std::str::from_utf8(text).unwrap().parse::<i64>().unwrap(),
        other => panic!("{other:?} is no number"),
    };
    let rows = rows.iter().filter_map(|row| row.row.as_ref());
    rows.map(|row| (number(&row.cells[0]) as usize, number(&row.cells[1]))).collect()
}

async fn scan(reader: &Reader, at: ReadPoint, history: bool) -> Result<Vec<VersionedRow>, TabletError> {
    let Some(table) = reader.table(TABLE) else { return Ok(Vec::new()) };
    let mut scan = reader.scan(table.table, at, history);
    let mut rows = Vec::new();
    while let Some(page) = scan.next().await? {
        rows.extend(page);
    }
    Ok(rows)
}

/// `latest` promises no order, but whole transactions: where one write of a transaction is seen, no key that it wrote
/// shows anything older.
fn torn(rows: &[VersionedRow], at: ReadPoint, script: &Script) -> Option<String> {
    let account = |row: &VersionedRow| *balances(std::slice::from_ref(row)).keys().next().unwrap();
    let seen: BTreeMap<usize, HybridTime> = rows.iter().map(|row| (account(row), row.time)).collect();
    for (account, time) in &seen {
        for other in &script.writes[time] {
            let shown = seen.get(other).copied().unwrap_or(HybridTime::MIN);
            if shown < *time {
                return Some(format!("at {at:?} account {account} shows {time:?}, account {other} {shown:?}"));
            }
        }
    }
    None
}

/// Reads again and again, and holds every read against the source's history.
async fn audit(reader: Reader, script: Arc<Script>) {
    loop {
        if let Ok(at) = reader.latest()
            && let Ok(rows) = scan(&reader, at, false).await
        {
            assert_eq!(torn(&rows, at, &script), None, "a torn read");
        }
        if let Ok(at) = reader.safe()
            && let Ok(rows) = scan(&reader, at, false).await
        {
            assert_eq!(balances(&rows), script.at(at.time), "the replica at {at:?} is not the source then");
        }
        sleep(Duration::from_millis(2)).await;
    }
}

async fn reached(applier: &Applier, time: HybridTime) {
    let mut shown = applier.reader().unwrap().shown();
    let reached = shown.wait_for(|shown| shown.safe.is_some_and(|safe| safe.time >= time));
    if timeout(PATIENCE, reached).await.is_err() {
        let oldest = applier.inspector().look(|machine, _| machine.oldest_waiting()).await.unwrap();
        let status = Inspected::new(applier.inspector(), false).status().await;
        panic!("safe time does not get to {time}:\n{status}\n{oldest:#?}");
    }
}

/// Everything has arrived, exactly once.
pub async fn assert_complete(applier: &Applier, script: &Script) {
    reached(applier, script.end()).await;
    let reader = &applier.reader().unwrap();
    let at = reader.safe().unwrap();
    assert_eq!(balances(&scan(reader, at, false).await.unwrap()), script.at(script.end()));
    let history = scan(reader, at, true).await.unwrap();
    let versions: BTreeSet<_> =
        history.iter().map(|row| (*balances(std::slice::from_ref(row)).keys().next().unwrap(), row.time)).collect();
    assert_eq!(versions.len(), history.len(), "a version is there twice");
    assert_eq!(versions, script.versions, "versions are lost or made up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_whole_and_a_drain_leaves_nothing_behind() {
    let world = World::new(3, 2, 400, 7);
    let (tablets, threads) = world.tablets();
    let applier = Applier::start(world.components(Box::new(world.log.clone()), tablets)).await.unwrap();
    let reader = applier.reader().unwrap();
    let auditor = tokio::spawn(audit(reader.clone(), Arc::clone(&world.script)));
    for _ in 0..200 {
        world.sources.iter().enumerate().for_each(|(place, source)| source.go_on(3 + 2 * place));
        sleep(Duration::from_millis(1)).await;
    }
    world.finish();
    assert_complete(&applier, &world.script).await;
    auditor.abort();
    assert!(auditor.await.unwrap_err().is_cancelled(), "the auditor found something");
    assert_eq!(timeout(PATIENCE, applier.drain()).await.unwrap(), Ended::Drained);
    drop(reader);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// One life of an applier, ended after a while as a crash ends it: its tasks are gone at once, its stores are not.
fn life(world: &World, faults: Faults, seed: u64, lasts: Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (tablets, threads) = world.tablets();
    runtime.block_on(async {
        let log = Unreliable::new(world.log.clone(), faults, seed);
        let starting = Applier::start(world.components(Box::new(log), tablets));
        // The end may come while it still recovers.
        let Ok(Ok(applier)) = timeout(lasts, starting).await else { return };
        let auditor = tokio::spawn(audit(applier.reader().unwrap(), Arc::clone(&world.script)));
        sleep(lasts).await;
        assert!(!auditor.is_finished(), "the auditor found something");
        auditor.abort();
    });
    drop(runtime);
    for thread in threads {
        thread.join().unwrap();
    }
}

fn crash_again_and_again(faults: Faults, seed: u64) {
    let world = World::new(2, 3, 300, seed);
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..25 {
        for source in &world.sources {
            source.go_on(rng.random_range(0..60));
        }
        life(&world, faults, seed << 8 | round, Duration::from_millis(rng.random_range(1..30)));
    }
    world.finish();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (tablets, _threads) = world.tablets();
    runtime.block_on(async {
        let applier = Applier::start(world.components(Box::new(world.log.clone()), tablets)).await.unwrap();
        assert_complete(&applier, &world.script).await;
    });
}

#[test]
fn crashes_lose_nothing_and_repeat_nothing() {
    for seed in 1..=4 {
        crash_again_and_again(Faults::NONE, seed);
    }
}

#[test]
fn crashes_behind_a_log_that_loses_answers_lose_nothing() {
    for seed in 11..=12 {
        crash_again_and_again(Faults { lost_request: 0.1, lost_answer: 0.1, late: 0.05 }, seed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_stream_says_why_and_the_others_go_on() {
    let world = World::new(2, 2, 200, 3);
    let (tablets, _threads) = world.tablets();
    world.sources[1].damaged.store(true, std::sync::atomic::Ordering::SeqCst);
    world.finish();
    let applier = Applier::start(world.components(Box::new(world.log.clone()), tablets)).await.unwrap();
    let last = world.sources[0].clone();
    timeout(PATIENCE, async {
        while last.acknowledged.lock().unwrap().index < last.happened.load(std::sync::atomic::Ordering::SeqCst) as u64 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the stream that is well does not go on");
    let state = |stream: usize| applier.inspector().progress(&crate::script::name(stream)).unwrap().state;
    let stopped = StreamState::Stopped { cause: "record 7 cannot be decoded".into() };
    timeout(PATIENCE, async {
        while state(1) != stopped {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the damaged stream does not stop by name");
    assert_eq!(state(0), StreamState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_owner_ends_the_first() {
    let world = World::new(2, 2, 200, 5);
    let (tablets, _threads) = world.tablets();
    let mut first = Applier::start(world.components(Box::new(world.log.clone()), tablets.clone())).await.unwrap();
    world.sources.iter().for_each(|source| source.go_on(100));
    let second = Applier::start(world.components(Box::new(world.log.clone()), tablets)).await.unwrap();
    world.finish();
    assert!(matches!(timeout(PATIENCE, first.wait()).await.unwrap(), Ended::Fenced(_)));
    assert_complete(&second, &world.script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_gate_the_same_reads_are_torn() {
    let world = World::new(2, 2, 200, 9);
    let (tablets, _threads) = world.tablets();
    let mut components = world.components(Box::new(world.log.clone()), tablets);
    let settings = Settings { gate: false, ..Settings::default() };
    components.leadership = Leadership::Here { log: Box::new(world.log.clone()), settings };
    let applier = Applier::start(components).await.unwrap();
    let reader = applier.reader().unwrap();
    // One stream lags far behind the other.
    world.sources[0].finish();
    world.sources[1].go_on(20);
    let found = async {
        loop {
            if let Ok(at) = reader.latest()
                && let Ok(rows) = scan(&reader, at, false).await
                && torn(&rows, at, &world.script).is_some()
            {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, found).await.expect("the reads that the tests rely on see nothing");
}
