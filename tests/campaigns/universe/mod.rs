//! A universe in one thread: sources, links, disks and clocks are simulated; the applier between them is the product's
//! own, from its runtime down to its tablets' storage rules, and so are the log's rules and the assembler of PostgreSQL's
//! messages. Time is virtual and everything that is left to chance comes from the seed, so a run can be repeated.

pub mod auditor;
pub mod cdc;
pub mod chance;
pub mod course;
pub mod draft;
pub mod faults;
pub mod history;
pub mod leader;
pub mod nemesis;
pub mod network;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod properties;
pub mod server;
pub mod stall;
pub mod storage;
pub mod tablets;
pub mod txn_log;
pub mod workload;

use auditor::Auditor;
use cdc::{CdcTablet, SimCdc};
use draft::Shape;
use faults::Kind;
use history::RowKey;
use leader::LeaderClient;
use network::Network;
use plan::{Plan, Windows};
use postgres::SimPostgres;
use process::Life;
use properties::monotone::LogWatch;
use properties::{bounded, shown};
use server::Server;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tablets::{TabletClient, TabletProcess};
use tokio::sync::Notify;
use tokio::time::Instant;
use txn_log::SimLog;
use untorn::applier::{
    Applier, Clock, Components, CopyOptions, Ended, Host, Inspector, Leadership, NamedTablet, Reader, StartError,
    Tablets,
};
use untorn::coordinator::{Release, Settings};
use untorn::source::Source;
use untorn::tablet::TabletLeader;
use untorn::txn_log::MemoryLog;
use untorn::wal::HybridTime;
use workload::{Database, Workload};
use world::World;

pub mod world;

/// What a run is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Faults that come and go.
    Safety,
    /// Faults that stay until everything is healed; then the replica must come to the source's head within a bound.
    Liveness,
}

/// What is asked of a run.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Its seed.
    pub seed: u64,
    /// What it is for.
    pub mode: Mode,
    /// The faults, where they are not drawn from the seed.
    pub only: Option<&'static [Kind]>,
    /// Faults that are active, too, beside those that are drawn.
    pub with: &'static [Kind],
    /// How transactions are decided, where that is not drawn from the seed.
    pub release: Option<Release>,
    /// Whether the trace is kept to be read.
    pub tracing: bool,
}

impl Ask {
    /// Everything by the seed.
    pub fn seed(seed: u64) -> Self {
        Self { seed, mode: Mode::Safety, only: None, with: &[], release: None, tracing: false }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// How it was built.
    pub plan: Plan,
    /// The hash of its trace, and how many events that has.
    pub hash: (u64, u64),
    /// What did not hold.
    pub broken: Vec<String>,
    /// Faults that happened.
    pub faults: BTreeMap<Kind, u64>,
    /// States that it reached.
    pub reached: BTreeMap<&'static str, u64>,
    /// Transactions that the source committed.
    pub transactions: u64,
    /// Reads of the whole replica.
    pub reads: u64,
    /// Virtual seconds.
    pub seconds: f64,
    /// The end of the trace.
    pub lines: Vec<String>,
}

impl Outcome {
    /// Whether its hours count: at least 1,000 transactions an hour, and something went wrong.
    pub fn counts(&self) -> bool {
        self.transactions as f64 >= 1_000.0 * self.seconds / 3_600.0 && self.faults.values().sum::<u64>() > 0
    }
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes panics of product tasks instead of printing them: each is a failure of its run.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|panic| PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()))));
}

/// Runs a seed.
pub fn run(ask: Ask) -> Outcome {
    let seed = ask.seed;
    PANICS.with_borrow_mut(Vec::clear);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_be_bytes()));
    let runtime = builder.build().unwrap();
    let mut outcome = runtime.block_on(async {
        let universe = Universe::new(&ask);
        universe.live(seed, ask.mode).await
    });
    drop(runtime);
    outcome.broken.extend(PANICS.with_borrow_mut(std::mem::take).into_iter().map(|panic| format!("panic: {panic}")));
    outcome
}

/// Everything in a run.
pub struct Universe {
    world: World,
    plan: Plan,
    network: Network,
    tablets: Vec<Arc<TabletProcess>>,
    log: MemoryLog,
    watch: Arc<Mutex<LogWatch>>,
    database: Database,
    workload: Workload,
    /// Whoever leads now, for pullers.
    current: leader::Current,
    /// Its life.
    life: Mutex<Arc<Life>>,
    /// Readers of those who lead or led, oldest first.
    readers: Mutex<Vec<(Reader, Inspector)>>,
    /// Another process is to take the log over.
    take_over: Notify,
    processes: AtomicU32,
    /// Whether streams come and go, or tables are added: not all of the source is always seen then.
    come_and_go: bool,
    /// Source tablets that the configuration does not name now.
    absent: Mutex<BTreeSet<usize>>,
    /// How far processes' clocks are off, in microseconds.
    clock_off_micros: Arc<AtomicI64>,
}

/// Tables that a server may publish later than others.
const LATER_TABLES: [usize; 4] = [history::COUNTERS, history::LISTS, history::DOCUMENTS, history::SCRATCH];

fn server_of(key: &RowKey, servers: usize) -> usize {
    cdc::home(key, servers)
}

impl Universe {
    fn new(ask: &Ask) -> Arc<Self> {
        let world = World::new(ask);
        let mut plan = world.chance(|chance| Plan::draw(chance, Windows::draw(ask.seed)));
        plan.release = ask.release.unwrap_or(plan.release);
        if world.is_active(Kind::LostAbort) {
            // Only the leader's own process is asked about transactions that died without a word.
            plan.pullers = 0;
        }
        let common_clock = plan.release == Release::CommonClock;
        let comes = |kind| !common_clock && world.is_active(kind);
        let (streams_come, tables_come) = (comes(Kind::StreamsComeAndGo), comes(Kind::TableAdded));
        // A stream that has stopped for good, and is copied again, joins anew.
        let stopped_joins = comes(Kind::Recopy) && comes(Kind::WalCollected);
        let come_and_go = streams_come || tables_come || stopped_joins;
        if streams_come {
            // Pullers in other processes have a configuration of their own, which would have to change with the leader's.
            plan.pullers = 0;
        }
        let network = Network::new(&world);
        let tablets = (0..plan.replica_tablets as u32)
            .map(|number| TabletProcess::new(&world, number, plan.tablet_options))
            .collect();
        let watch = Arc::<Mutex<LogWatch>>::default();
        let running = Arc::<Mutex<BTreeSet<_>>>::default();
        let shape = Shape {
            tablets: plan.source_tablets,
            accounts: 40 + plan.source_tablets * 4,
            counters: 20,
            home: server_of,
            moves: !common_clock && !come_and_go,
            truncates: true,
        };
        let pause_ms = 2 * plan.seconds * 1000 * plan.users as u64 / plan.transactions;
        let database = if common_clock {
            Database::Tablets((0..plan.source_tablets).map(|n| CdcTablet::new(&world, n, &running)).collect())
        } else {
            Database::Servers(Vec::new())
        };
        let mut workload = Workload {
            world: world.clone(),
            database,
            history: Arc::default(),
            shape,
            wanted: plan.transactions,
            pause_ms,
            gids: Arc::default(),
            running,
            clock: Arc::new(Mutex::new(HybridTime::MIN)),
            // What an aborted transaction wrote may arrive after it was forgotten. Only the leader's own pullers ask the
            // source about what is left then.
            aborts: plan.pullers == 0,
            watch: Arc::clone(&watch),
        };
        if !common_clock {
            let opening = workload.opening();
            workload.history.lock().unwrap().commit(opening.number, HybridTime::MIN, &opening.effects);
            let servers = (0..plan.source_tablets).map(|number| {
                let changes = opening.parts.get(&number).into_iter().flatten();
                let rows = changes.filter_map(|change| {
                    Some((change.key.clone(), opening.effects.get(&change.key).cloned().flatten()?))
                });
                let off = world.chance(|chance| chance.between(0, 400_000)) as i64 - 200_000;
                Server::new(&world, number, off, rows.collect())
            });
            let servers: Vec<_> = servers.collect();
            for server in servers.iter().filter(|_| tables_come) {
                let added = LATER_TABLES.into_iter().filter(|_| world.chance(|chance| chance.happens(0.5)));
                server.state().unpublished = added.collect();
            }
            workload.database = Database::Servers(servers);
        }
        let absent = (1..plan.source_tablets).filter(|_| streams_come && world.chance(|chance| chance.happens(0.3)));
        let absent = Mutex::new(absent.collect());
        let life = Life::new(&world, 0, &watch);
        Arc::new(Self {
            network,
            tablets,
            log: MemoryLog::default(),
            watch,
            database: workload.database.clone(),
            workload,
            current: Arc::default(),
            life: Mutex::new(life),
            readers: Mutex::default(),
            take_over: Notify::new(),
            processes: AtomicU32::new(0),
            come_and_go,
            absent,
            clock_off_micros: Arc::default(),
            plan,
            world,
        })
    }

    fn begin_life(&self) -> Arc<Life> {
        Life::new(&self.world, self.processes.fetch_add(1, Ordering::Relaxed), &self.watch)
    }

    fn host(&self) -> Host {
        let (world, off) = (self.world.clone(), Arc::clone(&self.clock_off_micros));
        let now =
            move || HybridTime::from_micros(world.now().micros().saturating_add_signed(off.load(Ordering::Relaxed)));
        Host {
            clock: Clock::new(now),
            seed: self.world.chance(|chance| chance.between(0, u64::MAX)),
            log_blocks: false,
            snapshot_after_bytes: self.plan.snapshot_after_bytes,
        }
    }

    fn sources(&self, life: &Arc<Life>) -> Vec<Arc<dyn Source>> {
        let (world, life) = (&self.world, life);
        match &self.database {
            Database::Servers(servers) => servers
                .iter()
                .filter(|server| !self.absent.lock().unwrap().contains(&server.number))
                .map(|server| {
                    let (world, server, life) = (world.clone(), Arc::clone(server), Arc::clone(life));
                    Arc::new(SimPostgres { world, server, life }) as Arc<dyn Source>
                })
                .collect(),
            Database::Tablets(tablets) => tablets
                .iter()
                .map(|tablet| {
                    let (world, tablet, life) = (world.clone(), Arc::clone(tablet), Arc::clone(life));
                    Arc::new(SimCdc { world, tablet, life }) as Arc<dyn Source>
                })
                .collect(),
        }
    }

    fn tablets(&self, life: &Arc<Life>) -> Tablets {
        let named = self.tablets.iter().enumerate().map(|(number, process)| {
            let network = (!self.plan.embedded).then(|| self.network.clone());
            let client = TabletClient { process: Arc::clone(process), life: Arc::clone(life), network };
            let leader: Arc<dyn TabletLeader> = Arc::new(client);
            NamedTablet { name: format!("replica-{number}"), from_key: None, leader }
        });
        Tablets::new(named, self.plan.embedded)
    }

    fn components(&self, life: &Arc<Life>, leadership: Leadership, pull: Option<Vec<String>>) -> Components {
        Components {
            leadership,
            tablets: self.tablets(life),
            sources: self.sources(life),
            pull,
            copy: CopyOptions { rate: None, parallel: 2 },
            memory_budget: self.plan.memory_budget,
            owner: format!("node-{}", life.number()),
        }
    }

    fn stream_names(&self) -> Vec<String> {
        match &self.database {
            Database::Servers(servers) => servers.iter().map(|server| server.name.clone()).collect(),
            Database::Tablets(tablets) => tablets.iter().map(|tablet| tablet.name.clone()).collect(),
        }
    }

    /// Keeps a leader running.
    async fn lead(self: Arc<Self>) {
        if self.world.is_active(Kind::LateBranch) {
            // The source has been written to for a while when the first slot is made.
            self.world.sleep_ms(500, 20_000).await;
        }
        loop {
            let life = self.begin_life();
            *self.life.lock().unwrap() = Arc::clone(&life);
            if self.world.strikes(Kind::CrashInRecovery, 0.5) {
                life.die_at_output(self.world.chance(|chance| chance.skewed(1, 60)));
            }
            let log = SimLog {
                world: self.world.clone(),
                engine: self.log.clone(),
                watch: Arc::clone(&self.watch),
                life: Arc::clone(&life),
                delay_ms: self.plan.log_delay_ms,
            };
            let settings = Settings {
                release: self.plan.release,
                apply_window: self.plan.windows.apply,
                transactions_held: self.plan.windows.transactions,
                ..Settings::default()
            };
            let leadership = Leadership::Here { log: Box::new(log), settings };
            let pull = (self.plan.pullers > 0).then(Vec::new);
            let components = self.components(&life, leadership, pull);
            let started = tokio::select! {
                biased;
                () = life.died() => None,
                started = Applier::start_on(self.host(), components) => Some(started),
            };
            match started {
                Some(Ok(applier)) => self.lead_until_it_ends(applier, &life).await,
                Some(Err(StartError::Configuration(why))) => {
                    self.world.broken(format!("an applier does not start: {why}"))
                }
                Some(Err(error)) => self.world.event((), || format!("an applier does not start: {error}")),
                None => {}
            }
            if self.plan.embedded {
                self.tablets.iter().for_each(|tablet| tablet.crash());
            }
            self.world.sleep_ms(10, 3_000).await;
        }
    }

    async fn lead_until_it_ends(self: &Arc<Self>, mut applier: Applier, life: &Arc<Life>) {
        *self.current.lock().unwrap() = Some(leader::Served::new(applier.leader()));
        if let Some(reader) = applier.reader() {
            let (world, watch, mut shown) = (self.world.clone(), Arc::clone(&self.watch), reader.shown());
            tokio::spawn(async move {
                while shown.changed().await.is_ok() {
                    if let Some(broken) = shown::broken(&shown.borrow_and_update(), &watch.lock().unwrap()) {
                        world.broken(broken);
                    }
                }
            });
            let mut readers = self.readers.lock().unwrap();
            readers.push((reader, applier.inspector()));
            let old = readers.len().saturating_sub(3);
            readers.drain(..old);
        }
        let ended = tokio::select! {
            biased;
            () = life.died() => return,
            ended = applier.wait() => ended,
            () = self.take_over.notified() => {
                // It lives on for a while, and does not know.
                let (world, life) = (self.world.clone(), Arc::clone(life));
                tokio::spawn(async move {
                    life.freeze(true);
                    world.sleep_ms(1, 30_000).await;
                    life.freeze(false);
                    let lives = tokio::time::timeout(Duration::from_secs(120), async {
                        tokio::select! {
                            biased;
                            () = life.died() => {}
                            _ = applier.wait() => world.reached("an old owner learns that it is fenced"),
                        }
                    });
                    lives.await.ok();
                });
                return;
            }
        };
        self.world.event((), || format!("node {} ends: {ended}", life.number()));
        if matches!(&ended, Ended::Failed(why) if why.contains("a task failed")) {
            self.world.broken(format!("an applier ended: {ended}"));
        }
    }

    /// Keeps a puller running, for these streams.
    async fn pull(self: Arc<Self>, streams: Vec<String>, until: Option<Instant>) {
        while until.is_none_or(|until| until > Instant::now()) {
            let life = self.begin_life();
            if self.world.strikes(Kind::CrashLeader, 0.5) {
                life.die_at_output(self.world.chance(|chance| chance.skewed(20, 2_000)));
            }
            let leader = LeaderClient {
                current: Arc::clone(&self.current),
                network: self.network.clone(),
                life: Arc::clone(&life),
            };
            let components = self.components(&life, Leadership::Elsewhere(Arc::new(leader)), Some(streams.clone()));
            if let Ok(mut applier) = Applier::start_on(self.host(), components).await {
                let ends = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = life.died() => {}
                    _ = applier.wait() => {}
                    () = ends => return,
                }
            }
            self.world.sleep_ms(10, 3_000).await;
        }
    }

    /// The newest leader's reader and inspector, or now and then an older one's.
    fn reader(&self) -> Option<(Reader, Inspector, bool)> {
        let readers = self.readers.lock().unwrap();
        let newest = readers.len().checked_sub(1)?;
        let old = newest > 0 && self.world.chance(|chance| chance.happens(0.1));
        let (reader, inspector) = readers[if old { newest - 1 } else { newest }].clone();
        Some((reader, inspector, !old))
    }

    async fn audit(self: Arc<Self>, auditor: Arc<tokio::sync::Mutex<Auditor>>) {
        loop {
            // The first moments after the start are where a part may be seen too early.
            let started = auditor.lock().await.reads > 0;
            let (first, last) = if started { (1_000, 20_000) } else { (20, 1_000) };
            self.world.sleep_ms(first, last).await;
            let Some((reader, inspector, newest)) = self.reader() else { continue };
            let mut auditor = auditor.lock().await;
            if newest {
                auditor.rises(&reader);
                let older: Vec<Reader> =
                    self.readers.lock().unwrap().iter().rev().skip(1).map(|r| r.0.clone()).collect();
                older.iter().for_each(|older| auditor.covers(&reader, older));
            }
            let kind = *self.world.chance(|chance| {
                *chance.pick(&[
                    &auditor::Kind::Safe,
                    &auditor::Kind::Safe,
                    &auditor::Kind::Latest,
                    &auditor::Kind::Older,
                ])
            });
            // Who leads no more may never answer.
            tokio::time::timeout(Duration::from_secs(20), auditor.read(&reader, kind)).await.ok();
            if let Some(broken) = bounded::broken(inspector.budget(), self.plan.source_tablets, 64 << 10) {
                self.world.broken(broken);
            }
        }
    }
}
