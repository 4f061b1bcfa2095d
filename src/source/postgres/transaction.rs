//! A transaction on its way in: its writes, in memory or already handed over in chunks.

use super::tuple::Shape;
use crate::wal::{Cell, ChunkOrigin, DroppedChunks, Key, OpId, StagedChunk, Write, WriteOp};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes that a write takes beside its key and cells, about.
const WRITE_OVERHEAD: usize = 96;

/// Writes that one sub-transaction made one after another, still in memory.
struct Part {
    sub_xid: u32,
    /// The tables that they go to.
    shapes: Vec<Arc<Shape>>,
    writes: Vec<Write>,
    bytes: usize,
}

/// A transaction that has begun and not ended. Its writes have no position yet: `at.index` counts them.
#[derive(Default)]
pub struct Transaction {
    xid: u32,
    /// In the order of their writes: a later write of one key is another sub-transaction's as often as not.
    parts: Vec<Part>,
    bytes: usize,
    last_index: u64,
    /// Whether a row was to be filled from another key: then it all goes out in chunks.
    fills: bool,
    /// The newest change's place in the WAL, and how many writes came from there: one record may hold many rows.
    newest: (u64, u64),
    /// How many writes went out in chunks, by sub-transaction.
    staged: HashMap<u32, u64>,
    rolled_back: Vec<u32>,
    /// Shapes that only this transaction has seen so far: it may have changed them itself.
    pub relations: HashMap<u32, Option<Arc<Shape>>>,
}

/// A transaction's writes at its end.
pub struct Ended {
    /// The writes that were not handed over in chunks, with their positions.
    pub writes: Vec<Write>,
    /// Where the others are.
    pub adopted: Option<ChunkOrigin>,
    /// How many writes count in all.
    pub records: u64,
    /// The index after the last write.
    pub next_index: u64,
    /// About how many bytes the writes take.
    pub bytes: usize,
}

impl Transaction {
    /// One that has just begun.
    #[must_use]
    pub fn new(xid: u32) -> Self {
        Self { xid, ..Self::default() }
    }

    /// Its number on the server.
    #[must_use]
    pub fn xid(&self) -> u32 {
        self.xid
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last_index == 0
    }

    /// How many changes from this place in the WAL came before this one.
    pub fn nth_from(&mut self, wal_at: u64) -> u64 {
        self.newest = if self.newest.0 == wal_at { (wal_at, self.newest.1 + 1) } else { (wal_at, 0) };
        self.newest.1
    }

    /// Adds a write.
    pub fn push(&mut self, sub_xid: u32, shape: &Arc<Shape>, key: Key, op: WriteOp) {
        self.last_index += 1;
        let bytes = WRITE_OVERHEAD + key.0.len() + op_bytes(&op);
        self.fills |= begins_chunk(&op);
        let write = Write { at: OpId::new(0, self.last_index), table: shape.schema.table, key, op };
        self.bytes += bytes;
        match self.parts.last_mut().filter(|part| part.sub_xid == sub_xid) {
            Some(part) => {
                part.writes.push(write);
                part.bytes += bytes;
                if !part.shapes.iter().any(|known| Arc::ptr_eq(known, shape)) {
                    part.shapes.push(Arc::clone(shape));
                }
            }
            None => self.parts.push(Part { sub_xid, shapes: vec![Arc::clone(shape)], writes: vec![write], bytes }),
        }
    }

    /// Forgets a sub-transaction that was rolled back; answers what is to be dropped of what went out.
    #[must_use]
    pub fn roll_back(&mut self, connection: u64, sub_xid: u32) -> Option<DroppedChunks> {
        self.parts.retain(|part| part.sub_xid != sub_xid);
        self.bytes = self.parts.iter().map(|part| part.bytes).sum();
        self.staged.remove(&sub_xid)?;
        self.rolled_back.push(sub_xid);
        Some(DroppedChunks { connection, xid: self.xid, sub_xid: Some(sub_xid) })
    }

    /// What is to be dropped when the whole of it goes nowhere, if anything went out.
    #[must_use]
    pub fn dropped(&self, connection: u64) -> Option<DroppedChunks> {
        let went_out = !self.staged.is_empty() || !self.rolled_back.is_empty();
        went_out.then_some(DroppedChunks { connection, xid: self.xid, sub_xid: None })
    }

    /// Takes what is in memory out as chunks, in order; each is of one sub-transaction.
    pub fn take_chunks(&mut self, connection: u64) -> Vec<StagedChunk> {
        self.bytes = 0;
        let mut chunks = Vec::with_capacity(self.parts.len());
        for Part { sub_xid, shapes, writes, bytes } in std::mem::take(&mut self.parts) {
            *self.staged.entry(sub_xid).or_default() += writes.len() as u64;
            let rolled_back = Vec::new();
            let schemas = shapes.iter().map(|shape| shape.schema.clone()).collect();
            let mut chunk = StagedChunk { connection, xid: self.xid, sub_xid, schemas, writes, rolled_back, bytes };
            if chunk.begins_with_fill() {
                chunk.rolled_back = self.rolled_back.clone();
            }
            chunks.push(chunk);
        }
        chunks
    }

    /// Whether any of it went out in chunks, or must.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        self.fills || !self.staged.is_empty() || !self.rolled_back.is_empty()
    }

    /// Ends it: everything takes its position in `term`. What is staged keeps its order, which may have gaps where
    /// sub-transactions were rolled back; the caller takes the last chunks out before.
    #[must_use]
    pub fn end(self, term: u64, connection: u64, transaction: crate::wal::SourceTransactionId) -> Ended {
        if self.is_staged() {
            debug_assert!(self.parts.is_empty(), "the last chunks were not taken");
            let records = self.staged.values().sum();
            let adopted = ChunkOrigin {
                transaction,
                opened: OpId::new(term, 1),
                connection,
                xid: self.xid,
                rolled_back: self.rolled_back,
                records,
            };
            let next_index = self.last_index + 1;
            return Ended { writes: Vec::new(), adopted: Some(adopted), records, next_index, bytes: 0 };
        }
        let mut writes: Vec<Write> = self.parts.into_iter().flat_map(|part| part.writes).collect();
        for (write, index) in writes.iter_mut().zip(1..) {
            write.at = OpId::new(term, index);
        }
        let records = writes.len() as u64;
        Ended { writes, adopted: None, records, next_index: records + 1, bytes: self.bytes }
    }
}

/// Whether a write must be the first of its chunk: its row is filled from another key's newest earlier write, which
/// must have been handed over before it.
#[must_use]
pub fn begins_chunk(op: &WriteOp) -> bool {
    matches!(op, WriteOp::Put { fill_from: Some(_), .. })
}

fn op_bytes(op: &WriteOp) -> usize {
    let WriteOp::Put { row, .. } = op else { return 0 };
    let cell = |cell: &Cell| std::mem::size_of::<Cell>() + if let Cell::Text(text) = cell { text.len() } else { 0 };
    row.cells.iter().map(cell).sum()
}
