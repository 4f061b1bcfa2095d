//! How long a commit at the source takes to be visible at the replica, while a load runs that is half of what the
//! competitor drains.

use super::history::paced;
use super::race::until;
use super::report::Latency;
use super::server::{Server, Session};
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two commits that are watched. They come at their times whatever became of those before, so a standstill counts
/// for each commit that met it.
const PROBE_EVERY: Duration = Duration::from_millis(10);
/// Between two looks at the replica.
const LOOK: Duration = Duration::from_millis(1);
/// Commits that wait to be seen: as many as come in half a minute.
const PROBES_WAITING: usize = 3_000;
/// How long the last commits may take.
const LAST: Duration = Duration::from_secs(120);

/// Watches commits for so many seconds under a load of so many transactions of two updates a second. The competitor runs.
///
/// # Errors
/// A server fails, or a commit does not become visible.
pub async fn measure(
    competitor: &'static str,
    source: &Server,
    replica: &Session,
    transactions_per_second: u64,
    seconds: u64,
) -> io::Result<Latency> {
    let (load, probe) = (source.connect("postgres").await?, source.connect("postgres").await?);
    // Whatever came before is through once this is.
    let first = commit(&probe).await?;
    until(async || Ok(newest(replica).await? >= first)).await?;
    load.run("SET synchronous_commit = off").await?;
    let (committed, commits) = mpsc::channel(PROBES_WAITING);
    let begun = Instant::now();
    let writing = async move {
        let mut due = tokio::time::interval(PROBE_EVERY);
        while begun.elapsed() < Duration::from_secs(seconds) {
            due.tick().await;
            let id = commit(&probe).await?;
            committed.send((id, Instant::now())).await.map_err(io::Error::other)?;
        }
        drop(committed);
        Ok::<_, io::Error>(())
    };
    let history = paced(transactions_per_second, seconds);
    let (mut millis, (), _) = tokio::try_join!(watch(replica, commits), writing, load.run(&history))?;
    millis.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| millis.get((millis.len() as f64 * part) as usize).copied().unwrap_or_default();
    Ok(Latency {
        point: "latency",
        competitor,
        rows_per_second: 2 * transactions_per_second,
        commits: millis.len() as u64,
        p50_ms: at(0.50),
        p99_ms: at(0.99),
        max_ms: millis.last().copied().unwrap_or_default(),
    })
}

/// Milliseconds from each commit's answer until a look at the replica finds it.
async fn watch(replica: &Session, mut commits: mpsc::Receiver<(u64, Instant)>) -> io::Result<Vec<f64>> {
    let mut millis = Vec::new();
    while let Some((id, at)) = commits.recv().await {
        while newest(replica).await? < id {
            if at.elapsed() > LAST {
                return Err(io::Error::other("a commit does not become visible"));
            }
            tokio::time::sleep(LOOK).await;
        }
        millis.push(at.elapsed().as_secs_f64() * 1e3);
    }
    Ok(millis)
}

async fn commit(source: &Session) -> io::Result<u64> {
    number(source, "INSERT INTO probe DEFAULT VALUES RETURNING id").await
}

async fn newest(replica: &Session) -> io::Result<u64> {
    number(replica, "SELECT max(id) FROM probe").await
}

async fn number(session: &Session, sql: &str) -> io::Result<u64> {
    Ok(session.run(sql).await?.and_then(|id| id.parse().ok()).unwrap_or_default())
}
