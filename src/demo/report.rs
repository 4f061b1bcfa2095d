//! What the demo says at its end.

use super::history::Difference;
use super::progress::{Latency, Numbers};
use crate::admin::screen::grouped;
use serde::Serialize;
use std::fmt;

/// The last line of `demo --format json`. Field names are what scripts rely on.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Transactions that the source committed.
    pub transactions_committed: u64,
    /// Those that became visible, a second.
    pub transactions_per_second: f64,
    /// Their rows, a second.
    pub rows_per_second: f64,
    /// Snapshots that the auditor read.
    pub snapshots_read: u64,
    /// Those of them that were no state that the source ever had.
    pub torn_snapshots: u64,
    /// Versions that the source has and the replica lacks.
    pub lost_rows: u64,
    /// Versions that the replica has and the source lacks, or holds more than once.
    pub duplicated_rows: u64,
    /// From the source's commit until readers at `safe` see it.
    pub commit_to_visible_ms: Latency,
    /// Whether every row is the source's at the end.
    pub replica_equals_source: bool,
}

impl Report {
    /// The report of a run.
    #[must_use]
    pub fn new(numbers: &Numbers, difference: Difference, equal: bool) -> Self {
        let seconds = numbers.elapsed.as_secs_f64().max(f64::EPSILON);
        let rate = |count: u64| (count as f64 / seconds * 10.0).round() / 10.0;
        Self {
            transactions_committed: numbers.committed,
            transactions_per_second: rate(numbers.visible),
            rows_per_second: rate(numbers.visible_rows),
            snapshots_read: numbers.snapshots,
            torn_snapshots: numbers.torn,
            lost_rows: difference.lost,
            duplicated_rows: difference.duplicated,
            commit_to_visible_ms: numbers.latency,
            replica_equals_source: equal && difference.differing == 0,
        }
    }

    /// Whether the replica kept its promises.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.torn_snapshots == 0 && self.lost_rows == 0 && self.duplicated_rows == 0 && self.replica_equals_source
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p99, p999 } = self.commit_to_visible_ms;
        let equals = if self.replica_equals_source { "yes" } else { "NO" };
        writeln!(f, "transactions committed  {}", grouped(self.transactions_committed))?;
        let transactions = grouped(self.transactions_per_second.round() as u64);
        let rows = grouped(self.rows_per_second.round() as u64);
        writeln!(f, "a second                {transactions} transactions, {rows} rows")?;
        writeln!(f, "commit to visible       p50 {p50:.1} ms, p99 {p99:.1} ms, p999 {p999:.1} ms")?;
        writeln!(f, "snapshots read          {}", grouped(self.snapshots_read))?;
        writeln!(f, "torn snapshots          {}", grouped(self.torn_snapshots))?;
        writeln!(f, "lost rows               {}", grouped(self.lost_rows))?;
        writeln!(f, "duplicated rows         {}", grouped(self.duplicated_rows))?;
        write!(f, "replica equals source   {equals}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report() -> Report {
        let numbers = Numbers {
            elapsed: Duration::from_secs(2),
            committed: 20_001,
            visible: 20_000,
            visible_rows: 80_000,
            snapshots: 120,
            latency: Latency { p50: 21.5, p99: 60.25, p999: 80.0 },
            ..Numbers::default()
        };
        Report::new(&numbers, Difference::default(), true)
    }

    #[test]
    fn scripts_find_the_fields_that_they_rely_on() {
        let expected = "{\"transactions_committed\":20001,\"transactions_per_second\":10000.0,\"rows_per_second\":40000.0,\
            \"snapshots_read\":120,\"torn_snapshots\":0,\"lost_rows\":0,\"duplicated_rows\":0,\
            \"commit_to_visible_ms\":{\"p50\":21.5,\"p99\":60.25,\"p999\":80.0},\"replica_equals_source\":true}";
        assert_eq!(serde_json::to_string(&report()).unwrap(), expected);
    }

    #[test]
    fn one_broken_promise_is_enough() {
        assert!(report().is_whole());
        assert!(!Report { torn_snapshots: 1, ..report() }.is_whole());
        assert!(!Report { lost_rows: 1, ..report() }.is_whole());
        assert!(!Report { duplicated_rows: 1, ..report() }.is_whole());
        assert!(!Report { replica_equals_source: false, ..report() }.is_whole());
    }

    #[test]
    fn people_find_their_numbers() {
        let text = report().to_string();
        assert!(text.contains("transactions committed  20,001\n"), "{text}");
        assert!(text.contains("a second                10,000 transactions, 40,000 rows\n"), "{text}");
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
