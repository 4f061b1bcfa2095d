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
