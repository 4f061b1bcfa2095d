//! Copies: rows that become versions at once and are seen later, and cells that wait for them.
//!
//! While a copy is on its way, the stream's own changes of the table are applied above its base. One that leaves cells
//! unchanged is filled from the copied row where no newer write of the row stands between. If that row is not here yet, the
//! cells are taken from what is shown now, and a note is kept: when the last row is here, they are taken from the copy.

use super::apply::Step;
use super::provisional::check_key;
use super::state::State;
use crate::coordinator::Turn;
use crate::limits::APPLY_BYTES;
use crate::mvcc::TurnAt;
use crate::tablet::format::{
    Copying, Raw, StoredOp, StoredTurn, StoredVersion, StoredWrite, Unfilled, decode, encode, encode_row,
};
use crate::tablet::keys;
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::tablet::{CopyBatch, TabletError};
use crate::wal::{HybridTime, LogPosition, SourceTabletId, TableId};

impl<S: Store> State<S> {
    /// See [`crate::tablet::TabletLeader::copy_rows`].
    pub(super) fn copy_rows(&mut self, copy: CopyBatch) -> Result<(), TabletError> {
        self.admit_owner(copy.owner)?;
        copy.rows.iter().try_for_each(|(key, _)| check_key(key))?;
        let (table, stream, base) = (copy.schema.table, copy.stream, copy.base);
        let mut batch = StoreBatch::default();
        self.learn(std::slice::from_ref(&copy.schema))?;
        for (key, row) in &copy.rows {
            let row = encode_row(row)?;
            let version = StoredVersion { position: LogPosition(0), row: Some(Raw(&row)) };
            batch.put(Space::Versions, keys::version(table, &key.0, base, stream), encode(&version)?);
        }
        self.store.write(batch)?;
        if copy.last { self.complete(table, stream, base) } else { Ok(()) }
    }

    /// Every row of a copy is here.
    fn complete(&mut self, table: TableId, stream: SourceTabletId, base: HybridTime) -> Result<(), TabletError> {
        if self.copying.get(&(table, stream)).is_some_and(|copying| copying.base > base) {
            // Another attempt has begun since.
            return Ok(());
        }
        let mut step = Step::default();
        self.keep_copying(&mut step, table, stream, Copying { base, complete: true })?;
        self.fill_notes(&mut step, table, stream)?;
        self.finish(&mut step)
    }

    fn keep_copying(
        &mut self,
        step: &mut Step,
        table: TableId,
        stream: SourceTabletId,
        copying: Copying,
    ) -> Result<(), TabletError> {
        step.batch.put(Space::Undecided, keys::copying(table, stream), encode(&copying)?);
        self.copying.insert((table, stream), copying);
        Ok(())
    }

    /// What readers see of a table changes at this position.
    pub(super) fn turn(
        &mut self,
        step: &mut Step,
        position: LogPosition,
        (table, stream): (TableId, SourceTabletId),
        turn: Turn,
    ) -> Result<(), TabletError> {
        let (time, base) = match turn {
            Turn::Begun { base } => {
                // The last row may have come before this.
                let known = self.copying.get(&(table, stream)).is_some_and(|copying| copying.base >= base);
                let begun = Copying { base, complete: false };
                return if known { Ok(()) } else { self.keep_copying(step, table, stream, begun) };
            }
            Turn::Shown { base, time } => (time, Some(base)),
            Turn::Hidden { time } => (time, None),
        };
        step.batch.put(Space::Undecided, keys::turn(table, stream, position), encode(&StoredTurn { time, base })?);
        if self.copying.remove(&(table, stream)).is_some() {
            step.batch.delete(Space::Undecided, keys::copying(table, stream));
        }
        step.turns.push((table, stream, TurnAt { position, time, base }));
        Ok(())
    }

    /// Keeps a note of a version whose cells wait for the copy on its way.
    pub(super) fn note_unfilled(
        &self,
        step: &mut Step,
        (time, stream): (HybridTime, SourceTabletId),
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        let StoredOp::Fill { row, from } = write.op else { return Ok(()) };
        let key = keys::unfilled(write.table, stream, time, write.key.0);
        step.batch.put(Space::Undecided, key, encode(&Unfilled { row, from })?);
        Ok(())
    }

    /// Fills what waited for a copy, oldest first: one may be filled from another.
    fn fill_notes(&mut self, step: &mut Step, table: TableId, stream: SourceTabletId) -> Result<(), TabletError> {
        let (from, below) = keys::all_unfilled(table, stream);
        let store = self.store.clone();
        for note in store.scan(Space::Undecided, &from, &below) {
            let (note_key, value) = note?;
            let note: Unfilled<'_> = decode("a note of a copy", value.as_ref())?;
            let Some((time, row)) = note_key.as_ref().get(9..).and_then(|rest| rest.split_first_chunk::<8>()) else {
                return Err(TabletError::Poisoned("a key of a note of a copy is damaged".into()));
            };
            let time = HybridTime::from_u64(u64::from_be_bytes(*time));
            let op = StoredOp::Fill { row: note.row, from: note.from };
            let write = StoredWrite { table, key: Raw(row), op };
            self.finish(step)?;
            let key = keys::version(table, row, time, stream);
            if let Some(value) = self.store.get(Space::Versions, &key)? {
                let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
                // The version itself is no earlier write of its key.
                let before = if note.from.is_some() { time } else { time.previous() };
                match self.fill(before, None, stream, &write)? {
                    Some(filled) if filled.from_copy => {
                        let filled = StoredVersion { row: Some(Raw(&filled.row)), ..version };
                        step.batch.put(Space::Versions, key, encode(&filled)?);
                    }
                    // The copy does not have the row: its source deleted it before the snapshot, and so does the stream.
                    Some(_) => {}
                    None => step.batch.delete(Space::Versions, key),
                }
            }
            step.batch.delete(Space::Undecided, note_key.as_ref().to_vec());
            if step.batch.bytes >= APPLY_BYTES {
                self.finish(step)?;
            }
        }
        Ok(())
    }
}
