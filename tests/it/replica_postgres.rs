//! PostgreSQL as the replica: people read it with their own clients, and it is never torn, whoever is killed.

use crate::postgres_e2e::{ACCOUNTS, BALANCE, Tellers, bank};
use crate::support::daemon::{Daemon, PATIENCE, source_of};
use crate::support::postgres::{Postgres, execute};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The sections that replicate these servers into that one.
fn into(replica: &Postgres, servers: &[Postgres], more: &str) -> String {
    let url = replica.url("postgres");
    format!(
        "{}[replica]\nkind = \"postgres\"\n{more}[[replica.tablets]]\nname = \"reports\"\nurl = \"{url}\"\n",
        source_of(servers)
    )
}

/// A server with the bank's tables, empty.
async fn empty_bank() -> Postgres {
    let replica = Postgres::start().await;
    replica
        .execute(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance int8 NOT NULL);
             CREATE TABLE legs (transfer text, server int, of int NOT NULL, PRIMARY KEY (transfer, server));
             CREATE TABLE filler (id int PRIMARY KEY, body text)",
        )
        .await;
    replica
}

/// Somebody with a client of their own, who adds up everything again and again.
struct Auditor {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Auditor {
    fn start(url: String, accounts: i64) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counting) = (Arc::clone(&stop), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let sums = "SELECT (SELECT count(*) || ',' || coalesce(sum(balance), 0) FROM accounts),
                               (SELECT count(*) FROM (SELECT transfer FROM legs GROUP BY transfer
                                                      HAVING count(*) <> max(of)) torn)";
            let (none, whole) = ("0,0|0".to_owned(), format!("{accounts},{}|0", accounts * BALANCE));
            while !stopping.load(Ordering::Relaxed) {
                let Ok((session, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await else {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                };
                tokio::spawn(connection);
                while !stopping.load(Ordering::Relaxed) {
                    let Ok(rows) = session.simple_query(sums).await else { break };
                    let row = rows.iter().find_map(|row| match row {
                        tokio_postgres::SimpleQueryMessage::Row(row) => {
                            Some(format!("{}|{}", row.get(0).unwrap(), row.get(1).unwrap()))
                        }
                        _ => None,
                    });
                    let row = row.expect("a row");
                    let seen = counting.load(Ordering::Relaxed);
                    assert!(row == whole || seen == 0 && row == none, "a torn read: {row}");
                    if row == whole {
                        counting.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { stop, seen, task }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no read is torn");
        self.seen.load(Ordering::Relaxed)
    }
}

/// A table's rows on several servers together.
async fn rows(servers: &[&Postgres], table: &str) -> Vec<String> {
    let mut rows = Vec::new();
    for server in servers {
        rows.extend(server.execute(&format!("SELECT t::text FROM {table} t")).await);
    }
    rows.sort_unstable();
    rows
}

/// Waits until the replica's tables hold what the servers hold.
async fn until_equal(daemon: &Daemon, replica: &Postgres, servers: &[Postgres], tables: &[&str]) {
    let servers: Vec<&Postgres> = servers.iter().collect();
    for table in tables {
        let deadline = Instant::now() + PATIENCE;
        let wanted = rows(&servers, table).await;
        loop {
            let held = rows(&[replica], table).await;
            if held == wanted {
                break;
            }
            let (held, wanted) = (held.len(), wanted.len());
            assert!(Instant::now() < deadline, "{table}: {held} rows here, {wanted} there\n{}", daemon.log());
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_of_the_server_never_see_a_part_of_a_transaction() {
    let (bank, mut replica) = (bank(2, 2_000).await, empty_bank().await);
    let tellers = Tellers::start(&bank, 2);
    let auditor = Auditor::start(replica.url("postgres"), ACCOUNTS * 2);
    let mut daemon = Daemon::new(&into(&replica, &bank, ""));
    let mut rng = SmallRng::seed_from_u64(11);
    daemon.start();
    daemon.until_ready().await;
    for round in 0..12 {
        sleep(Duration::from_millis(rng.random_range(200..1500))).await;
        match round % 4 {
            0 => {
                replica.kill();
                sleep(Duration::from_millis(rng.random_range(0..500))).await;
                replica.start_server().await;
            }
            2 => {
                replica.stop();
                replica.start_server().await;
            }
            _ => {
                daemon.kill();
                daemon.start();
            }
        }
    }
    let moved = tellers.stop().await;
    until_equal(&daemon, &replica, &bank, &["accounts", "legs", "filler"]).await;
    let seen = auditor.stop().await;
    eprintln!("{moved} transfers, {seen} reads");
    assert!(moved > 0 && seen > 0);
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
