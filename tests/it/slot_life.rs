//! The life of a slot: what it holds back shows, one that is lost is told by name, and none is left behind.

use crate::support::daemon::{Daemon, json_lines, source_of};
use crate::support::postgres::{Postgres, execute};
use crate::support::tables::until_equal;
use std::process::Command;
use std::time::Duration;

const SLOTS: &str = "SELECT slot_name FROM pg_replication_slots ORDER BY 1";

async fn server(settings: &[&str], tables: &str) -> Postgres {
    let server = Postgres::start_with(settings).await;
    server.execute(tables).await;
    server.execute("CREATE PUBLICATION untorn FOR ALL TABLES").await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_dropped_when_nobody_reads_them_or_by_force() {
    let tables = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)";
    let shards = [server(&[], tables).await, server(&[], tables).await];
    let mut daemon = Daemon::new(&source_of(&shards));
    daemon.start();
    daemon.until_ready().await;
    let retained = || {
        let text = daemon.metrics();
        let gauge = |start: &str| text.lines().any(|line| line.starts_with(start));
        let shown = |shard: &str| {
            ["retained_bytes", "safe_bytes"]
                .iter()
                .all(|name| gauge(&format!("untorn_source_wal_{name}{{stream=\"{shard}\"}} ")))
        };
        (shown("shard-a") && shown("shard-b")).then_some(text)
    };
    let text = daemon.until("what the slots hold back shows", retained).await;
    assert!(text.contains("untorn_source_wal_safe_bytes{stream=\"shard-b\"} inf\n"), "{text}");
    assert!(text.contains("untorn_source_prepared_oldest_seconds{stream=\"shard-b\"} 0\n"), "{text}");

    let drop = |arguments: &[&str]| {
        let output = daemon.configured(&[&["source", "drop", "--format", "json"], arguments].concat());
        let slots = json_lines(&output);
        let told = slots.iter().map(|slot| format!("{} {}", slot["tablet"], slot["outcome"]).replace('"', ""));
        (output.status.code().unwrap(), told.collect::<Vec<_>>(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told, errors) = drop(&[]);
    assert_eq!((code, told), (1, vec!["shard-a stands".to_owned(), "shard-b stands".to_owned()]), "{errors}");
    assert_eq!(drop(&["--tablet", "shard-c"]).0, 1);
    let (code, told, errors) = drop(&["--tablet", "shard-a", "--force"]);
    assert_eq!((code, told), (0, vec!["shard-a dropped".to_owned()]), "{errors}");
    assert!(errors.contains("untorn::audit") && errors.contains("source drop"), "{errors}");
    let stopped =
        daemon.until_status("the stream stops by name", |status| status["streams"][0]["state"] == "stopped").await;
    let cause = stopped["streams"][0]["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("is gone") && cause.ends_with("untorn recopy --tablet shard-a"), "{cause}");
    daemon.kill();
    let drop = || {
        let output = daemon.configured(&["source", "drop"]);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let gone = loop {
        match drop() {
            // Its reader was killed a moment ago.
            (1, _) => tokio::time::sleep(Duration::from_millis(100)).await,
            gone => break gone,
        }
    };
    assert_eq!(gone, (0, "shard-a: slot \"shard_a\": not there\nshard-b: slot \"shard_b\": dropped\n".to_owned()));
    assert_eq!(shards[1].execute(SLOTS).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_copy_comes_to_nothing_is_not_left_behind() {
    let rows = "CREATE TABLE t (id int PRIMARY KEY, body text);
        INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 40000) n";
    let shards = [server(&[], rows).await];
    let mut daemon = Daemon::new(&source_of(&shards));
    // The slot's creation waits for a transaction; then the daemon is told to end.
    let session = shards[0].connect().await;
    execute(&session, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    daemon.start();
    let held = || tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(shards[0].execute(SLOTS)));
    daemon.until("the slot stands", || (held() == ["shard_a"]).then_some(())).await;
    assert!(daemon.terminate().success());
    assert_eq!(held(), Vec::<String>::new(), "{}", daemon.log());
    execute(&session, "COMMIT").await;
    daemon.start();
    daemon.until_ready().await;
    assert_eq!(held(), ["shard_a"]);
    assert!(daemon.terminate().success());
    assert_eq!(held(), ["shard_a"], "what was copied goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_stops_its_stream_by_name_with_the_way_back() {
    let limits = ["max_slot_wal_keep_size=1MB", "min_wal_size=32MB", "max_wal_size=32MB"];
    let shards = [server(&limits, "CREATE TABLE t (id int PRIMARY KEY)").await];
    let mut daemon = Daemon::new(&source_of(&shards));
    daemon.start();
    daemon.until_ready().await;
    daemon.kill();
    while shards[0].execute("SELECT wal_status FROM pg_replication_slots").await != ["lost"] {
        for statement in ["INSERT INTO t SELECT max(id) + 1 FROM t", "SELECT pg_switch_wal()", "CHECKPOINT"] {
            shards[0].execute(&statement.replace("max(id)", "COALESCE(max(id), 0)")).await;
        }
    }
    daemon.start();
    let status = daemon.until_status("the stream stops", |status| status["streams"][0]["state"] == "stopped").await;
    let cause = status["streams"][0]["cause"].as_str().unwrap();
    assert!(cause.contains("slot \"shard_a\" is lost") && cause.contains("untorn recopy --tablet shard-a"), "{cause}");
    assert!(daemon.ask(&["recopy", "--tablet", "shard-a"]).status.success());
    until_equal(&daemon, &shards, "public.t").await;
    shards[0].execute("INSERT INTO t SELECT max(id) + 1 FROM t").await;
    until_equal(&daemon, &shards, "public.t").await;
    assert!(daemon.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_is_older_than_its_slot_stops_by_name() {
    let shards = [server(&[], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await];
    let mut daemon = Daemon::new(&source_of(&shards));
    daemon.start();
    daemon.until_ready().await;
    assert!(daemon.terminate().success());
    let backup = daemon.data().with_extension("backup");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&daemon.data(), &backup);
    daemon.start();
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let before = shards[0].execute(confirmed).await;
    shards[0].execute("INSERT INTO t VALUES (2)").await;
    until_equal(&daemon, &shards, "public.t").await;
    while shards[0].execute(confirmed).await == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(daemon.terminate().success());
    let newest = daemon.data().with_extension("newest");
    std::fs::rename(daemon.data(), &newest).unwrap();

    // What lies between is never sent again: without a word, the second row would be missing for ever.
    std::fs::rename(&backup, daemon.data()).unwrap();
    daemon.start();
    let status = daemon.until_status("the stream stops", |status| status["streams"][0]["state"] == "stopped").await;
    let cause = status["streams"][0]["cause"].as_str().unwrap();
    let parts =
        ["shard-a", "slot \"shard_a\" was confirmed up to", "is older than the slot", "recopy --tablet shard-a"];
    assert!(parts.iter().all(|part| cause.contains(part)), "{cause}");

    daemon.kill();
    std::fs::remove_dir_all(daemon.data()).unwrap();
    std::fs::rename(&newest, daemon.data()).unwrap();
    daemon.start();
    shards[0].execute("INSERT INTO t VALUES (3)").await;
    until_equal(&daemon, &shards, "public.t").await;
}
