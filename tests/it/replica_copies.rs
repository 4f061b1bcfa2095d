//! Tables and servers that are added, and tables that are copied again, while people read a PostgreSQL replica: at no moment
//! do they see a part of a copy, or a transaction by half because of one.

use crate::postgres_e2e::{ACCOUNTS, BALANCE, Tellers, bank};
use crate::replica_postgres::{Auditor, empty_bank, into, until_equal};
use crate::support::daemon::{Daemon, json_lines};
use crate::support::postgres::{Postgres, execute};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// Somebody who asks the same of the replica again and again, and is never to be told anything else than these.
struct Watcher {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Watcher {
    async fn start(replica: &Postgres, sql: &str, allowed: impl Fn(&str) -> bool + Send + 'static) -> Self {
        let (client, sql, stop) = (replica.connect().await, sql.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopping = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut seen: Vec<String> = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                let answer = execute(&client, &sql).await.remove(0);
                assert!(allowed(&answer), "{sql}: {answer}, after {seen:?}");
                if seen.last() != Some(&answer) {
                    seen.push(answer);
                }
            }
            seen
        });
        Self { stop, task }
    }

    /// What it saw, one after the other.
    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("only what was to be seen")
    }
}

async fn kill_in_a_copy(daemon: &mut Daemon) {
    let copying = |status: &serde_json::Value| {
        let streams = status["streams"].as_array().unwrap();
        streams.iter().any(|stream| stream["copy"]["state"] != "done")
    };
    daemon.until_status("a table is copied", copying).await;
    daemon.kill();
    daemon.start();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_take_their_place_at_one_moment_while_people_read() {
    let servers = bank(3, 3_000).await;
    let (old, _) = servers.split_at(2);
    for server in &servers {
        server.execute("DROP PUBLICATION untorn; CREATE PUBLICATION untorn FOR TABLE accounts, legs").await;
    }
    let replica = empty_bank(&[]).await;
    let mut daemon = Daemon::new(&into(&replica, old, "missing_tables = \"create\"\n"));
    daemon.start();
    daemon.until_ready().await;
    let auditor = Auditor::start(replica.url("postgres"), ACCOUNTS * 2);
    let tellers = Tellers::start(old, 2);

    // A populated table that both servers have is added at one after the other.
    for (number, server) in old.iter().enumerate() {
        server.execute("ALTER PUBLICATION untorn ADD TABLE filler").await;
        kill_in_a_copy(&mut daemon).await;
        server.execute("UPDATE filler SET body = 'changed' WHERE id % 7 = 0").await;
        server.execute("DELETE FROM filler WHERE id % 11 = 0").await;
        until_equal(&daemon, &replica, &old[..=number], &["filler"]).await;
    }

    // One that only the first has, and that the replica does not: it is made, and seen as a whole.
    old[0]
        .execute(
            "CREATE TABLE notes (id int PRIMARY KEY, body text, large text);
             INSERT INTO notes SELECT id, 'note ' || id,
                    (SELECT string_agg(md5(n::text || id), '') FROM generate_series(1, 100) n)
                    FROM generate_series(1, 4000) id;
             ALTER PUBLICATION untorn ADD TABLE notes",
        )
        .await;
    let body = |round: usize| {
        format!("UPDATE notes SET body = 'round {round} ' || id WHERE id > 100 AND id % 3 = {}", round % 3)
    };
    for round in 0..20 {
        // Their large values are not sent: they are taken from the copied rows.
        old[0].execute(&body(round)).await;
    }
    while replica.execute("SELECT to_regclass('public.notes') IS NULL").await == ["t"] {
        sleep(Duration::from_millis(50)).await;
    }
    until_equal(&daemon, &replica, &old[..1], &["notes"]).await;

    // Somebody damages it, and it is copied again.
    replica
        .execute(
            "UPDATE notes SET body = 'damaged' WHERE id = 5; DELETE FROM notes WHERE id = 7;
             INSERT INTO notes VALUES (-1, 'nobody wrote this', NULL)",
        )
        .await;
    let verified = daemon.ask(&["verify", "--table", "public.notes", "--format", "json"]);
    let report = &json_lines(&verified)[0]["tables"][0];
    let found = report["differences"].as_array().unwrap().iter();
    let mut found: Vec<String> = found.map(|one| format!("{} {}", one["kind"], one["key"])).collect();
    found.sort_unstable();
    let all = [r#""changed" [["id","5"]]"#, r#""extra" [["id","-1"]]"#, r#""missing" [["id","7"]]"#];
    assert!(!verified.status.success() && found == all, "{verified:?}");
    let whole = Watcher::start(&replica, "SELECT count(*) FROM notes", |count| count == "4000").await;
    for round in 0..3 {
        let asked = daemon.ask(&["recopy", "--table", "public.notes"]);
        assert!(asked.status.success(), "{asked:?}");
        if round == 1 {
            kill_in_a_copy(&mut daemon).await;
            daemon.until_ready().await;
        }
        for update in 0..10 {
            old[0].execute(&body(round * 10 + update)).await;
            // Keys move, and come back.
            old[0].execute("UPDATE notes SET id = id + 10000 WHERE id > 100 AND id % 100 = 3").await;
            old[0].execute("UPDATE notes SET id = id - 10000 WHERE id > 10000").await;
        }
        until_equal(&daemon, &replica, &old[..1], &["notes"]).await;
    }
    assert_eq!(whole.stop().await, ["4000"]);
    let refused = daemon.ask(&["recopy", "--table", "public.accounts"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("comes from several source tablets"), "{said}");

    // A column whose rows no stream describes.
    old[0].execute("ALTER TABLE notes ADD COLUMN kind text NOT NULL DEFAULT 'plain'").await;
    replica.execute("ALTER TABLE notes ADD COLUMN kind text").await;
    until_equal(&daemon, &replica, &old[..1], &["notes"]).await;

    assert!(tellers.stop().await > 0);
    until_equal(&daemon, &replica, old, &["accounts", "legs", "filler"]).await;
    assert!(auditor.stop().await > 0);

    // A third server joins while money moves from and to it: all of it is seen at one moment.
    for server in &servers {
        server.execute("DELETE FROM legs").await;
    }
    until_equal(&daemon, &replica, old, &["legs"]).await;
    let whole = format!("{},{}", 3 * ACCOUNTS, 3 * ACCOUNTS * BALANCE);
    let (wanted, two) = (whole.clone(), format!("{},", 2 * ACCOUNTS));
    let watcher =
        Watcher::start(&replica, "SELECT count(*) || ',' || coalesce(sum(balance), 0) FROM accounts", move |seen| {
            seen == whole || seen.starts_with(&two)
        })
        .await;
    let tellers = Tellers::start(&servers, 3);
    daemon.reconfigure(&into(&replica, &servers, "missing_tables = \"create\"\n"));
    for _ in 0..3 {
        daemon.kill();
        daemon.start();
        sleep(Duration::from_millis(900)).await;
    }
    daemon.until_ready().await;
    daemon
        .until_status("the third server is seen", |status| {
            let streams = status["streams"].as_array().unwrap();
            streams.len() == 3 && streams.iter().all(|stream| stream["state"] == "running")
        })
        .await;
    sleep(Duration::from_secs(1)).await;
    assert!(tellers.stop().await > 0);
    until_equal(&daemon, &replica, &servers, &["accounts", "legs"]).await;
    assert_eq!(watcher.stop().await.last(), Some(&wanted));
    let verified = daemon.ask(&["verify"]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
