//! Durable transactions over several tablets, through gRPC and all, beside the bare store that writes the same rows with the
//! same durability in the same run.

use super::EmbeddedArgs;
use super::backlog::{Backlog, History, TABLETS_EACH, VALUE_BYTES};
use super::process::memory_bytes;
use super::server::Folder;
use crate::admin::Format;
use crate::demo::Plan;
use crate::demo::pipeline::Pipeline;
use crate::demo::replica::Replica;
use crate::tablet::cdc_service::cdc_service;
use crate::tablet::engine::Worker;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use serde::Serialize;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::transport::server::TcpIncoming;

/// How long one point may take.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// Replica tablets, and keyspaces of the bare store.
const REPLICA_TABLETS: u16 = 4;
/// Transactions that the bare store makes durable together: about as many as untorn's tablets do under load.
const GROUP: u64 = 256;

/// One point of a curve.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Measured {
    /// Which curve: `tablets`, `waiting` or `rows`.
    pub curve: &'static str,
    /// Source tablets.
    pub source_tablets: u64,
    /// Transactions that waited all the while.
    pub waiting: u64,
    /// Rows of each transaction.
    pub rows_per_transaction: u64,
    /// Transactions that were committed.
    pub transactions: u64,
    /// From the first record being readable at the source to the last transaction being visible, durable everywhere.
    pub seconds: f64,
    /// Transactions a second.
    pub transactions_per_second: f64,
    /// Rows a second.
    pub rows_per_second: f64,
    /// Rows a second of the bare store.
    pub store_rows_per_second: f64,
    /// untorn's rows a second, as a part of the bare store's.
    pub times_store: f64,
    /// This process's own memory at the end: source, replica and all.
    pub memory_bytes: u64,
}

/// Measures every point. `spawn` runs a tablet store's worker on a thread of its own.
///
/// # Errors
/// A folder, the output, or the replica failed.
pub async fn embedded(
    args: &EmbeddedArgs,
    out: &mut (impl Write + Send),
    spawn: impl Fn(Worker) -> io::Result<()>,
) -> io::Result<()> {
    let name = format!("untorn-embedded-{}", std::process::id());
    let folder = Folder(args.dir.clone().unwrap_or_else(std::env::temp_dir).join(name));
    let rows = args.transactions * TABLETS_EACH;
    let usual = History { tablets: 4, waiting: 0, transactions: args.transactions, rows: TABLETS_EACH };
    let tablets = args.tablets.iter().map(|&tablets| ("tablets", History { tablets: tablets.into(), ..usual }));
    let waiting = args.waiting.iter().map(|&waiting| ("waiting", History { waiting, ..usual }));
    let each =
        args.rows.iter().map(|&each| ("rows", History { rows: each, transactions: (rows / each).max(1), ..usual }));
    if args.format == Format::Text {
        writeln!(out, "curve    tablets   waiting  rows/txn      txn/s     rows/s  store rows/s  × store       MiB")?;
    }
    for (number, (curve, history)) in tablets.chain(waiting).chain(each).enumerate() {
        let point = folder.0.join(number.to_string());
        let store = bare(history, &point.join("bare"))?;
        let seconds = replicated(history, &point.join("untorn"), &spawn).await?;
        let rate = |count: u64, seconds: f64| count as f64 / seconds;
        let rows = history.transactions * history.rows;
        let measured = Measured {
            curve,
            source_tablets: history.tablets,
            waiting: history.waiting,
            rows_per_transaction: history.rows,
            transactions: history.transactions,
            seconds,
            transactions_per_second: rate(history.transactions, seconds),
            rows_per_second: rate(rows, seconds),
            store_rows_per_second: rate(rows, store),
            times_store: store / seconds,
            memory_bytes: memory_bytes(std::process::id()),
        };
        std::fs::remove_dir_all(&point)?;
        match args.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string(&measured)?)?,
            Format::Text => writeln!(
                out,
                "{curve:<8} {:>7} {:>9} {:>9} {:>10.0} {:>10.0} {:>13.0} {:>8.2} {:>9.0}",
                measured.source_tablets,
                measured.waiting,
                measured.rows_per_transaction,
                measured.transactions_per_second,
                measured.rows_per_second,
                measured.store_rows_per_second,
                measured.times_store,
                measured.memory_bytes as f64 / f64::from(1 << 20),
            )?,
        }
        out.flush()?;
    }
    Ok(())
}

/// Seconds that the store alone takes for the rows: one atomic batch a transaction, one barrier a group.
fn bare(history: History, folder: &Path) -> io::Result<f64> {
    std::fs::create_dir_all(folder)?;
    // As the tablets' own store is opened: a barrier is asked for by name.
    let database = Database::builder(folder).manual_journal_persist(true).worker_threads(1).open();
    let database = database.map_err(io::Error::other)?;
    let space = |number: u16| database.keyspace(&format!("tablet-{number}"), KeyspaceCreateOptions::default);
    let spaces = (0..REPLICA_TABLETS).map(space).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    let (value, begun) = ([b'x'; VALUE_BYTES], Instant::now());
    for n in 0..history.transactions {
        let mut batch = database.batch();
        for (key, space) in history.keys(n).zip(spaces.iter().cycle()) {
            batch.insert(space, key, value);
        }
        batch.commit().map_err(io::Error::other)?;
        // A group of large transactions is as many rows as a group of small ones.
        if n % (GROUP * TABLETS_EACH / history.rows).max(1) == 0 || n + 1 == history.transactions {
            database.persist(PersistMode::SyncData).map_err(io::Error::other)?;
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds that untorn takes for the transactions.
async fn replicated(history: History, folder: &Path, spawn: impl Fn(Worker) -> io::Result<()>) -> io::Result<f64> {
    let universe = Backlog::new(history);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let plan = Plan {
        data_dir: folder.to_owned(),
        source: listener.local_addr()?,
        source_tablets: universe.names().to_vec(),
        replica_tablets: REPLICA_TABLETS,
        gate: true,
    };
    let server = crate::proto::transport::server()
        .add_service(cdc_service(Arc::clone(&universe) as _))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let drained = async {
        let replica = Pipeline::start(plan, spawn).await.map_err(io::Error::other)?;
        let drained = async {
            let ended = || io::Error::other("the replica ended");
            replica.safe_above(History::begin().previous()).await.ok_or_else(ended)?;
            let begun = Instant::now();
            universe.open();
            replica.safe_above(history.end().previous()).await.ok_or_else(ended)?;
            Ok(begun.elapsed().as_secs_f64())
        };
        let seconds = tokio::select! {
            seconds = timeout(PATIENCE, drained) => seconds.map_err(io::Error::other)?,
            why = replica.failed() => Err(io::Error::other(why)),
        };
        replica.stop().await;
        seconds
    };
    tokio::select! {
        ended = server => Err(io::Error::other(format!("the source's service ended: {ended:?}"))),
        seconds = drained => seconds,
    }
}
