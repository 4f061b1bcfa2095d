//! All or nothing: every row that a transaction marked is seen, or none.

use super::Snapshot;
use crate::universe::history::MARKERS;

/// What does not hold, if anything. Each marker says how many there are.
pub fn broken(seen: &Snapshot) -> Option<String> {
    seen.table(MARKERS).find_map(|(id, [number, of])| {
        let count = seen.markers.get(&number.parse().ok()?)?;
        (count.to_string() != *of)
            .then(|| format!("whole: of transaction {number} {count} rows of {of} are seen ({id})"))
    })
}
