//! Copies of tables while everything else goes on: what the fold knows of each, and when one may begin and be shown.
//!
//! A **round** copies one stream's part of one table from a snapshot that was taken while the stream runs. Versions of that
//! table that the stream brings meanwhile are decided and applied as ever, so the copied rows must find their place below
//! them, and nobody may see a part of it. Three facts settle that:
//!
//! 1. **Asked for** ([`CopyState::Pending`]), because the table is new in the publication, is another one of the same
//!    name, has changed its columns, or because somebody asked. It may begin once everything that committed in the stream
//!    at or below the position read when that was noticed is decided: what its stream said of the table under its old
//!    name or columns then has times below the copy's.
//! 2. **Begun** ([`CopyState::Running`]) names the hybrid time of the copied rows, the **base**, above every time in the
//!    log, and is durable before the snapshot is taken. Whatever is decided later lies above the base, and is applied on top
//!    of the copied rows. Whatever was decided earlier is in the snapshot, the branches too that the server had not ended
//!    then: a snapshot comes with a slot, which waits until everything has ended that was prepared when it was asked for.
//!    What committed between the two is in the snapshot and is applied once more; a write says the whole row, so that
//!    changes nothing. Each attempt has a base of its own: rows of one that was cut off are never seen.
//! 3. **Shown** ([`super::Item::CopyShown`]) once every row is durable and everything that committed in the stream at or
//!    below the snapshot's position is decided. A decision rests on discovery, which has made every other server's stream
//!    pass a position read after that commit; so this is the fence taken anew, for exactly the transactions that are in
//!    the copy: none is shown by half. Readers from that entry and time on see the copied rows and what lies above the base;
//!    readers before it what they saw before.
//!
//! A table that leaves the publication, or whose rows can no longer be told apart as before, is **hidden** from an entry
//! and time on ([`super::Item::CopyHidden`]): nothing that its stream brings is seen until a copy is shown.
//!
//! The initial copy is one round for each table, from the slot's own snapshot; nobody reads before all of them are shown.

use super::discovery::Start;
use super::entry::CopyState;
use super::state::State;
use super::stream::StreamRecord;
use crate::wal::{HybridTime, LogPosition, OpId, SourceTabletId, TransactionId};
use serde::{Deserialize, Serialize};

/// A column as the source's catalog describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishedColumn {
    /// Its number in its table, which no later column is given.
    pub number: i16,
    /// Its name.
    pub name: String,
    /// The number of its type.
    pub type_id: u32,
    /// The rows that were there when it was added may have a value: a default, or an identity.
    pub filled: bool,
}

/// A table of a stream's publication as its server describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishedTable {
    /// `schema.table`.
    pub name: String,
    /// What tells it from another table of that name, earlier or later.
    pub relation: u32,
    /// Its columns, by number.
    pub columns: Vec<PublishedColumn>,
}

impl PublishedTable {
    /// Whether rows copied under these columns say less or something else than a copy under `newer` would.
    #[must_use]
    pub fn needs_copy_as(&self, newer: &[PublishedColumn]) -> bool {
        !self.columns.is_empty()
            && newer.iter().any(|column| match self.columns.iter().find(|known| known.number == column.number) {
                Some(known) => (&known.name, known.type_id) != (&column.name, column.type_id),
                None => column.filled,
            })
    }
}

/// What the fold knows of one stream's part of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCopy {
    /// `schema.table`.
    pub table: String,
    /// How the server described it when it was last looked at; no columns before.
    pub published: PublishedTable,
    /// The relation and the version of its columns under which the stream spoke of it last; zero before.
    pub spoken: (u32, u32),
    /// How far its copy is.
    pub state: CopyState,
    /// The copy may begin once everything is decided that committed in the stream at or below this position.
    pub after: OpId,
    /// The base of the copy that is shown.
    pub shown: Option<HybridTime>,
    /// The entry that showed it.
    pub shown_at: LogPosition,
}

impl TableCopy {
    pub(super) fn new(table: &str) -> Self {
        Self {
            table: table.to_owned(),
            published: PublishedTable { name: table.to_owned(), relation: 0, columns: Vec::new() },
            spoken: (0, 0),
            state: CopyState::Pending,
            after: OpId::MAX,
            shown: None,
            shown_at: LogPosition(0),
        }
    }

    /// The base and the snapshot's position of a copy whose rows are all durable, and which is not shown.
    #[must_use]
    pub fn to_show(&self) -> Option<(HybridTime, OpId)> {
        match self.state {
            CopyState::Done { base, snapshot, .. } if self.shown != Some(base) => Some((base, snapshot)),
            _ => None,
        }
    }

    /// Whether every row is durable, and shown.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, CopyState::Done { base, .. } if self.shown == Some(base))
    }
}

impl State {
    /// A stream's part of a table.
    #[must_use]
    pub fn table_copy(&self, stream: SourceTabletId, table: &str) -> Option<&TableCopy> {
        let copies = &self.stream(stream)?.copies;
        copies.binary_search_by(|copy| copy.table.as_str().cmp(table)).ok().map(|place| &copies[place])
    }

    /// As [`State::table_copy`], begun if it is not known.
    pub(super) fn table_copy_mut(&mut self, stream: SourceTabletId, table: &str) -> Option<&mut TableCopy> {
        let copies = &mut self.stream_mut(stream)?.copies;
        let place = match copies.binary_search_by(|copy| copy.table.as_str().cmp(table)) {
            Ok(place) => place,
            Err(place) => {
                copies.insert(place, TableCopy::new(table));
                place
            }
        };
        copies.get_mut(place)
    }

    /// A stream whose part of the table is being copied, where readers at this position would miss it: they see no stream's
    /// part, or saw this one's before it had to join anew.
    #[must_use]
    pub fn unreadable(&self, table: &str, position: LogPosition) -> Option<SourceTabletId> {
        let had = |name: &str| {
            let before = self.streams.iter().filter(|stream| stream.left && stream.name == name);
            before.flat_map(|stream| &stream.copies).any(|copy| copy.table == table)
        };
        // One that takes part by now does so from an entry on, which these readers may lie before.
        let is_missed = |stream: &&StreamRecord| {
            let copies = &stream.copies;
            stream.joining.is_some() || !copies.is_empty() && copies.iter().all(|copy| copy.shown_at > position)
        };
        let mut rejoining = self.streams.iter().filter(|stream| !stream.left && had(&stream.name));
        if let Some(stream) = rejoining.find(is_missed) {
            return Some(stream.stream);
        }
        let live = self.streams.iter().filter(|stream| !stream.left).map(|stream| stream.stream);
        let parts = live.filter_map(|stream| Some((stream, self.table_copy(stream, table)?)));
        let parts: Vec<_> = parts.collect();
        let seen = parts.iter().any(|(_, copy)| copy.shown.is_some() && copy.shown_at <= position);
        parts.first().filter(|_| !seen).map(|(stream, _)| *stream)
    }

    /// A transaction that committed in the stream at or below the position and is not decided, or that may come.
    pub(super) fn undecided_upto(&self, stream: SourceTabletId, position: OpId) -> Undecided {
        if position == OpId::ZERO {
            return Undecided::None;
        }
        if self.stream(stream).is_none_or(|record| record.head < position) || self.start != Start::Over {
            return Undecided::MayCome;
        }
        let committed = |id: &TransactionId| {
            let branches = self.transactions.get(*id).map_or(&[][..], |t| &t.branches);
            branches.iter().any(|b| b.stream == stream && b.ended && b.mentioned <= position)
        };
        let found = self.undecided.iter().map(|(_, id)| *id).find(committed);
        found.map_or(Undecided::None, Undecided::Transaction)
    }

    /// Whether every table of every stream that readers wait for is copied and shown.
    pub(super) fn copies_are_shown(&self) -> bool {
        let awaited = self.streams.iter().filter(|stream| !stream.left && stream.joining.is_none());
        awaited.flat_map(|stream| &stream.copies).all(TableCopy::is_over)
    }
}

/// What of a stream's commits up to a position is not decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Undecided {
    /// Nothing.
    None,
    /// This one, and perhaps others.
    Transaction(TransactionId),
    /// The stream has not come that far, or the start is not over.
    MayCome,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(number: i16, name: &str, type_id: u32, filled: bool) -> PublishedColumn {
        PublishedColumn { number, name: name.into(), type_id, filled }
    }

    /// A reader's point may be older than what the machine knows: the part of a stream that joined anew is missed below
    /// the entry that shows it, also where it takes part by now.
    #[test]
    fn a_table_is_unreadable_below_the_entry_that_shows_a_part_again() {
        let mut state = State::default();
        for (number, name, shown_at) in [(0, "a", 5), (1, "b", 6), (2, "b", 15)] {
            let mut record = StreamRecord::new(SourceTabletId(number), name.into(), HybridTime::MIN);
            record.joining = None;
            record.left = number == 1;
            let mut copy = TableCopy::new("public.t");
            (copy.shown, copy.shown_at) = (Some(HybridTime::MIN), LogPosition(shown_at));
            record.copies.push(copy);
            state.streams.push(record);
        }
        assert_eq!(state.unreadable("public.t", LogPosition(14)), Some(SourceTabletId(2)));
        assert_eq!(state.unreadable("public.t", LogPosition(15)), None);
        state.streams[2].joining = Some(crate::coordinator::joining::Joining::Counted);
        assert_eq!(state.unreadable("public.t", LogPosition(15)), Some(SourceTabletId(2)));
    }

    #[test]
    fn only_what_old_rows_cannot_say_needs_a_copy() {
        let columns = vec![column(1, "id", 23, false), column(2, "body", 25, false)];
        let known = PublishedTable { name: "public.t".into(), relation: 1, columns: columns.clone() };
        assert!(!known.needs_copy_as(&columns));
        assert!(!known.needs_copy_as(&columns[..1]), "a column that is gone");
        let with = |column| [&columns[..], &[column]].concat();
        assert!(!known.needs_copy_as(&with(column(3, "note", 25, false))), "a new column is NULL in old rows");
        assert!(known.needs_copy_as(&with(column(3, "note", 25, true))), "a default");
        assert!(known.needs_copy_as(&[columns[0].clone(), column(2, "text", 25, false)]), "renamed");
        assert!(known.needs_copy_as(&[columns[0].clone(), column(2, "body", 1043, false)]), "retyped");
        assert!(!known.needs_copy_as(&[columns[0].clone(), column(3, "body", 25, false)]), "dropped and added anew");
    }
}
