//! The torn-read race: money moves between accounts on different servers by two-phase commits, PostgreSQL's own
//! subscriptions and untorn follow side by side into two databases of one server, and a reader of each adds up all
//! balances again and again. The sum never changes at the source; a read that finds another has seen a part of a transfer.

use super::TornArgs;
use super::daemon::{Daemon, write_config};
use super::race::until;
use super::server::{Folder, PUBLISHER, Server, Session};
use crate::admin::Format;
use futures::future::{join, join3, try_join_all};
use serde::Serialize;
use std::cell::Cell;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Accounts on each server, and what stands on each at first.
const ACCOUNTS: u64 = 1_000;
const BALANCE: u64 = 100;
/// Who moves money at the same time, each between accounts of its own.
const TELLERS: u64 = 4;
/// The databases.
const COMPETITORS: [(&str, &str); 2] = [("postgres", "native"), ("untorn", "untorn")];

/// What a competitor's reader saw.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Torn {
    /// Source servers.
    pub servers: u16,
    /// Who.
    pub competitor: &'static str,
    /// Transfers while it was read.
    pub transactions: u64,
    /// Reads.
    pub reads: u64,
    /// Reads whose sum was wrong.
    pub torn_reads: u64,
    /// By how much at most.
    pub worst: u64,
    /// Whether the rows were the sources' in the end.
    pub equal: bool,
}

/// Runs the race.
///
/// # Errors
/// A server or a competitor fails, untorn shows a torn read, or rows differ in the end.
pub async fn torn(args: &TornArgs, out: &mut (impl Write + Send)) -> io::Result<()> {
    let name = format!("untorn-torn-{}", std::process::id());
    let folder = Folder(args.dir.clone().unwrap_or_else(std::env::temp_dir).join(name));
    if args.format == Format::Text {
        writeln!(out, "servers  competitor  transfers      reads  torn reads  worst  equal")?;
    }
    let mut bad = false;
    for &servers in &args.servers {
        for seen in run(args, servers, &folder.0.join(servers.to_string())).await? {
            bad |= !seen.equal || (seen.competitor == "untorn" && seen.torn_reads > 0);
            let Torn { competitor, transactions, reads, torn_reads, worst, equal, .. } = &seen;
            match args.format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(&seen)?)?,
                Format::Text => writeln!(
                    out,
                    "{servers:>7}  {competitor:<10}  {transactions:>9}  {reads:>9}  {torn_reads:>10}  {worst:>5}  {equal}"
                )?,
            }
            out.flush()?;
        }
    }
    if bad { Err(io::Error::other("untorn's replica was torn, or rows differ in the end")) } else { Ok(()) }
}

async fn run(args: &TornArgs, servers: u16, folder: &Path) -> io::Result<Vec<Torn>> {
    let mut sources = Vec::new();
    for number in 0..servers {
        let source = Server::start(&args.pg_bin, &folder.join(format!("source-{number}")), &PUBLISHER).await?;
        let first = u64::from(number) * ACCOUNTS;
        let accounts = format!(
            "CREATE TABLE accounts (id int8 PRIMARY KEY, balance int8 NOT NULL);
             INSERT INTO accounts SELECT {first} + s, {BALANCE} FROM generate_series(0, {ACCOUNTS} - 1) s;
             CREATE PUBLICATION untorn FOR ALL TABLES"
        );
        source.connect("postgres").await?.run(&accounts).await?;
        sources.push(source);
    }
    let workers =
        ["max_logical_replication_workers=30", "max_worker_processes=40", "max_sync_workers_per_subscription=1"];
    let settings = [&PUBLISHER[..], &workers[..]].concat();
    let replica = Server::start(&args.pg_bin, &folder.join("replica"), &settings).await?;
    let mut readers = Vec::new();
    for (_, database) in COMPETITORS {
        replica.connect("postgres").await?.run(&format!("CREATE DATABASE {database}")).await?;
        let session = replica.connect(database).await?;
        session.run("CREATE TABLE accounts (id int8 PRIMARY KEY, balance int8 NOT NULL)").await?;
        readers.push(session);
    }
    write_config("untorn", true, &sources, &replica, folder)?;
    let mut daemon = Daemon::start("untorn", folder)?;
    let native = replica.connect("native").await?;
    for (number, source) in sources.iter().enumerate() {
        let subscribe = format!(
            "CREATE SUBSCRIPTION native_{number} CONNECTION '{}' PUBLICATION untorn WITH (two_phase = true)",
            source.words("postgres")
        );
        native.run(&subscribe).await?;
    }
    let total = u64::from(servers) * ACCOUNTS * BALANCE;
    until(async || {
        let enabled = "SELECT count(*) FROM pg_subscription WHERE subtwophasestate = 'e'";
        let mut ready = native.run(enabled).await? == Some(servers.to_string());
        for reader in &readers {
            ready &= sum(reader).await? == total;
        }
        Ok(ready)
    })
    .await?;

    let (stop, moved) = (Cell::new(false), Cell::new(0));
    let deadline = Instant::now() + Duration::from_secs(args.seconds);
    let tellers = (0..TELLERS).map(|teller| transfers(&sources, teller, deadline, &moved));
    let writing = async {
        let written = try_join_all(tellers).await;
        let equal = async {
            let wanted = hash(&sources.iter().collect::<Vec<_>>(), "postgres").await?;
            let mut equal = Vec::new();
            for (_, database) in COMPETITORS {
                let same = until(async || Ok(hash(&[&replica], database).await? == wanted)).await;
                equal.push(same.is_ok());
            }
            Ok::<_, io::Error>(equal)
        };
        let equal = match written {
            Ok(_) => equal.await,
            Err(error) => Err(error),
        };
        stop.set(true);
        equal
    };
    let (equal, first, second) = join3(writing, read(&readers[0], total, &stop), read(&readers[1], total, &stop)).await;
    let (equal, seen) = (equal?, [first?, second?]);
    daemon.stop()?;
    for number in 0..servers {
        native.run(&format!("DROP SUBSCRIPTION native_{number}")).await?;
    }
    let all = COMPETITORS.iter().zip(seen).zip(equal);
    Ok(all
        .map(|((&(competitor, _), (reads, torn_reads, worst)), equal)| Torn {
            servers,
            competitor,
            transactions: moved.get(),
            reads,
            torn_reads,
            worst,
            equal,
        })
        .collect())
}

/// One teller's transfers, until the deadline.
async fn transfers(sources: &[Server], teller: u64, deadline: Instant, moved: &Cell<u64>) -> io::Result<()> {
    let sessions = try_join_all(sources.iter().map(|source| source.connect("postgres"))).await?;
    let servers = sources.len() as u64;
    let mut number = 0_u64;
    while Instant::now() < deadline {
        number += 1;
        // Knuth's multiplicative hash: the same transfers in every run.
        let random = (number * TELLERS + teller).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        let from = random % servers;
        let to = (from + 1 + (random >> 8) % (servers - 1)) % servers;
        let account = |server: u64, of: u64| server * ACCOUNTS + of % (ACCOUNTS / TELLERS) * TELLERS + teller;
        let gid = format!("t{teller}-{number}");
        let branch = |account: u64, by: &str| {
            format!(
                "BEGIN; UPDATE accounts SET balance = balance {by} 1 WHERE id = {account}; PREPARE TRANSACTION '{gid}'"
            )
        };
        let (takes, gives) = (branch(account(from, random >> 20), "-"), branch(account(to, random >> 32), "+"));
        let (Some(giver), Some(taker)) = (sessions.get(from as usize), sessions.get(to as usize)) else { continue };
        let (taken, given) = join(giver.run(&takes), taker.run(&gives)).await;
        taken.and(given)?;
        let commit = format!("COMMIT PREPARED '{gid}'");
        let (one, other) = join(giver.run(&commit), taker.run(&commit)).await;
        one.and(other)?;
        moved.set(moved.get() + 1);
    }
    Ok(())
}

/// Adds up until it is told to stop: reads, wrong ones, and by how much at most.
async fn read(session: &Session, total: u64, stop: &Cell<bool>) -> io::Result<(u64, u64, u64)> {
    let (mut reads, mut wrong, mut worst) = (0, 0, 0);
    while !stop.get() {
        let off = sum(session).await?.abs_diff(total);
        reads += 1;
        wrong += u64::from(off > 0);
        worst = worst.max(off);
    }
    Ok((reads, wrong, worst))
}

async fn sum(session: &Session) -> io::Result<u64> {
    let sum = session.run("SELECT coalesce(sum(balance), 0) FROM accounts").await?;
    Ok(sum.and_then(|sum| sum.parse().ok()).unwrap_or_default())
}

/// The sum of the rows' hashes, in no order, over several servers.
async fn hash(servers: &[&Server], database: &str) -> io::Result<i128> {
    let mut hash = 0;
    for server in servers {
        let part = server.connect(database).await?;
        let part = part.run("SELECT coalesce(sum(hashtextextended(accounts::text, 0)), 0) FROM accounts").await?;
        hash += part.and_then(|part| part.parse::<i128>().ok()).unwrap_or_default();
    }
    Ok(hash)
}
