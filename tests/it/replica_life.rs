//! A PostgreSQL replica through what its operators do to it: it is away for a while, is read-only for a while, and somebody
//! starts a second daemon on it.

use crate::postgres_e2e::{ACCOUNTS, Tellers, bank};
use crate::replica_postgres::{Auditor, empty_bank, into, until_equal, until_stream};
use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::postgres::{Postgres, execute};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use untorn::limits::{STORE_CACHE_BYTES, STORE_UNWRITTEN_BYTES_MAX};

const MIB: u64 = 1 << 20;
const BUDGET: &str = "memory_budget = \"64MiB\"
";
/// What a daemon may take: that budget, what its store holds in memory, and 128 MiB.
const MOST_MEMORY: u64 = (64 << 20) + STORE_CACHE_BYTES + STORE_UNWRITTEN_BYTES_MAX + (128 << 20);

/// Waits until the source may forget everything that it wrote so far.
async fn until_forgotten(daemon: &Daemon, server: &Postgres) {
    let head = server.execute("SELECT pg_current_wal_insert_lsn()").await.remove(0);
    let forgotten = format!("SELECT FROM pg_replication_slots WHERE confirmed_flush_lsn < '{head}'");
    let deadline = Instant::now() + PATIENCE;
    while !server.execute(&forgotten).await.is_empty() {
        assert!(Instant::now() < deadline, "the source keeps what is stored here\n{}", daemon.log());
        sleep(Duration::from_millis(100)).await;
    }
}

/// What comes while the replica is away goes to disk: the source forgets it, and memory does not grow with it. Once it is
/// back it shows all of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replica_that_is_away_costs_disk_and_nothing_else() {
    let (bank, mut replica) = (bank(2, 1_000).await, empty_bank(&[]).await);
    let mut daemon = Daemon::new(&format!("{BUDGET}{}", into(&replica, &bank, "")));
    daemon.start();
    daemon.until_ready().await;
    until_equal(&daemon, &replica, &bank, &["accounts", "filler"]).await;
    let (before, on_disk) = (daemon.resident(), daemon.on_disk());
    replica.stop();
    let tellers = Tellers::start(&bank, 2);
    // 420 MiB of it, in transactions of many sizes.
    for round in 0..30 {
        let (server, from) = (&bank[round % 2], 5_000_000 + round * 10_000);
        let body = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 32) WHERE id > 0)";
        for (first, last) in [(0, 9_999), (3, 3), (100, 4_000)] {
            let (first, last) = (from + first, from + last);
            server
                .execute(&format!(
                    "INSERT INTO filler SELECT id, {body} FROM generate_series({first}, {last}) id
                     ON CONFLICT (id) DO UPDATE SET body = 'changed ' || excluded.id"
                ))
                .await;
        }
    }
    let moved = tellers.stop().await;
    for server in &bank {
        until_forgotten(&daemon, server).await;
    }
    let (while_away, stored) = (daemon.resident(), daemon.on_disk());
    until_stream(&daemon, "waiting", "reports").await;
    assert!(while_away < MOST_MEMORY, "from {} to {} MiB", before / MIB, while_away / MIB);
    // A restart meanwhile reads back nothing but what it has to know.
    daemon.kill();
    daemon.start();
    replica.start_server().await;
    let back = Instant::now();
    until_equal(&daemon, &replica, &bank, &["accounts", "legs", "filler"]).await;
    let caught_up = daemon.resident();
    assert!(caught_up < MOST_MEMORY, "from {} to {} MiB", before / MIB, caught_up / MIB);
    eprintln!(
        "{moved} transfers; memory {} MiB, {} while it was away, {} once it had caught up after {:?}; disk from {} to {} MiB",
        before / MIB,
        while_away / MIB,
        caught_up / MIB,
        back.elapsed(),
        on_disk / MIB,
        stored / MIB
    );
    assert!(moved > 0);
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

/// A second daemon on the same replica and sources is refused by name, whether it has a folder of its own or the same one;
/// the first goes on. So does it when the server takes no writes for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let (bank, replica) = (bank(2, 1_000).await, empty_bank(&[]).await);
    let sections = into(&replica, &bank, "");
    let mut daemon = Daemon::new(&sections);
    let auditor = Auditor::start(replica.url("postgres"), ACCOUNTS * 2);
    daemon.start();
    daemon.until_ready().await;
    let tellers = Tellers::start(&bank, 2);

    let mut second = Daemon::new(&sections);
    second.start();
    let another = "was not made by this untorn";
    until_stream(&second, "stopped", another).await;
    second.until("the replica is another's", || second.log().contains("belongs to another untorn").then_some(())).await;
    assert!(second.status().is_none_or(|status| status["ready"] == false), "{}", second.log());
    let same = daemon.beside(&sections).configured(&["run"]);
    let said = String::from_utf8_lossy(&same.stderr);
    assert!(
        !same.status.success() && said.contains("is in use by another process; stop it, or use another folder"),
        "{said}"
    );
    // While nobody reads the slots they are not free either, whatever the second one's next process knows.
    daemon.kill();
    second.kill();
    second.start();
    until_stream(&second, "stopped", another).await;
    sleep(Duration::from_secs(2)).await;
    daemon.start();

    replica.execute("ALTER DATABASE postgres SET default_transaction_read_only = on").await;
    let sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'
                    AND pid <> pg_backend_pid()";
    replica.execute(sessions).await;
    until_stream(&daemon, "waiting", "read-only").await;
    let session = replica.connect().await;
    execute(&session, "SET default_transaction_read_only = off").await;
    execute(&session, "ALTER DATABASE postgres RESET default_transaction_read_only").await;
    execute(&session, sessions).await;

    let moved = tellers.stop().await;
    until_equal(&daemon, &replica, &bank, &["accounts", "legs", "filler"]).await;
    second.kill();
    let seen = auditor.stop().await;
    eprintln!("{moved} transfers, {seen} reads");
    assert!(moved > 0 && seen > 0);
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

/// A table without a primary key: its inserts arrive, and the first change of one of its rows stops the stream by name, with
/// the way on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_table_without_a_key_is_named_with_what_to_do() {
    let (source, replica) = ([Postgres::start().await], Postgres::start().await);
    let [server] = &source;
    let table = "CREATE TABLE lines (line text, n int)";
    server
        .execute(&format!(
            "{table}; ALTER TABLE lines REPLICA IDENTITY FULL; INSERT INTO lines VALUES ('a', 1), ('a', 1), ('b', NULL);
             CREATE TABLE items (id int PRIMARY KEY); CREATE PUBLICATION untorn FOR ALL TABLES"
        ))
        .await;
    replica.execute(&format!("{table}; CREATE TABLE items (id int PRIMARY KEY)")).await;
    let sections = into(&replica, &source, "");
    let mut daemon = Daemon::new(&sections);
    daemon.start();
    daemon.until_ready().await;
    server.execute("INSERT INTO lines VALUES ('a', 1), (NULL, NULL)").await;
    until_equal(&daemon, &replica, &source, &["lines"]).await;
    server.execute("BEGIN; INSERT INTO items VALUES (1); DELETE FROM lines WHERE line = 'b'; COMMIT").await;
    until_stream(&daemon, "stopped", "has no primary key").await;
    let status = daemon.status().expect("a status");
    let cause = status["streams"][0]["cause"].as_str().expect("a cause");
    for part in ["table public.lines,", "ADD PRIMARY KEY", "source.exclude"] {
        assert!(cause.contains(part), "{part} in {cause}");
    }
    assert_eq!(replica.execute("SELECT count(*) FROM items").await, ["0"], "not half of that transaction");
    daemon.kill();
    daemon.reconfigure(&sections.replace("[source]\n", "[source]\nexclude = [\"public.lines\"]\n"));
    daemon.start();
    server.execute("INSERT INTO items VALUES (2); INSERT INTO lines VALUES ('c', 3)").await;
    until_equal(&daemon, &replica, &source, &["items"]).await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
