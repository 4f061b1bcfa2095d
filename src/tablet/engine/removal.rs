//! Removing one of several identical rows: a delete that names a content and no row (see [`crate::wal::Key::of_content`]).
//!
//! Which row goes is settled when the transaction is applied, in the order of commits: the first in key order that is
//! there, so the oldest. From then on it is an ordinary version of that key. A crash in the middle of a transaction takes
//! back what it removed ([`State::undo_removals`]), so that doing it again removes as many rows and no more.
//!
//! A removal that finds no row is **owed**, durably:
//!
//! * while a copy of the table is on its way, every removal is, because the row may be one of those that come. When the
//!   last of them is here, what is owed is settled in the order of time, each by a row that was there then;
//! * otherwise the replica lacks a row that its source had. The source would lack a counterpart for ever, so nothing more
//!   is taken from that stream until the table is copied anew.

use super::apply::{Applying, Step};
use super::state::State;
use crate::coordinator::ReadPoint;
use crate::limits::REMOVAL_HINTS_MAX;
use crate::mvcc::{Fate, Stamp, Truncations};
use crate::tablet::TabletError;
use crate::tablet::format::{StoredVersion, StoredWrite, decode, encode};
use crate::tablet::keys::{self, Kind, Parts, VersionKey};
use crate::tablet::store::{Space, Store};
use crate::wal::{BranchId, HybridTime, LogPosition, SourceTabletId, TableId};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// What is known in memory of removals.
#[derive(Default, Debug)]
pub(super) struct Removals {
    /// How many are owed, by table and stream; none of them is zero.
    owed: BTreeMap<(TableId, SourceTabletId), u64>,
    /// The row of each content that was removed last. Those before it are mostly gone: without this, removing many
    /// identical rows one by one would look at every one that is gone already.
    last: FxHashMap<(TableId, Vec<u8>), Vec<u8>>,
}

impl<S: Store> State<S> {
    /// Reads back what is owed.
    pub(super) fn recover_removals(&mut self) -> Result<(), TabletError> {
        let (from, below) = Kind::Owed.all();
        let store = self.store.clone();
        for entry in store.scan(Space::Undecided, &from, &below) {
            let (key, _) = entry?;
            let mut parts = Parts(&key.as_ref()[1..]);
            let (table, stream) = parts.u32().zip(parts.u32()).ok_or_else(damaged)?;
            *self.removals.owed.entry((TableId(table), SourceTabletId(stream))).or_default() += 1;
        }
        Ok(())
    }

    /// Refuses a stream that removed a row which is not here.
    pub(super) fn check_owed(&self, stream: SourceTabletId) -> Result<(), TabletError> {
        let owed = self.removals.owed.keys().find(|(table, of)| *of == stream && !self.may_come(*table, stream));
        let Some((table, _)) = owed else { return Ok(()) };
        let newest = self.schemas.range((*table, 0)..=(*table, u32::MAX)).next_back();
        let name = newest.map_or_else(|| table.to_string(), |(_, schema)| schema.name.clone());
        Err(TabletError::Refused(format!(
            "stream {stream} removed a row of table {name}, which has no primary key, and no such row is here: a column of \
             it was dropped, renamed or retyped, or rows were lost; give the table a primary key on its server (ALTER TABLE \
             … ADD PRIMARY KEY …): then it is copied anew, and the stream goes on"
        )))
    }

    /// The key of the row that a removal takes; `None` where there is none yet, or nothing is seen of the table.
    pub(super) fn remove_one(
        &mut self,
        step: &mut Step,
        applying: &mut Applying,
        id: BranchId,
        write: &StoredWrite<'_>,
    ) -> Result<Option<Vec<u8>>, TabletError> {
        let (table, stream, content) = (write.table, id.stream, write.key.0);
        // The row may stand in the step that is not written yet.
        self.finish_part(step, applying, id)?;
        let copying = self.copying.get(&(table, stream)).copied();
        if copying.is_none() && self.shared.truncations().is_hidden(table, stream) {
            return Ok(None);
        }
        if copying.is_none_or(|copying| copying.complete)
            && let Some(found) = self.standing(table, stream, content, HybridTime::MAX)?
        {
            return Ok(Some(found));
        }
        let key = keys::owed((table, stream), applying.time, content, applying.owed);
        applying.owed += 1;
        step.batch.put(Space::Undecided, key, encode(&applying.position)?);
        *self.removals.owed.entry((table, stream)).or_default() += 1;
        Ok(None)
    }

    /// The key of a row of this content that is there at a time.
    fn standing(
        &mut self,
        table: TableId,
        stream: SourceTabletId,
        content: &[u8],
        at: HybridTime,
    ) -> Result<Option<Vec<u8>>, TabletError> {
        let (first, below) = keys::content_versions(table, content);
        let hint = (table, content.to_vec());
        let last = self.removals.last.get(&hint).map(|last| keys::past_row(table, last));
        let mut found = None;
        if let Some(from) = &last {
            found = self.first_standing(table, stream, from, &below, at)?;
        }
        if found.is_none() {
            found = self.first_standing(table, stream, &first, &below, at)?;
        }
        if let Some(found) = &found {
            if self.removals.last.len() >= REMOVAL_HINTS_MAX {
                self.removals.last.clear();
            }
            self.removals.last.insert(hint, found.clone());
        }
        Ok(found)
    }

    fn first_standing(
        &self,
        table: TableId,
        stream: SourceTabletId,
        from: &[u8],
        below: &[u8],
        at: HybridTime,
    ) -> Result<Option<Vec<u8>>, TabletError> {
        let truncations = self.shared.truncations();
        let at = ReadPoint { position: LogPosition(u64::MAX), time: at };
        // The row whose newest counting version has been found.
        let mut settled: Vec<u8> = Vec::new();
        for entry in self.store.scan(Space::Versions, from, below) {
            let (key, value) = entry?;
            let parsed = VersionKey::parse(key.as_ref())
                .ok_or_else(|| TabletError::Poisoned("a version's key is damaged".into()))?;
            if parsed.stream != stream || parsed.time > at.time || parsed.row == settled {
                continue;
            }
            let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
            let deleted = version.row.is_none();
            let stamp = Stamp { time: parsed.time, position: version.position, stream, deleted };
            let fate = self.fate_in_copy(&truncations, table, &stamp, at);
            if fate == Fate::Superseded {
                continue;
            }
            if !deleted && fate == Fate::Counts {
                return Ok(Some(parsed.row.to_vec()));
            }
            settled = parsed.row.to_vec();
        }
        Ok(None)
    }

    /// What becomes of a version, where what the copy on its way will show counts already.
    pub(super) fn fate_in_copy(&self, truncations: &Truncations, table: TableId, stamp: &Stamp, at: ReadPoint) -> Fate {
        match self.copying.get(&(table, stamp.stream)) {
            Some(copying) if stamp.is_of_copy(copying.base) => truncations.removed(table, stamp, at),
            _ => truncations.fate(table, stamp, at),
        }
    }

    /// Takes back what a crash left of a removal.
    pub(super) fn undo_removals(
        &mut self,
        step: &mut Step,
        time: HybridTime,
        stream: SourceTabletId,
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        let (table, content) = (write.table, write.key.0);
        let (from, below) = keys::content_versions(table, content);
        let store = self.store.clone();
        for entry in store.scan(Space::Versions, &from, &below) {
            let (key, _) = entry?;
            let parsed = VersionKey::parse(key.as_ref())
                .ok_or_else(|| TabletError::Poisoned("a version's key is damaged".into()))?;
            if parsed.time == time && parsed.stream == stream {
                step.batch.delete(Space::Versions, key.as_ref().to_vec());
            }
        }
        let (from, below) = keys::owed_of((table, stream), time, content);
        self.forget_owed(step, (table, stream), &from, &below)?;
        // Several removals of one content take back the same: they must not count it twice.
        self.finish(step)
    }

    /// What readers see of a stream's part of the table is another copy from here on: nothing is owed to it.
    pub(super) fn forget_owed_of(
        &mut self,
        step: &mut Step,
        table: TableId,
        stream: SourceTabletId,
    ) -> Result<(), TabletError> {
        if !self.removals.owed.contains_key(&(table, stream)) {
            return Ok(());
        }
        let (from, below) = keys::all_owed((table, stream));
        self.forget_owed(step, (table, stream), &from, &below)
    }

    fn forget_owed(
        &mut self,
        step: &mut Step,
        of: (TableId, SourceTabletId),
        from: &[u8],
        below: &[u8],
    ) -> Result<(), TabletError> {
        let store = self.store.clone();
        for entry in store.scan(Space::Undecided, from, below) {
            step.batch.delete(Space::Undecided, entry?.0.as_ref().to_vec());
            self.settled_one(of);
        }
        Ok(())
    }

    fn settled_one(&mut self, of: (TableId, SourceTabletId)) {
        if let Some(owed) = self.removals.owed.get_mut(&of) {
            *owed -= 1;
            if *owed == 0 {
                self.removals.owed.remove(&of);
            }
        }
    }

    /// Every row of a copy is here: settles what is owed, oldest first.
    pub(super) fn settle_owed(
        &mut self,
        step: &mut Step,
        table: TableId,
        stream: SourceTabletId,
    ) -> Result<(), TabletError> {
        if !self.removals.owed.contains_key(&(table, stream)) {
            return Ok(());
        }
        let (from, below) = keys::all_owed((table, stream));
        let store = self.store.clone();
        for entry in store.scan(Space::Undecided, &from, &below) {
            let (owed, value) = entry?;
            let position: LogPosition = decode("a removal that is owed", value.as_ref())?;
            let (time, content) = keys::parse_owed(owed.as_ref()).ok_or_else(damaged)?;
            self.finish(step)?;
            let Some(key) = self.standing(table, stream, content, time)? else { continue };
            let version = StoredVersion { position, row: None };
            step.batch.put(Space::Versions, keys::version(table, &key, time, stream), encode(&version)?);
            step.batch.delete(Space::Undecided, owed.as_ref().to_vec());
            self.settled_one((table, stream));
        }
        Ok(())
    }
}

fn damaged() -> TabletError {
    TabletError::Poisoned("the key of a removal that is owed is damaged".into())
}
