//! Rules 1 to 4: which version of a key a read point shows.

use crate::coordinator::ReadPoint;
use crate::planted::{Bug, planted};
use crate::wal::{HybridTime, LogPosition, SourceTabletId, TableId};
use std::collections::BTreeMap;

/// A version without its key and row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The commit's hybrid time; for a copied row the base of its copy.
    pub time: HybridTime,
    /// The decision's log position; 0 for a copied row.
    pub position: LogPosition,
    /// The stream that wrote it.
    pub stream: SourceTabletId,
    /// Whether it is a delete.
    pub deleted: bool,
}

impl Stamp {
    /// Whether it is a row of the copy with this base, or lies above it.
    #[must_use]
    pub fn is_of_copy(&self, base: HybridTime) -> bool {
        if self.position > LogPosition(0) {
            return self.time > base && !planted(Bug::CopiedRowsAlone);
        }
        self.time == base || (planted(Bug::OldCopyStays) && self.time < base)
    }
}

/// Where a stream emptied a table, or where a new attempt of a copy began (position 0).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Truncation {
    /// Versions of that stream below this time are concerned, those at it are not.
    pub time: HybridTime,
    /// The decision's log position; 0 for the start of a copy's attempt.
    pub position: LogPosition,
}

/// From a place and time on, which of a stream's versions of a table count (see [`crate::coordinator::Turn`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TurnAt {
    /// The log position.
    pub position: LogPosition,
    /// The hybrid time.
    pub time: HybridTime,
    /// The base of the copy that is shown: its rows, and what lies above it. `None`: nothing.
    pub base: Option<HybridTime>,
}

impl TurnAt {
    fn counts(&self, stamp: &Stamp) -> bool {
        self.base.is_some_and(|base| stamp.is_of_copy(base))
    }

    /// What lies below counts no more, whichever turn follows: bases rise above every turn before them.
    fn below(&self) -> HybridTime {
        self.base.unwrap_or(self.time)
    }
}

fn sees(at: ReadPoint, time: HybridTime, position: LogPosition) -> bool {
    time <= at.time && (position <= at.position || planted(Bug::ReadIgnoresPosition))
}

/// What truncations make of a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing.
    Counts,
    /// Removed by this truncation, the first above it.
    Removed(Truncation),
    /// Replaced by a newer copy, or not shown yet, or no longer: as if it had never been.
    Superseded,
}

/// Every truncation and turn that a tablet knows, by table and stream.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Truncations {
    by_origin: BTreeMap<(TableId, SourceTabletId), Vec<Truncation>>,
    /// Rising in position and time.
    turns: BTreeMap<(TableId, SourceTabletId), Vec<TurnAt>>,
}

impl Truncations {
    /// Adds one; adding it again changes nothing.
    pub fn insert(&mut self, table: TableId, stream: SourceTabletId, truncation: Truncation) {
        let of_origin = self.by_origin.entry((table, stream)).or_default();
        if let Err(place) = of_origin.binary_search(&truncation) {
            of_origin.insert(place, truncation);
        }
    }

    /// Forgets one.
    pub fn remove(&mut self, table: TableId, stream: SourceTabletId, truncation: Truncation) {
        if let Some(of_origin) = self.by_origin.get_mut(&(table, stream)) {
            of_origin.retain(|known| *known != truncation);
            if of_origin.is_empty() {
                self.by_origin.remove(&(table, stream));
            }
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_origin.is_empty()
    }

    /// Every one, by table and stream, times rising.
    pub fn iter(&self) -> impl Iterator<Item = (TableId, SourceTabletId, Truncation)> + '_ {
        self.by_origin.iter().flat_map(|(&(table, stream), all)| all.iter().map(move |t| (table, stream, *t)))
    }

    /// Adds a turn; adding it again changes nothing.
    pub fn turn(&mut self, table: TableId, stream: SourceTabletId, turn: TurnAt) {
        let turns = self.turns.entry((table, stream)).or_default();
        let place = turns.partition_point(|known| (known.position, known.time) < (turn.position, turn.time));
        match turns.get_mut(place).filter(|known| (known.position, known.time) == (turn.position, turn.time)) {
            Some(known) => *known = turn,
            None => turns.insert(place, turn),
        }
    }

    /// Every turn, by table and stream, oldest first.
    pub fn turns(&self) -> impl Iterator<Item = (TableId, SourceTabletId, TurnAt)> + '_ {
        self.turns.iter().flat_map(|(&(table, stream), turns)| turns.iter().map(move |turn| (table, stream, *turn)))
    }

    /// Whether what is seen of the table changed after this time, at or below this place in the log.
    #[must_use]
    pub fn turned_since(&self, table: TableId, stream: SourceTabletId, time: HybridTime, through: LogPosition) -> bool {
        let turns = self.turns.get(&(table, stream)).map_or(&[][..], Vec::as_slice);
        turns.iter().any(|turn| turn.position <= through && time < turn.time)
    }

    /// The last turn that a reader sees.
    fn turn_at(&self, table: TableId, stream: SourceTabletId, at: ReadPoint) -> Option<&TurnAt> {
        let turns = self.turns.get(&(table, stream))?;
        turns.iter().rev().find(|turn| sees(at, turn.time, turn.position))
    }

    /// Whether nothing of what the stream brings of the table is seen now: until a copy is shown.
    #[must_use]
    pub fn is_hidden(&self, table: TableId, stream: SourceTabletId) -> bool {
        self.turns.get(&(table, stream)).and_then(|turns| turns.last()).is_some_and(|turn| turn.base.is_none())
    }

    /// Whether a copy with this base is shown already, or never will be, because what is seen of the table changed after it
    /// began.
    #[must_use]
    pub fn is_past(&self, table: TableId, stream: SourceTabletId, base: HybridTime) -> bool {
        self.turns.get(&(table, stream)).and_then(|turns| turns.last()).is_some_and(|turn| turn.below() >= base)
    }

    /// Whether no reader at or above `horizon` will ever see this version, because a copy took its place, or its stream or
    /// table left.
    #[must_use]
    pub fn is_replaced(&self, table: TableId, stamp: &Stamp, horizon: ReadPoint) -> bool {
        let attempts = self.by_origin.get(&(table, stamp.stream)).map_or(&[][..], Vec::as_slice);
        attempts
            .iter()
            .any(|t| t.position == LogPosition(0) && stamp.time < t.time && sees(horizon, t.time, t.position))
            || self.turn_at(table, stamp.stream, horizon).is_some_and(|turn| stamp.time < turn.below())
    }

    /// What a reader at `at` makes of a version.
    #[must_use]
    pub fn fate(&self, table: TableId, stamp: &Stamp, at: ReadPoint) -> Fate {
        match self.turn_at(table, stamp.stream, at) {
            Some(turn) if !turn.counts(stamp) => return Fate::Superseded,
            Some(_) => {}
            // Rows of a copy that is not shown. (What an earlier format's attempt brought is.)
            None if stamp.position == LogPosition(0) => {
                let attempt = Truncation { time: stamp.time, position: LogPosition(0) };
                let attempts = self.by_origin.get(&(table, stamp.stream));
                if attempts.is_none_or(|attempts| attempts.binary_search(&attempt).is_err()) {
                    return Fate::Superseded;
                }
            }
            None => {}
        }
        self.removed(table, stamp, at)
    }

    /// What truncations alone make of it.
    #[must_use]
    pub fn removed(&self, table: TableId, stamp: &Stamp, at: ReadPoint) -> Fate {
        if self.by_origin.is_empty() {
            return Fate::Counts;
        }
        let of_origin = if planted(Bug::TruncatesAllStreams) {
            self.by_origin.iter().find(|((of, _), _)| *of == table).map(|(_, truncations)| truncations)
        } else {
            self.by_origin.get(&(table, stamp.stream))
        };
        let of_origin = of_origin.map_or(&[][..], Vec::as_slice);
        let above = of_origin.partition_point(|truncation| truncation.time <= stamp.time);
        let mut fate = Fate::Counts;
        for truncation in of_origin.iter().skip(above).filter(|t| sees(at, t.time, t.position)) {
            if truncation.position == LogPosition(0) {
                return Fate::Superseded;
            }
            if fate == Fate::Counts {
                fate = Fate::Removed(*truncation);
            }
        }
        fate
    }
}

/// What to do with a version that was offered to a [`Chain`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// It is the best so far: remember its row.
    Best,
    /// It does not matter.
    Passed,
    /// Neither it nor anything older matters: the key is settled.
    Settled,
}

/// Finds the version of one key that a read point shows. Versions are offered newest time first.
#[derive(Debug)]
pub struct Chain<'a> {
    table: TableId,
    at: ReadPoint,
    truncations: &'a Truncations,
    best: Option<(HybridTime, bool)>,
    /// The best version's position.
    position: LogPosition,
}

impl<'a> Chain<'a> {
    /// A chain of one key of `table`.
    #[must_use]
    pub fn new(table: TableId, at: ReadPoint, truncations: &'a Truncations) -> Self {
        Self { table, at, truncations, best: None, position: LogPosition(0) }
    }

    /// Offers the next version.
    pub fn offer(&mut self, stamp: &Stamp) -> Offer {
        if planted(Bug::LastAppliedWins) && self.best.is_some() && sees(self.at, stamp.time, stamp.position) {
            if self.position < stamp.position {
                self.position = stamp.position;
                self.best = Some((stamp.time, !stamp.deleted));
                return Offer::Best;
            }
            return Offer::Passed;
        }
        if self.best.is_some_and(|(time, _)| stamp.time < time) {
            return Offer::Settled;
        }
        if !sees(self.at, stamp.time, stamp.position) {
            return Offer::Passed;
        }
        let fate = self.truncations.fate(self.table, stamp, self.at);
        let live = !stamp.deleted && fate == Fate::Counts;
        if planted(Bug::DeleteBeatsWrite) && self.best.is_some() && stamp.deleted {
            self.best = Some((stamp.time, false));
            return Offer::Best;
        }
        match (fate, self.best) {
            (Fate::Superseded, _) | (_, Some((_, true))) => Offer::Passed,
            (_, Some((_, false))) if !live => Offer::Passed,
            _ => {
                self.best = Some((stamp.time, live));
                self.position = stamp.position;
                Offer::Best
            }
        }
    }

    /// Whether the best version offered shows a row: it is neither a delete nor removed.
    #[must_use]
    pub fn shows_row(&self) -> bool {
        self.best.is_some_and(|(_, live)| live)
    }
}

/// One step in a key's history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The version at this index of the chain.
    Version(usize),
    /// The row that the next event shows was removed by this truncation, by the stream that wrote it.
    Removed(Truncation),
}

/// Everything that happened to one key at or below a read point, newest first. `chain` holds the key's versions, newest
/// time first.
#[must_use]
pub fn history(table: TableId, chain: &[Stamp], at: ReadPoint, truncations: &Truncations) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::with_capacity(chain.len());
    let mut newer: Option<HybridTime> = None;
    let mut index = 0;
    while let Some(first) = chain.get(index) {
        let mut winner: Option<(usize, Stamp, Fate)> = None;
        let group_time = first.time;
        while let Some(stamp) = chain.get(index).filter(|s| s.time == group_time) {
            let fate = truncations.fate(table, stamp, at);
            // A write beats another stream's delete, and one that a truncation removed does not stand for one that counts.
            let beats = winner.is_none_or(|(_, best, best_fate)| match (best.deleted, stamp.deleted) {
                (true, false) => true,
                (false, true) => false,
                _ => best_fate != Fate::Counts && fate == Fate::Counts,
            });
            if sees(at, stamp.time, stamp.position) && fate != Fate::Superseded && beats {
                winner = Some((index, *stamp, fate));
            }
            index += 1;
        }
        let Some((place, stamp, fate)) = winner else { continue };
        match fate {
            Fate::Removed(by) if !stamp.deleted && newer.is_none_or(|newer| by.time < newer) => {
                events.push(Event::Removed(by));
            }
            _ => {}
        }
        events.push(Event::Version(place));
        newer = Some(stamp.time);
    }
    events
}
