//! Which undecided branches of a stream wrote the same keys: those that wait for one another (`release = "atomic"`,
//! trace 9), and those that a row is filled from.

use super::state::State;
use crate::limits::CONFLICT_KEYS_MAX;
use crate::tablet::TabletError;
use crate::tablet::format::{Chunk, ProvisionalRecord, StoredOp, StoredWrite, decode};
use crate::tablet::keys;
use crate::tablet::store::{Space, Store};
use crate::wal::{BranchId, Key, OpId, SourceTabletId, TableId};
use rustc_hash::{FxHashMap, FxHasher};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

/// What a key is remembered by.
pub(super) fn key_hash(table: TableId, key: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write_u32(table.0);
    hasher.write(key);
    hasher.finish()
}

/// Keys by hash: two keys of one hash only make a transaction wait that need not, or a branch be read in vain.
#[derive(Default, Debug)]
pub(super) struct Conflicts {
    writers: FxHashMap<u64, SmallVec<[BranchId; 1]>>,
    keys: BTreeMap<BranchId, Vec<u64>>,
    /// Branches that truncate, or wrote too many keys to remember each: they conflict with every other.
    wide: BTreeSet<BranchId>,
}

impl Conflicts {
    /// Notes a branch's writes; adds the earlier branches of its stream that wrote one of the keys to `earlier`.
    fn note(&mut self, branch: BranchId, writes: &[StoredWrite<'_>], earlier: &mut BTreeSet<BranchId>) {
        let same_stream = |other: &&BranchId| other.stream == branch.stream && **other != branch;
        earlier.extend(self.wide.iter().filter(same_stream));
        let keys = self.keys.entry(branch).or_default();
        let mut wide = self.wide.contains(&branch);
        for write in writes {
            if matches!(write.op, StoredOp::Truncate) || keys.len() >= CONFLICT_KEYS_MAX {
                wide = true;
                self.wide.insert(branch);
                continue;
            }
            let hash = key_hash(write.table, Key::shared(write.key.0));
            let writers = self.writers.entry(hash).or_default();
            earlier.extend(writers.iter().filter(same_stream));
            if !writers.contains(&branch) {
                writers.push(branch);
                keys.push(hash);
            }
        }
        if wide {
            earlier.extend(self.keys.keys().filter(same_stream));
        }
    }

    /// Forgets a branch that was decided.
    pub(super) fn forget(&mut self, branch: BranchId) {
        self.wide.remove(&branch);
        for hash in self.keys.remove(&branch).unwrap_or_default() {
            if let Some(writers) = self.writers.get_mut(&hash) {
                writers.retain(|writer| *writer != branch);
                if writers.is_empty() {
                    self.writers.remove(&hash);
                }
            }
        }
    }
}

impl<S: Store> State<S> {
    /// Earlier branches that wrote a key of these, whose records from `first_record` on were written just now.
    pub(super) fn conflicts_of(
        &mut self,
        written: &[(BranchId, u32)],
    ) -> Result<Vec<(BranchId, Vec<BranchId>)>, TabletError> {
        let mut index = self.take_index(written)?;
        let mut conflicts = Vec::new();
        for &(branch, first_record) in written {
            let records = first_record..self.branches.get(&branch).map_or(0, |held| held.records);
            let earlier = self.note_records(&mut index, branch, records)?;
            if !earlier.is_empty() {
                conflicts.push((branch, earlier.into_iter().collect()));
            }
        }
        self.conflicts = Some(index);
        Ok(conflicts)
    }

    /// The index, with everything but these branches' records from their first one on.
    fn take_index(&mut self, without: &[(BranchId, u32)]) -> Result<Conflicts, TabletError> {
        if let Some(index) = self.conflicts.take() {
            return Ok(index);
        }
        let mut index = Conflicts::default();
        for (&branch, held) in &self.branches {
            let is_new = without.iter().find(|(new, _)| *new == branch);
            let old_records = is_new.map_or(held.records, |(_, first_record)| *first_record);
            self.note_records(&mut index, branch, 0..old_records)?;
        }
        Ok(index)
    }

    /// Undecided branches of a stream that opened at or below `upto` and may have written a key, the latest first.
    pub(super) fn writers_before(
        &mut self,
        stream: SourceTabletId,
        upto: OpId,
        table: TableId,
        key: &[u8],
    ) -> Result<Vec<BranchId>, TabletError> {
        let index = self.take_index(&[])?;
        let writers = index.writers.get(&key_hash(table, key)).map_or(&[][..], SmallVec::as_slice);
        let earlier = |branch: &&BranchId| branch.stream == stream && branch.opened <= upto;
        let found: BTreeSet<BranchId> = writers.iter().chain(&index.wide).filter(earlier).copied().collect();
        self.conflicts = Some(index);
        Ok(found.into_iter().rev().collect())
    }

    fn note_records(
        &self,
        index: &mut Conflicts,
        branch: BranchId,
        records: std::ops::Range<u32>,
    ) -> Result<BTreeSet<BranchId>, TabletError> {
        let mut earlier = BTreeSet::new();
        for number in records {
            let Some(value) = self.store.get(Space::Undecided, &keys::provisional(branch, number))? else { continue };
            match decode("a provisional record", value.as_ref())? {
                ProvisionalRecord::Writes(writes) => index.note(branch, &writes, &mut earlier),
                ProvisionalRecord::Adopted { connection, xid, chunks } => {
                    for chunk in chunks {
                        let key = keys::chunk(branch.stream, connection, xid, chunk);
                        let Some(value) = self.store.get(Space::Undecided, &key)? else { continue };
                        let chunk: Chunk<'_> = decode("a chunk", value.as_ref())?;
                        index.note(branch, &chunk.writes, &mut earlier);
                    }
                }
            }
        }
        Ok(earlier)
    }
}
