//! `untorn run`: the daemon, composed from its configuration.

use super::Failure;
use super::data_dir::DataDir;
use super::signals::Signals;
use crate::access::{self, Address, ClientFiles, Keyring, Listener};
use crate::admin::health::Health;
use crate::admin::inspected::Inspected;
use crate::admin::{Inspect, server};
use crate::applier::leader::TransactionLeader;
use crate::applier::leader_grpc::{GrpcLeader, transaction_service};
use crate::applier::{Applier, Components, CopyOptions, Ended, Leadership, NamedTablet, StartError, Tablets};
use crate::config::{
    CdcTabletConfig, DaemonConfig, Faults, LeaderConfig, Listen, LogConfig, PostgresReplicaConfig,
    PostgresSourceConfig, ReplicaConfig, SourceConfig,
};
use crate::coordinator::Settings;
use crate::limits::{COPY_PARALLEL, DRAIN_MS, SLOT_LOCK_TIMEOUT};
use crate::metrics;
use crate::postgres::Target;
use crate::source::Source;
use crate::source::cdc::{CdcSource, CdcTablet, StreamNames};
use crate::source::postgres::{GidPattern, Options, PostgresSource};
use crate::tablet::engine::{TabletOptions, Worker};
use crate::tablet::grpc::GrpcTablet;
use crate::tablet::postgres::servers::{Server, Servers};
use crate::tablet::postgres::{self as replica, PostgresTablet};
use crate::tablet::{TabletLeader, embedded};
use crate::txn_log::{self, EngineConfig, TransactionLog};
use crate::wal::Key;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::service::Routes;

/// Runs the daemon until a signal or its own end. `spawn` runs a storage worker on a thread of its own.
///
/// # Errors
/// What could not be started or went wrong, for people.
pub async fn run(config: DaemonConfig, spawn: impl Fn(Worker) -> io::Result<()>) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let recorder = metrics::install().map_err(|error| Failure::Failed(format!("metrics: {error}")))?;
    // Ports before folders: a second daemon on the same configuration fails before it touches anything.
    let mut keys = Keyring::default();
    let admin = bind("admin.listen", &config.admin, &mut keys).await?;
    let exporter = bind("metrics.listen", &config.metrics, &mut keys).await?;
    let leader_listener = match &config.leader {
        LeaderConfig::Here { listen: Some(listen), .. } => Some(bind("leader.listen", listen, &mut keys).await?),
        _ => None,
    };
    let folder = DataDir::open(&config.data_dir)?;
    let tablets = tablets(&config, &mut keys, &spawn)?;
    let leadership = match &config.leader {
        LeaderConfig::Here { log, .. } => Leadership::Here { log: log_engine(log)?, settings: settings(&config) },
        LeaderConfig::At { url, tls } => {
            let leader = GrpcLeader::new(address(url, tls.as_ref(), &mut keys)?);
            let leader = leader.map_err(|error| Failure::Failed(error.to_string()))?;
            Leadership::Elsewhere(Arc::new(leader))
        }
    };
    let components = Components {
        leadership,
        tablets,
        sources: sources(&config, &mut keys)?,
        pull: Some(config.poll.clone()),
        copy: copy_options(&config),
        memory_budget: usize::try_from(config.memory_budget).unwrap_or(usize::MAX),
        owner: format!("untorn {} (process {})", env!("CARGO_PKG_VERSION"), std::process::id()),
    };
    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let health = Health::default();
    // Probes are answered from here on: a process that recovers a long log lives.
    let export = server::metrics(exporter, recorder, health.clone(), keys, until(stopped.clone()));
    let mut export = std::pin::pin!(export);
    let start = Applier::start(components);
    let mut applier = tokio::select! {
        served = &mut export => return Err(listener_failed(served)),
        started = start => started.map_err(|error| match error {
            // The log was made with another release or another number of tablets.
            StartError::Configuration(fault) => {
                Faults::one("replica", fault, "or begin with an empty data_dir and a new copy").into()
            }
            error => Failure::Failed(folder.explain(&error.to_string())),
        })?,
        () = signals.terminated() => return Ok(()),
    };
    folder.reserve();
    let lsn = matches!(config.source, SourceConfig::Postgres(_));
    let inspect: Arc<dyn Inspect> = Arc::new(Inspected::new(applier.inspector(), lsn));
    health.running(Some(Arc::clone(&inspect)));
    let serve_leader = serve_leader(leader_listener, applier.leader(), until(stopped.clone()));
    let servers = async {
        tokio::try_join!(server::admin(admin, inspect, health.clone(), until(stopped.clone())), export, serve_leader,)
            .map(|_| ())
    };
    tracing::info!(admin = %config.admin, metrics = %config.metrics, "untorn runs");
    let mut servers = std::pin::pin!(servers);
    let ended = tokio::select! {
        ended = applier.wait() => ended,
        served = &mut servers => return Err(listener_failed(served)),
        () = signals.terminated() => {
            tracing::info!("draining; a second signal ends at once");
            health.draining();
            tokio::select! {
                ended = applier.drain() => ended,
                _ = &mut servers => Ended::Drained,
                () = signals.terminated() => return Err(Failure::Failed("ended by a second signal".into())),
            }
        }
    };
    stop.send_replace(true);
    // Answers that are under way, a scan's rows above all, go out before the process ends.
    let _ = timeout(Duration::from_millis(DRAIN_MS), servers).await;
    match ended {
        Ended::Drained => Ok(()),
        Ended::NotDrained(what) => {
            tracing::warn!(%what, "not drained in time; it is resumed at the next start");
            Ok(())
        }
        ended => Err(Failure::Failed(folder.explain(&ended.to_string()))),
    }
}

fn listener_failed(served: io::Result<()>) -> Failure {
    let cause = served.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
    Failure::Failed(format!("a listener failed: {cause}"))
}

/// Takes an address before anything else begins.
pub(super) async fn bind(key: &str, listen: &Listen, keys: &mut Keyring) -> Result<Listener, Failure> {
    let bound = TcpListener::bind(listen.address).await.map_err(|error| {
        let mend = "choose a free port or stop what holds it";
        Failure::Failed(format!("{key}: cannot listen on {listen}: {error}; {mend}"))
    })?;
    let Some(tls) = &listen.tls else { return Ok(bound.into()) };
    let loaded = keys.server(tls.files.clone()).map_err(|error| Failure::Failed(error.to_string()))?;
    Ok(Listener::guarded(bound, loaded, &tls.grants))
}

/// A server's address, with the certificates to reach it.
fn address(url: &str, tls: Option<&ClientFiles>, keys: &mut Keyring) -> Result<Address, Failure> {
    let loaded = tls.map(|files| keys.client(files.clone())).transpose();
    Ok(Address::new(url, loaded.map_err(|error| Failure::Failed(error.to_string()))?))
}

async fn serve_leader(
    listener: Option<Listener>,
    leader: Arc<dyn TransactionLeader>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let Some(listener) = listener else {
        stop.await;
        return Ok(());
    };
    let routes = Routes::new(transaction_service(leader)).into_axum_router();
    access::serve(listener, routes, stop).await.map_err(io::Error::other)
}

fn copy_options(config: &DaemonConfig) -> CopyOptions {
    match &config.source {
        SourceConfig::Postgres(source) => CopyOptions { rate: source.copy_rate, parallel: source.copy_parallel },
        _ => CopyOptions { rate: None, parallel: COPY_PARALLEL },
    }
}

fn settings(config: &DaemonConfig) -> Settings {
    let clock_skew_micros = match &config.source {
        SourceConfig::Postgres(source) => u64::try_from(source.clock_skew.as_micros()).unwrap_or(u64::MAX),
        _ => 0,
    };
    let read_directly = matches!(config.replica, ReplicaConfig::Postgres(_));
    Settings { release: config.release(), clock_skew_micros, read_directly, ..Settings::default() }
}

fn log_engine(log: &LogConfig) -> Result<Box<dyn TransactionLog>, Failure> {
    let engine = match log {
        LogConfig::Memory => EngineConfig::Memory,
        LogConfig::Sled(dir) => EngineConfig::Sled { dir: dir.clone() },
        LogConfig::Sqlite(file) => EngineConfig::Sqlite { file: file.clone() },
    };
    txn_log::engine(engine).map_err(|error| Failure::Failed(format!("the transaction log: {error}")))
}

fn tablets(
    config: &DaemonConfig,
    keys: &mut Keyring,
    spawn: &impl Fn(Worker) -> io::Result<()>,
) -> Result<Tablets, Failure> {
    match &config.replica {
        // A process that only pulls has no tablets of its own: an embedded replica lives where the leader does.
        ReplicaConfig::Embedded { tablet_count } => {
            let names: Vec<_> = (1..=*tablet_count).map(|number| format!("replica-{number}")).collect();
            let named: Vec<&str> = names.iter().map(String::as_str).collect();
            let opened = embedded::open(&config.data_dir.join("tablets"), &named, TabletOptions::default());
            let (engines, workers) = opened.map_err(|error| Failure::Failed(error.to_string()))?;
            for worker in workers {
                spawn(worker).map_err(|error| Failure::Failed(format!("a tablet's thread: {error}")))?;
            }
            let tablets = names.into_iter().zip(engines).map(|(name, engine)| {
                let leader: Arc<dyn TabletLeader> = Arc::new(engine);
                NamedTablet { name, from_key: None, leader }
            });
            Ok(Tablets::new(tablets.collect::<Vec<_>>(), true))
        }
        ReplicaConfig::Postgres(server) => postgres_replica(config, server, spawn),
        ReplicaConfig::Grpc(tablets) => {
            let by_range = tablets.iter().any(|tablet| tablet.from_key.is_some());
            let remote = tablets.iter().map(|tablet| {
                let leader = GrpcTablet::new(address(&tablet.url, tablet.tls.as_ref(), keys)?, &tablet.name)
                    .map_err(|error| Failure::Failed(format!("replica tablet {:?}: {error}", tablet.name)))?;
                let first = tablet.from_key.as_deref().unwrap_or_default();
                let from_key = by_range.then(|| match first {
                    "" => Vec::new(),
                    first => Key::from_columns([first.as_bytes()]).0.to_vec(),
                });
                let leader: Arc<dyn TabletLeader> = Arc::new(leader);
                Ok(NamedTablet { name: tablet.name.clone(), from_key, leader })
            });
            Ok(Tablets::new(remote.collect::<Result<Vec<_>, Failure>>()?, false))
        }
    }
}

/// PostgreSQL servers as the one replica tablet; what they are to apply is staged in the data folder.
fn postgres_replica(
    config: &DaemonConfig,
    replica: &PostgresReplicaConfig,
    spawn: &impl Fn(Worker) -> io::Result<()>,
) -> Result<Tablets, Failure> {
    let servers = replica.servers.iter().enumerate().map(|(i, server)| {
        let target = Target::parse(&server.name, server.url.expose(), server.password_file.clone());
        let target = target.map_err(|error| Failure::Failed(format!("replica.tablets[{i}].url: {error}")))?;
        Ok(Server { target, tables: server.tables.clone() })
    });
    let servers = Servers::new(servers.collect::<Result<_, Failure>>()?);
    let missing = replica::Missing { create_tables: replica.create_tables, add_columns: replica.add_columns };
    let options = replica::Options { synchronous_commit: replica.synchronous_commit, missing };
    let name = replica.name();
    let opened = embedded::open(&config.data_dir.join("tablets"), &[&name], TabletOptions::default());
    let (engines, workers) = opened.map_err(|error| Failure::Failed(error.to_string()))?;
    for worker in workers {
        spawn(worker).map_err(|error| Failure::Failed(format!("the staging thread: {error}")))?;
    }
    let tablets = engines.into_iter().map(|engine| {
        let leader: Arc<dyn TabletLeader> = Arc::new(PostgresTablet::new(engine, servers.clone(), options));
        NamedTablet { name: name.clone(), from_key: None, leader }
    });
    Ok(Tablets::new(tablets.collect::<Vec<_>>(), true))
}

fn sources(config: &DaemonConfig, keys: &mut Keyring) -> Result<Vec<Arc<dyn Source>>, Failure> {
    match &config.source {
        SourceConfig::None => Ok(Vec::new()),
        SourceConfig::Postgres(source) => {
            let shared = |source| -> Arc<dyn Source> { Arc::new(source) };
            Ok(postgres(source)?.into_iter().map(shared).collect())
        }
        SourceConfig::Cdc(tablets) => cdc(tablets, keys),
    }
}

/// The source tablets of a PostgreSQL source.
pub(super) fn postgres(source: &PostgresSourceConfig) -> Result<Vec<PostgresSource>, Failure> {
    let gids = source.gid_pattern.as_deref().map_or_else(|| Ok(GidPattern::default()), GidPattern::parse);
    let gids = gids.map_err(|error| Failure::Failed(format!("source.gid_pattern: {error}")))?;
    let one = |tablet: &crate::config::PostgresTabletConfig| {
        let options = Options {
            name: tablet.name.clone(),
            url: tablet.url.expose().to_owned(),
            password_file: tablet.password_file.clone(),
            publication: tablet.publication.clone(),
            slot: tablet.slot.clone(),
            tables: Arc::clone(&tablet.tables),
            gids: gids.clone(),
            slot_lock_timeout: SLOT_LOCK_TIMEOUT,
        };
        PostgresSource::new(options).map_err(Failure::Failed)
    };
    source.tablets.iter().map(one).collect()
}

fn cdc(tablets: &[CdcTabletConfig], keys: &mut Keyring) -> Result<Vec<Arc<dyn Source>>, Failure> {
    let streams: StreamNames = tablets.iter().map(|t| (t.tablet.clone(), t.name.clone())).collect();
    let streams = Arc::new(streams);
    let one = |config: &CdcTabletConfig| {
        let CdcTabletConfig { name, url, tls, tablet } = config.clone();
        let loaded = tls.map(|files| keys.client(files)).transpose();
        let loaded = loaded.map_err(|error| Failure::Failed(error.to_string()))?;
        let source = CdcSource::new(CdcTablet { name, url, tablet }, loaded, Arc::clone(&streams))
            .map_err(|error| Failure::Failed(format!("source tablet {:?}: {error}", config.name)))?;
        let source: Arc<dyn Source> = Arc::new(source);
        Ok(source)
    };
    tablets.iter().map(one).collect()
}
