//! What a race came to.

use serde::Serialize;
use std::fmt::Write;

/// One competitor's drain of one history.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Drain {
    /// The history.
    pub point: &'static str,
    /// Who.
    pub competitor: &'static str,
    /// Transactions of the history.
    pub transactions: u64,
    /// Rows that it changes.
    pub rows: u64,
    /// From the start of the competitor to its last transaction being visible.
    pub seconds: f64,
    /// Transactions a second.
    pub transactions_per_second: f64,
    /// Rows a second.
    pub rows_per_second: f64,
    /// CPU seconds of everything on the replica's side, untorn included, for a million rows.
    pub cpu_seconds_per_million_rows: f64,
    /// The most own memory that the applying processes had, together.
    pub peak_memory_bytes: u64,
    /// Whether the replica's rows are the source's, by count and hash. A time counts only then.
    pub equal: bool,
    /// How many times as fast as PostgreSQL's subscription with the same `synchronous_commit`; none for that itself.
    pub times_native: Option<f64>,
}

/// How long commits at the source took to be visible at the replica.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Latency {
    /// `latency`.
    pub point: &'static str,
    /// Who.
    pub competitor: &'static str,
    /// The load: half of what this competitor drained.
    pub rows_per_second: u64,
    /// Commits that were watched.
    pub commits: u64,
    /// Milliseconds from the answer to a commit until it was seen: the median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// A table of latencies; empty without any.
#[must_use]
pub fn latency_table(latencies: &[Latency]) -> String {
    let mut out = String::new();
    if !latencies.is_empty() {
        out = format!(
            "\n{:<8} {:<14} {:>10} {:>12} {:>9} {:>9} {:>9}\n",
            "point", "competitor", "commits", "rows/s", "p50 ms", "p99 ms", "max ms"
        );
    }
    for Latency { point, competitor, rows_per_second, commits, p50_ms, p99_ms, max_ms } in latencies {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{point:<8} {competitor:<14} {commits:>10} {rows_per_second:>12} {p50_ms:>9.1} {p99_ms:>9.1} {max_ms:>9.1}"
        );
    }
    out
}

/// A table of drains.
#[must_use]
pub fn table(drains: &[Drain]) -> String {
    let mut out = format!(
        "{:<8} {:<14} {:>10} {:>12} {:>9} {:>14} {:>9}  {}\n",
        "point", "competitor", "txn/s", "rows/s", "× native", "CPU s/M rows", "peak MiB", "equal"
    );
    for drain in drains {
        let times = drain.times_native.map_or_else(String::new, |times| format!("{times:.2}"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<8} {:<14} {:>10.0} {:>12.0} {:>9} {:>14.1} {:>9.1}  {}",
            drain.point,
            drain.competitor,
            drain.transactions_per_second,
            drain.rows_per_second,
            times,
            drain.cpu_seconds_per_million_rows,
            drain.peak_memory_bytes as f64 / f64::from(1 << 20),
            drain.equal
        );
    }
    out
}
