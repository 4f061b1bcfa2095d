//! What a transaction leader wants of pullers, wherever they live: to stand still before what a replica tablet refuses, to
//! pause when they run too far ahead, to ask their source about orphans, and to leave a stream to whoever took it.

use crate::runtime::{PATIENCE, World, assert_complete};
use crate::script::{ORPHAN, Script, name};
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::server::TcpIncoming;
use untorn::admin::Inspect;
use untorn::admin::inspected::Inspected;
use untorn::admin::status::{Role, State, Status};
use untorn::applier::leader::{StreamState, TransactionLeader};
use untorn::applier::leader_grpc::{GrpcLeader, transaction_service};
use untorn::applier::{Applier, Components, Leadership, Tablets};
use untorn::coordinator::{Coordinator, Settings};
use untorn::proto::transport;
use untorn::tablet::{
    Announced, Applied, ApplyBatch, ChunkBatch, CopyBatch, DropChunks, FillRequest, ProvisionalBatch, ReadPage,
    ReadRequest, Stored, StreamMark, TabletError, TabletLeader, TabletStats,
};
use untorn::wal::{Epoch, ReplicaTabletId, Row, SourceTabletId};

/// What a tablet does with decisions.
#[derive(Clone, Copy, PartialEq)]
enum Takes {
    Them,
    Nothing,
    Offence,
}

/// A tablet that takes writes, and decisions as it is told.
struct Moody {
    inner: Arc<dyn TabletLeader>,
    takes: watch::Receiver<Takes>,
}

#[async_trait]
impl TabletLeader for Moody {
    async fn announce(&self, log_id: &str, tablet: ReplicaTabletId, owner: Epoch) -> Result<Announced, TabletError> {
        self.inner.announce(log_id, tablet, owner).await
    }

    async fn announce_puller(
        &self,
        stream: SourceTabletId,
        owner: Epoch,
        puller: Epoch,
    ) -> Result<StreamMark, TabletError> {
        self.inner.announce_puller(stream, owner, puller).await
    }

    async fn write_provisional(&self, batch: ProvisionalBatch) -> Result<Stored, TabletError> {
        self.inner.write_provisional(batch).await
    }

    async fn stage_chunk(&self, chunk: ChunkBatch) -> Result<(), TabletError> {
        self.inner.stage_chunk(chunk).await
    }

    async fn drop_chunks(&self, drop: DropChunks) -> Result<(), TabletError> {
        self.inner.drop_chunks(drop).await
    }

    async fn copy_rows(&self, batch: CopyBatch) -> Result<(), TabletError> {
        self.inner.copy_rows(batch).await
    }

    async fn fill(&self, request: FillRequest) -> Result<Row, TabletError> {
        self.inner.fill(request).await
    }

    async fn apply(&self, batch: ApplyBatch) -> Result<Applied, TabletError> {
        let mut takes = self.takes.clone();
        let takes = *takes.wait_for(|takes| *takes != Takes::Nothing).await.unwrap();
        if takes == Takes::Offence && !batch.work.is_empty() {
            return Err(TabletError::Refused("column \"note\" does not exist".into()));
        }
        self.inner.apply(batch).await
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadPage, TabletError> {
        self.inner.read(request).await
    }

    async fn sync(&self) -> Result<Applied, TabletError> {
        self.inner.sync().await
    }

    async fn stats(&self) -> Result<TabletStats, TabletError> {
        self.inner.stats().await
    }
}

/// A leader that pulls nothing, served over gRPC.
async fn leader(world: &World, tablets: Tablets, settings: Settings) -> (Applier, String) {
    let mut components = world.components(Box::new(world.log.clone()), tablets);
    components.leadership = Leadership::Here { log: Box::new(world.log.clone()), settings };
    components.pull = Some(Vec::new());
    let applier = Applier::start(components).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = transport::server().add_service(transaction_service(applier.leader()));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (applier, url)
}

/// An applier that pulls every stream for it.
async fn puller(world: &World, tablets: Tablets, url: &str, owner: &str) -> Applier {
    let elsewhere: Arc<dyn TransactionLeader> = Arc::new(GrpcLeader::new(url).unwrap());
    let leadership = Leadership::Elsewhere(elsewhere);
    let components = world.components(Box::new(world.log.clone()), tablets);
    Applier::start(Components { leadership, owner: owner.into(), ..components }).await.unwrap()
}

async fn status(applier: &Applier) -> Status {
    Inspected::new(applier.inspector(), false).status().await
}

/// Waits until an applier's status is as wanted.
async fn until(applier: &Applier, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let waited = timeout(PATIENCE, async {
        loop {
            let status = status(applier).await;
            if wanted(&status) {
                return status;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    match waited.await {
        Ok(status) => status,
        Err(_) => panic!("never {what}:\n{}", status(applier).await),
    }
}

fn moody(world: &World, takes: &watch::Receiver<Takes>) -> Tablets {
    let (mut engines, _threads) = world.engines();
    engines[0] = Arc::new(Moody { inner: Arc::clone(&engines[0]), takes: takes.clone() });
    World::named(engines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_decision_stops_its_streams_by_name_until_it_is_taken() {
    let world = World::new(2, 2, 200, 21);
    let (mood, takes) = watch::channel(Takes::Offence);
    let tablets = moody(&world, &takes);
    let (leader, url) = leader(&world, tablets.clone(), Settings::default()).await;
    let _puller = puller(&world, tablets, &url, "the puller").await;
    world.finish();
    let refused = |status: &Status| {
        let cause = |cause: &String| cause.contains("replica-0 refuses") && cause.contains("\"note\" does not exist");
        status.streams.iter().any(|stream| stream.state == State::Stopped && stream.cause.as_ref().is_some_and(cause))
    };
    until(&leader, "stopped by name", refused).await;
    // Which transactions the tablet has a part of depends on whose records came first.
    let explain_all = |machine: &Coordinator| {
        machine.state().transactions.iter().flat_map(|one| machine.explain(&one.id.to_string())).collect::<Vec<_>>()
    };
    let explained = leader.inspector().look(move |machine, _| explain_all(machine)).await.unwrap();
    assert!(explained.iter().any(|one| one.text.contains("replica-0 refuses to go on")), "{explained:?}");
    mood.send_replace(Takes::Them);
    assert_complete(&leader, &world.script).await;
    until(&leader, "all run", |s| s.streams.iter().all(|stream| stream.state == State::Running)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tablet_that_takes_no_decisions_pauses_pullers_elsewhere_and_memory_stays_bounded() {
    let world = World::new(2, 2, 2_000, 22);
    let (mood, takes) = watch::channel(Takes::Nothing);
    let tablets = moody(&world, &takes);
    let settings = Settings { apply_window: 8, transactions_held: 50, ..Settings::default() };
    let (leader, url) = leader(&world, tablets.clone(), settings).await;
    let _puller = puller(&world, tablets, &url, "the puller").await;
    let held = async || leader.inspector().look(|machine, _| machine.state().transactions.len()).await.unwrap();
    let paused = |status: &Status| {
        let cause = "its writes wait for replica-0";
        status.streams.iter().filter(|stream| stream.cause.as_deref() == Some(cause)).count() == 2
    };
    let going = async {
        while !paused(&status(&leader).await) {
            world.sources.iter().for_each(|source| source.go_on(5));
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, going).await.expect("both streams pause for the tablet");
    // However much more happens at the source.
    world.finish();
    sleep(Duration::from_secs(2)).await;
    let held = held().await;
    assert!(held < 1_000, "{held} transactions are held, although the streams pause");
    mood.send_replace(Takes::Them);
    assert_complete(&leader, &world.script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_pull_one_stream_do_not_take_it_from_each_other_for_ever() {
    let world = World::new(2, 2, 200, 23);
    let (tablets, _threads) = world.tablets();
    let (leader, url) = leader(&world, tablets.clone(), Settings::default()).await;
    let first = puller(&world, tablets.clone(), &url, "the first").await;
    world.sources.iter().for_each(|source| source.go_on(100));
    let running = |status: &Status| status.streams.iter().all(|stream| stream.state == State::Running);
    until(&first, "running", running).await;
    let second = puller(&world, tablets, &url, "the second").await;
    let yields = |status: &Status| {
        let cause = |cause: &String| cause.contains("the second pulls stream");
        status.streams.iter().all(|stream| stream.state == State::Waiting && stream.cause.as_ref().is_some_and(cause))
    };
    let told = until(&first, "named who has its streams", yields).await;
    assert_eq!((told.role, told.epoch), (Role::Standby, Epoch(1)));
    let pullers = async || {
        let pullers = |machine: &untorn::coordinator::Coordinator| {
            machine.state().streams.iter().map(|stream| stream.puller).collect::<Vec<_>>()
        };
        leader.inspector().look(move |machine, _| pullers(machine)).await.unwrap()
    };
    let epochs = pullers().await;
    sleep(Duration::from_secs(6)).await;
    assert_eq!(pullers().await, epochs, "nobody takes a stream whose puller lives");
    assert!((0..2).all(|stream| second.inspector().progress(&name(stream)).unwrap().state == StreamState::Running));
    // Whoever waits takes over when the other is gone.
    drop(second);
    until(&first, "running again", running).await;
    world.finish();
    assert_complete(&leader, &world.script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_is_discarded_by_fact_though_its_puller_lives_elsewhere() {
    let mut script = Script::generate(2, 50, 24);
    script.add_orphan();
    let world = World::of(script, 2);
    let (engines, _threads) = world.engines();
    let tablets = World::named(engines.clone());
    let (leader, url) = leader(&world, tablets.clone(), Settings::default()).await;
    let _puller = puller(&world, tablets, &url, "the puller").await;
    world.finish();
    assert_complete(&leader, &world.script).await;
    let known =
        async || leader.inspector().look(|machine, _| machine.explain(&format!("t{ORPHAN}")).len()).await.unwrap();
    assert_eq!(known().await, 1, "nobody has said that it cannot commit");
    world.sources.iter().for_each(|source| source.nothing_runs.store(true, Ordering::SeqCst));
    let gone = async {
        while known().await > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the orphan is discarded");
    for tablet in engines {
        let emptied = async {
            while tablet.stats().await.unwrap().provisional_records > 0 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, emptied).await.expect("its writes are discarded");
    }
}
