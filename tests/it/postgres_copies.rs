//! The life of tables and servers on a live installation: money moves by two-phase commit while a populated table is added
//! to the publication, copied again, given a column and renamed, and a third server joins; the daemon is killed in each.

use crate::postgres_e2e::{ACCOUNTS, BALANCE, Tellers, audit, bank};
use crate::support::daemon::{Daemon, source_of};
use crate::support::postgres::Postgres;
use crate::support::tables::until_equal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::sleep;

async fn on_all(servers: &[Postgres], sql: &str) {
    for server in servers {
        server.execute(sql).await;
    }
}

/// Kills the daemon while a table is being copied, or a moment later, and starts it again.
async fn kill_in_a_copy(daemon: &mut Daemon) {
    daemon
        .until_status("a table is copied again", |status| {
            let streams = status["streams"].as_array().unwrap();
            streams.iter().any(|stream| stream["copy"]["state"] != "done")
        })
        .await;
    daemon.kill();
    daemon.start();
}

/// What `scan` shows of the accounts: how many, and their sum.
fn accounts(daemon: &Daemon, at: &str) -> Option<(i64, i64)> {
    let rows = daemon.scan("public.accounts", at, "csv").ok()?;
    let balances: Vec<i64> = rows.lines().map(|line| line.split(',').nth(1).unwrap().parse().unwrap()).collect();
    Some((balances.len() as i64, balances.iter().sum()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tables_and_servers_come_and_go_while_money_moves() {
    let servers = bank(3, 5_000).await;
    let (old, _) = servers.split_at(2);
    on_all(&servers, "DROP PUBLICATION untorn; CREATE PUBLICATION untorn FOR TABLE accounts, legs").await;
    let tellers = Tellers::start(old, 2);
    let mut daemon = Daemon::new(&source_of(old));
    daemon.start();
    daemon.until_ready().await;
    assert!(daemon.scan("public.filler", "safe", "csv").unwrap_err().contains("no table"));

    // A populated table is added, on one server after the other, and the daemon is killed meanwhile.
    for server in old {
        server.execute("ALTER PUBLICATION untorn ADD TABLE filler").await;
        kill_in_a_copy(&mut daemon).await;
        server
            .execute("UPDATE filler SET body = 'changed' WHERE id % 7 = 0; DELETE FROM filler WHERE id % 11 = 0")
            .await;
        audit(&daemon, old.len());
    }
    until_equal(&daemon, old, "public.filler").await;

    // What is shown is copied again; the rest goes on, and every scan is whole.
    let safe = daemon.safe_time();
    let asked = daemon.ask(&["recopy", "--table", "public.accounts", "--format", "json"]);
    assert_eq!(String::from_utf8_lossy(&asked.stdout).lines().count(), 2, "{asked:?}");
    assert!(!daemon.ask(&["recopy", "--tablet", "nowhere"]).status.success());
    kill_in_a_copy(&mut daemon).await;
    daemon.until_ready().await;
    assert!(audit(&daemon, old.len()) > 0);
    assert!(daemon.safe_time().parse::<u64>().unwrap() > safe.parse::<u64>().unwrap());
    assert!(daemon.log().contains("an operator asks for new copies"));

    // A column with a default, which no stream says of the rows that are there, and a new name for the table.
    on_all(old, "ALTER TABLE filler ADD COLUMN note text NOT NULL DEFAULT 'as ever'").await;
    until_equal(&daemon, old, "public.filler").await;
    old[0].execute("ALTER TABLE filler RENAME TO stuffing").await;
    old[0].execute("UPDATE stuffing SET body = 'renamed' WHERE id % 13 = 0").await;
    kill_in_a_copy(&mut daemon).await;
    until_equal(&daemon, &old[..1], "public.stuffing").await;
    old[1].execute("ALTER TABLE filler RENAME TO stuffing").await;
    until_equal(&daemon, old, "public.stuffing").await;
    assert_eq!(daemon.scan("public.filler", "safe", "csv").unwrap(), "");
    let moved = tellers.stop().await;
    assert!(moved > 0);

    // The next tellers begin to count anew.
    on_all(&servers, "DELETE FROM legs").await;
    until_equal(&daemon, old, "public.legs").await;

    // A third server joins while money moves from and to it: from the moment it is seen, every scan is whole.
    let tellers = Tellers::start(&servers, 3);
    daemon.reconfigure(&source_of(&servers));
    daemon.kill();
    daemon.start();
    for _ in 0..2 {
        sleep(Duration::from_millis(700)).await;
        daemon.kill();
        daemon.start();
    }
    daemon
        .until("the third server is seen", || {
            let (count, sum) = accounts(&daemon, "safe")?;
            assert!([2 * ACCOUNTS, 3 * ACCOUNTS].contains(&count), "{count} accounts");
            if count == 3 * ACCOUNTS {
                assert_eq!(sum, 3 * ACCOUNTS * BALANCE, "a torn scan when the third server joins");
            }
            (count == 3 * ACCOUNTS).then_some(())
        })
        .await;
    for _ in 0..10 {
        audit(&daemon, servers.len());
    }
    daemon.until_ready().await;

    // A slot is lost while money goes on moving: its stream stops and says the way back. On it no scan lacks its part.
    daemon.kill();
    while servers[1].execute("SELECT count(*) FROM pg_replication_slots").await != ["0"] {
        servers[1]
            .execute("SELECT pg_drop_replication_slot('shard_b') FROM pg_replication_slots WHERE NOT active")
            .await;
    }
    daemon.start();
    let of_b = |status: &Value| status["streams"].as_array().unwrap()[1].clone();
    let stopped = daemon.until_status("the stream stops by name", |status| of_b(status)["state"] == "stopped").await;
    assert!(of_b(&stopped)["cause"].as_str().unwrap().contains("untorn recopy --tablet shard-b"), "{stopped}");
    sleep(Duration::from_millis(500)).await;
    assert!(daemon.ask(&["recopy", "--tablet", "shard-b"]).status.success());
    let safe_times = std::sync::Mutex::new(BTreeSet::new());
    let status = |status: &Value| {
        audit(&daemon, servers.len());
        safe_times.lock().unwrap().extend(status["safe_time"].as_str().map(str::to_owned));
        let all = status["streams"].as_array().unwrap();
        all.iter().all(|stream| stream["state"] == "running" && stream["cause"].is_null())
    };
    daemon.until_status("the stream takes part again", status).await;
    // Nor does one at a time that is past: without that part it is refused, and says so.
    let safe_times = safe_times.into_inner().unwrap();
    let refused = |time: &&String| match daemon.scan("public.accounts", time, "csv") {
        Ok(_) => {
            assert_eq!(accounts(&daemon, time), Some((3 * ACCOUNTS, 3 * ACCOUNTS * BALANCE)), "torn at {time}");
            false
        }
        Err(error) => {
            assert!(error.contains("shard-b was joining anew"), "{error}");
            true
        }
    };
    assert!(safe_times.iter().filter(refused).count() > 0, "{safe_times:?}");
    assert!(audit(&daemon, servers.len()) > 0);
    assert!(tellers.stop().await > 0);
    for table in ["public.accounts", "public.legs"] {
        until_equal(&daemon, &servers, table).await;
    }

    // It leaves: its rows are not seen any more, and nobody waits for it.
    daemon.reconfigure(&source_of(old));
    let checked = daemon.configured(&["check", "--connect"]);
    let told = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && told.contains("\"shard-c\", which is not named here"), "{checked:?}");
    assert!(!told.contains("\"shard-b\", which"), "{told}");
    daemon.kill();
    daemon.start();
    for table in ["public.accounts", "public.stuffing"] {
        until_equal(&daemon, old, table).await;
    }
    let status = daemon.until_status("nothing waits", |s| s["transactions"]["waiting_to_commit"] == 0).await;
    assert_eq!(status["streams"].as_array().unwrap().len(), 2);
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
