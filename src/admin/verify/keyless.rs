//! Tables whose rows have no key: bags of rows, compared three times.

use super::digest::Sums;
use super::pass::Table;
use super::run::{Events, Narrow, Told, VerifyError};
use super::settle::Kind;
use super::{Difference, Event, Verdict};
use crate::limits::VERIFY_DIFFERENCES_MAX;
use crate::wal::Key;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// Readings, each at a moment of its own: what is on its way in one has arrived in the next.
const READINGS: usize = 3;

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
        let told = Told::new(events, &format!("comparing rows without a key, {reading} of {READINGS}"), total);
        let take = Mutex::new(Narrow { sums, ranges, rows: HashMap::new(), told });
        table.read(&take).await?;
        let rows = take.into_inner().unwrap_or_else(PoisonError::into_inner).rows;
        let now = rows.into_iter().filter(|(_, (_, more))| *more != 0).map(|(key, (_, more))| (key, more));
        let same = |(key, more): &(Key, i64)| {
            differing.as_ref().is_none_or(|before| before.get(key).is_some_and(|b| b.signum() == more.signum()))
        };
        let now: HashMap<Key, i64> = now.filter(same).collect();
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
