//! `untorn demo`: the whole product in one process, under a workload that tears every replica that can be torn.
//!
//! The source universe is the demo's own ([`universe`], [`workload`], [`bank`]): tablets with a bank in memory, served
//! by the product's CDC service over loopback gRPC, each stream late by a delay of its own. Everything from there on is
//! the product: pollers, router, coordinator, transaction log, replica tablets. The [`auditor`] reads the replica as any
//! reader does and holds it against the source's books; at the end every version is compared. Without the gate one
//! decision point of the product is open, and the auditor, which does not know, counts what readers then see.

pub mod args;
pub mod auditor;
pub mod bank;
pub mod change;
pub mod folder;
pub mod history;
#[cfg(test)]
mod naive;
pub mod pipeline;
pub mod progress;
pub mod replica;
pub mod report;
pub mod screen;
pub mod show;
pub mod universe;
pub mod users;
pub mod workload;

pub use args::DemoArgs;

use crate::admin::health::Health;
use crate::admin::{self, Format, Inspect};
use crate::coordinator::ReadPoint;
use crate::tablet::cdc_service::cdc_service;
use crate::wal::{HybridTime, LogPosition};
use bank::Bank;
use folder::{Folder, FolderError};
use history::Difference;
use progress::Progress;
use replica::Replica;
use report::Report;
use screen::View;
use show::Show;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::server::TcpIncoming;
use universe::Universe;
use workload::Workload;

/// Accounts of the bank: enough that transfers seldom meet, few enough that all of them are read 60 times a second.
const ACCOUNTS: u32 = 500;
/// Where `status`, `explain` and `scan` look by default.
const ADMIN_PORT: u16 = 7100;
/// The same demo every time, as far as threads and clocks allow.
const SEED: u64 = 1808;
/// How long the users work where nobody watches.
const SECONDS: u64 = 20;
/// How long the replica may take to show the last transaction; then what is missing counts as lost.
const CATCH_UP: Duration = Duration::from_secs(30);

/// The replica that the demo asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The folder of the transaction log and the tablets.
    pub data_dir: PathBuf,
    /// Where the CDC service listens; its tablets have a common clock.
    pub source: SocketAddr,
    /// The source tablets' names, which are also their streams'.
    pub source_tablets: Vec<String>,
    /// How many replica tablets to embed.
    pub replica_tablets: u16,
    /// Whether a transaction waits for all its Applying records.
    pub gate: bool,
}

/// Why the demo could not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A listener, the terminal or the output.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No latencies.
    #[error(transparent)]
    Latency(#[from] progress::NoHistogram),
    /// The source's CDC service failed.
    #[error("the source universe's service failed: {0}")]
    Source(tonic::transport::Error),
    /// The source's CDC service ended by itself.
    #[error("the source universe's service ended")]
    SourceEnded,
    /// The admin service failed.
    #[error("the admin service failed: {0}")]
    Admin(io::Error),
    /// Somebody did not want to wait for the comparison.
    #[error("interrupted before the replica was compared with its source")]
    Interrupted,
    /// The replica did not come up, or ended.
    #[error("the replica failed: {0}")]
    Replica(String),
}

/// Runs the demo; `start` brings up the replica. Prints the report and answers the exit code: 0 when every promise was
/// kept, or when the gate was off.
pub async fn run<R: Replica + 'static>(args: DemoArgs, start: impl AsyncFnOnce(Plan) -> Result<R, String>) -> ExitCode {
    let printed = match demo(&args, start).await {
        Ok(report) => {
            let line = match args.format {
                Format::Text => Ok(format!("\n{report}")),
                Format::Json => serde_json::to_string(&report).map_err(io::Error::from),
            };
            let printed = line.and_then(|line| writeln!(io::stdout(), "{line}"));
            printed.map(|()| args.without_gate || report.is_whole()).map_err(DemoError::from)
        }
        Err(error) => Err(error),
    };
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("untorn demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demo<R: Replica>(
    args: &DemoArgs,
    start: impl AsyncFnOnce(Plan) -> Result<R, String>,
) -> Result<Report, DemoError> {
    let folder = Folder::open(args.dir.as_deref())?;
    let universe = Arc::new(Universe::new(args.source_tablets, ACCOUNTS, SEED));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let plan = Plan {
        data_dir: folder.path().to_owned(),
        source: listener.local_addr()?,
        source_tablets: universe.names().to_vec(),
        replica_tablets: args.replica_tablets,
        gate: !args.without_gate,
    };
    let server = crate::proto::transport::server()
        .add_service(cdc_service(Arc::clone(&universe) as _))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let report = async {
        let replica = start(plan).await.map_err(DemoError::Replica)?;
        let (admin, serve) = serve_admin(replica.inspect()).await?;
        let report = tokio::select! {
            report = watch_replica(args, &universe, &replica, admin) => report,
            ended = serve => Err(DemoError::Admin(ended)),
        };
        replica.stop().await;
        report
    };
    tokio::select! {
        ended = server => Err(ended.map_or_else(DemoError::Source, |()| DemoError::SourceEnded)),
        report = report => report,
    }
}

/// Serves `status`, `explain` and `scan` where the command line looks for them, or at any free port if that is taken.
/// The second part is to be run; it ends only by a failure.
async fn serve_admin(
    inspect: Option<Arc<dyn Inspect>>,
) -> Result<(Option<String>, impl Future<Output = io::Error>), DemoError> {
    let listener = match &inspect {
        Some(_) => match TcpListener::bind((Ipv4Addr::LOCALHOST, ADMIN_PORT)).await {
            Ok(listener) => Some(listener),
            Err(_) => Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?),
        },
        None => None,
    };
    let address = listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let serve = async {
        if let (Some(listener), Some(inspect)) = (listener, inspect)
            && let Err(error) =
                admin::server::admin(listener, Arc::clone(&inspect), running(inspect), std::future::pending()).await
        {
            return error;
        }
        std::future::pending().await
    };
    Ok((address.map(|address| format!("http://{address}")), serve))
}

fn running(inspect: Arc<dyn Inspect>) -> Health {
    let health = Health::default();
    health.running(Some(inspect));
    health
}

/// Lets the users work, the auditor audit and people watch; then compares.
async fn watch_replica(
    args: &DemoArgs,
    universe: &Universe,
    replica: &dyn Replica,
    admin: Option<String>,
) -> Result<Report, DemoError> {
    let bank = Mutex::new(Bank::new(ACCOUNTS));
    let progress = Progress::new()?;
    let (stop, stopped) = watch::channel(false);
    let (notice, noticed) = watch::channel(Some("coming up"));
    let view = View {
        source_tablets: args.source_tablets.into(),
        replica_tablets: args.replica_tablets.into(),
        gate: !args.without_gate,
        admin,
        ..View::default()
    };
    let seconds = args.seconds.or((!show::is_interactive(args.format)).then_some(SECONDS));
    let mut signal = signal(SignalKind::terminate())?;
    let mut show = Show::new(args.format);

    let interrupted = async {
        let clock = async {
            progress.begun().await;
            notice.send_replace(None);
            match seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = clock => {}
            _ = signal.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop.send_replace(true);
        // Asked again, it does not wait for the replica.
        tokio::select! {
            _ = signal.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let work = async {
        let workload = Workload::new(args.source_tablets, ACCOUNTS, SEED);
        users::offer(workload, universe, &bank, &progress, stopped).await;
        notice.send_replace(Some("the users are gone; comparing every version"));
        let last = bank.lock().unwrap_or_else(PoisonError::into_inner).committed();
        match timeout(CATCH_UP, replica.safe_above(last.previous())).await {
            Ok(safe) => progress.visible(safe.unwrap_or_default()),
            Err(_) => tracing::warn!(seconds = CATCH_UP.as_secs(), "the replica does not show the last transaction"),
        }
        progress.end();
    };
    let audit = auditor::audit(replica, change::TABLE, &bank, &progress, SEED);
    tokio::select! {
        () = work => {}
        () = interrupted => return Err(DemoError::Interrupted),
        () = audit => {}
        () = follow(replica, &progress) => {}
        failure = replica.failed() => return Err(DemoError::Replica(failure)),
        ended = show.run(view, &progress, replica, noticed, &stop) => return ended.map_or_else(
            |error| Err(error.into()),
            |()| Err(DemoError::Interrupted),
        ),
    }
    let nothing = ReadPoint { position: LogPosition(0), time: HybridTime::MIN };
    let at = replica.safe().or_else(|| replica.latest()).unwrap_or(nothing);
    let compared = auditor::compare(replica, replica.table(change::TABLE), at, &bank).await;
    drop(show);
    let (difference, equal): (Difference, bool) = compared.map_err(|error| DemoError::Replica(error.to_string()))?;
    Ok(Report::new(&progress.numbers(false), difference, equal))
}

/// Tells progress what becomes visible, for ever.
async fn follow(replica: &dyn Replica, progress: &Progress) {
    let mut safe = HybridTime::MIN;
    while let Some(now) = replica.safe_above(safe).await {
        safe = now;
        progress.visible(safe);
    }
    // The replica has ended; `failed` says why.
    std::future::pending().await
}
