//! Money is neither made nor lost: the sum of all accounts is the same at every read point.

use super::Snapshot;
use crate::universe::history::ACCOUNTS;

/// What does not hold, if anything: `total` is what all accounts began with, or 0 while they have not all been opened.
pub fn broken(seen: &Snapshot, total: i64) -> Option<String> {
    let sum: i64 = seen.table(ACCOUNTS).map(|(_, value)| value[0].parse().unwrap_or(i64::MIN / 2)).sum();
    (sum != total).then(|| format!("bank: the accounts hold {sum}, they began with {total}"))
}
