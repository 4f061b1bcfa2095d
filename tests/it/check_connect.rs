//! `untorn check --connect` against real servers: every fault at once, and its statements mend them as they stand.

use crate::support::daemon::{binary, source_tablet};
use crate::support::postgres::{Postgres, execute};
use serde_json::Value;
use tempfile::TempDir;

/// A configuration of these source tablets in a folder of its own.
fn configuration(keys: &str, tablets: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("data_dir = {:?}\n[source]\nkind = \"postgres\"\n{keys}{tablets}", folder.path().join("data"));
    std::fs::write(folder.path().join("untorn.toml"), text).unwrap();
    folder
}

/// The exit code, and the report.
fn check(folder: &TempDir) -> (i32, Value) {
    let mut command = binary();
    command.args(["check", "--connect", "--format", "json", "--config"]).arg(folder.path().join("untorn.toml"));
    let output = tokio::task::block_in_place(|| command.output()).unwrap();
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), report.unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

/// The `what`, or the `sql`, of every entry of a list.
fn entries(report: &Value, list: &str, part: &str) -> Vec<String> {
    let entries = report[list].as_array().unwrap();
    entries.iter().map(|entry| entry[part].as_str().unwrap().to_owned()).collect()
}

/// Runs what mends the entries of a list, each line as it stands.
async fn mend(server: &Postgres, report: &Value, list: &str) {
    let session = server.connect().await;
    for statement in entries(report, list, "sql").iter().flat_map(|sql| sql.lines()) {
        execute(&session, statement).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_check_prints_mends_a_server_as_it_stands() {
    // Settings of the file, not of the command line, which nothing overrides.
    let mut server = Postgres::start_plain(&["max_connections=20"]).await;
    let settings = "ALTER SYSTEM SET wal_level = 'replica'; ALTER SYSTEM SET max_prepared_transactions = 0;
        ALTER SYSTEM SET max_replication_slots = 1; ALTER SYSTEM SET max_wal_senders = 1;
        ALTER SYSTEM SET wal_sender_timeout = 0; ALTER SYSTEM SET fsync = off";
    let session = server.connect().await;
    for setting in settings.split(';') {
        execute(&session, setting).await;
    }
    drop(session);
    server.restart().await;
    server
        .execute(
            "CREATE ROLE reader LOGIN; CREATE SCHEMA shop; REVOKE ALL ON SCHEMA public FROM public;
             CREATE TABLE public.orders (id int PRIMARY KEY); CREATE TABLE shop.events (at int);
             CREATE TABLE shop.codes (code text NOT NULL UNIQUE); CREATE TABLE shop.hidden (id int PRIMARY KEY);
             ALTER TABLE shop.hidden ENABLE ROW LEVEL SECURITY; CREATE TABLE shop.nothing (id int PRIMARY KEY);
             ALTER TABLE shop.nothing REPLICA IDENTITY NOTHING;
             SELECT pg_create_physical_replication_slot('other')",
        )
        .await;
    let url = server.url("postgres").replace("postgres@", "reader@");
    let folder = configuration("", &source_tablet("shard-a", &url));

    let (code, report) = check(&folder);
    assert_eq!(code, 64, "{report}");
    assert_eq!(
        entries(&report, "faults", "sql"),
        [
            "ALTER SYSTEM SET wal_level = 'logical';",
            "ALTER ROLE \"reader\" REPLICATION;",
            "ALTER SYSTEM SET max_replication_slots = 20;",
            "CREATE PUBLICATION \"untorn\" FOR ALL TABLES;",
        ]
    );
    // One statement after the other, literally; some need a restart, as they say.
    mend(&server, &report, "faults").await;
    mend(&server, &report, "warnings").await;
    server.restart().await;

    let (code, report) = check(&folder);
    assert_eq!(code, 64, "{report}");
    let tables = entries(&report, "faults", "sql");
    assert_eq!(tables.len(), 6, "five tables cannot be read, and one hides its rows: {report}");
    mend(&server, &report, "faults").await;
    assert_eq!(entries(&report, "warnings", "sql").len(), 3, "three tables have no identity: {report}");
    mend(&server, &report, "warnings").await;
    let session = server.connect().await;
    execute(&session, "BEGIN; INSERT INTO orders VALUES (1); PREPARE TRANSACTION 'it''s lost'").await;

    let (code, report) = check(&folder);
    assert_eq!((code, entries(&report, "faults", "what")), (0, vec![]), "{report}");
    let warned = entries(&report, "warnings", "what").concat();
    assert!(warned.contains("prepared transaction \"it's lost\" of database \"postgres\""), "{report}");
    mend(&server, &report, "warnings").await;

    let (code, report) = check(&folder);
    assert_eq!((code, &report["ok"]), (0, &Value::Bool(true)));
    assert_eq!((entries(&report, "faults", "what"), entries(&report, "warnings", "what")), (vec![], vec![]), "clean");
    let told = report["servers"][0].as_str().unwrap();
    assert!(
        told.contains("publishes 5 tables: \"public\".\"orders\", ") && told.contains("does not exist yet"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_and_servers_that_are_not_what_they_should_be_are_named() {
    let server = Postgres::start_with(&["max_slot_wal_keep_size=2MB", "min_wal_size=32MB", "max_wal_size=32MB"]).await;
    server.execute("CREATE TABLE t (id int PRIMARY KEY, body text); CREATE PUBLICATION untorn FOR ALL TABLES").await;
    server.execute("CREATE ROLE reader LOGIN REPLICATION; GRANT SELECT ON t TO reader").await;
    let url = server.url("postgres").replace("postgres@", "reader@");
    let two = source_tablet("shard-a", &url) + &source_tablet("shard-b", &url);
    let (code, report) = check(&configuration("", &two));
    assert_eq!(code, 64);
    let what = entries(&report, "faults", "what");
    assert!(what.len() == 1 && what[0].starts_with("this is the same database as \"shard-a\"'s"), "{report}");
    assert_eq!(report["faults"][0]["key"], "source.tablets[1].url");

    let slot = |name: &str, plugin: &str, two_phase: bool| {
        format!("SELECT pg_create_logical_replication_slot('{name}', '{plugin}', false, {two_phase})")
    };
    server.execute("CREATE DATABASE other").await;
    let other = server.connect_to("other").await;
    execute(&other, &slot("shard_a", "pgoutput", true)).await;
    server.execute(&slot("shard_b", "pgoutput", false)).await;
    server.execute(&slot("shard_c", "pgoutput", true)).await;
    // What the slot holds grows beyond what it may hold.
    while server.execute("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'shard_c'").await != ["lost"] {
        server
            .execute("SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS noise (a int); INSERT INTO noise VALUES (1)")
            .await;
        server.execute("CHECKPOINT").await;
    }
    let tablets: String = ["shard-a", "shard-b", "shard-c"].map(|name| source_tablet(name, &url)).concat();
    let (code, report) = check(&configuration("", &tablets));
    assert_eq!(code, 64);
    let what = entries(&report, "faults", "what");
    let of = |tablet: &str, fault: &str| {
        assert!(what.iter().any(|what| what.starts_with(tablet) && what.contains(fault)), "{tablet} {fault}: {report}");
    };
    of("shard-a", "slot \"shard_a\" belongs to database \"other\"");
    of("shard-b", "slot \"shard_b\" was not created by untorn");
    of("shard-c", "slot \"shard_c\" is lost");
    assert!(entries(&report, "faults", "sql").contains(&"SELECT pg_drop_replication_slot('shard_c');".to_owned()));
}
