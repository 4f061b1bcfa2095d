//! Dropping versions that no reader can see any more: a sweep through all keys, a little with every apply. Once it has
//! been through all of them, truncations that no version lies below any more are forgotten.
//!
//! The horizon is the safe point of `keep_age` ago, so that the newest one never lies below it: while a source is idle the log
//! goes on, and that point stays.
//! Readers below it are refused from the moment it rises ([`TabletError::TooOld`]), and only then is anything dropped.

use super::apply::Step;
use super::state::State;
use crate::coordinator::ReadPoint;
use crate::mvcc::{Stamp, Truncation, collectable};
use crate::tablet::TabletError;
use crate::tablet::format::{StoredVersion, decode, encode};
use crate::tablet::keys::{self, Kind, VersionKey};
use crate::tablet::store::{Space, Store};
use crate::wal::{HybridTime, LogPosition, SourceTabletId, TableId};
use std::collections::{BTreeMap, VecDeque};

/// Versions looked at for each version written. Above 1, so that the sweep is faster than what it sweeps up.
const LOOKED_AT_FOR_EACH: usize = 2;
/// Newer versions of a key that are stepped over one by one before the ones below the horizon are searched for.
const STEPS_BEFORE_SEARCH: usize = 16;
/// How many points between now and the horizon are remembered: the horizon rises in steps of `keep_age` by this.
const POINTS: u64 = 64;

/// How far the sweep is.
#[derive(Default, Debug)]
pub(super) struct Collection {
    /// Where it goes on; empty is the start.
    cursor: Vec<u8>,
    /// The round that it is in.
    round: Round,
    /// Safe points that were told; rising.
    points: VecDeque<ReadPoint>,
}

/// One way of the sweep through all keys.
#[derive(Default, Debug)]
struct Round {
    /// The horizon when it began.
    horizon: Option<ReadPoint>,
    /// The oldest version that it left, by table and stream.
    oldest: BTreeMap<(TableId, SourceTabletId), HybridTime>,
}

impl Round {
    /// Whether nothing is left that a truncation removes, and nothing will come: what lies at or below the horizon was
    /// decided before the round began.
    fn has_done_away_with(&self, table: TableId, stream: SourceTabletId, truncation: Truncation) -> bool {
        // What an earlier format's copy brought is known by where its attempt began.
        let attempt = truncation.position == LogPosition(0);
        let settled =
            |horizon: ReadPoint| !attempt && truncation.time <= horizon.time && truncation.position <= horizon.position;
        let left = self.oldest.get(&(table, stream));
        self.horizon.is_some_and(settled) && left.is_none_or(|oldest| *oldest >= truncation.time)
    }
}

/// The versions of one key, as far as the sweep needs them.
#[derive(Default)]
struct KeyVersions {
    table: TableId,
    row: Vec<u8>,
    stamps: Vec<Stamp>,
}

impl<S: Store> State<S> {
    /// Raises the horizon if it is time, and sweeps on; `written` versions were written since the last call.
    pub(super) fn collect(&mut self, safe: Option<ReadPoint>, written: usize) -> Result<(), TabletError> {
        let Some(keep_age) = self.options.keep_age.filter(|_| self.heard.safe_time > HybridTime::MIN) else {
            return Ok(());
        };
        let keep_micros = u64::try_from(keep_age.as_micros()).unwrap_or(u64::MAX);
        let now = self.heard.safe_time.micros();
        let points = &mut self.collection.points;
        let is_news = |safe: &ReadPoint| {
            let apart = |last: &ReadPoint| safe.time.micros().saturating_sub(last.time.micros());
            points.back().is_none_or(|last| apart(last) > keep_micros / POINTS)
        };
        points.extend(safe.filter(is_news));
        let oldest = HybridTime::from_micros(now.saturating_sub(keep_micros));
        let mut horizon = self.shared.kept();
        while let Some(&point) = points.front().filter(|point| point.time <= oldest) {
            horizon = ReadPoint { position: point.position.max(horizon.position), time: point.time.max(horizon.time) };
            points.pop_front();
        }
        let mut step = Step::default();
        if horizon != self.shared.kept() {
            self.shared.keep_from(horizon);
            step.batch.put(Space::Undecided, Kind::Horizon.only(), encode(&(horizon.position, horizon.time))?);
        }
        let mut forgotten = Vec::new();
        if horizon.time > HybridTime::MIN
            && written > 0
            && self.sweep(&mut step, horizon, written * LOOKED_AT_FOR_EACH)?
        {
            let round = std::mem::take(&mut self.collection.round);
            let truncations = self.shared.truncations();
            forgotten
                .extend(truncations.iter().filter(|&(table, stream, t)| round.has_done_away_with(table, stream, t)));
        }
        for &(table, stream, truncation) in &forgotten {
            step.batch.delete(Space::Undecided, keys::truncation(table, stream, truncation));
        }
        self.finish(&mut step)?;
        for (table, stream, truncation) in forgotten {
            self.shared.forget_truncation(table, stream, truncation);
        }
        Ok(())
    }

    /// Sweeps on; whether it has come to the end.
    fn sweep(&mut self, step: &mut Step, horizon: ReadPoint, budget: usize) -> Result<bool, TabletError> {
        self.collection.round.horizon.get_or_insert(horizon);
        let (start, below) = Kind::Version.all();
        let store = self.store.clone();
        let steps_before_search = STEPS_BEFORE_SEARCH.max(self.options.keep_versions);
        let mut from =
            if self.collection.cursor.is_empty() { start } else { std::mem::take(&mut self.collection.cursor) };
        let mut of = KeyVersions::default();
        let mut looked_at = 0;
        'search: loop {
            for entry in store.scan(Space::Versions, &from, &below) {
                let (key, value) = entry?;
                let parsed = VersionKey::parse(key.as_ref())
                    .ok_or_else(|| TabletError::Poisoned("a version's key is damaged".into()))?;
                if (parsed.table, parsed.row) != (of.table, &of.row[..]) {
                    self.drop_versions(step, &of, horizon);
                    if looked_at >= budget {
                        self.collection.cursor = key.as_ref().to_vec();
                        return Ok(false);
                    }
                    of = KeyVersions { table: parsed.table, row: parsed.row.to_vec(), stamps: Vec::new() };
                }
                looked_at += 1;
                let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
                let (time, stream, deleted) = (parsed.time, parsed.stream, version.row.is_none());
                of.stamps.push(Stamp { time, position: version.position, stream, deleted });
                if time > horizon.time && of.stamps.len() == steps_before_search {
                    from = keys::version(of.table, &of.row, horizon.time, SourceTabletId(0));
                    continue 'search;
                }
            }
            self.drop_versions(step, &of, horizon);
            return Ok(true);
        }
    }

    fn drop_versions(&mut self, step: &mut Step, of: &KeyVersions, horizon: ReadPoint) {
        let truncations = self.shared.truncations();
        // A delete above the base of a copy hides a row of it that may still come.
        let copying = self.copying.iter().any(|((table, _), copying)| *table == of.table && !copying.complete);
        let dropped = if copying {
            Vec::new()
        } else {
            collectable(of.table, &of.stamps, horizon, self.options.keep_versions, &truncations)
        };
        let mut dropped = dropped.into_iter();
        let mut next = dropped.next();
        for (index, stamp) in of.stamps.iter().enumerate() {
            if next == Some(index) {
                step.batch.delete(Space::Versions, keys::version(of.table, &of.row, stamp.time, stamp.stream));
                next = dropped.next();
            } else if !truncations.is_empty() {
                let oldest = self.collection.round.oldest.entry((of.table, stamp.stream)).or_insert(stamp.time);
                *oldest = stamp.time.min(*oldest);
            }
        }
    }
}
