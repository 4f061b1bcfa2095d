//! No later transaction before an earlier one: the numbers of every sequence are seen without a gap.

use super::Snapshot;
use crate::universe::history::SEQUENCE;
use std::collections::BTreeMap;

/// What does not hold, if anything.
pub fn broken(seen: &Snapshot) -> Option<String> {
    let mut sequences: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (id, _) in seen.table(SEQUENCE) {
        if let Some((sequence, number)) = id.split_once('.').filter(|(sequence, _)| *sequence != "head") {
            let (count, last) = sequences.entry(sequence).or_default();
            *count += 1;
            *last = number.parse::<u64>().unwrap_or(u64::MAX).max(*last);
        }
    }
    let (sequence, (count, last)) = sequences.into_iter().find(|(_, (count, last))| count != last)?;
    Some(format!("dense: {count} numbers of sequence {sequence} are seen, up to {last}"))
}
