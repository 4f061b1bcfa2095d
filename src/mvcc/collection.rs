//! Rule 5: which versions nobody can see any more.

use super::visibility::{Fate, Stamp, Truncations};
use crate::coordinator::ReadPoint;
use crate::planted::{Bug, planted};
use crate::wal::{HybridTime, TableId};

/// Which versions of one key may be dropped, by index, given that every reader's position and time lie at or above
/// `horizon`'s and that nothing will be committed at or below its time any more. `chain` holds the key's versions,
/// newest time first; the newest `keep_versions` of them stay in any case, unless the key is gone.
///
/// What lies below the newest version that every reader sees is seen by none. If that version is a delete, or removed
/// by a truncation that every reader sees, the key is gone: the version says no more than its absence does, and goes
/// with everything below it. (So a truncation is forgotten once the sweep has been past all that it removed.) What a copy
/// replaced goes in any case: it is no older version of the row, it has never been.
#[must_use]
pub fn collectable(
    table: TableId,
    chain: &[Stamp],
    horizon: ReadPoint,
    keep_versions: usize,
    truncations: &Truncations,
) -> Vec<usize> {
    let replaced = |index: &usize| truncations.is_replaced(table, &chain[*index], horizon);
    let (mut dropped, kept): (Vec<usize>, Vec<usize>) = (0..chain.len()).partition(replaced);
    let stamps = || kept.iter().map(|&index| &chain[index]);
    let fate = |stamp: &Stamp| truncations.fate(table, stamp, horizon);
    let everyone_sees = |s: &Stamp| s.time <= horizon.time && s.position <= horizon.position;
    // What is not shown yet settles nothing, and may be shown.
    let settled: Option<HybridTime> =
        stamps().find(|s| everyone_sees(s) && fate(s) != Fate::Superseded).map(|s| s.time);
    let place = |from: &dyn Fn(&Stamp) -> bool| stamps().position(from).unwrap_or(kept.len());
    let first = settled.map_or(kept.len(), |settled| {
        // Every version of the transaction at that time, seen by everyone and dead: then the key is gone for everyone.
        let mut of_settled = stamps().filter(|s| s.time == settled);
        let gone = of_settled.all(|s| everyone_sees(s) && (s.deleted || fate(s) != Fate::Counts));
        if gone { place(&|s| s.time <= settled) } else { place(&|s| s.time < settled).max(keep_versions) }
    });
    let first = if planted(Bug::CollectsTooMuch) { first.min(1) } else { first };
    dropped.extend(kept.iter().skip(first));
    dropped.sort_unstable();
    dropped
}

#[cfg(test)]
mod tests {
    use super::super::{Chain, Event, Offer, Truncation, TurnAt, history};
    use super::*;
    use crate::wal::{LogPosition, SourceTabletId};
    use proptest::prelude::*;

    const TABLE: TableId = TableId(1);

    #[derive(Clone, Debug)]
    struct World {
        chain: Vec<Stamp>,
        truncations: Vec<(SourceTabletId, Truncation)>,
    }

    impl World {
        fn known(&self) -> Truncations {
            let mut known = Truncations::default();
            for (stream, truncation) in &self.truncations {
                known.insert(TABLE, *stream, *truncation);
            }
            known
        }

        /// The rules said once more, in the slowest way: what a read point shows, as an index of the chain.
        fn shown(&self, at: ReadPoint) -> Option<usize> {
            let seen = |time, position| time <= at.time && position <= at.position;
            let hit = |s: &Stamp, copy: bool| {
                self.truncations.iter().any(|(stream, t)| {
                    *stream == s.stream
                        && t.time > s.time
                        && seen(t.time, t.position)
                        && (t.position == LogPosition(0)) == copy
                })
            };
            // A copied row is seen where its attempt began, or where it is shown.
            let begun = |s: &Stamp| {
                let attempt = Truncation { time: s.time, position: LogPosition(0) };
                s.position > LogPosition(0) || self.truncations.contains(&(s.stream, attempt))
            };
            let counting: Vec<usize> = (0..self.chain.len())
                .filter(|&i| seen(self.chain[i].time, self.chain[i].position) && !hit(&self.chain[i], true))
                .filter(|&i| begun(&self.chain[i]))
                .collect();
            let newest = counting.iter().map(|&i| self.chain[i].time).max()?;
            counting
                .into_iter()
                .filter(|&i| self.chain[i].time == newest && !self.chain[i].deleted && !hit(&self.chain[i], false))
                .min_by_key(|&i| self.chain[i].stream)
        }

        fn picked(&self, at: ReadPoint) -> Option<usize> {
            let known = self.known();
            let mut chain = Chain::new(TABLE, at, &known);
            let mut best = None;
            for (index, stamp) in self.chain.iter().enumerate() {
                match chain.offer(stamp) {
                    Offer::Best => best = Some(index),
                    Offer::Passed => {}
                    Offer::Settled => break,
                }
            }
            best.filter(|_| chain.shows_row())
        }
    }

    fn point(position: u64, time: u64) -> ReadPoint {
        ReadPoint { position: LogPosition(position), time: HybridTime::from_u64(time) }
    }

    prop_compose! {
        // Times 1 and 2 are attempts of a copy, at position 0; commits lie above.
        fn worlds()(
            stamps in prop::collection::vec((1..12_u64, 1..9_u64, 0..3_u32, prop::bool::ANY), 0..12),
            truncations in prop::collection::vec((2..12_u64, 1..9_u64, 0..3_u32), 0..4),
        ) -> World {
            let at = |time: u64, position: u64| LogPosition(if time <= 2 { 0 } else { position });
            let mut chain: Vec<Stamp> = stamps.into_iter().map(|(time, position, stream, deleted)| Stamp {
                time: HybridTime::from_u64(time),
                position: at(time, position),
                stream: SourceTabletId(stream),
                deleted: deleted && time > 2,
            }).collect();
            chain.sort_by_key(|s| (std::cmp::Reverse(s.time), s.stream));
            chain.dedup_by_key(|s| (s.time, s.stream));
            let truncations = truncations.into_iter().map(|(time, position, stream)| {
                let truncation = Truncation { time: HybridTime::from_u64(time), position: at(time, position) };
                (SourceTabletId(stream), truncation)
            }).collect();
            World { chain, truncations }
        }
    }

    #[test]
    fn a_removed_row_does_not_hide_another_streams_row_of_the_same_time() {
        let [first, second] = [0, 1].map(|stream| Stamp {
            time: HybridTime::from_u64(2),
            position: LogPosition(1),
            stream: SourceTabletId(stream),
            deleted: false,
        });
        let mut truncations = Truncations::default();
        let truncation = Truncation { time: HybridTime::from_u64(3), position: LogPosition(1) };
        truncations.insert(TABLE, first.stream, truncation);
        let events = history(TABLE, &[first, second], point(1, 3), &truncations);
        assert_eq!(events.first(), Some(&Event::Version(1)));
    }

    proptest! {
        #[test]
        fn a_chain_shows_what_the_rules_say(world in worlds(), position in 0..10_u64, time in 0..13_u64) {
            let at = point(position, time);
            prop_assert_eq!(world.picked(at), world.shown(at));
        }

        #[test]
        fn the_head_of_a_history_is_what_is_shown(world in worlds(), position in 0..10_u64, time in 0..13_u64) {
            let at = point(position, time);
            let events = history(TABLE, &world.chain, at, &world.known());
            let head = match events.first() {
                Some(Event::Version(index)) if !world.chain[*index].deleted => Some(*index),
                _ => None,
            };
            // With two streams in one transaction, one of which truncated its row, any live one may stand for it.
            if let Some(shown) = world.shown(at) {
                let head = head.expect("a shown row heads its history");
                prop_assert_eq!(world.chain[head].time, world.chain[shown].time);
            }
        }

        #[test]
        fn collection_changes_no_read_at_or_above_the_horizon(
            world in worlds(), horizon in (0..10_u64, 2..13_u64), above in (0..6_u64, 0..6_u64), keep in 0..4_usize,
        ) {
            // Nothing is committed at or below the horizon's time any more: all of that has been decided below it.
            let horizon_point = point(horizon.0, horizon.1);
            let mut world = world;
            for stamp in &mut world.chain {
                if stamp.time <= horizon_point.time { stamp.position = stamp.position.min(horizon_point.position); }
            }
            let dropped = collectable(TABLE, &world.chain, horizon_point, keep, &world.known());
            if world.truncations.is_empty() && world.shown(horizon_point).is_some() {
                prop_assert!(dropped.iter().all(|&index| index >= keep));
            }
            let at = point(horizon.0 + above.0, horizon.1 + above.1);
            let before = world.shown(at).map(|index| world.chain[index]);
            let mut index = 0;
            let mut after = world.clone();
            after.chain.retain(|_| { index += 1; !dropped.contains(&(index - 1)) });
            prop_assert_eq!(before, after.shown(at).map(|index| after.chain[index]));
        }
    }

    #[test]
    fn what_a_copy_replaced_is_collected_once_every_reader_sees_the_copy() {
        let stamp = |time, position| Stamp {
            time: HybridTime::from_u64(time),
            position: LogPosition(position),
            stream: SourceTabletId(1),
            deleted: false,
        };
        // Above the base, at it, an attempt that was cut off, and what was shown before.
        let chain = [stamp(30, 30), stamp(20, 0), stamp(15, 0), stamp(10, 10)];
        let mut truncations = Truncations::default();
        let turn = |position, time, base: Option<u64>| TurnAt {
            position: LogPosition(position),
            time: HybridTime::from_u64(time),
            base: base.map(HybridTime::from_u64),
        };
        truncations.turn(TABLE, SourceTabletId(1), turn(40, 40, Some(20)));
        let collected = |chain: &[Stamp], at, truncations: &Truncations| {
            let mut dropped = collectable(TABLE, chain, at, 9, truncations);
            dropped.sort_unstable();
            dropped
        };
        assert_eq!(collected(&chain, point(39, 39), &truncations), [0_usize; 0], "it may still be shown");
        assert_eq!(collected(&chain, point(40, 40), &truncations), [2, 3]);
        truncations.turn(TABLE, SourceTabletId(1), turn(50, 50, None));
        // What comes after it was hidden is seen once a copy is shown.
        let chain = [&[stamp(60, 60), stamp(55, 0)], &chain[..]].concat();
        assert_eq!(collected(&chain, point(70, 70), &truncations), [2, 3, 4, 5]);
        truncations.turn(TABLE, SourceTabletId(1), turn(65, 65, Some(55)));
        assert_eq!(history(TABLE, &chain, point(70, 70), &truncations), [Event::Version(0), Event::Version(1)]);
    }

    #[test]
    fn a_removed_row_does_not_uncover_another_streams_older_one() {
        let stamp = |time, stream| Stamp {
            time: HybridTime::from_u64(time),
            position: LogPosition(time),
            stream: SourceTabletId(stream),
            deleted: false,
        };
        let truncation = Truncation { time: HybridTime::from_u64(30), position: LogPosition(30) };
        let world =
            World { chain: vec![stamp(20, 2), stamp(10, 1)], truncations: vec![(SourceTabletId(2), truncation)] };
        assert_eq!(world.picked(point(29, 29)), Some(0));
        assert_eq!(world.picked(point(30, 30)), None);
        let events = history(TABLE, &world.chain, point(30, 30), &world.known());
        assert_eq!(events, [Event::Removed(truncation), Event::Version(0), Event::Version(1)]);
    }
}
