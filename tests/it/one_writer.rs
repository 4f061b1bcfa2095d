//! Two servers that write one key: without a common clock nothing orders them, so the second stops by name.

use crate::support::daemon::{Daemon, source_of};
use crate::support::postgres::Postgres;
use crate::support::tables::until_equal;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_second_of_two_servers_that_write_one_key_stops_by_name() {
    let servers = [Postgres::start().await, Postgres::start().await];
    for server in &servers {
        server
            .execute("CREATE TABLE t (id int PRIMARY KEY, body text); CREATE PUBLICATION untorn FOR ALL TABLES")
            .await;
    }
    let [a, b] = &servers;
    a.execute("INSERT INTO t VALUES (1, 'a'), (2, 'a')").await;
    let mut daemon = Daemon::new(&source_of(&servers));
    daemon.start();
    daemon.until_ready().await;
    let end = async |gid: &str| {
        for server in &servers {
            server.execute(&format!("COMMIT PREPARED '{gid}'")).await;
        }
    };
    // A row that moves from one to the other is no such key.
    b.execute("BEGIN; INSERT INTO t VALUES (1, 'moved'); PREPARE TRANSACTION 'moves'").await;
    a.execute("BEGIN; DELETE FROM t WHERE id = 1; PREPARE TRANSACTION 'moves'").await;
    end("moves").await;
    until_equal(&daemon, &servers, "public.t").await;

    for server in &servers {
        server.execute("BEGIN; INSERT INTO t VALUES (7, 'both'); PREPARE TRANSACTION 'both'").await;
    }
    end("both").await;
    let stopped = |status: &serde_json::Value| {
        let streams = status["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["state"] == "stopped").cloned()
    };
    // A stream stops at the next that it says to the replica tablet of the key.
    let mut said = 0;
    let stream = loop {
        if let Some(stream) = daemon.status().as_ref().and_then(stopped) {
            break stream;
        }
        said += 1;
        assert!(said < 200, "no stream stops: {}", daemon.log());
        a.execute(&format!("INSERT INTO t VALUES ({}, 'a')", 1000 + said)).await;
        b.execute(&format!("INSERT INTO t VALUES ({}, 'b')", 2000 + said)).await;
    };
    let [second, cause] = ["name", "cause"].map(|what| stream[what].as_str().unwrap().to_owned());
    let (first, server) = if second == "shard-a" { ("shard-b", b) } else { ("shard-a", a) };
    assert!(cause.contains(&format!("key (7) of public.t was written here and on {first}")), "{cause}");
    // The other goes on, and the row that it deletes lets the second go on as well.
    server.execute("DELETE FROM t WHERE id = 7").await;
    until_equal(&daemon, &servers, "public.t").await;
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
