//! The daemon against real PostgreSQL servers: money moves between them, and no scan of the replica is torn, whoever is
//! killed, and when.

use crate::support::daemon::{Daemon, source_of};
use crate::support::postgres::{Postgres, execute};
use crate::support::tables::until_equal;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// Accounts of one server, and what each holds at first.
pub(crate) const ACCOUNTS: i64 = 50;
pub(crate) const BALANCE: i64 = 1000;

/// Servers with accounts, the legs of transfers, and rows that make the copy long.
pub(crate) async fn bank(servers: usize, filler: u32) -> Vec<Postgres> {
    let mut bank = Vec::new();
    for server in 0..servers as i64 {
        let postgres = Postgres::start().await;
        let first = server * 1000;
        postgres
            .execute(&format!(
                "CREATE TABLE accounts (id int PRIMARY KEY, balance int8 NOT NULL);
                 INSERT INTO accounts SELECT {first} + n, {BALANCE} FROM generate_series(1, {ACCOUNTS}) n;
                 CREATE TABLE legs (transfer text, server int, of int NOT NULL, PRIMARY KEY (transfer, server));
                 CREATE TABLE filler (id int PRIMARY KEY, body text);
                 INSERT INTO filler SELECT {first} * 1000 + n, repeat(md5(n::text), 10) FROM generate_series(1, {filler}) n;
                 ANALYZE;
                 CREATE PUBLICATION untorn FOR ALL TABLES"
            ))
            .await;
        bank.push(postgres);
    }
    bank
}

/// Moves money from account to account until told to stop: over two servers by two-phase commit, either way round, or on
/// one; some are rolled back.
async fn move_money(servers: &[String], teller: u64, stop: &AtomicBool, moved: &AtomicU64) {
    let mut rng = SmallRng::seed_from_u64(teller);
    let mut sessions = Vec::new();
    for url in servers {
        let (session, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        // Two tellers may lock one another out over two servers, which no server sees.
        execute(&session, "SET lock_timeout = '200ms'").await;
        sessions.push(session);
    }
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let transfer = format!("pay-{teller}-{number}");
        let from = rng.random_range(0..sessions.len());
        let to = rng.random_range(0..sessions.len());
        let amount: i64 = rng.random_range(1..50);
        let legs = usize::from(from != to) + 1;
        let account = |server: usize, rng: &mut SmallRng| server as i64 * 1000 + rng.random_range(1..=ACCOUNTS);
        let leg = |server: usize, amount: i64, rng: &mut SmallRng| {
            format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {};", account(server, rng))
        };
        let written = |server: usize| format!("INSERT INTO legs VALUES ('{transfer}', {server}, {legs});");
        let done = if from == to {
            let sql = format!(
                "BEGIN; {} {} {} COMMIT",
                leg(from, -amount, &mut rng),
                leg(from, amount, &mut rng),
                written(from)
            );
            sessions[from].simple_query(&sql).await.is_ok()
        } else {
            let mut prepared = Vec::new();
            for (server, amount) in [(from, -amount), (to, amount)] {
                let sql = format!(
                    "BEGIN; {} {} PREPARE TRANSACTION '{transfer}'",
                    leg(server, amount, &mut rng),
                    written(server)
                );
                if sessions[server].simple_query(&sql).await.is_err() {
                    break;
                }
                prepared.push(server);
            }
            let commits = prepared.len() == 2 && rng.random_bool(0.9);
            if rng.random_bool(0.5) {
                prepared.reverse();
            }
            for &server in &prepared {
                let end = if commits { "COMMIT" } else { "ROLLBACK" };
                execute(&sessions[server], &format!("{end} PREPARED '{transfer}'")).await;
            }
            commits
        };
        if done {
            moved.fetch_add(1, Ordering::Relaxed);
        } else {
            for session in &sessions {
                execute(session, "ROLLBACK").await;
            }
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Lets tellers move money until it is dropped or stopped.
pub(crate) struct Tellers {
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Tellers {
    pub(crate) fn start(bank: &[Postgres], count: u64) -> Self {
        let urls: Arc<[String]> = bank.iter().map(|server| server.url("postgres")).collect();
        let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let teller = |teller| {
            let (urls, stop, moved) = (Arc::clone(&urls), Arc::clone(&stop), Arc::clone(&moved));
            tokio::spawn(async move { move_money(&urls, teller, &stop, &moved).await })
        };
        let tasks = (0..count).map(teller).collect();
        Self { stop, moved, tasks }
    }

    /// How many transfers were committed so far: the crash laboratory waits for them.
    #[allow(dead_code, reason = "the laboratory uses it")]
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.moved.load(Ordering::Relaxed)
    }
}

/// Reads the replica at every read point; what is shown must be whole. Answers how many scans were.
pub(crate) fn audit(daemon: &Daemon, servers: usize) -> u64 {
    let mut scans = 0;
    for at in ["safe", "latest"] {
        if let Ok(rows) = daemon.scan("public.accounts", at, "csv") {
            let balances: Vec<i64> =
                rows.lines().map(|line| line.split_once(',').unwrap().1.parse().unwrap()).collect();
            assert_eq!(balances.len() as i64, ACCOUNTS * servers as i64, "accounts at {at}");
            assert_eq!(balances.iter().sum::<i64>(), BALANCE * ACCOUNTS * servers as i64, "a torn scan at {at}");
            scans += 1;
        }
        if let Ok(rows) = daemon.scan("public.legs", at, "csv") {
            let mut legs: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
            for line in rows.lines() {
                let cells: Vec<&str> = line.split(',').collect();
                let seen = legs.entry(cells[0]).or_default();
                *seen = (seen.0 + 1, cells[2].parse().unwrap());
            }
            let torn: Vec<_> = legs.iter().filter(|(_, (seen, of))| seen != of).collect();
            assert!(torn.is_empty(), "torn transfers at {at}: {torn:?}");
            scans += 1;
        }
    }
    scans
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn money_moves_between_servers_and_no_scan_is_torn() {
    let bank = bank(3, 20_000).await;
    let tellers = Tellers::start(&bank, 2);
    let mut daemon = Daemon::new(&source_of(&bank));
    let mut rng = SmallRng::seed_from_u64(7);

    for kill in 0..5 {
        daemon.start();
        daemon
            .until_status(&format!("rows are copied before kill {kill}"), |status| {
                assert_eq!(status["ready"], false, "the copy is over before it could be killed");
                let streams = status["streams"].as_array().unwrap();
                streams.iter().any(|stream| stream["state"] == "copying" && stream["copy"]["rows"].as_u64() > Some(0))
            })
            .await;
        audit(&daemon, bank.len());
        daemon.kill();
    }
    daemon.start();
    daemon.until_ready().await;
    assert_eq!(audit(&daemon, bank.len()), 4);
    daemon.kill();

    for _ in 0..5 {
        daemon.start();
        sleep(Duration::from_millis(rng.random_range(0..400))).await;
        daemon.kill();
    }
    let mut scans = 0;
    for _ in 0..12 {
        daemon.start();
        let until = tokio::time::Instant::now() + Duration::from_millis(rng.random_range(500..3000));
        while tokio::time::Instant::now() < until {
            scans += audit(&daemon, bank.len());
        }
        daemon.kill();
    }
    daemon.start();
    daemon.until_ready().await;
    scans += audit(&daemon, bank.len());
    let moved = tellers.stop().await;
    for table in ["public.accounts", "public.legs", "public.filler"] {
        until_equal(&daemon, &bank, table).await;
    }
    eprintln!("{moved} transfers, {scans} scans after the copy");
    assert!(moved > 0 && scans > 0);
    let status = daemon.until_status("nothing waits", |s| s["transactions"]["waiting_to_commit"] == 0).await;
    assert_eq!(status["transactions"]["pending"], 0);
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
