//! `untorn run`: the daemon.

use super::{ConfigArgs, Failure};
use crate::admin::inspected::Inspected;
use crate::admin::{self, Inspect};
use crate::applier::leader::TransactionLeader;
use crate::applier::leader_grpc::{GrpcLeader, transaction_service};
use crate::applier::{Applier, Components, Ended, Leadership, NamedTablet, StartError, Tablets, start_workers};
use crate::config::{self, Configuration, DaemonConfig, Faults, LeaderConfig, LogConfig, ReplicaConfig, SourceConfig};
use crate::coordinator::Settings;
use crate::limits::SLOT_LOCK_TIMEOUT;
use crate::proto::transport;
use crate::source::Source;
use crate::source::cdc::{CdcSource, CdcTablet, StreamNames};
use crate::source::postgres::{GidPattern, Options, PostgresSource};
use crate::tablet::engine::TabletOptions;
use crate::tablet::grpc::GrpcTablet;
use crate::tablet::{TabletLeader, embedded};
use crate::txn_log::{EngineConfig, TransactionLog, engine};
use crate::wal::Key;
use crate::{metrics, telemetry};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

/// Runs the daemon until a signal asks it to stop, which drains it; a second one ends it at once.
///
/// # Errors
/// Faults of the configuration, what could not be started, or why the daemon ended by itself.
pub async fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let config = Configuration::load(&args.config, &config::process_vars())?.daemon()?;
    telemetry::start(&config.tracing).map_err(failed)?;
    let recorder = metrics::install().map_err(failed)?;
    let mut signals = Signals::new()?;
    let admin = listen("admin.listen", config.admin).await?;
    let scraped = listen("metrics.listen", config.metrics).await?;
    let served = match &config.leader {
        LeaderConfig::Here { listen: Some(address), .. } => Some(listen("leader.listen", *address).await?),
        LeaderConfig::Here { listen: None, .. } | LeaderConfig::At(_) => None,
    };
    std::fs::create_dir_all(&config.data_dir).map_err(|error| at(&config.data_dir, &error))?;
    let mut applier = tokio::select! {
        started = Applier::start(components(&config)?) => started.map_err(not_started)?,
        () = signals.next() => return Ok(()),
    };
    let lsn = matches!(config.source, SourceConfig::Postgres(_));
    let inspected = Arc::new(Inspected::new(applier.inspector(), lsn));
    let inspect: Arc<dyn Inspect> = Arc::clone(&inspected) as _;
    let leader = applier.leader();
    let mut serving = pin!(async {
        tokio::try_join!(
            admin::server::admin(admin, Arc::clone(&inspect), std::future::pending()),
            admin::server::metrics(scraped, recorder, Some(Arc::clone(&inspect)), std::future::pending()),
            serve_leader(leader, served),
            inspected.record(),
        )
        .map(|_| ())
    });
    info!(admin = %config.admin, "untorn runs");
    tokio::select! {
        ended = applier.wait() => return Err(Failure::Failed(ended.to_string())),
        ended = &mut serving => return Err(stopped_serving(ended)),
        () = signals.next() => {}
    }
    info!("draining; a second signal ends it at once");
    tokio::select! {
        ended = applier.drain() => match ended {
            Ended::Drained => Ok(()),
            Ended::NotDrained(_) => {
                warn!(%ended, "what has not arrived is resumed at the next start");
                Ok(())
            }
            ended => Err(Failure::Failed(ended.to_string())),
        },
        ended = &mut serving => Err(stopped_serving(ended)),
        () = signals.next() => Ok(()),
    }
}

fn failed(error: impl ToString) -> Failure {
    Failure::Failed(error.to_string())
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

fn stopped_serving(ended: io::Result<()>) -> Failure {
    match ended {
        Ok(()) => Failure::Failed("a listener has ended".into()),
        Err(error) => Failure::Failed(format!("a listener failed: {error}")),
    }
}

fn not_started(error: StartError) -> Failure {
    match error {
        StartError::Configuration(what) => Failure::Configuration(Faults::one(
            "replica",
            what,
            "keep what the log was made with, or begin with an empty data_dir",
        )),
        error => failed(error),
    }
}

/// The signals that ask a process to stop.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let signal = |kind| signal(kind).map_err(failed);
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Ends with the next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Takes an address before anything else begins.
pub(super) async fn listen(key: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| Failure::Failed(format!("{key}: cannot listen on {address}: {error}")))
}

/// Serves the transaction leader to pollers in other processes, where that is asked for.
async fn serve_leader(leader: Arc<dyn TransactionLeader>, listener: Option<TcpListener>) -> io::Result<()> {
    let Some(listener) = listener else { return std::future::pending().await };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = transport::server().add_service(transaction_service(leader));
    server.serve_with_incoming(incoming).await.map_err(io::Error::other)
}

fn components(config: &DaemonConfig) -> Result<Components, Failure> {
    let leadership = match &config.leader {
        LeaderConfig::At(url) => Leadership::Elsewhere(Arc::new(GrpcLeader::new(url).map_err(failed)?)),
        LeaderConfig::Here { log, .. } => {
            let clock_skew_micros = match &config.source {
                SourceConfig::Postgres(source) => u64::try_from(source.clock_skew.as_micros()).unwrap_or(u64::MAX),
                SourceConfig::None | SourceConfig::Cdc(_) => Settings::default().clock_skew_micros,
            };
            Leadership::Here {
                log: transaction_log(log)?,
                settings: Settings { release: config.release(), clock_skew_micros, ..Settings::default() },
            }
        }
    };
    Ok(Components {
        leadership,
        tablets: tablets(config)?,
        sources: sources(config)?,
        pull: Some(config.poll.clone()),
        memory_budget: usize::try_from(config.memory_budget).unwrap_or(usize::MAX),
        owner: format!("process {} on {}", std::process::id(), host_name()),
    })
}

/// The machine's name, for people.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "this machine".into() } else { name.trim().to_owned() }
}

fn transaction_log(log: &LogConfig) -> Result<Box<dyn TransactionLog>, Failure> {
    let config = match log.clone() {
        LogConfig::Memory => EngineConfig::Memory,
        LogConfig::Sled(dir) => EngineConfig::Sled { dir },
        LogConfig::Sqlite(file) => EngineConfig::Sqlite { file },
    };
    engine(config).map_err(failed)
}

fn tablets(config: &DaemonConfig) -> Result<Tablets, Failure> {
    match &config.replica {
        ReplicaConfig::Embedded { tablet_count } => {
            let names: Vec<_> = (1..=*tablet_count).map(|number| format!("replica-{number}")).collect();
            let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
            let opened = embedded::open(&config.data_dir.join("tablets"), &borrowed, TabletOptions::default());
            let (engines, workers) = opened.map_err(failed)?;
            start_workers(workers).map_err(failed)?;
            let tablets = names.into_iter().zip(engines).map(|(name, engine)| {
                let leader: Arc<dyn TabletLeader> = Arc::new(engine);
                NamedTablet { name, from_key: None, leader }
            });
            Ok(Tablets::new(tablets, true))
        }
        ReplicaConfig::Grpc(tablets) => {
            let by_range = tablets.iter().any(|tablet| tablet.from_key.is_some());
            let mut named = Vec::with_capacity(tablets.len());
            for tablet in tablets {
                let first = |key: &String| Key::from_columns([key.as_bytes()]).0.to_vec();
                named.push(NamedTablet {
                    name: tablet.name.clone(),
                    // Where the map is cut by ranges, the first tablet holds everything below the second.
                    from_key: tablet.from_key.as_ref().map(first).or(by_range.then(Vec::new)),
                    leader: Arc::new(GrpcTablet::new(&tablet.url, &tablet.name).map_err(failed)?),
                });
            }
            Ok(Tablets::new(named, false))
        }
    }
}

fn sources(config: &DaemonConfig) -> Result<Vec<Arc<dyn Source>>, Failure> {
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    match &config.source {
        SourceConfig::None => {}
        SourceConfig::Postgres(source) => {
            for tablet in &source.tablets {
                let options = Options {
                    name: tablet.name.clone(),
                    url: tablet.url.expose().to_owned(),
                    password_file: tablet.password_file.clone(),
                    publication: tablet.publication.clone(),
                    slot: tablet.slot.clone(),
                    gids: GidPattern::parse(source.gid_pattern.as_deref().unwrap_or_default()).map_err(failed)?,
                    slot_lock_timeout: SLOT_LOCK_TIMEOUT,
                };
                sources.push(Arc::new(PostgresSource::new(options).map_err(failed)?));
            }
        }
        SourceConfig::Cdc(tablets) => {
            let streams: StreamNames = tablets.iter().map(|t| (t.tablet.clone(), t.name.clone())).collect();
            let streams = Arc::new(streams);
            let reader = reader_name(&config.data_dir)?;
            for tablet in tablets {
                let (name, url, tablet) = (tablet.name.clone(), tablet.url.clone(), tablet.tablet.clone());
                let source = CdcSource::new(CdcTablet { name, url, tablet }, &reader, Arc::clone(&streams));
                sources.push(Arc::new(source.map_err(failed)?));
            }
        }
    }
    Ok(sources)
}

/// What this replica is called at the services that it reads: the same after every restart, and no other replica's.
fn reader_name(data_dir: &Path) -> Result<String, Failure> {
    let path = data_dir.join("reader");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path, &error)),
        // One that was cut off while it was written has read nothing yet.
        Ok(_) | Err(_) => {
            let name = format!("untorn-{:016x}", rand::random::<u64>());
            let written = std::fs::File::create(&path).and_then(|mut file| {
                io::Write::write_all(&mut file, name.as_bytes())?;
                file.sync_all()?;
                std::fs::File::open(data_dir)?.sync_all()
            });
            written.map_err(|error| at(&path, &error))?;
            Ok(name)
        }
    }
}
