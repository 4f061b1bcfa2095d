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
use crate::planted::{Bug, planted};
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
        self.note_writer(&mut batch, table, stream);
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
        let heard = self.copying.get(&(table, stream)).map(|copying| copying.base);
        // Another attempt has begun since; or it came late, and what readers see of the table has changed since it began.
        if heard.is_some_and(|heard| heard > base) || self.shared.truncations().is_past(table, stream, base) {
            return Ok(());
        }
        let mut step = Step::default();
        if heard == Some(base) {
            self.settle(&mut step, (table, stream), base)?;
        } else if self.arrived.get(&(table, stream)).is_none_or(|arrived| *arrived < base) {
            // Decisions that are still to be heard from before it began are of the copy before.
            step.batch.put(Space::Undecided, keys::arrived(table, stream), encode(&base)?);
            self.arrived.insert((table, stream), base);
        }
        self.finish(&mut step)
    }

    /// Settles what has waited for the rows of a copy that are all here.
    fn settle(
        &mut self,
        step: &mut Step,
        (table, stream): (TableId, SourceTabletId),
        base: HybridTime,
    ) -> Result<(), TabletError> {
        // Before it counts as complete: what a crash interrupts goes on with the copy.
        self.settle_owed(step, table, stream)?;
        self.keep_copying(step, table, stream, Copying { base, complete: true })?;
        self.fill_notes(step, table, stream)?;
        self.settle_beside(step, table, stream)
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
                let known = self.copying.get(&(table, stream)).is_some_and(|copying| copying.base >= base);
                // What is told again after a crash may be over.
                if known || self.shared.truncations().is_past(table, stream, base) {
                    return Ok(());
                }
                self.forget_owed_of(step, table, stream)?;
                self.forget_beside(step, table, stream)?;
                let arrived = self.arrived.get(&(table, stream)).copied();
                if arrived.is_some_and(|arrived| arrived <= base) {
                    self.arrived.remove(&(table, stream));
                    step.batch.delete(Space::Undecided, keys::arrived(table, stream));
                }
                if arrived == Some(base) {
                    return self.settle(step, (table, stream), base);
                }
                return self.keep_copying(step, table, stream, Copying { base, complete: false });
            }
            Turn::Shown { base, time } => (time, Some(base)),
            Turn::Hidden { .. } if planted(Bug::LeftStreamStays) => return Ok(()),
            Turn::Hidden { time } => {
                self.forget_owed_of(step, table, stream)?;
                self.forget_beside(step, table, stream)?;
                (time, None)
            }
        };
        step.batch.put(Space::Undecided, keys::turn(table, stream, position), encode(&StoredTurn { time, base })?);
        // One that was whole before this was heard goes on: its base lies above.
        let is_over = |copying: &Copying| copying.base <= base.unwrap_or(time);
        if self.copying.get(&(table, stream)).is_some_and(is_over) {
            self.copying.remove(&(table, stream));
            step.batch.delete(Space::Undecided, keys::copying(table, stream));
        }
        self.forget_twice_of(step, table, stream);
        step.turns.push((table, stream, TurnAt { position, time, base }));
        Ok(())
    }

    /// Keeps a note of a write whose cells wait for the copy that is on its way, if one is.
    pub(super) fn note_unfilled(
        &self,
        step: &mut Step,
        (time, position): (HybridTime, LogPosition),
        stream: SourceTabletId,
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        let StoredOp::Fill { row, from } = write.op else { return Ok(()) };
        if self.copying.get(&(write.table, stream)).is_some_and(|copying| !copying.complete) {
            let key = keys::unfilled(write.table, stream, time, write.key.0);
            step.batch.put(Space::Undecided, key, encode(&Unfilled { position, row, from })?);
        }
        Ok(())
    }

    /// Fills what waited for a copy, oldest first: one may be filled from another.
    fn fill_notes(&mut self, step: &mut Step, table: TableId, stream: SourceTabletId) -> Result<(), TabletError> {
        let (from, below) = keys::all_unfilled(table, stream);
        let store = self.store.clone();
        for note in store.scan(Space::Undecided, &from, &below) {
            let (note_key, value) = note?;
            let Unfilled { position, row, from } = decode("a note of a copy", value.as_ref())?;
            let Some((time, key)) = note_key.as_ref().get(9..).and_then(|rest| rest.split_first_chunk::<8>()) else {
                return Err(TabletError::Poisoned("a key of a note of a copy is damaged".into()));
            };
            let time = HybridTime::from_u64(u64::from_be_bytes(*time));
            let write = |from| StoredWrite { table, key: Raw(key), op: StoredOp::Fill { row, from } };
            self.finish(step)?;
            let mut filled = None;
            if from.is_some() {
                filled = self.fill(time, None, stream, &write(from))?.filter(|filled| filled.settled);
            }
            if filled.is_none() {
                // The copy has the row as this write left it, or a later one; a version is no earlier write of its own key.
                filled = self.fill(time.previous(), None, stream, &write(None))?.filter(|filled| filled.settled);
            }
            // Without either, its source deleted the row before the snapshot, and so does the stream.
            if let Some(filled) = filled {
                let version = StoredVersion { position, row: Some(Raw(&filled.row)) };
                step.batch.put(Space::Versions, keys::version(table, key, time, stream), encode(&version)?);
            }
            step.batch.delete(Space::Undecided, note_key.as_ref().to_vec());
            if step.batch.bytes >= APPLY_BYTES {
                self.finish(step)?;
            }
        }
        Ok(())
    }
}
