//! What operators do to a running daemon: it ends in time under load, logs what it is told to, and says who did what.

use crate::support::daemon::{Daemon, source_of};
use crate::support::postgres::Postgres;
use crate::support::tables::until_equal;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const TABLE: &str = "CREATE TABLE t (id text PRIMARY KEY, v text); CREATE PUBLICATION untorn FOR ALL TABLES";
/// When the kubelet kills what it asked to end: `terminationGracePeriodSeconds` of the chart.
const GRACE: Duration = Duration::from_secs(45);

async fn servers() -> [Postgres; 2] {
    let servers = [Postgres::start().await, Postgres::start().await];
    for server in &servers {
        server.execute(TABLE).await;
    }
    servers
}

/// Transactions over both servers and large ones of one, until it is told to stop. Nothing stays prepared.
fn load(servers: &Arc<[Postgres; 2]>, stop: &Arc<AtomicBool>) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for writer in 0..3 {
        let (servers, stop) = (Arc::clone(servers), Arc::clone(stop));
        writers.spawn(async move {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                sleep(Duration::from_millis(if writer == 0 { 500 } else { 20 })).await;
                let gid = format!("{writer}-{number}");
                if writer == 0 {
                    let rows = format!("INSERT INTO t SELECT '{gid}-' || n, 'x' FROM generate_series(1, 1000) n");
                    servers[number % 2].execute(&rows).await;
                    continue;
                }
                for (shard, server) in servers.iter().enumerate() {
                    let row = format!("INSERT INTO t VALUES ('{gid}-{shard}', 'x')");
                    server.execute(&format!("BEGIN; {row}; PREPARE TRANSACTION '{gid}'")).await;
                }
                for server in servers.iter() {
                    server.execute(&format!("COMMIT PREPARED '{gid}'")).await;
                }
            }
        });
    }
    writers
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_daemon_ends_within_its_grace_and_loses_nothing() {
    let servers = Arc::new(servers().await);
    let mut daemon = Daemon::new(&source_of(&*servers));
    daemon.start();
    daemon.until_ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = load(&servers, &stop);
    for _ in 0..2 {
        let before = daemon.status().unwrap()["transactions"]["committed_total"].as_u64().unwrap();
        daemon
            .until_status("transactions arrive", |status| {
                status["transactions"]["committed_total"].as_u64().unwrap() > before + 50
            })
            .await;
        daemon.signal("TERM");
        let ended = timeout(GRACE, daemon.ended()).await.expect("it would have been killed");
        assert!(ended.success(), "{}", daemon.log());
        daemon.start();
        daemon.until_ready().await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    until_equal(&daemon, &*servers, "public.t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_logs_otherwise_and_says_who_did_what() {
    let servers = servers().await;
    servers[0].execute("INSERT INTO t VALUES ('a', 'x')").await;
    let mut daemon = Daemon::new(&format!("{}[tracing]\nfilter = \"error\"\n", source_of(&servers)));
    daemon.start();
    daemon.until_ready().await;
    let log_level = |arguments: &[&str]| {
        let output = daemon.ask(&[&["log-level"], arguments].concat());
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(log_level(&[]), (0, "error\n".into()));
    assert_eq!(daemon.log(), "", "an error is logged at most");

    let (code, told) = log_level(&["untorn=loud"]);
    assert!(code == 1 && told.contains("\"untorn=loud\" is no filter"), "{told}");
    assert_eq!(log_level(&["debug"]), (0, "debug\n".into()));
    daemon.until("it logs more", || daemon.log().contains(" DEBUG ").then_some(())).await;
    assert_eq!(log_level(&["error"]), (0, "error\n".into()));
    let verified = daemon.configured(&["verify"]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(daemon.ask(&["verify", "--table", "public.t"]).status.success());
    let refused = daemon.ask(&["verify", "--table", "public.none"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let nothing = daemon.ask(&["retry"]);
    assert!(nothing.status.success(), "{nothing:?}");
    let skipped = daemon.ask(&["skip", "none-such"]);
    assert_eq!(skipped.status.code(), Some(1), "{skipped:?}");

    let log = daemon.log();
    let audited = |what: &str, subject: &str, outcome: &str| {
        let fields = [format!("what=\"{what}\""), format!("subject=\"{subject}\""), format!("outcome=\"{outcome}\"")];
        log.lines()
            .filter(|line| line.contains("untorn::audit: who=\"anyone at 127.0.0.1:"))
            .filter(|line| fields.iter().all(|field| line.contains(field)))
            .count()
    };
    assert_eq!(audited("log-level", "untorn=loud", "failed"), 1, "{log}");
    assert_eq!(audited("log-level", "debug", "done"), 1, "{log}");
    assert_eq!(audited("log-level", "error", "done"), 1, "no filter hides who set it: {log}");
    assert_eq!(audited("verify", "public.t", "done"), 2, "{log}");
    assert_eq!(audited("retry", "", "done"), 1, "{log}");
    assert_eq!(audited("skip", "none-such", "failed"), 1, "{log}");
}

/// The way back to an older untorn: where a newer one wrote a format that this one does not know, it says so, changes
/// nothing, and the newer one goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_untorn_wrote_is_refused_by_name_and_left_alone() {
    let servers = servers().await;
    servers[0].execute("INSERT INTO t VALUES ('a', 'x')").await;
    let mut daemon = Daemon::new(&format!("{}[log]\nkind = \"sqlite\"\n", source_of(&servers)));
    daemon.start();
    daemon.until_ready().await;
    assert!(daemon.terminate().success());
    let file = daemon.data().join("log.sqlite");
    let rewrite = |table: &str, version: &str| {
        let log = Connection::open(&file).unwrap();
        let sql = format!("UPDATE {table} SET value = CAST(x'{version}' || substr(value, 2) AS BLOB)");
        assert!(log.execute(&sql, []).unwrap() > 0, "{table} is empty");
    };
    for table in ["head", "entry"] {
        rewrite(table, "02");
        let before = std::fs::read(&file).unwrap();
        daemon.start();
        assert_eq!(daemon.ended().await.code(), Some(1));
        let log = daemon.log();
        let said = "format version 2 is newer than 1, the newest this untorn reads; run the newer one";
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains(said) && last.contains("log.sqlite"), "{log}");
        assert!(std::fs::read(&file).unwrap() == before, "{table}: it was written to");
        rewrite(table, "01");
    }
    daemon.start();
    daemon.until_ready().await;
    until_equal(&daemon, &servers, "public.t").await;
}
