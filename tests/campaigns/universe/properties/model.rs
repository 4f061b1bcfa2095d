//! The oracle: a read of the replica equals the source's history after exactly the transactions that it shows, row for
//! row; and those are a prefix of that history, in the sense that the kind of read promises.

use super::Snapshot;
use crate::universe::history::{History, MARKERS, Number, Parts};
use std::collections::BTreeSet;
use untorn::wal::HybridTime;

/// What a read promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promised {
    /// Exactly what the source had committed at this time.
    AtTime(HybridTime),
    /// A consistent cut: whoever is seen, everyone before it in any source tablet's order is.
    Cut,
    /// Whole transactions, and of each key no later write without the earlier ones.
    KeysInOrder,
    /// Whole transactions.
    Whole,
}

/// What does not hold, if anything.
pub fn broken(seen: &Snapshot, history: &History, promised: Promised, parts: &Parts) -> Option<String> {
    let visible = seen.visible();
    if let Some(number) = visible.iter().find(|n| !history.txns.get(**n as usize).is_some_and(|txn| txn.committed)) {
        return Some(format!("model: transaction {number} is seen, and was never committed"));
    }
    let markers = |number: Number| {
        let markers = history.txns[number as usize].markers.iter();
        markers.filter(|(server, _)| parts.has(**server, MARKERS)).map(|(_, count)| *count).sum::<u32>()
    };
    if let Some(number) = visible.iter().find(|number| seen.markers[*number] != markers(**number)) {
        let markers = markers(*number);
        return Some(format!("model: of transaction {number} {} of {markers} rows are seen", seen.markers[number]));
    }
    let order = match promised {
        Promised::AtTime(time) => at_time(history, &visible, time),
        Promised::Cut => history.hole(&visible, parts).map(|(missing, inside, server)| {
            format!("model: transaction {inside} is seen without {missing}, which stands before it on server {server}")
        }),
        Promised::KeysInOrder => history.overtaken(&visible, parts).map(|(missing, inside)| {
            format!("model: transaction {inside} is seen without {missing}, which wrote one of its keys before it")
        }),
        Promised::Whole => None,
    };
    order.or_else(|| rows(seen, history, &visible, parts))
}

fn at_time(history: &History, visible: &BTreeSet<Number>, time: HybridTime) -> Option<String> {
    let differs = history
        .txns
        .iter()
        .enumerate()
        .find(|(number, txn)| (txn.committed && txn.time <= time) != visible.contains(&(*number as Number)))?;
    let (number, txn) = differs;
    let seen = if visible.contains(&(number as Number)) { "seen" } else { "not seen" };
    Some(format!("model: transaction {number}, of {}, is {seen} at {time}", txn.time))
}

fn rows(seen: &Snapshot, history: &History, visible: &BTreeSet<Number>, parts: &Parts) -> Option<String> {
    let mut expected = 0;
    for (key, value) in history.rows_after(visible).filter(|(key, _)| parts.shows(key)) {
        let shown = seen.rows.get(key);
        if shown != Some(value) {
            return Some(format!("model: {key:?} reads {shown:?} instead of {value:?}"));
        }
        expected += 1;
    }
    if seen.rows.len() == expected {
        return None;
    }
    let there: BTreeSet<_> = history.rows_after(visible).map(|(key, _)| key).filter(|key| parts.shows(key)).collect();
    let more: Vec<_> = seen.rows.keys().filter(|key| !there.contains(key)).collect();
    let first = &more[..more.len().min(6)];
    Some(format!("model: {first:?} and in all {} are gone there, or not shown: {parts:?}", more.len()))
}
