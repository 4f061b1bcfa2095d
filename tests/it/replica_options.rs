//! What a PostgreSQL replica lacks, refuses or loses, and what untorn does about it as it is configured.

use crate::replica_postgres::{into, refused, until_equal, until_stream};
use crate::support::daemon::{Daemon, PATIENCE, binary};
use crate::support::postgres::{Postgres, execute};
use crate::support::small_disk::SmallDisk;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const DOCUMENTS: &str = "CREATE TABLE documents (id int8 PRIMARY KEY, body text);
    INSERT INTO documents SELECT id, md5(id::text) FROM generate_series(1, 100) id;
    CREATE PUBLICATION untorn FOR ALL TABLES";

/// Waits until the replica has a table.
async fn until_made(daemon: &Daemon, replica: &Postgres, table: &str) {
    let deadline = Instant::now() + PATIENCE;
    while replica.execute(&format!("SELECT FROM pg_class WHERE relname = '{table}'")).await.is_empty() {
        assert!(Instant::now() < deadline, "{table} is not made\n{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_that_do_not_wait_lose_nothing_and_what_is_missing_is_made() {
    let servers = [Postgres::start().await];
    let [source] = &servers;
    source.execute(DOCUMENTS).await;
    let mut replica = Postgres::start_with(&["wal_writer_delay=10s", "fsync=on"]).await;
    let options = "synchronous_commit = false\nmissing_tables = \"create\"\nmissing_columns = \"add\"\n";
    let mut daemon = Daemon::new(&into(&replica, &servers, options));
    daemon.start();
    daemon.until_ready().await;
    until_made(&daemon, &replica, "documents").await;
    until_equal(&daemon, &replica, &servers, &["documents"]).await;
    // The first cut holds copied rows and no decision. Once they are not staged any more it must not be lost either.
    sleep(Duration::from_secs(1)).await;
    replica.kill();
    replica.start_server().await;
    until_made(&daemon, &replica, "documents").await;
    until_equal(&daemon, &replica, &servers, &["documents"]).await;
    // Rows by COPY, rows that were there already, and both in one run.
    for round in 1..=5 {
        let (from, to) = (round * 1_000, round * 1_000 + 999);
        source.execute(&format!("INSERT INTO documents SELECT id, 'a\\b' FROM generate_series({from}, {to}) id")).await;
        source.execute(&format!("UPDATE documents SET body = body || '{round}' WHERE id % 3 = 0")).await;
        source.execute(&format!("DELETE FROM documents WHERE id = {from}")).await;
        if round % 2 == 0 {
            // What it had committed and not written is gone.
            replica.kill();
            replica.start_server().await;
        }
    }
    // The table itself may be among what is gone.
    until_made(&daemon, &replica, "documents").await;
    until_equal(&daemon, &replica, &servers, &["documents"]).await;
    source
        .execute(
            "CREATE TABLE late (a text, b int, n numeric, PRIMARY KEY (a, b)); INSERT INTO late VALUES ('x', 1, 2.50)",
        )
        .await;
    source.execute("ALTER TABLE documents ADD COLUMN more timestamptz").await;
    source.execute("UPDATE documents SET more = '2026-01-01 00:00:00Z' WHERE id < 50").await;
    until_made(&daemon, &replica, "late").await;
    until_equal(&daemon, &replica, &servers, &["late", "documents"]).await;
    // A replica that keeps no times says so.
    let output = daemon.ask(&["scan", "--table", "public.late", "--with-time", "--format", "json"]);
    let scanned = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(scanned, "{\"a\":\"x\",\"b\":1,\"n\":\"2.50\",\"_hybrid_time\":null}\n");
    // After a stop, too, all of it is durable: the server crashes behind the daemon's back.
    assert!(daemon.terminate().success(), "{}", daemon.log());
    replica.kill();
    replica.start_server().await;
    daemon.start();
    source.execute("DELETE FROM documents WHERE id = 1").await;
    until_equal(&daemon, &replica, &servers, &["late", "documents"]).await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_server_other_types_and_a_session_of_an_owner_that_was_killed() {
    let servers = [Postgres::start().await];
    let [source] = &servers;
    source.execute(DOCUMENTS).await;
    source.execute("CREATE TABLE names (name text PRIMARY KEY); INSERT INTO names VALUES ('a'), ('A')").await;
    let replica = Postgres::start().await;
    replica
        .execute(
            "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE names (name text COLLATE blind PRIMARY KEY)",
        )
        .await;
    // The table's rows live on a disk of their own, which is small.
    let disk = SmallDisk::mount(replica.socket_folder().join("small"), "8m");
    disk.give_to("postgres");
    replica
        .execute(&format!("CREATE TABLESPACE small LOCATION '{}'", replica.socket_folder().join("small").display()))
        .await;
    replica.execute("CREATE TABLE documents (id int4 PRIMARY KEY, body varchar(10000)) TABLESPACE small").await;
    let sections = into(&replica, &servers, "");
    let mut daemon = Daemon::new(&sections);
    let check = daemon.configured(&["check", "--connect"]);
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    let mend = "ALTER TABLE \"public\".\"documents\" ALTER COLUMN \"id\" TYPE \"int8\"";
    assert!(!check.status.success() && told.contains("int4 in its key column") && told.contains(mend), "{told}");
    let collate = "ALTER TABLE \"public\".\"names\" ALTER COLUMN \"name\" TYPE \"text\" COLLATE \"C\";";
    assert!(told.contains("takes different texts for equal") && told.contains(collate), "{told}");
    replica.execute(collate).await;
    // The daemon says the same, and goes on when it is mended.
    daemon.start();
    let stopped = |log: &str| log.contains(mend);
    daemon.until("the type is named", || stopped(&daemon.log()).then_some(())).await;
    replica.execute("ALTER TABLE documents ALTER COLUMN id TYPE int8").await;
    until_equal(&daemon, &replica, &servers, &["documents", "names"]).await;

    // A value that does not fit.
    source.execute("INSERT INTO documents VALUES (1000, repeat('x', 20000))").await;
    until_stream(&daemon, "stopped", "value too long").await;
    let transaction = refused(&daemon);
    assert!(daemon.ask(&["skip", &transaction]).status.success());
    source.execute("DELETE FROM documents WHERE id = 1000").await;
    until_equal(&daemon, &replica, &servers, &["documents"]).await;

    source
        .execute("INSERT INTO documents SELECT id, repeat(md5(id::text), 100) FROM generate_series(2000, 6000) id")
        .await;
    source.execute("UPDATE documents SET body = (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 100) WHERE documents.id > 0) WHERE id >= 2000").await;
    until_stream(&daemon, "waiting", "disk is full").await;
    disk.grow("200m");
    until_equal(&daemon, &replica, &servers, &["documents"]).await;

    // The session of an owner that was killed while it waited for a lock is ended by the next one.
    let holder = replica.connect().await;
    execute(&holder, "BEGIN; LOCK TABLE documents IN SHARE MODE").await;
    source.execute("UPDATE documents SET body = 'after' WHERE id < 10").await;
    let waiting = "SELECT pid FROM pg_locks JOIN untorn.progress ON pid = backend WHERE NOT granted";
    let old = loop {
        if let [pid] = &replica.execute(waiting).await[..] {
            break pid.clone();
        }
        sleep(Duration::from_millis(20)).await;
    };
    daemon.kill();
    daemon.start();
    let lives = format!("SELECT pid FROM pg_stat_activity WHERE pid = {old}");
    let taken = "SELECT backend FROM untorn.progress";
    while replica.execute(taken).await == [old.clone()] {
        sleep(Duration::from_millis(20)).await;
    }
    assert!(replica.execute(&lives).await.is_empty(), "the new owner is there, and the old one's session as well");
    execute(&holder, "COMMIT").await;
    until_equal(&daemon, &replica, &servers, &["documents"]).await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_a_replica_server_lacks_and_its_statements_mend_it() {
    let servers = [Postgres::start().await];
    servers[0].execute(DOCUMENTS).await;
    servers[0].execute("CREATE TABLE late (a text, b int, PRIMARY KEY (a, b))").await;
    let replica = Postgres::start().await;
    replica
        .execute(
            "CREATE ROLE applier LOGIN; CREATE TABLE documents (id int8 PRIMARY KEY); INSERT INTO documents VALUES (1)",
        )
        .await;
    let sections = into(&replica, &servers, "")
        .replace(&replica.url("postgres"), &replica.url("postgres").replace("postgres@", "applier@"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("untorn.toml");
    std::fs::write(&file, format!("data_dir = {:?}\n{sections}", folder.path().join("data"))).unwrap();
    let mut told = Vec::new();
    let mut rounds = 0;
    loop {
        let mut command = binary();
        command.args(["check", "--connect", "--format", "json", "--config"]).arg(&file);
        let output = tokio::task::block_in_place(|| command.output()).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let faults = report["faults"].as_array().unwrap();
        if faults.is_empty() {
            let summary = report["servers"][1].as_str().unwrap();
            assert!(summary.contains("2 of 2 tables stand; nothing was replicated here yet"), "{report}");
            break;
        }
        let session = replica.connect().await;
        for fault in faults {
            assert_eq!(fault["key"], "replica.tablets[0]", "{report}");
            told.push(fault["what"].as_str().unwrap().to_owned());
            let sql = fault["sql"].as_str().unwrap();
            assert!(!sql.is_empty(), "{report}");
            execute(&session, sql).await;
        }
        rounds += 1;
        assert!(rounds < 5, "{report}");
    }
    let told = told.join("\n");
    for part in [
        "session_replication_role",
        "schema untorn",
        "does not exist",
        "lacks columns",
        "lacks SELECT",
        "holds rows already",
    ] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
}
