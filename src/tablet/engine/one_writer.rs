//! Without a common clock a key has one writer (design.md section 5).
//!
//! Nothing says in which order two servers wrote one key, so the second of two that hold a row of one key stops by name:
//! what was decided is applied whole, and from then on nothing more is taken from that stream, until the other server's
//! row is deleted. A row that moves between two servers, in one transaction or in two, is a delete on one of them.

use super::apply::{Applying, Step};
use super::fill::Earlier;
use super::state::State;
use crate::coordinator::ReadPoint;
use crate::limits::{APPLY_BYTES, TWICE_WRITTEN_KEYS};
use crate::mvcc::{Chain, Offer, Stamp};
use crate::planted::{Bug, planted};
use crate::tablet::TabletError;
use crate::tablet::format::{Raw, StoredVersion, StoredWrite, decode, encode};
use crate::tablet::keys::{self, Kind, Parts, VersionKey};
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::wal::{HybridTime, Key, LogPosition, SourceTabletId, TableId};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Two streams' rows of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Twice {
    /// The second: it stops.
    second: SourceTabletId,
    /// Whose row was there.
    first: SourceTabletId,
}

/// Who wrote what.
#[derive(Default, Debug)]
pub(super) struct Writers {
    /// The streams that ever wrote to each table: where it was one, nothing has to be looked for.
    by_table: BTreeMap<TableId, BTreeSet<SourceTabletId>>,
    /// Keys of which two streams hold a row.
    twice: BTreeMap<(TableId, Vec<u8>), Twice>,
}

/// Rows that a step writes and nobody can look up yet: whose they are and when, `None` where the key is gone.
pub(super) type Unwritten = FxHashMap<(TableId, Vec<u8>), Option<(SourceTabletId, HybridTime)>>;

/// What a write means for other streams' rows of its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is.
    Counts,
    /// It is a delete, and this other stream's row of the key stays shown.
    Beside(SourceTabletId),
}

impl<S: Store> State<S> {
    /// Reads back what is on disk.
    pub(super) fn recover_writers(&mut self) -> Result<(), TabletError> {
        let store = self.store.clone();
        let damaged = || TabletError::Poisoned("a writer's key is damaged".into());
        let (from, below) = Kind::Writer.all();
        for entry in store.scan(Space::Undecided, &from, &below) {
            let (key, _) = entry?;
            let mut parts = Parts(&key.as_ref()[1..]);
            let (table, stream) = parts.u32().zip(parts.u32()).ok_or_else(damaged)?;
            self.writers.by_table.entry(TableId(table)).or_default().insert(SourceTabletId(stream));
        }
        let (from, below) = Kind::Twice.all();
        for entry in store.scan(Space::Undecided, &from, &below) {
            let (key, value) = entry?;
            let mut parts = Parts(&key.as_ref()[1..]);
            let table = parts.u32().ok_or_else(damaged)?;
            let twice = decode("a key that was written twice", value.as_ref())?;
            self.writers.twice.insert((TableId(table), parts.0.to_vec()), twice);
        }
        Ok(())
    }

    /// Refuses a stream that put a row under a key where another's is.
    pub(super) fn check_one_writer(&self, stream: SourceTabletId) -> Result<(), TabletError> {
        let Some(((table, key), twice)) = self.writers.twice.iter().find(|(_, twice)| twice.second == stream) else {
            return Ok(());
        };
        let newest = self.schemas.range((*table, 0)..=(*table, u32::MAX)).next_back();
        let table = newest.map_or_else(|| table.to_string(), |(_, schema)| schema.name.clone());
        let key = format!("{:?}", Key(key.clone().into()));
        Err(TabletError::WrittenTwice { table, key, first: twice.first })
    }

    /// Notes that a stream writes to a table; whether others do, too.
    pub(super) fn note_writer(&mut self, batch: &mut StoreBatch, table: TableId, stream: SourceTabletId) -> bool {
        let writers = self.writers.by_table.entry(table).or_default();
        if writers.insert(stream) {
            batch.put(Space::Undecided, keys::writer(table, stream), Vec::new());
        }
        writers.len() > 1
    }

    /// Looks at a write of a table that several streams write to, before it becomes a version.
    pub(super) fn judge(
        &mut self,
        step: &mut Step,
        applying: &Applying,
        stream: SourceTabletId,
        write: &StoredWrite<'_>,
        deletes: bool,
    ) -> Result<Verdict, TabletError> {
        let id = (write.table, write.key.0.to_vec());
        let there = match step.unwritten.get(&id) {
            Some(there) => *there,
            None => self.shown_now(write.table, write.key.0)?,
        };
        let others = there.filter(|(other, _)| *other != stream);
        // What is decided late of a stream that has left, say, changes nothing about what is there.
        let is_seen = !self.shared.truncations().is_hidden(write.table, stream);
        if deletes && planted(Bug::DeleteBeatsWrite) {
            return Ok(Verdict::Counts);
        }
        if deletes {
            let second = self.writers.twice.get(&id).filter(|twice| twice.first == stream).map(|twice| twice.second);
            if let Some(second) = second {
                self.forget_twice(step, stream, |key| *key == id);
                step.unwritten.insert(id, Some((second, applying.time)));
                return Ok(Verdict::Beside(second));
            }
            return Ok(match others {
                Some((other, time)) if time < applying.time => Verdict::Beside(other),
                // Within one transaction a write beats another stream's delete.
                Some(_) => Verdict::Counts,
                None => {
                    if is_seen {
                        step.unwritten.insert(id, None);
                    }
                    Verdict::Counts
                }
            });
        }
        if let Some((first, _)) = others
            && self.writers.twice.len() < TWICE_WRITTEN_KEYS
            && !self.writers.twice.contains_key(&id)
        {
            let twice = Twice { second: stream, first };
            step.batch.put(Space::Undecided, keys::twice(write.table, write.key.0), encode(&twice)?);
            self.writers.twice.insert(id.clone(), twice);
        }
        if is_seen {
            step.unwritten.insert(id, Some((stream, applying.time)));
        }
        Ok(Verdict::Counts)
    }

    /// Puts another stream's row anew, at the time of a delete that would hide it. The delete itself counts, too: what its
    /// stream had under the key may lie below it in a copy that is shown later, or be all that is left when the other's part
    /// of the table is hidden.
    pub(super) fn put_anew(
        &mut self,
        step: &mut Step,
        applying: &Applying,
        other: SourceTabletId,
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        let at = (applying.time, applying.position);
        match self.row_anew(step, at, other, write.table, write.key.0)? {
            Some(row) if self.options.wal => self.wal_write(step, applying.transaction, write, Some(Raw(&row))),
            _ => Ok(()),
        }
    }

    fn row_anew(
        &mut self,
        step: &mut Step,
        (time, position): (HybridTime, LogPosition),
        stream: SourceTabletId,
        table: TableId,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, TabletError> {
        self.finish(step)?;
        let Some(Earlier { row, .. }) = self.newest_write(time, None, stream, table, key)? else { return Ok(None) };
        let version = StoredVersion { position, row: Some(Raw(&row)) };
        step.batch.put(Space::Versions, keys::version(table, key, time, stream), encode(&version)?);
        self.versions_written += 1;
        Ok(Some(row))
    }

    /// A stream deletes a row that may have moved to other streams before their copies were taken, which are not shown yet:
    /// theirs stay. A copy that is not whole may still bring one, so the delete is noted.
    pub(super) fn keep_in_copies(
        &mut self,
        step: &mut Step,
        applying: &Applying,
        stream: SourceTabletId,
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        let of_table = (write.table, SourceTabletId(0))..=(write.table, SourceTabletId(u32::MAX));
        let others = self.copying.range(of_table).filter(|((_, other), _)| *other != stream);
        for (other, complete) in others.map(|((_, other), copying)| (*other, copying.complete)).collect::<Vec<_>>() {
            if complete {
                self.row_anew(step, (applying.time, applying.position), other, write.table, write.key.0)?;
            } else {
                let note = keys::beside(write.table, other, applying.time, write.key.0);
                step.batch.put(Space::Undecided, note, encode(&applying.position)?);
            }
        }
        Ok(())
    }

    /// Every row of a copy is here: those that other streams' deletes would hide are put anew.
    pub(super) fn settle_beside(
        &mut self,
        step: &mut Step,
        table: TableId,
        stream: SourceTabletId,
    ) -> Result<(), TabletError> {
        let (from, below) = keys::all_beside(table, stream);
        let store = self.store.clone();
        for note in store.scan(Space::Undecided, &from, &below) {
            let (note, position) = note?;
            let position: LogPosition = decode("a delete beside a copy", position.as_ref())?;
            let Some((time, key)) = note.as_ref().get(9..).and_then(|rest| rest.split_first_chunk::<8>()) else {
                return Err(TabletError::Poisoned("a key of a delete beside a copy is damaged".into()));
            };
            let time = HybridTime::from_u64(u64::from_be_bytes(*time));
            self.row_anew(step, (time, position), stream, table, key)?;
            step.batch.delete(Space::Undecided, note.as_ref().to_vec());
            if step.batch.bytes >= APPLY_BYTES {
                self.finish(step)?;
            }
        }
        Ok(())
    }

    /// The copy that was on its way will not be shown.
    pub(super) fn forget_beside(
        &self,
        step: &mut Step,
        table: TableId,
        stream: SourceTabletId,
    ) -> Result<(), TabletError> {
        let (from, below) = keys::all_beside(table, stream);
        for note in self.store.scan(Space::Undecided, &from, &below) {
            step.batch.delete(Space::Undecided, note?.0.as_ref().to_vec());
        }
        Ok(())
    }

    /// A stream's rows of these keys are gone: whoever stopped for one of them may go on.
    pub(super) fn forget_twice(
        &mut self,
        step: &mut Step,
        first: SourceTabletId,
        of: impl Fn(&(TableId, Vec<u8>)) -> bool,
    ) {
        self.forget_twice_if(step, |key, twice| twice.first == first && of(key));
    }

    /// What is seen of a stream's part of a table is another now: it says nothing about others' rows, nor they about it.
    pub(super) fn forget_twice_of(&mut self, step: &mut Step, table: TableId, stream: SourceTabletId) {
        self.forget_twice_if(step, |key, twice| key.0 == table && (twice.first == stream || twice.second == stream));
    }

    fn forget_twice_if(&mut self, step: &mut Step, over: impl Fn(&(TableId, Vec<u8>), &Twice) -> bool) {
        self.writers.twice.retain(|key, twice| {
            let over = over(key, twice);
            if over {
                step.batch.delete(Space::Undecided, keys::twice(key.0, &key.1));
            }
            !over
        });
    }

    /// Whose row a key shows, and since when.
    fn shown_now(&self, table: TableId, key: &[u8]) -> Result<Option<(SourceTabletId, HybridTime)>, TabletError> {
        let truncations = self.shared.truncations();
        let everything = ReadPoint { position: LogPosition(u64::MAX), time: HybridTime::MAX };
        let mut chain = Chain::new(table, everything, &truncations);
        let mut best = None;
        let (from, below) = keys::row_versions(table, key, HybridTime::MAX);
        for entry in self.store.scan(Space::Versions, &from, &below) {
            let (version_key, value) = entry?;
            let VersionKey { time, stream, .. } = VersionKey::parse(version_key.as_ref())
                .ok_or_else(|| TabletError::Poisoned("a version's key is damaged".into()))?;
            let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
            match chain.offer(&Stamp { time, position: version.position, stream, deleted: version.row.is_none() }) {
                Offer::Best => best = Some((stream, time)),
                Offer::Passed => {}
                Offer::Settled => break,
            }
        }
        Ok(best.filter(|_| chain.shows_row()))
    }
}
