//! Chunks of transactions that have not ended: staged, then adopted by reference or thrown away.
//!
//! A chunk is written once. The batch that ends its transaction binds it to a branch by number, without rewriting it,
//! and that batch's barrier makes it durable: all of it stands in one journal, in order.

use super::conflicts::key_hash;
use super::state::{Branch, Held, State};
use crate::limits::STAGED_KEYS_MAX;
use crate::planted::{Bug, planted};
use crate::tablet::format::{Chunk, ProvisionalRecord, StoredWrite, decode, encode, encoded_rows, stored_writes};
use crate::tablet::keys::{self, Kind, Parts};
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::tablet::{Adopt, ChunkBatch, DropChunks, TabletError};
use crate::wal::{DroppedChunks, SourceTabletId, TableId};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// A transaction that has not ended: its stream, connection and number within that.
pub(super) type Transaction = (SourceTabletId, u64, u32);

/// One staged chunk: its number, who wrote it, and what it adds to a branch.
#[derive(Clone, Debug)]
struct StagedChunk {
    number: u64,
    sub_xid: u32,
    adds: Branch,
}

/// Which chunks of a transaction wrote a key, by the key's hash. Only for transactions that ask for rows.
#[derive(Default, Debug)]
enum WrittenKeys {
    /// It never asked.
    #[default]
    NotAsked,
    /// The numbers of the chunks of each key.
    Known(FxHashMap<u64, SmallVec<[u64; 2]>>),
    /// More than [`STAGED_KEYS_MAX`]: every chunk may have written any key.
    TooMany,
}

impl WrittenKeys {
    fn note(&mut self, number: u64, writes: &[StoredWrite<'_>]) {
        let Self::Known(keys) = self else { return };
        for write in writes {
            let chunks = keys.entry(key_hash(write.table, write.key.0)).or_default();
            if chunks.last() != Some(&number) {
                chunks.push(number);
            }
        }
        if keys.len() > STAGED_KEYS_MAX {
            *self = Self::TooMany;
        }
    }
}

/// What is staged of one transaction, in order.
#[derive(Default, Debug)]
struct Staged {
    chunks: Vec<StagedChunk>,
    /// The number of the last one that came, whether it is still here or not.
    last: u64,
    keys: WrittenKeys,
}

/// Chunks, by stream, connection and xid.
#[derive(Default, Debug)]
pub(super) struct Staging {
    /// Those that nobody adopted yet.
    transactions: BTreeMap<Transaction, Staged>,
    /// What their chunks hold, all together.
    pub(super) held: Held,
    /// Whose chunks an undecided branch holds: their numbers are taken.
    adopted: BTreeSet<Transaction>,
}

fn read_chunk<S: Store>(store: &S, key: &[u8]) -> Result<S::Slice, TabletError> {
    store.get(Space::Undecided, key)?.ok_or_else(|| TabletError::Poisoned("an adopted chunk is gone".into()))
}

fn summary(bytes: &[u8]) -> Result<(u32, Branch), TabletError> {
    let chunk: Chunk<'_> = decode("a chunk", bytes)?;
    let mut adds = Branch { bytes: bytes.len() as u64, ..Branch::default() };
    adds.count(&chunk.writes);
    Ok((chunk.sub_xid, adds))
}

impl Branch {
    fn absorb(&mut self, adds: &Self) {
        self.truncations.extend(adds.truncations.iter().map(|&(table, before)| (table, self.writes + before)));
        self.writes += adds.writes;
        self.bytes += adds.bytes;
        self.looks_back |= adds.looks_back;
    }
}

impl Staging {
    /// Every chunk on disk; those that were adopted are taken out by [`Staging::adopted_before`].
    pub(super) fn recover<S: Store>(store: &S) -> Result<Self, TabletError> {
        let mut staging = Self::default();
        let (from, below) = Kind::Chunk.all();
        for entry in store.scan(Space::Undecided, &from, &below) {
            let (key, value) = entry?;
            let mut parts = Parts(&key.as_ref()[1..]);
            let mut id = || Some(((SourceTabletId(parts.u32()?), parts.u64()?, parts.u32()?), parts.u64()?));
            let (id, number) = id().ok_or_else(|| TabletError::Poisoned("a chunk key is damaged".into()))?;
            let (sub_xid, adds) = summary(value.as_ref())?;
            staging.push(id, StagedChunk { number, sub_xid, adds });
        }
        Ok(staging)
    }

    /// A record on disk says that these chunks belong to a branch.
    pub(super) fn adopted_before<S: Store>(
        &mut self,
        store: &S,
        (stream, connection, xid): Transaction,
        chunks: &[u64],
        branch: &mut Branch,
    ) -> Result<(), TabletError> {
        self.take((stream, connection, xid));
        self.adopted.insert((stream, connection, xid));
        branch.adopts = true;
        for &number in chunks {
            let value = read_chunk(store, &keys::chunk(stream, connection, xid, number))?;
            branch.absorb(&summary(value.as_ref())?.1);
        }
        Ok(())
    }

    /// Whether what is staged is what an adoption expects.
    pub(super) fn check(&self, stream: SourceTabletId, adopt: &Adopt) -> Result<(), TabletError> {
        let held = self.last((stream, adopt.connection, adopt.xid));
        if held != adopt.last_chunk {
            return Err(TabletError::ChunksLost(format!(
                "transaction {} of connection {} has {held} chunks here, {} were sent",
                adopt.xid, adopt.connection, adopt.last_chunk
            )));
        }
        Ok(())
    }

    fn last(&self, id: Transaction) -> u64 {
        self.transactions.get(&id).map_or(0, |staged| staged.last)
    }

    fn push(&mut self, id: Transaction, chunk: StagedChunk) -> &mut Staged {
        self.held.add(&chunk.adds);
        let staged = self.transactions.entry(id).or_default();
        staged.last = chunk.number;
        staged.chunks.push(chunk);
        staged
    }

    /// Takes out what is staged of a transaction, as it ends.
    fn take(&mut self, id: Transaction) -> Vec<StagedChunk> {
        let chunks = self.transactions.remove(&id).unwrap_or_default().chunks;
        chunks.iter().for_each(|chunk| self.held.remove(&chunk.adds));
        chunks
    }

    /// Throws away what is staged of a transaction, or of one of its sub-transactions.
    fn drop(&mut self, stream: SourceTabletId, dropped: DroppedChunks, batch: &mut StoreBatch) {
        let DroppedChunks { connection, xid, sub_xid } = dropped;
        let id = (stream, connection, xid);
        let gone = match sub_xid {
            None => self.take(id),
            Some(_) if planted(Bug::RolledBackChunksCount) => Vec::new(),
            Some(sub_xid) => {
                let Some(staged) = self.transactions.get_mut(&id) else { return };
                let gone: Vec<_> = staged.chunks.extract_if(.., |chunk| chunk.sub_xid == sub_xid).collect();
                gone.iter().for_each(|chunk| self.held.remove(&chunk.adds));
                gone
            }
        };
        for chunk in gone {
            batch.delete(Space::Undecided, keys::chunk(stream, connection, xid, chunk.number));
        }
    }

    /// Binds what is staged to a branch, without the chunks of rolled-back sub-transactions, which are deleted. `None`
    /// when nothing is left. Call [`Staging::check`] first.
    pub(super) fn adopt(
        &mut self,
        stream: SourceTabletId,
        adopt: &Adopt,
        branch: &mut Branch,
        batch: &mut StoreBatch,
    ) -> Option<ProvisionalRecord<'static>> {
        let &Adopt { connection, xid, .. } = adopt;
        let staged = self.take((stream, connection, xid));
        let mut chunks = Vec::with_capacity(staged.len());
        for StagedChunk { number, sub_xid, adds } in staged {
            if adopt.rolled_back.contains(&sub_xid) && !planted(Bug::RolledBackChunksCount) {
                batch.delete(Space::Undecided, keys::chunk(stream, connection, xid, number));
            } else {
                branch.absorb(&adds);
                chunks.push(number);
            }
        }
        if !chunks.is_empty() {
            self.adopted.insert((stream, connection, xid));
            branch.adopts = true;
        }
        (!chunks.is_empty()).then_some(ProvisionalRecord::Adopted { connection, xid, chunks })
    }

    /// The branch that held these chunks is decided.
    pub(super) fn release(&mut self, id: Transaction) {
        self.adopted.remove(&id);
    }

    /// Throws away what other connections of the stream staged, or all of them.
    fn keep_only(&mut self, stream: SourceTabletId, connection: Option<u64>, batch: &mut StoreBatch) {
        let of_stream = (stream, 0, 0)..=(stream, u64::MAX, u32::MAX);
        let stale = self.transactions.range(of_stream).map(|(&id, _)| id).filter(|id| Some(id.1) != connection);
        for (_, connection, xid) in stale.collect::<Vec<_>>() {
            self.drop(stream, DroppedChunks { connection, xid, sub_xid: None }, batch);
        }
    }
}

impl<S: Store> State<S> {
    /// See [`crate::tablet::TabletLeader::stage_chunk`].
    pub(super) fn stage_chunk(&mut self, chunk: ChunkBatch) -> Result<(), TabletError> {
        self.admit_owner(chunk.owner)?;
        self.admit_puller(chunk.stream, chunk.puller)?;
        super::provisional::check_keys(chunk.writes.iter().map(|write| (&write.key, &write.op)))?;
        let id = (chunk.stream, chunk.connection, chunk.xid);
        if self.staging.adopted.contains(&id) {
            let (xid, connection) = (chunk.xid, chunk.connection);
            let again = format!("transaction {xid} of connection {connection} has ended, and sends chunks again");
            return Err(TabletError::ChunksLost(again));
        }
        let next = self.staging.last(id) + 1;
        if chunk.number != next {
            return Err(TabletError::ChunksLost(format!(
                "chunk {next} of transaction {} of connection {} comes next, not {}",
                chunk.xid, chunk.connection, chunk.number
            )));
        }
        let mut batch = StoreBatch::default();
        self.learn(&chunk.schemas)?;
        self.staging.keep_only(chunk.stream, Some(chunk.connection), &mut batch);
        let rows = encoded_rows(&chunk.writes)?;
        let stored = Chunk { sub_xid: chunk.sub_xid, writes: stored_writes(&chunk.writes, &rows) };
        let value = encode(&stored)?;
        let (sub_xid, adds) = summary(&value)?;
        batch.put(Space::Undecided, keys::chunk(id.0, id.1, id.2, next), value);
        let staged = self.staging.push(id, StagedChunk { number: next, sub_xid, adds });
        staged.keys.note(next, &stored.writes);
        // A value may be very large, and the store makes a copy of its own: what this one was made of goes before.
        drop((rows, chunk.writes));
        self.store.write(batch)?;
        Ok(())
    }

    /// See [`crate::tablet::TabletLeader::drop_chunks`].
    pub(super) fn drop_chunks(&mut self, drop: DropChunks) -> Result<(), TabletError> {
        self.admit_owner(drop.owner)?;
        self.admit_puller(drop.stream, drop.puller)?;
        let mut batch = StoreBatch::default();
        self.staging.drop(drop.stream, drop.dropped, &mut batch);
        Ok(self.store.write(batch)?)
    }

    /// A puller begins anew: nothing that its stream staged and nobody adopted will be.
    pub(super) fn drop_staged(&mut self, stream: SourceTabletId) -> Result<(), TabletError> {
        let mut batch = StoreBatch::default();
        self.staging.keep_only(stream, None, &mut batch);
        Ok(self.store.write(batch)?)
    }

    /// Hands every write of a chunk to `with`, in order.
    pub(super) fn each_staged(
        &self,
        (stream, connection, xid): Transaction,
        number: u64,
        with: &mut dyn FnMut(&Self, &StoredWrite<'_>) -> Result<(), TabletError>,
    ) -> Result<(), TabletError> {
        let value = read_chunk(&self.store, &keys::chunk(stream, connection, xid, number))?;
        let chunk: Chunk<'_> = decode("a chunk", value.as_ref())?;
        chunk.writes.iter().try_for_each(|write| with(self, write))
    }

    /// The numbers of the chunks that may have written a key, in order, without those of rolled-back sub-transactions.
    pub(super) fn chunks_that_wrote(
        &mut self,
        id: Transaction,
        rolled_back: &[u32],
        table: TableId,
        key: &[u8],
    ) -> Result<Vec<u64>, TabletError> {
        let Some(mut staged) = self.staging.transactions.remove(&id) else { return Ok(Vec::new()) };
        if matches!(staged.keys, WrittenKeys::NotAsked) {
            staged.keys = WrittenKeys::Known(FxHashMap::default());
            for chunk in &staged.chunks {
                let value = read_chunk(&self.store, &keys::chunk(id.0, id.1, id.2, chunk.number))?;
                staged.keys.note(chunk.number, &decode::<Chunk<'_>>("a chunk", value.as_ref())?.writes);
            }
        }
        let wrote = match &staged.keys {
            WrittenKeys::Known(keys) => Some(keys.get(&key_hash(table, key)).map_or(&[][..], SmallVec::as_slice)),
            WrittenKeys::NotAsked | WrittenKeys::TooMany => None,
        };
        let candidates = staged.chunks.iter().filter(|chunk| {
            let emptied = || chunk.adds.truncations.iter().any(|(emptied, _)| *emptied == table);
            wrote.is_none_or(|wrote| wrote.binary_search(&chunk.number).is_ok() || emptied())
        });
        let counting = candidates.filter(|chunk| !rolled_back.contains(&chunk.sub_xid));
        let numbers = counting.map(|chunk| chunk.number).collect();
        self.staging.transactions.insert(id, staged);
        Ok(numbers)
    }
}
