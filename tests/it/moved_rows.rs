//! Rows whose key changes while their large value stays in TOAST: the server does not send it, and the new key may live
//! on another replica tablet.

use crate::support::daemon::{Daemon, source_of};
use crate::support::postgres::{Postgres, execute};
use crate::support::tables::until_equal;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// 100 kB of text that does not compress, in SQL.
const BODY: &str = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 3200))";

/// Moves rows of the first server from key to key until told to stop, in every way that a transaction can.
async fn move_rows(servers: &[String], stop: &AtomicBool, moved: &AtomicU64) {
    let mut rng = SmallRng::seed_from_u64(11);
    let mut sessions = Vec::new();
    for url in servers {
        let (session, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        sessions.push(session);
    }
    let [home, other] = &sessions[..] else { panic!("two servers") };
    let some = "(SELECT id FROM docs ORDER BY random() LIMIT 1)";
    let change = "SET id = nextval('ids')";
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match rng.random_range(0..6) {
            0 => execute(home, &format!("UPDATE docs {change} WHERE id = {some}")).await,
            // The value was written by the transaction itself; the note changes on the way.
            1 => {
                let sql = format!(
                    "BEGIN; INSERT INTO docs VALUES (-1, 'born', {BODY}); UPDATE docs SET note = 'raised' WHERE id = -1;
                     UPDATE docs {change} WHERE id = -1; UPDATE docs {change} WHERE id = currval('ids');
                     DELETE FROM docs WHERE id = (SELECT min(id) FROM docs); COMMIT"
                );
                execute(home, &sql).await
            }
            // Large enough to be streamed before it ends, and what it rolls back is never filled from.
            2 => {
                let sql = format!(
                    "BEGIN; INSERT INTO docs VALUES (-1, 'streamed', {BODY}), (-2, 'streamed', {BODY});
                     SAVEPOINT s; UPDATE docs SET id = -3, body = 'wrong' WHERE id = -1; ROLLBACK TO s;
                     SAVEPOINT s; UPDATE docs SET id = -4, note = 'kept' WHERE id = -1; RELEASE s;
                     UPDATE docs {change} WHERE id < 0; UPDATE docs {change} WHERE id = currval('ids');
                     DELETE FROM docs WHERE id IN (SELECT id FROM docs ORDER BY id LIMIT 2); COMMIT"
                );
                execute(home, &sql).await
            }
            // Every row at once.
            3 if number % 3 == 0 => execute(home, &format!("UPDATE docs {change}")).await,
            ways => {
                let gid = format!("move-{number}");
                let from = execute(home, some).await.pop().unwrap();
                let prepared = format!("UPDATE docs {change} WHERE id = {from}; PREPARE TRANSACTION '{gid}'");
                if ways == 4 {
                    let kept = rng.random_bool(0.7);
                    execute(home, &format!("BEGIN; {prepared}")).await;
                    execute(other, &format!("BEGIN; INSERT INTO legs VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'"))
                        .await;
                    let end = if kept { "COMMIT" } else { "ROLLBACK" };
                    execute(other, &format!("{end} PREPARED '{gid}'")).await;
                    execute(home, &format!("{end} PREPARED '{gid}'")).await
                } else {
                    // Rolled back here, and open elsewhere while the row moves on.
                    execute(other, &format!("BEGIN; INSERT INTO legs VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'"))
                        .await;
                    execute(home, &format!("BEGIN; UPDATE docs SET body = 'wrong' WHERE id = {from}; {prepared}"))
                        .await;
                    execute(home, &format!("ROLLBACK PREPARED '{gid}'")).await;
                    execute(home, &format!("UPDATE docs {change} WHERE id = {from}")).await;
                    sleep(Duration::from_millis(100)).await;
                    execute(other, &format!("ROLLBACK PREPARED '{gid}'")).await
                }
            }
        };
        moved.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_row_that_moves_keeps_what_the_server_does_not_send() {
    let servers = [Postgres::start_with(&["logical_decoding_work_mem=64kB"]).await, Postgres::start().await];
    let tables = "CREATE TABLE legs (gid text PRIMARY KEY);
        CREATE TABLE docs (id int PRIMARY KEY, note text, body text); ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
        CREATE SEQUENCE ids START 1000; CREATE PUBLICATION untorn FOR ALL TABLES";
    for server in &servers {
        server.execute(tables).await;
    }
    servers[0].execute(&format!("INSERT INTO docs SELECT n, 'old', {BODY} || n FROM generate_series(1, 20) n")).await;

    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let urls: Vec<String> = servers.iter().map(|server| server.url("postgres")).collect();
    let mover = tokio::spawn({
        let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
        async move { move_rows(&urls, &stop, &moved).await }
    });
    let mut daemon = Daemon::new(&source_of(&servers));
    daemon.start();
    daemon.until_ready().await;
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..8 {
        let seen = moved.load(Ordering::Relaxed);
        daemon.until("rows move", || (moved.load(Ordering::Relaxed) > seen + 8).then_some(())).await;
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
        daemon.kill();
        daemon.start();
    }
    daemon.until_ready().await;
    stop.store(true, Ordering::Relaxed);
    mover.await.unwrap();
    for table in ["public.docs", "public.legs"] {
        until_equal(&daemon, &servers, table).await;
    }
    eprintln!("{} transactions", moved.load(Ordering::Relaxed));
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
