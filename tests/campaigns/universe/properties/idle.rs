//! When nothing is left to do nothing is left: no transaction record, no provisional record.

use untorn::tablet::TabletStats;

/// What does not hold, if anything.
pub fn broken(transactions: usize, tablets: &[TabletStats]) -> Option<String> {
    if transactions > 0 {
        return Some(format!("idle: {transactions} transactions are not forgotten"));
    }
    let (number, stats) =
        tablets.iter().enumerate().find(|(_, s)| s.provisional_branches + s.provisional_records > 0)?;
    Some(format!(
        "idle: tablet {number} holds {} provisional records of {} branches",
        stats.provisional_records, stats.provisional_branches
    ))
}
