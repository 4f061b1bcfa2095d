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
pub fn into(replica: &Postgres, servers: &[Postgres], more: &str) -> String {
    let url = replica.url("postgres");
    format!(
        "{}[replica]\nkind = \"postgres\"\n{more}[[replica.tablets]]\nname = \"reports\"\nurl = \"{url}\"\n",
        source_of(servers)
    )
}

/// A server with the bank's tables, empty.
pub async fn empty_bank(settings: &[&str]) -> Postgres {
    let replica = Postgres::start_with(settings).await;
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
pub struct Auditor {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Auditor {
    pub fn start(url: String, accounts: i64) -> Self {
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

    pub async fn stop(self) -> u64 {
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
pub async fn until_equal(daemon: &Daemon, replica: &Postgres, servers: &[Postgres], tables: &[&str]) {
    let servers: Vec<&Postgres> = servers.iter().collect();
    for table in tables {
        let deadline = Instant::now() + PATIENCE;
        let wanted = rows(&servers, table).await;
        loop {
            let held = rows(&[replica], table).await;
            if held == wanted {
                break;
            }
            let differs = held.iter().zip(&wanted).find(|(held, wanted)| held != wanted);
            let (held, wanted) = (held.len(), wanted.len());
            let what = || format!("{table}: {held} rows here, {wanted} there, {differs:.200?}\n{}", daemon.log());
            assert!(Instant::now() < deadline, "{}", what());
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_ready_only_once_the_first_cut_can_be_read() {
    let (source, replica) = ([Postgres::start().await], Postgres::start().await);
    source[0]
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE PUBLICATION untorn FOR ALL TABLES",
        )
        .await;
    replica.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let session = replica.connect().await;
    execute(&session, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    let mut daemon = Daemon::new(&into(&replica, &source, ""));
    daemon.start();
    let deadline = Instant::now() + PATIENCE;
    let waits = "SELECT 1 FROM pg_locks WHERE NOT granted";
    while replica.execute(waits).await.is_empty() {
        assert!(Instant::now() < deadline, "the first cut is not written\n{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    // Whatever the log has decided by now: nobody can read it.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(daemon.status().unwrap()["ready"], false);
    assert!(daemon.metrics().contains("\nuntorn_ready_info 0"), "{}", daemon.metrics());
    for at in ["safe", "latest"] {
        let error = daemon.scan("public.t", at, "json").unwrap_err();
        assert!(error.contains("not ready: reports shows nothing yet"), "{error}");
    }
    execute(&session, "COMMIT").await;
    daemon.until_ready().await;
    assert_eq!(daemon.scan("public.t", "safe", "csv").unwrap().lines().last(), Some("1"));
    // What was shown once is shown after a restart, too.
    daemon.kill();
    daemon.start();
    daemon.until_ready().await;
    assert_eq!(daemon.scan("public.t", "latest", "csv").unwrap().lines().last(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_of_the_server_never_see_a_part_of_a_transaction() {
    let (bank, mut replica) = (bank(2, 2_000).await, empty_bank(&[]).await);
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
    // Whose rows a server emptied is not known where several write: it is refused, and can be skipped.
    bank[0].execute("TRUNCATE filler").await;
    until_stream(&daemon, "stopped", "several source servers").await;
    bank[0].execute("INSERT INTO filler VALUES (1, 'after')").await;
    replica.execute("DELETE FROM filler WHERE id < 1000000").await;
    assert!(daemon.ask(&["skip", &refused(&daemon)]).status.success());
    until_equal(&daemon, &replica, &bank, &["filler"]).await;
    eprintln!("{moved} transfers, {seen} reads");
    assert!(moved > 0 && seen > 0);
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

/// Waits until a stream of the status is in a state for a cause.
pub async fn until_stream(daemon: &Daemon, state: &str, cause: &str) {
    daemon
        .until_status(&format!("a stream is {state}: {cause}"), |status| {
            let streams = status["streams"].as_array().expect("streams");
            let fits = |stream: &serde_json::Value| stream["cause"].as_str().is_some_and(|said| said.contains(cause));
            streams.iter().any(|stream| stream["state"] == state && fits(stream))
        })
        .await;
}

/// The transaction that the replica refuses.
pub fn refused(daemon: &Daemon) -> String {
    let status = daemon.status().expect("a status");
    let cause = status["streams"][0]["cause"].as_str().expect("a cause");
    let named = cause.split("transaction ").nth(1).and_then(|rest| rest.split([',', ':']).next());
    named.expect("its id").to_owned()
}

const SHOP: &str = "CREATE TABLE items (id int8 PRIMARY KEY, name text UNIQUE, price numeric(10,2), body text);
    CREATE TABLE parts (item int8 REFERENCES items DEFERRABLE INITIALLY IMMEDIATE, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, PRIMARY KEY (item, n));
    CREATE TABLE notes (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
    CREATE TABLE parted (id int8, region int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
    CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_kind_of_table_and_change_arrives_and_what_is_refused_is_named() {
    let source = Postgres::start().await;
    source.execute(SHOP).await;
    source
        .execute(
            "INSERT INTO items SELECT n, 'item ' || n, n, repeat(md5(n::text), 200) FROM generate_series(1, 50) n;
             INSERT INTO notes (body) VALUES ('first');
             CREATE PUBLICATION untorn FOR ALL TABLES WITH (publish_via_partition_root = true)",
        )
        .await;
    let replica = Postgres::start().await;
    replica.execute(SHOP).await;
    // Least privilege: a plain role with what `check` prints.
    replica
        .execute(
            "CREATE ROLE applier LOGIN; CREATE SCHEMA untorn AUTHORIZATION applier;
             GRANT SET ON PARAMETER session_replication_role TO applier;
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO applier",
        )
        .await;
    let servers = [source];
    let url = replica.url("postgres").replace("postgres@", "applier@");
    let sections = format!(
        "{}[replica]\nkind = \"postgres\"\n[[replica.tablets]]\nname = \"shop\"\nurl = \"{url}\"\n",
        source_of(&servers)
    );
    let mut daemon = Daemon::new(&sections);
    daemon.start();
    daemon.until_ready().await;
    let [source] = &servers;
    source
        .execute(
            "BEGIN; UPDATE items SET name = 'x' WHERE id = 1; UPDATE items SET name = 'item 1' WHERE id = 2;
                    UPDATE items SET name = 'item 2' WHERE id = 1; COMMIT;
             UPDATE items SET price = price + 1 WHERE id % 2 = 0;
             UPDATE items SET id = 1003 WHERE id = 3;
             BEGIN; UPDATE items SET id = 1004, price = 7.5 WHERE id = 4; UPDATE items SET price = 8 WHERE id = 1004; COMMIT;
             INSERT INTO parts SELECT 5, n FROM generate_series(1, 20) n; DELETE FROM parts WHERE n > 15;
             INSERT INTO notes (body) VALUES ('second'), (NULL), (E'tab\\t back\\\\slash');
             INSERT INTO parted VALUES (1, 1), (2, 2); UPDATE parted SET region = 2 WHERE id = 1;
             DELETE FROM items WHERE id = 7;
             INSERT INTO items VALUES (7, 'again', 1, NULL)",
        )
        .await;
    let all = ["items", "parts", "notes", "parted"];
    until_equal(&daemon, &replica, &servers, &all).await;
    // The replica's rows as the daemon scans them, and what it cannot serve.
    let scanned = daemon.scan("public.items", "safe", "csv").expect("a scan");
    assert_eq!(scanned.lines().count(), 50);
    assert!(daemon.scan("public.items", &daemon.safe_time(), "csv").unwrap_err().contains("one moment"));
    source.execute("TRUNCATE parts").await;
    source.execute("INSERT INTO parts VALUES (6, 1)").await;
    until_equal(&daemon, &replica, &servers, &all).await;

    // A row that the replica refuses: its key, the statement, PostgreSQL's words, the transaction.
    replica.execute("INSERT INTO items VALUES (-1, 'taken', 0, NULL)").await;
    source.execute("INSERT INTO items VALUES (60, 'taken', 1, 'of the source')").await;
    until_stream(&daemon, "stopped", "(60)").await;
    let status = daemon.status().expect("a status");
    let cause = status["streams"][0]["cause"].as_str().expect("a cause").to_owned();
    for part in ["\"public\".\"items\" (60)", "INSERT INTO", "duplicate key", "items_name_key", "transaction x"] {
        assert!(cause.contains(part), "{part} in {cause}");
    }
    source.execute("UPDATE items SET price = 2 WHERE id = 60").await;
    replica.execute("DELETE FROM items WHERE id = -1").await;
    assert!(daemon.ask(&["retry"]).status.success());
    until_equal(&daemon, &replica, &servers, &all).await;

    replica.execute("ALTER TABLE items ADD CHECK (price < 1000)").await;
    source.execute("UPDATE items SET price = 5000 WHERE id = 8").await;
    until_stream(&daemon, "stopped", "items_price_check").await;
    source.execute("UPDATE items SET price = 50 WHERE id = 8").await;
    let status = daemon.status().expect("a status");
    let cause = status["streams"][0]["cause"].as_str().expect("a cause");
    let transaction =
        cause.split("transaction ").nth(1).and_then(|rest| rest.split([',', ':']).next()).expect("its id");
    assert!(!daemon.ask(&["skip", "x999999"]).status.success());
    let skipped = daemon.ask(&["skip", transaction]);
    let told = String::from_utf8_lossy(&skipped.stdout).into_owned();
    assert!(skipped.status.success() && told.contains(&format!("skipped: {transaction}")), "{told}");
    until_equal(&daemon, &replica, &servers, &all).await;
    assert_eq!(replica.execute("SELECT transaction FROM untorn.skipped").await, [transaction]);
    // The streams went on with that, and what was asked for is on record, with what was refused.
    let runs =
        |status: &serde_json::Value| status["streams"].as_array().unwrap().iter().all(|s| s["state"] == "running");
    daemon.until_status("every stream runs", runs).await;
    let log = daemon.log();
    for (what, subject, outcome) in
        [("retry", "shop", "done"), ("skip", "x999999", "failed"), ("skip", transaction, "done")]
    {
        let fits = |line: &&str| {
            let said = |name: &str, value: &str| {
                line.contains(&format!("{name}=\"{value}")) || line.contains(&format!("{name}={value}"))
            };
            line.contains("untorn::audit") && said("what", what) && said("subject", subject) && said("outcome", outcome)
        };
        assert!(log.lines().any(|line| fits(&line)), "no audit line of {what} {subject}: {outcome}\n{log}");
    }

    // What passes is waited for, and named.
    let read_only = async |on: &str| {
        replica.execute(&format!("ALTER SYSTEM SET default_transaction_read_only = {on}")).await;
        replica.execute("SELECT pg_reload_conf()").await;
    };
    read_only("on").await;
    source.execute("INSERT INTO items VALUES (61, 'sixty-one', 1, '')").await;
    until_stream(&daemon, "waiting", "read-only").await;
    read_only("off").await;
    until_equal(&daemon, &replica, &servers, &all).await;
    let holder = replica.connect().await;
    execute(&holder, "SET application_name = 'a long report'; BEGIN; LOCK TABLE items IN SHARE MODE").await;
    source.execute("INSERT INTO items VALUES (62, 'sixty-two', 1, '')").await;
    until_stream(&daemon, "waiting", "a long report").await;
    execute(&holder, "COMMIT").await;
    until_equal(&daemon, &replica, &servers, &all).await;

    // What the replica lacks is listed with its SQL.
    source.execute("ALTER TABLE notes ADD COLUMN extra int; INSERT INTO notes (body, extra) VALUES ('third', 3)").await;
    until_stream(&daemon, "stopped", "ADD COLUMN \"extra\" \"int4\"").await;
    replica.execute("ALTER TABLE notes ADD COLUMN extra int").await;
    daemon.ask(&["retry"]);
    until_equal(&daemon, &replica, &servers, &all).await;
    source.execute("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)").await;
    until_stream(&daemon, "stopped", "CREATE TABLE \"public\".\"late\"").await;
    replica.execute("CREATE TABLE late (id int PRIMARY KEY); GRANT ALL ON late TO applier").await;
    daemon.ask(&["retry"]);
    until_equal(&daemon, &replica, &servers, &["late"]).await;

    // Until the stream runs, a second daemon could take its slot.
    daemon.until_status("every stream runs", runs).await;

    // Somebody starts a second daemon on the same replica: it changes nothing.
    let mut second = Daemon::new(&sections);
    second.start();
    second
        .until("the second daemon is refused", || second.log().contains("belongs to another untorn").then_some(()))
        .await;
    source.execute("INSERT INTO late VALUES (2)").await;
    until_equal(&daemon, &replica, &servers, &["late"]).await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

/// Decisions before the first cut that are gathered: more than a replica tablet otherwise has on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_first_cut_is_made_however_much_comes_before_it() {
    let servers = [Postgres::start().await, Postgres::start().await];
    for (server, table) in servers.iter().zip(["busy", "late"]) {
        server
            .execute(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, n int NOT NULL);
                 INSERT INTO {table} SELECT id, 0 FROM generate_series(1, 1000) id;
                 CREATE PUBLICATION untorn FOR ALL TABLES"
            ))
            .await;
    }
    let replica = Postgres::start().await;
    replica
        .execute("CREATE TABLE busy (id int PRIMARY KEY, n int NOT NULL); CREATE TABLE late (LIKE busy INCLUDING ALL)")
        .await;
    // A slot is not made before this ends, and nothing is shown before every slot is.
    let holder = servers[1].connect().await;
    execute(&holder, "BEGIN; UPDATE late SET n = 1 WHERE id = 1").await;
    let mut daemon = Daemon::new(&into(&replica, &servers, ""));
    daemon.start();
    let copied = |status: &serde_json::Value| status["streams"][0]["copy"]["state"] == "done";
    daemon.until_status("the busy server's tables are copied", copied).await;
    let writer = servers[0].connect().await;
    execute(&writer, "SET synchronous_commit = off").await;
    let busy = "DO $$ BEGIN FOR t IN 1..90000 LOOP UPDATE busy SET n = n + 1 WHERE id = 1 + t % 1000; COMMIT; END LOOP; END $$";
    execute(&writer, busy).await;
    execute(&holder, "COMMIT").await;
    until_equal(&daemon, &replica, &servers[..1], &["busy"]).await;
    until_equal(&daemon, &replica, &servers[1..], &["late"]).await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
