//! What is wrong at a server is said in one clear line, and goes on when it is mended; what PostgreSQL can send arrives
//! as the server holds it.

use crate::support::daemon::{Daemon, source_of, source_tablet};
use crate::support::postgres::{Postgres, execute};
use crate::support::tables::until_equal;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION untorn FOR ALL TABLES";

/// Waits until the first stream does not run, and its cause holds all of this in one line.
async fn until_cause(daemon: &Daemon, state: &str, parts: &[&str]) {
    let status = daemon
        .until_status(&format!("{state} because of {parts:?}"), |status| {
            let stream = &status["streams"][0];
            let cause = stream["cause"].as_str().unwrap_or_default();
            stream["state"] == state && parts.iter().all(|part| cause.contains(part))
        })
        .await;
    let cause = status["streams"][0]["cause"].as_str().unwrap();
    assert!(!cause.contains('\n') && cause.contains("shard-a"), "{cause}");
    assert_eq!(daemon.ask(&["status"]).status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_and_mended() {
    let server = Postgres::start().await;
    server.execute(TABLE).await;
    server.execute("CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'right'; GRANT SELECT ON t TO replicator").await;
    server.require_passwords().await;
    let url = format!("postgres://replicator:wrong@127.0.0.1:{}/postgres", server.port());
    let mut daemon = Daemon::new(&format!("[source]\nkind = \"postgres\"\n{}", source_tablet("shard-a", &url)));
    daemon.start();
    until_cause(&daemon, "waiting", &["password authentication failed", "password_file"]).await;
    assert!(!daemon.log().contains("wrong"), "a password is never said");
    server.execute("ALTER ROLE replicator PASSWORD 'wrong'; INSERT INTO t VALUES (1, 'a')").await;
    daemon.until_ready().await;
    until_equal(&daemon, &[server], "public.t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_publication_and_a_low_wal_level_are_said_and_mended() {
    let mut server = Postgres::start_with(&["wal_level=replica"]).await;
    server.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").await;
    let mut daemon = Daemon::new(&source_of(std::slice::from_ref(&server)));
    daemon.start();
    until_cause(&daemon, "stopped", &["wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'"]).await;
    server.stop();
    until_cause(&daemon, "waiting", &["no connection"]).await;
    server.set("wal_level=logical");
    server.start_server().await;
    until_cause(&daemon, "stopped", &["CREATE PUBLICATION \"untorn\" FOR ALL TABLES"]).await;
    server.execute("CREATE PUBLICATION untorn FOR ALL TABLES").await;
    daemon.until_ready().await;
    until_equal(&daemon, &[server], "public.t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_is_said_and_waited_for() {
    let servers = [Postgres::start().await];
    let server = &servers[0];
    server.execute(TABLE).await;
    let mut daemon = Daemon::new(&source_of(&servers));
    daemon.start();
    daemon.until_ready().await;
    daemon.signal("STOP");
    // Another reader of the slot: this daemon's own folder, copied, would be one.
    let mut taker = server.take_slot("shard_a").await;
    daemon.signal("CONT");
    until_cause(&daemon, "waiting", &["slot \"shard_a\" is in use by process"]).await;
    taker.kill().unwrap();
    taker.wait().unwrap();
    server.execute("INSERT INTO t VALUES (2, 'b')").await;
    until_equal(&daemon, &servers, "public.t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_stops_the_stream() {
    let servers = [Postgres::start().await];
    let server = &servers[0];
    server.execute(TABLE).await;
    let mut daemon = Daemon::new(&source_of(&servers));
    daemon.start();
    daemon.until_ready().await;
    assert!(daemon.terminate().success());
    server.execute("SELECT pg_drop_replication_slot('shard_a')").await;
    daemon.start();
    until_cause(&daemon, "stopped", &["slot \"shard_a\" is gone", "copy this source tablet again"]).await;
}

/// What is sent of a large transaction before its end stays on the tablets no longer than the source keeps it.
async fn rolled_back_chunks_go(daemon: &Daemon, server: &Postgres) {
    let sum = |name: &str| -> Option<f64> {
        let text = daemon.metrics();
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.split_once(' ')?.1.parse::<f64>().ok());
        (!text.is_empty()).then(|| values.sum())
    };
    let held = || sum("untorn_provisional_records{");
    daemon.until("no provisional record", || held().filter(|held| *held == 0.0)).await;
    let reconnects = sum("untorn_stream_reconnects_total").unwrap_or_default();
    let session = server.connect().await;
    execute(&session, "BEGIN; INSERT INTO t SELECT 50000 + n, repeat('z', 200) FROM generate_series(1, 20000) n").await;
    // Its walsender sends a block whenever something else makes it decode on.
    let staged = daemon.until("provisional records of it", || held().filter(|held| *held > 0.0)).await;
    execute(&session, "SAVEPOINT s; INSERT INTO t SELECT 80000 + n, repeat('z', 200) FROM generate_series(1, 20000) n")
        .await;
    daemon.until("more of them", || held().filter(|held| *held > staged + 10_000.0)).await;
    execute(&session, "ROLLBACK TO s").await;
    daemon.until("those before the savepoint only", || held().filter(|held| *held <= 20_000.0)).await;
    execute(&session, "ROLLBACK").await;
    daemon.until("no provisional record of it", || held().filter(|held| *held == 0.0)).await;
    assert_eq!(sum("untorn_stream_reconnects_total").unwrap_or_default(), reconnects, "over one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_server_can_send_arrives_as_it_is() {
    let servers = [Postgres::start_with(&["logical_decoding_work_mem=64kB"]).await];
    let server = &servers[0];
    let long = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 2000) n)";
    server
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text);
             CREATE TABLE toasted (id int PRIMARY KEY, n int, body text);
             ALTER TABLE toasted ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE whole (id int PRIMARY KEY, n int, body text);
             ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE whole ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE emptied (id int PRIMARY KEY);
             CREATE TABLE kinds (id int PRIMARY KEY, b bool, f float8, n numeric, j jsonb, bytes bytea, at timestamptz,
                                 words text[], empty text, nothing text);
             CREATE PUBLICATION untorn FOR ALL TABLES",
        )
        .await;
    server
        .execute(&format!(
            "INSERT INTO toasted SELECT n, n, {long} FROM generate_series(1, 6) n;
             INSERT INTO whole SELECT n, n, {long} FROM generate_series(1, 3) n;
             INSERT INTO emptied SELECT generate_series(1, 100)"
        ))
        .await;
    let mut daemon = Daemon::new(&source_of(&servers));
    daemon.start();
    daemon.until_ready().await;

    // Large transactions, streamed before their end, with savepoints rolled back; one of them is rolled back whole.
    for (gid, from, end) in [("large", 0, "COMMIT"), ("gone", 100_000, "ROLLBACK")] {
        let session = server.connect().await;
        let insert = |offset: u32| {
            format!("INSERT INTO t SELECT {from} + {offset} + n, repeat('x', 100) FROM generate_series(1, 5000) n")
        };
        execute(&session, "BEGIN").await;
        execute(&session, &insert(0)).await;
        execute(&session, "SAVEPOINT s").await;
        execute(&session, &insert(10_000)).await;
        execute(&session, "ROLLBACK TO s").await;
        execute(&session, &insert(20_000)).await;
        execute(&session, &format!("UPDATE t SET v = 'y' WHERE id % 3 = 0 AND id > {from}")).await;
        execute(&session, &format!("PREPARE TRANSACTION '{gid}'")).await;
        execute(&session, &format!("{end} PREPARED '{gid}'")).await;
    }
    rolled_back_chunks_go(&daemon, server).await;
    server
        .execute("BEGIN; INSERT INTO t SELECT 50000 + n, repeat('z', 200) FROM generate_series(1, 5000) n; ROLLBACK")
        .await;
    server
        .execute(
            "UPDATE toasted SET n = n + 1;
             BEGIN; UPDATE toasted SET body = body || 'new' WHERE id = 3; UPDATE toasted SET n = 9 WHERE id = 3; COMMIT;
             ALTER TABLE toasted ADD COLUMN extra int; UPDATE toasted SET n = n + 1 WHERE id > 4;
             BEGIN; INSERT INTO toasted VALUES (50, 1, 'short'); UPDATE toasted SET id = 51 WHERE id = 50;
             DELETE FROM toasted WHERE id = 1; INSERT INTO toasted VALUES (1, 0, 'again'); COMMIT;
             UPDATE whole SET n = n + 1; DELETE FROM whole WHERE id = 2; UPDATE whole SET id = 30 WHERE id = 3;
             BEGIN; INSERT INTO emptied VALUES (200); TRUNCATE emptied; INSERT INTO emptied VALUES (300); COMMIT;
             INSERT INTO kinds VALUES (1, true, 'NaN', 'NaN', '{\"a\": [1, \"b\\u00e9\"]}', '\\x00ff', '2024-02-29 12:00:00.5+02',
                                       ARRAY['a,b', NULL, '\"q\"'], '', NULL),
                                      (2, false, '-Infinity', 12345678901234567890.123, 'null', '', 'infinity', '{}',
                                       E'tab\\tline\\nquote\"comma,', NULL);
             ALTER TABLE toasted ADD COLUMN more int; UPDATE toasted SET n = n + 1 WHERE id = 2;
             ALTER TABLE t ADD COLUMN more int DEFAULT 7; INSERT INTO t VALUES (900001, 'wide', 1);
             ALTER TABLE t DROP COLUMN v; INSERT INTO t VALUES (900002, 2)",
        )
        .await;
    for table in ["toasted", "whole", "emptied"] {
        until_equal(&daemon, &servers, &format!("public.{table}")).await;
    }
    daemon
        .until("the rows of t", || {
            let rows = daemon.scan("public.t", "safe", "csv").ok()?;
            (rows.lines().count() == 10_002 && rows.contains("900001,1\n") && rows.contains("900002,2\n")).then_some(())
        })
        .await;
    let kinds = daemon.scan("public.kinds", "safe", "json").unwrap();
    let kinds: Vec<serde_json::Value> = kinds.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let one = kinds.iter().find(|row| row["id"] == 1).unwrap();
    assert_eq!(
        *one,
        serde_json::json!({"id": 1, "b": true, "f": "NaN", "n": "NaN", "j": {"a": [1, "bé"]}, "bytes": "\\x00ff",
            "at": "2024-02-29T10:00:00.5+00:00", "words": "{\"a,b\",NULL,\"\\\"q\\\"\"}", "empty": "", "nothing": null})
    );
    assert!(daemon.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_outlives_restarts_and_sigterm_drains() {
    let mut servers = [Postgres::start().await, Postgres::start().await];
    for server in &servers {
        server.execute(TABLE).await;
    }
    let mut daemon = Daemon::new(&source_of(&servers));
    daemon.start();
    daemon.until_ready().await;
    for (server, id) in servers.iter().zip([1, 2]) {
        server.execute(&format!("BEGIN; INSERT INTO t VALUES ({id}, 'open'); PREPARE TRANSACTION 'open'")).await;
        server.execute(&format!("INSERT INTO t VALUES (1{id}, 'after')")).await;
    }
    daemon.until_waits_for("open", "commit", None).await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
    daemon.start();
    daemon.until_ready().await;
    daemon.until_waits_for("open", "commit", None).await;
    // A server that is shut down must not wait for the daemon, which finds it again; so it does after a crash.
    servers[1].stop();
    servers[1].start_server().await;
    servers[0].kill();
    servers[0].start_server().await;
    for (server, id) in servers.iter().zip([21, 22]) {
        server.execute(&format!("INSERT INTO t VALUES ({id}, 'restarted')")).await;
    }
    daemon
        .until("both are pulled again", || {
            daemon.scan("public.t", "safe", "csv").ok().filter(|rows| rows.matches("restarted").count() == 2)
        })
        .await;
    daemon.kill();
    // One branch ends while nobody pulls, the other after the start.
    servers[0].execute("COMMIT PREPARED 'open'").await;
    daemon.start();
    daemon.until_ready().await;
    daemon
        .until("the transaction is shown whole", || {
            let rows = daemon.scan("public.t", "safe", "csv").ok()?;
            let shown = rows.lines().filter(|row| row.ends_with("open")).count();
            assert_ne!(shown, 1, "torn: {rows}");
            (shown == 2).then_some(())
        })
        .await;
    daemon.kill();
    daemon.start();
    servers[1].execute("COMMIT PREPARED 'open'").await;
    until_equal(&daemon, &servers, "public.t").await;
    daemon.until_over("open").await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_databases_of_one_server_are_two_tablets() {
    let server = Postgres::start().await;
    server.execute("CREATE DATABASE other").await;
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION untorn FOR ALL TABLES";
    let (a, b) = (server.connect().await, server.connect_to("other").await);
    for (session, rows) in [(&a, "(1, 'a'), (2, 'a')"), (&b, "(11, 'b'), (12, 'b')")] {
        execute(session, &format!("{tables}; INSERT INTO t VALUES {rows}")).await;
    }
    let tablets = source_tablet("shard-a", &server.url("postgres")) + &source_tablet("shard-b", &server.url("other"));
    let mut daemon =
        Daemon::new(&format!("[source]\nkind = \"postgres\"\ngid_pattern = '^(?<txn>.+):[ab]$'\n{tablets}"));
    daemon.start();
    daemon.until_ready().await;
    let shown = |rows: &str| {
        let mut rows: Vec<_> = rows.lines().map(str::to_owned).collect();
        rows.sort_unstable();
        rows
    };
    assert_eq!(shown(&daemon.scan("public.t", "safe", "csv").unwrap()), ["1,a", "11,b", "12,b", "2,a"]);
    // A gid is one transaction's in the whole server: each database's branch has its own.
    execute(&a, "BEGIN; UPDATE t SET v = 'pay' WHERE id = 1; PREPARE TRANSACTION 'pay:a'").await;
    execute(&b, "BEGIN; UPDATE t SET v = 'pay' WHERE id = 11; PREPARE TRANSACTION 'pay:b'").await;
    execute(&b, "COMMIT PREPARED 'pay:b'").await;
    let torn = |rows: &str| rows.matches("pay").count() == 1;
    daemon
        .until("the transaction is shown", || {
            let rows = daemon.scan("public.t", "safe", "csv").ok()?;
            assert!(!torn(&rows), "{rows}");
            rows.contains("pay").then_some(())
        })
        .await;
    assert_eq!(daemon.explain("pay").len(), 1);
    execute(&a, "COMMIT PREPARED 'pay:a'").await;
    // One tablet's TRUNCATE leaves the other's rows.
    execute(&a, "BEGIN; TRUNCATE t; INSERT INTO t VALUES (3, 'new'); COMMIT").await;
    daemon
        .until("only its own rows are gone", || {
            let rows = daemon.scan("public.t", "safe", "csv").ok()?;
            (shown(&rows) == ["11,pay", "12,b", "3,new"]).then_some(())
        })
        .await;
    daemon.kill();
    daemon.start();
    daemon.until_ready().await;
    assert_eq!(shown(&daemon.scan("public.t", "safe", "csv").unwrap()), ["11,pay", "12,b", "3,new"]);
}
