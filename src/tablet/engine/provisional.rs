//! Storing provisional records: exactly once, without gaps (C5).

use super::state::State;
use crate::limits::KEY_BYTES_MAX;
use crate::planted::{Bug, planted};
use crate::tablet::format::{Mark, ProvisionalRecord, encode, encoded_rows, stored_writes};
use crate::tablet::keys;
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::tablet::{ProvisionalBatch, Stored, TabletError};
use crate::wal::{BranchId, Key, WriteOp};

/// Refuses keys that the store could not keep apart or could not write.
pub(super) fn check_keys<'a>(writes: impl IntoIterator<Item = (&'a Key, &'a WriteOp)>) -> Result<(), TabletError> {
    for (key, op) in writes {
        let keys = match op {
            WriteOp::Truncate => continue,
            WriteOp::Put { fill_from: Some(from), .. } => [Some(key), Some(from)],
            WriteOp::Put { .. } | WriteOp::Delete => [Some(key), None],
        };
        keys.into_iter().flatten().try_for_each(check_key)?;
        if matches!(op, WriteOp::Put { .. }) && Key::is_content(&key.0) {
            return Err(TabletError::Refused(format!("a row is put under {key:?}, which names a content and no row")));
        }
    }
    Ok(())
}

/// As [`check_keys`], for one key.
pub(super) fn check_key(key: &Key) -> Result<(), TabletError> {
    if key.0.len() > KEY_BYTES_MAX {
        let bytes = key.0.len();
        return Err(TabletError::Refused(format!("a key of {bytes} bytes is above the limit of {KEY_BYTES_MAX}")));
    }
    if !keys::ends_itself(&key.0) {
        return Err(TabletError::Refused(format!("malformed batch: {key:?} is no encoded key")));
    }
    Ok(())
}

impl<S: Store> State<S> {
    /// See [`crate::tablet::TabletLeader::write_provisional`].
    pub(super) fn write_provisional(&mut self, batch: ProvisionalBatch) -> Result<Stored, TabletError> {
        self.admit_owner(batch.owner)?;
        let held = self.admit_puller(batch.stream, batch.puller)?;
        let taken = planted(Bug::TabletTakesAgain) && batch.follows < held.stored;
        if held.stored != batch.follows && !taken {
            return Err(TabletError::OutOfOrder { held: held.stored, follows: batch.follows });
        }
        self.check_one_writer(batch.stream)?;
        self.check_owed(batch.stream)?;
        let mut changes = StoreBatch::default();
        self.learn(&batch.schemas)?;
        self.check(&batch)?;
        let mut written: Vec<(BranchId, u32)> = Vec::with_capacity(batch.branches.len());
        for part in batch.branches {
            let mut writes = part.writes;
            writes.retain(|write| write.at > batch.follows);
            let branch = self.branches.entry(part.branch).or_default();
            let before = (branch.writes, branch.bytes);
            let first_record = branch.records;
            if let Some(adopt) = &part.adopt
                && let Some(record) = self.staging.adopt(batch.stream, adopt, branch, &mut changes)
            {
                changes.put(Space::Undecided, keys::provisional(part.branch, branch.records), encode(&record)?);
                branch.records += 1;
            }
            if !writes.is_empty() {
                let rows = encoded_rows(&writes)?;
                let stored = stored_writes(&writes, &rows);
                branch.count(&stored);
                let value = encode(&ProvisionalRecord::Writes(stored))?;
                branch.bytes += value.len() as u64;
                changes.put(Space::Undecided, keys::provisional(part.branch, branch.records), value);
                branch.records += 1;
            }
            self.held.writes += branch.writes - before.0;
            self.held.bytes += branch.bytes - before.1;
            if branch.records == 0 {
                self.branches.remove(&part.branch);
            } else if !written.contains(&(part.branch, first_record)) {
                written.push((part.branch, first_record));
            }
        }
        for opened in batch.rolled_back {
            let id = BranchId { stream: batch.stream, opened };
            if let Some(branch) = self.branches.get_mut(&id) {
                branch.rolled_back = true;
                changes.put(Space::Undecided, keys::rolled_back(id), Vec::new());
            }
        }
        let mark = Mark { stored: batch.upto, puller: held.puller };
        if planted(Bug::MarkBeforeData) {
            let mut first = StoreBatch::default();
            first.put(Space::Undecided, keys::mark(batch.stream), encode(&mark)?);
            self.store.write(first)?;
        }
        changes.put(Space::Undecided, keys::mark(batch.stream), encode(&mark)?);
        self.store.write(changes)?;
        self.marks.insert(batch.stream, mark);
        let asked = batch.report_conflicts || self.conflicts.is_some();
        let conflicts = if asked { self.conflicts_of(&written)? } else { Vec::new() };
        Ok(Stored { mark: batch.upto, conflicts })
    }

    fn check(&self, batch: &ProvisionalBatch) -> Result<(), TabletError> {
        let malformed = |why: String| Err(TabletError::Refused(format!("malformed batch: {why}")));
        if batch.upto < batch.follows {
            return malformed(format!("it moves from {} back to {}", batch.follows, batch.upto));
        }
        for part in &batch.branches {
            if part.branch.stream != batch.stream {
                return malformed(format!("branch {} is not of stream {}", part.branch, batch.stream));
            }
            if let Some(write) = part.writes.iter().find(|write| write.at > batch.upto) {
                return malformed(format!("a write at {} is above its end {}", write.at, batch.upto));
            }
            for write in &part.writes {
                let version = match &write.op {
                    WriteOp::Put { row, .. } => Some(row.schema_version),
                    WriteOp::Delete | WriteOp::Truncate => None,
                };
                self.check_shape(write.table, version)?;
            }
            check_keys(part.writes.iter().map(|write| (&write.key, &write.op)))?;
            part.adopt.as_ref().map_or(Ok(()), |adopt| self.staging.check(batch.stream, adopt))?;
        }
        Ok(())
    }
}
