//! A replica's tables beside the servers'.

use super::daemon::Daemon;
use super::postgres::Postgres;
use futures::TryStreamExt;

/// A table's rows as COPY writes them, of all servers together, sorted.
pub async fn source_rows(servers: &[Postgres], table: &str) -> Vec<String> {
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

/// Whether the replica's table shows these rows at a read point.
pub fn shows(daemon: &Daemon, table: &str, at: &str, expected: &[String]) -> bool {
    let Ok(rows) = daemon.scan(table, at, "csv") else { return false };
    let mut rows: Vec<&str> = rows.lines().collect();
    rows.sort_unstable();
    rows == expected
}

/// Waits until the replica's table is what the servers hold, at `safe` and at `latest`.
pub async fn until_equal(daemon: &Daemon, servers: &[Postgres], table: &str) {
    let expected = source_rows(servers, table).await;
    for at in ["safe", "latest"] {
        let what = format!("{table} equals the servers' at {at}");
        daemon.until(&what, || shows(daemon, table, at, &expected).then_some(())).await;
    }
}
