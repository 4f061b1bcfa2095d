//! Tables whose rows have no key: bags of rows, compared three times.

use super::digest::{Digest, Side, Sums};
use super::pass::{Table, Take};
use super::run::{Events, Told, VerifyError};
use super::settle::Kind;
use super::{Difference, Event, Verdict};
use crate::limits::VERIFY_DIFFERENCES_MAX;
use crate::wal::Key;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// Readings, each at a moment of its own.
const READINGS: usize = 3;

/// How often each row of the ranges that differ is there, on each side.
struct Bags<'a> {
    sums: &'a Sums,
    ranges: &'a BTreeSet<usize>,
    rows: HashMap<Key, Counted>,
    told: Told<'a>,
}

/// One row's numbers.
#[derive(Clone, Copy, Default)]
struct Counted {
    source: i64,
    replica: i64,
}

impl Take for Bags<'_> {
    fn row(&mut self, side: Side, key: Key, digest: Digest) {
        if self.ranges.contains(&self.sums.range(digest.part)) {
            let counted = self.rows.entry(key).or_default();
            match side {
                Side::Source => counted.source += 1,
                Side::Replica => counted.replica += 1,
            }
        }
    }

    fn page(&mut self, side: Side, rows: u64) {
        self.told.rows(side, rows);
    }
}

/// How many more of a row the servers have than the replica had before or after their moment: negative where they have
/// fewer than it had at both. What came or went meanwhile lies between the two.
fn more(source: i64, before: i64, after: i64) -> i64 {
    (source - before.max(after)).max(0) + (source - before.min(after)).min(0)
}

/// Tells the rows of these ranges of which one side has more, the same way, in every reading.
pub(super) async fn narrow(
    table: &Table,
    sums: &Sums,
    ranges: &BTreeSet<usize>,
    events: &Events,
    total: Option<u64>,
    verdict: &mut Verdict,
) -> Result<(), VerifyError> {
    let mut differing: Option<HashMap<Key, i64>> = None;
    for reading in 1..=READINGS {
        let bags = || {
            let told = Told::new(events, &format!("comparing rows without a key, {reading} of {READINGS}"), total);
            Mutex::new(Bags { sums, ranges, rows: HashMap::new(), told })
        };
        let (before, now) = (bags(), bags());
        table.replica(table.world.safe()?, &before).await?;
        table.read(&now).await?;
        let rows = |bags: Mutex<Bags<'_>>| bags.into_inner().unwrap_or_else(PoisonError::into_inner).rows;
        let (before, mut now) = (rows(before), rows(now));
        before.keys().for_each(|key| {
            now.entry(key.clone()).or_default();
        });
        let counted = now.into_iter().map(|(key, Counted { source, replica })| {
            let before = before.get(&key).copied().unwrap_or_default().replica;
            (key, more(source, before, replica))
        });
        let same = |(key, more): &(Key, i64)| {
            *more != 0
                && differing.as_ref().is_none_or(|before| before.get(key).is_some_and(|b| b.signum() == more.signum()))
        };
        let now: HashMap<Key, i64> = counted.filter(same).collect();
        if now.is_empty() {
            return Ok(());
        }
        differing = Some(now);
    }
    for (key, more) in differing.unwrap_or_default() {
        for _ in 0..more.unsigned_abs() {
            verdict.differing += 1;
            if verdict.differing > VERIFY_DIFFERENCES_MAX as u64 {
                verdict.more = true;
                return Ok(());
            }
            let kind = if more > 0 { Kind::Missing } else { Kind::Extra };
            let difference = Difference { kind, key: table.named(&key), servers: Vec::new(), columns: Vec::new() };
            let _ = events.send(Ok(Event::Difference(difference))).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::more;

    #[test]
    fn what_came_or_went_meanwhile_is_no_difference() {
        for (source, before, after, expected) in
            [(5, 5, 5, 0), (5, 4, 6, 0), (5, 6, 4, 0), (6, 4, 5, 1), (3, 4, 6, -1), (0, 0, 2, 0), (2, 0, 0, 2)]
        {
            assert_eq!(more(source, before, after), expected, "{source} between {before} and {after}");
        }
    }
}
