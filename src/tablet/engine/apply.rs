//! Applying decisions: provisional records become versions, or go.
//!
//! Versions are written in atomic steps of bounded size. A branch's records go in the step that writes its last version
//! or a later one, never before (a crash in between applies the branch again, to the same versions), and `heard` moves
//! in the last step of all, so nobody sees a part.

use super::fill::Filling;
use super::one_writer::{Unwritten, Verdict};
use super::state::{Branch, State};
use super::wal::Place;
use crate::coordinator::{Applied, Decided, Work};
use crate::limits::APPLY_BYTES;
use crate::mvcc::{Truncation, TurnAt};
use crate::planted::{Bug, planted};
use crate::tablet::format::{
    AppliedThrough, Chunk, ProvisionalRecord, Raw, StoredOp, StoredVersion, StoredWrite, decode, encode,
};
use crate::tablet::keys::{self, Kind};
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::tablet::{ApplyBatch, TabletError};
use crate::wal::{BranchId, HybridTime, Key, LogPosition, ReplicaTabletId, SourceTabletId, TableId, TransactionId};

/// What is to be written next, and what becomes true in memory once it is.
#[derive(Default)]
pub(super) struct Step {
    pub(super) batch: StoreBatch,
    finished: Vec<BranchId>,
    truncations: Vec<(TableId, SourceTabletId, Truncation)>,
    pub(super) unwritten: Unwritten,
    pub(super) turns: Vec<(TableId, SourceTabletId, TurnAt)>,
    /// Where it moves the end of the tablet's own WAL.
    pub(super) wal_end: Option<Place>,
}

/// The transaction that is being applied.
pub(super) struct Applying {
    pub(super) transaction: TransactionId,
    pub(super) time: HybridTime,
    pub(super) position: LogPosition,
    /// Whether it wrote here through more than one stream.
    several_streams: bool,
    /// Whether a key has one writer.
    one_writer: bool,
    /// Set when a write fills cells from another key, or removes one of several identical rows.
    pub(super) filling: Option<Filling>,
    /// How many removals were owed so far.
    pub(super) owed: u32,
}

impl Applying {
    pub(super) fn new(
        (transaction, time, position): (TransactionId, HybridTime, LogPosition),
        branches: &[BranchId],
        one_writer: bool,
    ) -> Self {
        let several_streams = branches.iter().any(|branch| Some(branch.stream) != branches.first().map(|b| b.stream));
        Self { transaction, time, position, filling: None, owed: 0, one_writer, several_streams }
    }
}

fn missing() -> TabletError {
    TabletError::Poisoned("a provisional record is gone".into())
}

impl<S: Store> State<S> {
    /// See [`crate::tablet::TabletLeader::apply`].
    pub(super) fn apply(&mut self, batch: ApplyBatch) -> Result<Applied, TabletError> {
        self.admit_owner(batch.owner)?;
        if batch.follows != self.heard.position {
            return Err(TabletError::HeardOther { heard: self.heard.position, follows: batch.follows });
        }
        check_positions(&batch)?;
        self.apply_work(&batch).inspect_err(|_| self.wal_rewind())?;
        let written = std::mem::take(&mut self.versions_written);
        self.collect(batch.safe, written)?;
        Ok(self.applied())
    }

    fn apply_work(&mut self, batch: &ApplyBatch) -> Result<(), TabletError> {
        let wal_before = self.wal_index();
        let mut step = Step::default();
        for Decided { position, work } in &batch.work {
            match work {
                Work::Turn { stream, table, turn } => {
                    self.turn(&mut step, *position, (*table, *stream), *turn)?;
                    // What comes after it is looked at in its light.
                    self.finish(&mut step)?;
                }
                Work::Commit { transaction, time, branches, tablets } => {
                    let applying = Applying::new((*transaction, *time, *position), branches, batch.one_writer);
                    self.commit(&mut step, applying, branches, tablets)?;
                }
                Work::Discard { .. } if planted(Bug::AbortedStays) => {}
                Work::Discard { branches } => {
                    for &branch in branches {
                        if let Some(records) = self.branches.get(&branch).map(|branch| branch.records) {
                            self.forget(&mut step, branch, records)?;
                        }
                    }
                }
            }
            if step.batch.bytes >= APPLY_BYTES {
                self.finish(&mut step)?;
            }
        }
        let safe_time = batch.safe.map_or(self.heard.safe_time, |safe| self.heard.safe_time.max(safe.time));
        let heard = AppliedThrough { position: batch.through, safe_time };
        if planted(Bug::HeardBeforeVersions) {
            let mut first = Step::default();
            first.batch.put(Space::Undecided, Kind::Applied.only(), encode(&heard)?);
            self.finish(&mut first)?;
        }
        step.batch.put(Space::Undecided, Kind::Applied.only(), encode(&heard)?);
        if self.options.wal {
            if safe_time > self.heard.safe_time {
                self.wal_safe_time(&mut step, safe_time)?;
            }
            self.wal_trim(&mut step, self.wal_index() - wal_before)?;
        }
        self.finish(&mut step)?;
        self.heard = heard;
        self.shared.heard.send_replace(heard.position);
        Ok(())
    }

    /// Writes a step, then makes it true in memory.
    pub(super) fn finish(&mut self, step: &mut Step) -> Result<(), TabletError> {
        let Step { batch, finished, truncations, turns, wal_end, .. } = std::mem::take(step);
        self.store.write(batch)?;
        if let Some(end) = wal_end {
            self.wal_written(end);
        }
        for (table, stream, truncation) in truncations {
            self.shared.truncate(table, stream, truncation);
        }
        for (table, stream, turn) in turns {
            self.shared.turn(table, stream, turn);
        }
        for id in finished {
            if let Some(branch) = self.branches.remove(&id) {
                self.held.remove(&branch);
            }
            if let Some(conflicts) = &mut self.conflicts {
                conflicts.forget(id);
            }
        }
        Ok(())
    }

    /// Deletes a branch's records and the chunks that they name.
    pub(super) fn forget(&mut self, step: &mut Step, id: BranchId, records: u32) -> Result<(), TabletError> {
        let branch = self.branches.get(&id);
        let (adopts, rolled_back) = branch.map_or((true, false), |branch| (branch.adopts, branch.rolled_back));
        for number in 0..records {
            let key = keys::provisional(id, number);
            // Only a record that adopts chunks says what else goes: where there is none, nothing need be read.
            let value = if adopts { Some(self.store.get(Space::Undecided, &key)?.ok_or_else(missing)?) } else { None };
            if let Some(value) = value
                && let ProvisionalRecord::Adopted { connection, xid, chunks } =
                    decode("a provisional record", value.as_ref())?
            {
                for chunk in chunks {
                    step.batch.delete(Space::Undecided, keys::chunk(id.stream, connection, xid, chunk));
                }
                self.staging.release((id.stream, connection, xid));
            }
            step.batch.delete(Space::Undecided, key);
        }
        if rolled_back {
            step.batch.delete(Space::Undecided, keys::rolled_back(id));
        }
        step.finished.push(id);
        Ok(())
    }

    /// Turns a transaction's branches into versions. A branch that is gone was applied before.
    fn commit(
        &mut self,
        step: &mut Step,
        mut applying: Applying,
        branches: &[BranchId],
        tablets: &[ReplicaTabletId],
    ) -> Result<(), TabletError> {
        let here: Vec<(BranchId, Branch)> =
            branches.iter().filter_map(|&id| Some((id, self.branches.get(&id)?.clone()))).collect();
        if here.is_empty() {
            return Ok(());
        }
        if here.iter().any(|(_, branch)| branch.looks_back) {
            applying.filling = Some(Filling::default());
            self.undo_part(step, applying.time, &here)?;
        }
        self.each_kept_write(step, &mut applying, &here, &|_, _| true)?;
        if planted(Bug::RecordsDeletedFirst) {
            let versions = std::mem::take(step);
            for (id, branch) in &here {
                self.forget(step, *id, branch.records)?;
            }
            self.finish(step)?;
            *step = versions;
            return self.finish(step);
        }
        // All of them in one step, with the records that end the transaction in the tablet's own WAL.
        for (id, branch) in &here {
            if applying.filling.is_some() {
                step.batch.delete(Space::Undecided, keys::partly_applied(*id));
            }
            self.forget(step, *id, branch.records)?;
        }
        if self.options.wal {
            self.wal_commit(step, applying.transaction, applying.time, tablets)?;
        }
        Ok(())
    }

    /// Applies every write of a transaction that is `wanted`, but for those which a truncation after them takes back.
    pub(super) fn each_kept_write(
        &mut self,
        step: &mut Step,
        applying: &mut Applying,
        here: &[(BranchId, Branch)],
        wanted: &dyn Fn(&Self, (TableId, SourceTabletId)) -> bool,
    ) -> Result<(), TabletError> {
        for (place, (id, branch)) in here.iter().enumerate() {
            // What a truncation of the same transaction and stream empties: up to it in this branch, all before it.
            let later = here.iter().skip(place + 1).filter(|(other, _)| other.stream == id.stream);
            let emptied_later: Vec<TableId> =
                later.flat_map(|(_, branch)| branch.truncations.iter().map(|(table, _)| *table)).collect();
            let mut number = 0;
            self.each_write(*id, branch.records, &mut |state, write| {
                let emptied = emptied_later.contains(&write.table)
                    || branch.truncations.iter().any(|&(table, before)| table == write.table && number < before);
                number += 1;
                if emptied || !wanted(state, (write.table, id.stream)) {
                    return Ok(());
                }
                state.apply_write(step, applying, *id, write)?;
                if step.batch.bytes >= APPLY_BYTES {
                    state.finish_part(step, applying, *id)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Hands every write of a branch to `with`, in order.
    pub(super) fn each_write(
        &mut self,
        id: BranchId,
        records: u32,
        with: &mut dyn FnMut(&mut Self, &StoredWrite<'_>) -> Result<(), TabletError>,
    ) -> Result<(), TabletError> {
        for number in 0..records {
            let value = self.store.get(Space::Undecided, &keys::provisional(id, number))?.ok_or_else(missing)?;
            match decode("a provisional record", value.as_ref())? {
                ProvisionalRecord::Writes(writes) => writes.iter().try_for_each(|write| with(self, write))?,
                ProvisionalRecord::Adopted { connection, xid, chunks } => {
                    for chunk in chunks {
                        let key = keys::chunk(id.stream, connection, xid, chunk);
                        let value = self.store.get(Space::Undecided, &key)?.ok_or_else(missing)?;
                        let chunk: Chunk<'_> = decode("a chunk", value.as_ref())?;
                        chunk.writes.iter().try_for_each(|write| with(self, write))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn apply_write(
        &mut self,
        step: &mut Step,
        applying: &mut Applying,
        id: BranchId,
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        let &Applying { transaction, time, position, several_streams, .. } = &*applying;
        let stream = id.stream;
        let filled;
        let row = match write.op {
            StoredOp::Put(row) => Some(row),
            StoredOp::Fill { .. } => {
                // What it is filled from may stand in the step that is not written yet.
                self.finish(step)?;
                let found = self.fill(time, applying.filling.as_ref(), stream, write)?;
                if found.as_ref().is_none_or(|found| !found.settled) {
                    self.note_unfilled(step, (time, position), stream, write)?;
                }
                // The row that it changes is not here, and comes with a copy.
                let Some(found) = found else { return Ok(()) };
                filled = found.row;
                Some(Raw(&filled))
            }
            StoredOp::Delete => None,
            StoredOp::Truncate => {
                let truncation = Truncation { time, position };
                self.forget_twice(step, stream, |(table, _)| *table == write.table);
                if self.options.wal {
                    self.wal_truncate(step, applying, id, write)?;
                }
                step.batch.put(Space::Undecided, keys::truncation(write.table, stream, truncation), Vec::new());
                step.truncations.push((write.table, stream, truncation));
                return Ok(());
            }
        };
        let removed;
        let removal;
        let write = if row.is_none() && Key::is_content(write.key.0) {
            match self.remove_one(step, applying, id, write)? {
                Some(key) => removed = key,
                None => return Ok(()),
            }
            removal = StoredWrite { key: Raw(&removed), ..*write };
            &removal
        } else {
            write
        };
        if applying.filling.is_some() && row.is_none() {
            self.finish(step)?;
            self.remember_deleted(applying, stream, write)?;
        }
        let several_writers = applying.one_writer && self.note_writer(&mut step.batch, write.table, stream);
        let verdict =
            if several_writers { self.judge(step, applying, stream, write, row.is_none())? } else { Verdict::Counts };
        let key = keys::version(write.table, write.key.0, time, stream);
        step.batch.put(Space::Versions, key, encode(&StoredVersion { position, row })?);
        self.versions_written += 1;
        if applying.one_writer && row.is_none() {
            self.keep_in_copies(step, applying, stream, write)?;
        }
        if let Verdict::Beside(other) = verdict {
            return self.put_anew(step, applying, other, write);
        }
        if !self.options.wal {
            return Ok(());
        }
        if several_streams && row.is_none() {
            self.finish(step)?;
            if self.is_beaten(time, stream, write)? {
                return Ok(());
            }
        }
        self.wal_write(step, transaction, write, row)
    }

    /// Writes a step in the middle of a branch.
    pub(super) fn finish_part(
        &mut self,
        step: &mut Step,
        applying: &Applying,
        id: BranchId,
    ) -> Result<(), TabletError> {
        if applying.filling.is_some() {
            step.batch.put(Space::Undecided, keys::partly_applied(id), Vec::new());
        }
        self.finish(step)
    }

    fn remember_deleted(
        &self,
        applying: &mut Applying,
        stream: SourceTabletId,
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        let key = keys::version(write.table, write.key.0, applying.time, stream);
        let (Some(filling), Some(value)) = (&mut applying.filling, self.store.get(Space::Versions, &key)?) else {
            return Ok(());
        };
        let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
        if let Some(row) = version.row {
            filling.deleted.insert((stream, write.table, write.key.0.to_vec()), row.0.to_vec());
        }
        Ok(())
    }

    /// Takes back what a crash left of a transaction that looks back: those versions could be taken for earlier writes of
    /// the transaction.
    fn undo_part(
        &mut self,
        step: &mut Step,
        time: HybridTime,
        branches: &[(BranchId, Branch)],
    ) -> Result<(), TabletError> {
        let mut partly = Vec::new();
        for (id, branch) in branches {
            if self.store.get(Space::Undecided, &keys::partly_applied(*id))?.is_some() {
                partly.push((*id, branch.clone()));
            }
        }
        self.undo_writes(step, time, &partly, &|_, _| true)
    }

    /// Takes back every version of these branches of what is `wanted`.
    pub(super) fn undo_writes(
        &mut self,
        step: &mut Step,
        time: HybridTime,
        branches: &[(BranchId, Branch)],
        wanted: &dyn Fn(&Self, (TableId, SourceTabletId)) -> bool,
    ) -> Result<(), TabletError> {
        for (id, branch) in branches {
            self.each_write(*id, branch.records, &mut |state, write| {
                if !wanted(state, (write.table, id.stream)) {
                    return Ok(());
                }
                if write.op == StoredOp::Delete && Key::is_content(write.key.0) {
                    state.undo_removals(step, time, id.stream, write)?;
                } else if !matches!(write.op, StoredOp::Truncate) {
                    let key = keys::version(write.table, write.key.0, time, id.stream);
                    step.batch.delete(Space::Versions, key);
                }
                if step.batch.bytes >= APPLY_BYTES { state.finish(step) } else { Ok(()) }
            })?;
        }
        self.finish(step)
    }
}

/// Refuses work outside of what the batch says it covers.
fn check_positions(batch: &ApplyBatch) -> Result<(), TabletError> {
    let mut before = batch.follows.next();
    for Decided { position, .. } in &batch.work {
        if *position < before || *position > batch.through {
            return Err(TabletError::Refused(format!(
                "malformed batch: a decision at {position} between {before} and {}",
                batch.through
            )));
        }
        before = *position;
    }
    if batch.through < batch.follows {
        return Err(TabletError::Refused(format!("malformed batch: it moves from {} back", batch.follows)));
    }
    Ok(())
}
