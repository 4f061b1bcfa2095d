//! A replica's tables beside the servers'.

use super::daemon::Daemon;
use super::postgres::Postgres;
use futures::TryStreamExt;

/// A table's rows as COPY writes them, of all servers together, sorted.
async fn source_rows(servers: &[Postgres], table: &str) -> Vec<String> {
    let mut rows = Vec::new();
    for server in servers {
        let session = server.connect().await;
        let copy = session.copy_out(&format!("COPY {table} TO STDOUT (FORMAT csv)")).await.expect("a copy begins");
        let pieces: Vec<_> = copy.try_collect().await.expect("a copy ends");
        let text = String::from_utf8(pieces.concat()).expect("UTF-8");
        rows.extend(text.lines().map(str::to_owned));
    }
    rows.sort_unstable();
    rows
}

/// Waits until the replica's table is what the servers hold, at `safe` and at `latest`.
pub async fn until_equal(daemon: &Daemon, servers: &[Postgres], table: &str) {
    let expected = source_rows(servers, table).await;
    for at in ["safe", "latest"] {
        daemon
            .until(&format!("{table} equals the servers' at {at}"), || {
                let rows = daemon.scan(table, at, "csv").ok()?;
                let mut rows: Vec<&str> = rows.lines().collect();
                rows.sort_unstable();
                (rows == expected).then_some(())
            })
            .await;
    }
}
