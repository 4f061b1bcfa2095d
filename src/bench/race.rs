//! One history into each competitor: drained from a backlog while the source is idle, and counted only when the rows are
//! equal.
//!
//! Each competitor has a database of its own in one replica server, and its slot at the source before the history is
//! made; so all of them drain the same bytes, one after the other.

use super::RaceArgs;
use super::daemon::{Daemon, write_config};
use super::history::{Point, TABLES, rows_before};
use super::latency;
use super::process::{cpu_seconds, memory_bytes};
use super::report::{Drain, Latency, latency_table, table};
use super::server::{Folder, PUBLISHER, Server, Session};
use crate::admin::Format;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one competitor may take for one history.
const PATIENCE: Duration = Duration::from_secs(1_200);
/// The version, as `server_version_num` says it, since which a subscription applies large transactions while they stream.
const PARALLEL_SINCE: u32 = 160_000;
/// How often the end is looked for, and memory.
const LOOK: Duration = Duration::from_millis(10);

/// Who drains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Competitor {
    name: &'static str,
    /// The database, the slot and the subscription.
    database: &'static str,
    untorn: bool,
    /// Whether commits wait for the disk.
    durable: bool,
}

const COMPETITORS: [Competitor; 4] = [
    Competitor { name: "postgres", database: "native_on", untorn: false, durable: true },
    Competitor { name: "untorn", database: "untorn_on", untorn: true, durable: true },
    Competitor { name: "postgres, off", database: "native_off", untorn: false, durable: false },
    Competitor { name: "untorn, off", database: "untorn_off", untorn: true, durable: false },
];

/// Runs the race.
///
/// # Errors
/// A server or a competitor fails, or a competitor's rows are not the source's.
pub async fn race(args: &RaceArgs, out: &mut (impl Write + Send)) -> io::Result<()> {
    let name = format!("untorn-race-{}", std::process::id());
    let folder = Folder(args.dir.clone().unwrap_or_else(std::env::temp_dir).join(name));
    let (mut all, mut latencies) = (Vec::new(), Vec::new());
    for &point in &args.points {
        let (drains, watched) = run_point(args, point, &folder.0.join(point.name())).await?;
        for drain in &drains {
            match args.format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(drain)?)?,
                Format::Text => eprintln!("{} {}: {:.0} rows/s", drain.point, drain.competitor, drain.rows_per_second),
            }
            out.flush()?;
        }
        for latency in watched.iter().filter(|_| args.format == Format::Json) {
            writeln!(out, "{}", serde_json::to_string(latency)?)?;
        }
        all.extend(drains);
        latencies.extend(watched);
    }
    if args.format == Format::Text {
        write!(out, "{}{}", table(&all), latency_table(&latencies))?;
    }
    out.flush()?;
    match all.iter().find(|drain| !drain.equal) {
        Some(drain) => Err(io::Error::other(format!("{} at {}: the rows differ", drain.competitor, drain.point))),
        None => Ok(()),
    }
}

async fn run_point(args: &RaceArgs, point: Point, folder: &Path) -> io::Result<(Vec<Drain>, Vec<Latency>)> {
    let source = Server::start(&args.pg_bin, &folder.join("source"), &PUBLISHER).await?;
    let replica =
        Server::start(&args.pg_bin, &folder.join("replica"), &["autovacuum=off", "max_wal_size=16GB"]).await?;
    let at_source = source.connect("postgres").await?;
    at_source.run(TABLES).await?;
    at_source.run(&rows_before()).await?;
    at_source.run("CREATE PUBLICATION untorn FOR ALL TABLES").await?;
    for competitor in COMPETITORS {
        prepare(competitor, &source, &replica, folder).await?;
    }
    at_source.run("SET synchronous_commit = off").await?;
    for sql in point.sql(args.rows) {
        at_source.run(&sql).await?;
    }
    let wanted = hash(&at_source).await?;
    let mut drains: Vec<Drain> = Vec::new();
    for competitor in COMPETITORS {
        let at_replica = replica.connect(competitor.database).await?;
        at_replica.run("CHECKPOINT").await?;
        let mut drain = drain(args, point, competitor, &source, &replica, folder).await?;
        drain.equal = hash(&at_replica).await? == wanted;
        let native = drains.iter().find(|_| competitor.untorn).and(drains.last());
        drain.times_native = native.map(|native| drain.rows_per_second / native.rows_per_second);
        drains.push(drain);
    }
    let mut latencies = Vec::new();
    for (competitor, drain) in COMPETITORS.into_iter().zip(&drains) {
        if point == Point::Small && args.latency_seconds > 0 {
            let half = (drain.transactions_per_second / 2.0).max(1.0) as u64;
            let at_replica = replica.connect(competitor.database).await?;
            let daemon = start(competitor, &at_replica, folder).await?;
            let watched = latency::measure(competitor.name, &source, &at_replica, half, args.latency_seconds).await?;
            stop(competitor, daemon, &at_replica, &source).await?;
            latencies.push(watched);
        }
    }
    Ok((drains, latencies))
}

/// Makes a competitor's database and slot.
async fn prepare(competitor: Competitor, source: &Server, replica: &Server, folder: &Path) -> io::Result<()> {
    let Competitor { database, untorn, durable, .. } = competitor;
    replica.connect("postgres").await?.run(&format!("CREATE DATABASE {database}")).await?;
    let at_replica = replica.connect(database).await?;
    at_replica.run(TABLES).await?;
    if untorn {
        write_config(database, durable, std::slice::from_ref(source), replica, folder)?;
        let mut daemon = Daemon::start(database, folder)?;
        until(async || Ok(count(&at_replica, "race").await? > 0)).await?;
        return daemon.stop();
    }
    at_replica.run(&rows_before()).await?;
    let commit = if durable { "on" } else { "off" };
    let streaming = if at_replica.version().await? >= PARALLEL_SINCE { "parallel" } else { "on" };
    let subscribe = format!(
        "CREATE SUBSCRIPTION {database} CONNECTION '{}' PUBLICATION untorn WITH (copy_data = false, enabled = false, \
         create_slot = false, slot_name = '{database}', streaming = {streaming}, synchronous_commit = {commit})",
        source.words("postgres")
    );
    let slot = format!("SELECT pg_create_logical_replication_slot('{database}', 'pgoutput')");
    source.connect("postgres").await?.run(&slot).await?;
    at_replica.run(&subscribe).await?;
    Ok(())
}

/// Lets a competitor drain its backlog.
async fn drain(
    args: &RaceArgs,
    point: Point,
    competitor: Competitor,
    source: &Server,
    replica: &Server,
    folder: &Path,
) -> io::Result<Drain> {
    let at_replica = replica.connect(competitor.database).await?;
    let cpu_before = cpu_seconds(replica.pid());
    let begun = Instant::now();
    let daemon = start(competitor, &at_replica, folder).await?;
    let applying =
        if competitor.untorn { "SELECT backend FROM untorn.progress" } else { "SELECT pid FROM pg_stat_subscription" };
    let mut peak = 0;
    let daemon_pid = daemon.as_ref().map(|daemon| daemon.pid());
    while count(&at_replica, "over").await? == 0 {
        let pid = at_replica.run(applying).await?.and_then(|pid| pid.parse::<u32>().ok());
        peak = peak.max([pid, daemon_pid].into_iter().flatten().map(memory_bytes).sum());
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{} does not drain {}", competitor.name, point.name())));
        }
        tokio::time::sleep(LOOK).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let daemon_cpu = daemon_pid.map_or(0.0, cpu_seconds);
    let cpu = cpu_seconds(replica.pid()) - cpu_before + daemon_cpu;
    stop(competitor, daemon, &at_replica, source).await?;
    let (transactions, rows) =
        (point.transactions(args.rows), point.transactions(args.rows) * point.rows_each(args.rows));
    Ok(Drain {
        point: point.name(),
        competitor: competitor.name,
        transactions,
        rows,
        seconds,
        transactions_per_second: transactions as f64 / seconds,
        rows_per_second: rows as f64 / seconds,
        cpu_seconds_per_million_rows: cpu * 1e6 / rows as f64,
        peak_memory_bytes: peak,
        equal: false,
        times_native: None,
    })
}

/// Starts a competitor; the daemon, if it is untorn.
async fn start(competitor: Competitor, at_replica: &Session, folder: &Path) -> io::Result<Option<Daemon>> {
    if competitor.untorn {
        return Daemon::start(competitor.database, folder).map(Some);
    }
    at_replica.run(&format!("ALTER SUBSCRIPTION {} ENABLE", competitor.database)).await?;
    Ok(None)
}

/// Stops it again, and waits until the source has heard of it.
async fn stop(
    Competitor { database, .. }: Competitor,
    daemon: Option<Daemon>,
    at_replica: &Session,
    source: &Server,
) -> io::Result<()> {
    match daemon {
        Some(mut daemon) => daemon.stop()?,
        None => at_replica.run(&format!("ALTER SUBSCRIPTION {database} DISABLE")).await.map(|_| ())?,
    }
    let at_source = source.connect("postgres").await?;
    until(async || {
        let free = format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{database}'");
        Ok(at_source.run(&free).await?.as_deref() == Some("t"))
    })
    .await
}

/// The count and the hash of the rows, in no order.
async fn hash(session: &Session) -> io::Result<Option<String>> {
    session.run("SELECT count(*) || ' ' || coalesce(sum(hashtextextended(race::text, 0)), 0) FROM race").await
}

async fn count(session: &Session, table: &str) -> io::Result<u64> {
    let answer = session.run(&format!("SELECT count(*) FROM {table}")).await?;
    Ok(answer.and_then(|answer| answer.parse().ok()).unwrap_or_default())
}

pub(super) async fn until(mut done: impl AsyncFnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done().await? {
        if Instant::now() > deadline {
            return Err(io::Error::other("a competitor does not get ready"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
