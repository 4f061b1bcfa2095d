//! A source server dies, and its streaming standby is promoted.

use crate::support::daemon::{Daemon, source_tablet};
use crate::support::postgres::Postgres;
use serde_json::Value;

/// A primary with a table, its standby, and a daemon that knows both.
async fn pair() -> (Postgres, Postgres, Daemon) {
    let primary = Postgres::start().await;
    primary.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    primary.execute("CREATE PUBLICATION untorn FOR ALL TABLES").await;
    let standby = primary.standby().await;
    let (first, second) = (standby.port(), primary.port());
    let url = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres?sslmode=disable");
    let tablet = source_tablet("shard-a", &url);
    let mut daemon = Daemon::new(&format!("[source]\nkind = \"postgres\"\n{tablet}"));
    daemon.start();
    daemon.until_ready().await;
    (primary, standby, daemon)
}

async fn until_replicated(daemon: &Daemon, rows: usize) {
    let seen = || daemon.scan("public.t", "safe", "json").ok().filter(|text| text.lines().count() == rows);
    daemon.until(&format!("{rows} rows"), seen).await;
}

/// Waits until the standby has received everything.
async fn until_received(primary: &Postgres, standby: &Postgres) {
    let flushed = primary.execute("SELECT pg_current_wal_flush_lsn()").await;
    while standby.execute(&format!("SELECT pg_last_wal_replay_lsn() >= '{}'", flushed[0])).await != ["t"] {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn promote(standby: &mut Postgres) {
    standby.start_server().await;
    assert_eq!(standby.execute("SELECT pg_promote()").await, ["t"]);
}

async fn until_stopped(daemon: &Daemon) -> String {
    let stopped = |status: &Value| status["streams"][0]["state"] == "stopped";
    let status = daemon.until_status("the stream stops", stopped).await;
    status["streams"][0]["cause"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_with_the_slot_goes_on_and_its_loss_stops_the_stream_by_name() {
    let (mut primary, mut standby, mut daemon) = pair().await;
    // The slot must not need WAL from before the standby was made.
    primary.execute("CHECKPOINT").await;
    primary.execute("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'over'").await;
    primary.execute("INSERT INTO t VALUES (3)").await;
    until_replicated(&daemon, 2).await;
    until_received(&primary, &standby).await;
    primary.stop();
    standby.stop();
    standby.take_over_slot(&primary, "shard_a");
    promote(&mut standby).await;
    standby.execute("INSERT INTO t VALUES (4)").await;
    standby.execute("COMMIT PREPARED 'over'").await;
    until_replicated(&daemon, 4).await;
    assert!(daemon.log().contains("another server took this one's place"), "{}", daemon.log());
    // What is kept now is the new line of history; the old primary is not taken for it.
    daemon.kill();
    standby.stop();
    primary.start_server().await;
    daemon.start();
    assert!(until_stopped(&daemon).await.contains("an old primary answers: it is on timeline 1, and timeline 2"));
    primary.stop();
    standby.start_server().await;
    standby.execute("INSERT INTO t VALUES (5)").await;
    daemon.kill();
    daemon.start();
    until_replicated(&daemon, 5).await;
    daemon.kill();
    standby.execute("SELECT pg_drop_replication_slot('shard_a') FROM pg_replication_slots WHERE NOT active").await;
    while standby.execute("SELECT count(*) FROM pg_replication_slots").await != ["0"] {
        standby.execute("SELECT pg_drop_replication_slot('shard_a') FROM pg_replication_slots WHERE NOT active").await;
    }
    daemon.start();
    let cause = until_stopped(&daemon).await;
    assert!(cause.contains("slot \"shard_a\" is gone") && cause.contains("untorn recopy --tablet shard-a"), "{cause}");
    standby.execute("INSERT INTO t VALUES (6)").await;
    assert!(daemon.ask(&["recopy", "--tablet", "shard-a"]).status.success());
    until_replicated(&daemon, 6).await;
    standby.execute("INSERT INTO t VALUES (7)").await;
    until_replicated(&daemon, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lacks_what_the_replica_has_is_refused_by_name() {
    let (mut primary, mut standby, daemon) = pair().await;
    primary.execute("CHECKPOINT").await;
    until_received(&primary, &standby).await;
    standby.stop();
    primary.execute("INSERT INTO t VALUES (2)").await;
    until_replicated(&daemon, 2).await;
    primary.stop();
    standby.take_over_slot(&primary, "shard_a");
    promote(&mut standby).await;
    // It writes on until its positions are beyond what was taken from the old primary: only its history shows the gap.
    standby.execute("SELECT pg_switch_wal()").await;
    standby.execute("INSERT INTO t VALUES (3)").await;
    let cause = until_stopped(&daemon).await;
    assert!(cause.contains("had not received everything: timeline 2 begins at"), "{cause}");
    let refused = daemon.ask(&["verify"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && told.contains("not ready: shard-a has stopped"), "{told}");
}
