//! Whatever waits says what it waits for (C12): each cause brought about by a fault of real servers and processes.

use crate::loop_disk::LoopDisk;
use crate::support::daemon::{Daemon, free_port, source_of};
use crate::support::postgres::{Postgres, execute};
use std::process::Command;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION untorn FOR ALL TABLES";

/// Servers with one table each.
async fn servers(count: usize) -> Vec<Postgres> {
    let mut servers = Vec::new();
    for _ in 0..count {
        let server = Postgres::start().await;
        server.execute(TABLE).await;
        servers.push(server);
    }
    servers
}

/// Prepares a write of a row.
async fn prepare(server: &Postgres, gid: &str, id: u32) {
    let write = format!("INSERT INTO t VALUES ({id}, '{gid}') ON CONFLICT (id) DO UPDATE SET v = excluded.v");
    server.execute(&format!("BEGIN; {write}; PREPARE TRANSACTION '{gid}'")).await;
}

async fn commit(server: &Postgres, gid: &str) {
    server.execute(&format!("COMMIT PREPARED '{gid}'")).await;
}

async fn pay(server: &Postgres, gid: &str, id: u32) {
    prepare(server, gid, id).await;
    commit(server, gid).await;
}

/// Writes a row by an ordinary transaction, and answers what the replica calls it.
async fn write(stream: &str, server: &Postgres, id: u32) -> String {
    let session = server.connect().await;
    execute(&session, "BEGIN").await;
    execute(&session, &format!("INSERT INTO t VALUES ({id}, 'w') ON CONFLICT (id) DO UPDATE SET v = 'w'")).await;
    let xid = execute(&session, "SELECT txid_current()").await;
    execute(&session, "COMMIT").await;
    format!("{stream}:{}", xid[0])
}

/// A daemon over these servers with embedded tablets, ready.
async fn running(servers: &[Postgres], sections: &str) -> Daemon {
    let mut daemon = Daemon::new(&format!("{}{sections}", source_of(servers)));
    daemon.start();
    daemon.until_ready().await;
    daemon
}

/// Waits until readers are shown this many rows.
async fn until_rows(daemon: &Daemon, count: usize) {
    let shown = || daemon.scan("public.t", "safe", "csv").is_ok_and(|rows| rows.lines().count() == count);
    daemon.until(&format!("{count} rows are shown"), || shown().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_the_server_that_holds_a_transaction() {
    let servers = servers(2).await;
    let (a, b) = (&servers[0], &servers[1]);
    let daemon = running(&servers, "").await;
    let start = daemon.safe_time();
    assert_eq!(daemon.scan("public.t", &start, "csv").unwrap(), "");
    prepare(a, "open", 1).await;
    daemon.until_waits_for("open", "commit", Some("shard-a")).await;

    b.signal_walsender("shard_b", "STOP").await;
    // A server that has flushed nothing since its last word holds nobody.
    write("shard-b", b, 3).await;
    commit(a, "open").await;
    let behind = write("shard-a", a, 2).await;
    let found = daemon.until_waits_for("open", "discovery", Some("shard-b")).await;
    assert_eq!((&found["status"], &found["commit_known"]), (&"WAITING_TO_COMMIT".into(), &true.into()));
    let found = daemon.until_waits_for(&behind, "cut", Some("shard-b")).await;
    assert!(found["waits_for"]["text"].as_str().unwrap().contains("open"), "{found}");
    let status = daemon.until_status("held by shard-b", |status| status["held_by"] == "shard-b").await;
    assert_eq!(status["transactions"]["waiting_to_commit"], 2);
    assert_eq!(daemon.scan("public.t", "latest", "csv").unwrap(), "", "neither is shown");

    b.signal_walsender("shard_b", "CONT").await;
    daemon.until_over("open").await;
    daemon.until_over(&behind).await;
    daemon
        .until("all are shown", || {
            let rows = daemon.scan("public.t", "safe", "csv").ok()?;
            (rows.lines().count() == 3).then_some(())
        })
        .await;
    let after = daemon.safe_time();
    assert!(after.parse::<u64>().unwrap() > start.parse::<u64>().unwrap(), "safe time went from {start} to {after}");
    assert_eq!(daemon.scan("public.t", &start, "csv").unwrap(), "", "at the start nothing was there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_the_copy_and_for_what_was_prepared_meanwhile() {
    let servers = servers(2).await;
    let (a, b) = (&servers[0], &servers[1]);
    // An orphan keeps the slot of one server from being created.
    prepare(b, "orphan", 7).await;
    let mut daemon = Daemon::new(&source_of(&servers));
    daemon.start();
    daemon
        .until_status("shard-a runs", |status| {
            let stream = &status["streams"][0];
            stream["state"] == "running" && stream["copy"]["state"] == "done"
        })
        .await;
    let early = write("shard-a", a, 1).await;
    prepare(a, "meanwhile", 2).await;
    daemon.until_waits_for(&early, "copy", Some("shard-b")).await;
    assert!(daemon.scan("public.t", "safe", "csv").unwrap_err().contains("not ready"));
    let status = daemon
        .until_status("shard-b says what blocks its slot", |status| {
            status["streams"][1]["cause"].as_str().is_some_and(|cause| cause.contains("orphan"))
        })
        .await;
    let cause = status["streams"][1]["cause"].as_str().unwrap();
    for part in ["\"orphan\"", "database \"postgres\"", "s old", "ROLLBACK PREPARED 'orphan'", "127.0.0.1"] {
        assert!(cause.contains(part), "{part} is not in {cause}");
    }
    assert!(!cause.contains('\n'));

    b.execute("ROLLBACK PREPARED 'orphan'").await;
    daemon.until_waits_for(&early, "start-fence", Some("shard-a")).await;
    assert!(daemon.scan("public.t", "safe", "csv").unwrap_err().contains("not ready"));
    commit(a, "meanwhile").await;
    daemon.until_ready().await;
    daemon.until_over(&early).await;
    until_rows(&daemon, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gid_used_again_waits_for_its_earlier_use() {
    let servers = servers(2).await;
    let (a, b) = (&servers[0], &servers[1]);
    let daemon = running(&servers, "").await;
    prepare(a, "again", 1).await;
    prepare(b, "again", 2).await;
    commit(a, "again").await;
    pay(a, "again", 3).await;
    daemon.until_waits_for("again", "gid-in-use", Some("shard-b")).await;
    commit(b, "again").await;
    daemon.until_over("again").await;
    until_rows(&daemon, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_atomic_a_later_write_of_a_key_waits_for_the_earlier_one() {
    let servers = servers(2).await;
    let (a, b) = (&servers[0], &servers[1]);
    let daemon = running(&servers, "[replica]\nrelease = \"atomic\"\n").await;
    b.signal_walsender("shard_b", "STOP").await;
    write("shard-b", b, 3).await;
    pay(a, "earlier", 1).await;
    let later = write("shard-a", a, 1).await;
    let other = write("shard-a", a, 2).await;
    daemon.until_waits_for("earlier", "discovery", Some("shard-b")).await;
    let found = daemon.until_waits_for(&later, "earlier-write", None).await;
    assert!(found["waits_for"]["text"].as_str().unwrap().contains("earlier"), "{found}");
    daemon.until_over(&other).await;
    b.signal_walsender("shard_b", "CONT").await;
    daemon.until_over(&later).await;
    daemon
        .until("the later write wins", || {
            let rows = daemon.scan("public.t", "safe", "csv").ok()?;
            (rows.contains("1,w\n") && rows.contains("2,w\n")).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stopped_is_named() {
    let servers = servers(2).await;
    let (a, b) = (&servers[0], &servers[1]);
    let daemon = running(&servers, "").await;
    b.execute("DROP PUBLICATION untorn; INSERT INTO t VALUES (9, 'unpublished')").await;
    daemon.until_status("shard-b stops", |status| status["streams"][1]["state"] == "stopped").await;
    pay(a, "held", 1).await;
    let found = daemon.until_waits_for("held", "stopped-stream", Some("shard-b")).await;
    let text = found["waits_for"]["text"].as_str().unwrap();
    assert!(text.contains("publication") && text.contains("untorn"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tablets_and_pullers_that_hang_are_named() {
    let servers = servers(2).await;
    let (a, b) = (&servers[0], &servers[1]);
    let (tablet, port) = Daemon::tablets(&["r0"]);
    let replica =
        format!("[replica]\nkind = \"grpc\"\n[[replica.tablets]]\nname = \"r0\"\nurl = \"http://127.0.0.1:{port}\"\n");
    let daemon = running(&servers, &replica).await;

    prepare(a, "decided", 1).await;
    prepare(a, "held", 2).await;
    for gid in ["decided", "held"] {
        daemon.until_waits_for(gid, "commit", Some("shard-a")).await;
    }
    tablet.signal("STOP");
    commit(a, "decided").await;
    daemon.until_waits_for("decided", "apply", Some("r0")).await;
    write("shard-b", b, 3).await;
    commit(a, "held").await;
    daemon.until_waits_for("held", "back-pressure", Some("r0")).await;
    tablet.signal("CONT");
    daemon.until_over("held").await;
    daemon.until_over("decided").await;
    until_rows(&daemon, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_process_died_is_named() {
    let servers = servers(2).await;
    let a = &servers[0];
    let (_tablet, port) = Daemon::tablets(&["r0"]);
    let replica =
        format!("[replica]\nkind = \"grpc\"\n[[replica.tablets]]\nname = \"r0\"\nurl = \"http://127.0.0.1:{port}\"\n");
    let pulls = |stream: &str| source_of(&servers).replacen("\n", &format!("\npoll = [\"{stream}\"]\n"), 1);
    let port = free_port();
    let mut leader = Daemon::new(&format!("{}{replica}[leader]\nlisten = \"127.0.0.1:{port}\"\n", pulls("shard-a")));
    let mut poller =
        Daemon::new(&format!("{}{replica}[leader]\nurl = \"http://127.0.0.1:{port}\"\n", pulls("shard-b")));
    leader.start();
    let early = write("shard-a", a, 1).await;
    leader.until_status("nobody pulls shard-b", |status| status["streams"][1]["cause"] == "nobody pulls it").await;
    poller.start();
    leader.until_ready().await;
    leader.until_over(&early).await;

    poller.kill();
    servers[1].execute("INSERT INTO t VALUES (2, 'unheard')").await;
    pay(a, "held", 3).await;
    leader.until_waits_for("held", "not-polled", Some("shard-b")).await;
    // A leader that was restarted knows of pullers what they tell it again.
    leader.kill();
    poller.start();
    leader.start();
    leader.until_over("held").await;
    leader.kill();
    leader.start();
    leader.until_status("shard-b runs", |status| status["streams"][1]["state"] == "running").await;
    until_rows(&leader, 3).await;
}

/// A frozen file system: what is appended there waits.
struct Frozen(LoopDisk);

impl Frozen {
    fn freeze(disk: LoopDisk) -> Self {
        assert!(Command::new("fsfreeze").arg("--freeze").arg(&disk.mounted).status().unwrap().success());
        Self(disk)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        assert!(Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.mounted).status().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_disk_hangs_is_named() {
    let servers = servers(1).await;
    let disk = LoopDisk::new(64 << 20);
    let log = format!("[log]\npath = {:?}\n", disk.mounted.join("log"));
    let daemon = running(&servers, &log).await;
    // The table's first row takes its shape to the log, without which nothing more is received.
    write("shard-a", &servers[0], 1).await;
    until_rows(&daemon, 1).await;
    let frozen = Frozen::freeze(disk);
    let written = write("shard-a", &servers[0], 2).await;
    daemon.until_waits_for(&written, "log", None).await;
    let shown = daemon.scan("public.t", "latest", "csv").unwrap();
    assert_eq!(shown.lines().count(), 1, "it is not committed before it is durable: {shown}");
    drop(frozen);
    daemon.until_over(&written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_transaction_is_forgotten_whichever_way_it_was_committed() {
    let servers = servers(2).await;
    let (a, b) = (&servers[0], &servers[1]);
    let daemon = running(&servers, "").await;
    let ordinary = write("shard-a", a, 1).await;
    prepare(a, "both", 2).await;
    pay(b, "both", 2).await;
    commit(a, "both").await;
    for transaction in [&ordinary, "both"] {
        let forgotten = || daemon.explain(transaction).is_empty().then_some(());
        daemon.until(&format!("{transaction} is forgotten"), forgotten).await;
    }
}
