//! Replica tablets: the product's engine over a simulated disk, behind a link or in the leader's process.

use super::faults::Kind;
use super::network::{Network, Place};
use super::process::Life;
use super::storage::SimStore;
use super::world::World;
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio::task::JoinSet;
use untorn::tablet::engine::{Engine, TabletOptions, start};
use untorn::tablet::{
    Announced, Applied, ApplyBatch, ChunkBatch, CopyBatch, DropChunks, FillRequest, ProvisionalBatch, ReadPage,
    ReadRequest, Stored, StreamMark, TabletError, TabletLeader, TabletStats,
};
use untorn::wal::{Epoch, ReplicaTabletId, Row, SourceTabletId};

struct Running {
    engine: Engine<SimStore>,
    /// The engine's workers; they die with it.
    _workers: JoinSet<()>,
}

/// The process of one tablet. In an embedded universe it dies with the leader's.
pub struct TabletProcess {
    world: World,
    number: u32,
    options: TabletOptions,
    store: Mutex<SimStore>,
    running: Mutex<Option<Running>>,
    /// Whether it answers.
    stopped: watch::Sender<bool>,
    /// How often it died.
    deaths: watch::Sender<u64>,
}

impl TabletProcess {
    /// A tablet with an empty disk.
    pub fn new(world: &World, number: u32, options: TabletOptions) -> Arc<Self> {
        let process = Self {
            world: world.clone(),
            number,
            options,
            store: Mutex::new(SimStore::new(world)),
            running: Mutex::default(),
            stopped: watch::Sender::new(false),
            deaths: watch::Sender::new(0),
        };
        process.start();
        Arc::new(process)
    }

    /// Starts; a barrier that fails meanwhile ends the process, and it is started again.
    fn start(&self) {
        while !self.starts() {
            self.store.lock().unwrap().crash();
        }
    }

    fn starts(&self) -> bool {
        let store = self.store.lock().unwrap().clone();
        match start(vec![(format!("r{}", self.number), store)], self.options) {
            Ok((mut engines, workers)) => {
                let mut tasks = JoinSet::new();
                workers.into_iter().for_each(|worker| drop(tasks.spawn(worker.into_task())));
                *self.running.lock().unwrap() = engines.pop().map(|engine| Running { engine, _workers: tasks });
                true
            }
            Err(error) => {
                self.world.event((), || format!("tablet {} does not start: {error}", self.number));
                false
            }
        }
    }

    /// Dies and starts again: what was not synced is lost.
    pub fn crash(&self) {
        self.world.event(("tablet dies", self.number), || format!("tablet {} dies", self.number));
        *self.running.lock().unwrap() = None;
        self.store.lock().unwrap().crash();
        self.start();
        self.deaths.send_modify(|deaths| *deaths += 1);
    }

    /// Answers or does not.
    pub fn stop(&self, stopped: bool) {
        self.stopped.send_replace(stopped);
    }

    /// Its engine, if it runs.
    pub fn engine(&self) -> Option<Engine<SimStore>> {
        self.running.lock().unwrap().as_ref().map(|running| running.engine.clone())
    }

    /// Dies and starts again whenever its storage failed: what a server of its own does.
    pub async fn supervise(self: Arc<Self>) {
        loop {
            let mut deaths = self.deaths.subscribe();
            if let Some(engine) = self.engine() {
                tokio::select! {
                    biased;
                    _ = deaths.changed() => continue,
                    _ = engine.failed() => {}
                }
            }
            self.world.sleep_ms(10, 1_000).await;
            if !deaths.has_changed().unwrap_or(true) {
                self.crash();
            }
        }
    }
}

/// A tablet as an applier reaches it.
pub struct TabletClient {
    /// The process behind it.
    pub process: Arc<TabletProcess>,
    /// The caller's.
    pub life: Arc<Life>,
    /// The link; none within one process.
    pub network: Option<Network>,
}

impl TabletClient {
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        run: impl Fn(Engine<SimStore>) -> BoxFuture<'static, Result<T, TabletError>> + Send + Sync + 'static,
    ) -> Result<T, TabletError> {
        let process = Arc::clone(&self.process);
        self.life.output().await;
        let deliver = move || -> BoxFuture<'static, Result<T, TabletError>> {
            let Some(engine) = process.engine() else {
                return Box::pin(async { Err(TabletError::Indeterminate("nobody listens".into())) });
            };
            let (call, world, mut stopped) = (run(engine), process.world.clone(), process.stopped.subscribe());
            Box::pin(async move {
                stopped.wait_for(|stopped| !stopped).await.ok();
                if world.strikes(Kind::SlowTablet, 0.5) {
                    world.sleep_ms(10, 2_000).await;
                }
                call.await
            })
        };
        let answer = match &self.network {
            Some(network) => {
                let to = Place::Tablet(self.process.number);
                let answer = network.call(self.life.place(), to, what, deliver).await;
                answer.unwrap_or_else(|| Err(TabletError::Indeterminate("no answer came".into())))
            }
            None => deliver().await,
        };
        self.life.output().await;
        answer
    }
}

#[async_trait]
impl TabletLeader for TabletClient {
    async fn announce(&self, log_id: &str, tablet: ReplicaTabletId, owner: Epoch) -> Result<Announced, TabletError> {
        let log_id = log_id.to_owned();
        self.call("announce", move |engine| {
            let log_id = log_id.clone();
            Box::pin(async move { engine.announce(&log_id, tablet, owner).await })
        })
        .await
    }

    async fn announce_puller(
        &self,
        stream: SourceTabletId,
        owner: Epoch,
        puller: Epoch,
    ) -> Result<StreamMark, TabletError> {
        self.call("announce a puller", move |engine| {
            Box::pin(async move { engine.announce_puller(stream, owner, puller).await })
        })
        .await
    }

    async fn write_provisional(&self, batch: ProvisionalBatch) -> Result<Stored, TabletError> {
        self.call("provisional records", move |engine| {
            let batch = batch.clone();
            Box::pin(async move { engine.write_provisional(batch).await })
        })
        .await
    }

    async fn stage_chunk(&self, chunk: ChunkBatch) -> Result<(), TabletError> {
        self.call("a chunk", move |engine| {
            let chunk = chunk.clone();
            Box::pin(async move { engine.stage_chunk(chunk).await })
        })
        .await
    }

    async fn drop_chunks(&self, drop: DropChunks) -> Result<(), TabletError> {
        self.call("chunks to drop", move |engine| Box::pin(async move { engine.drop_chunks(drop).await })).await
    }

    async fn fill(&self, request: FillRequest) -> Result<Row, TabletError> {
        self.call("a row to be filled", move |engine| {
            let request = request.clone();
            Box::pin(async move { engine.fill(request).await })
        })
        .await
    }

    async fn copy_rows(&self, batch: CopyBatch) -> Result<(), TabletError> {
        self.call("copied rows", move |engine| {
            let batch = batch.clone();
            Box::pin(async move { engine.copy_rows(batch).await })
        })
        .await
    }

    async fn apply(&self, batch: ApplyBatch) -> Result<Applied, TabletError> {
        self.call("decisions", move |engine| {
            let batch = batch.clone();
            Box::pin(async move { engine.apply(batch).await })
        })
        .await
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadPage, TabletError> {
        self.call("a read", move |engine| {
            let request = request.clone();
            Box::pin(async move { engine.read(request).await })
        })
        .await
    }

    async fn sync(&self) -> Result<Applied, TabletError> {
        self.call("sync", |engine| Box::pin(async move { engine.sync().await })).await
    }

    async fn stats(&self) -> Result<TabletStats, TabletError> {
        self.call("stats", |engine| Box::pin(async move { engine.stats().await })).await
    }
}
