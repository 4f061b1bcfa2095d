//! What a source hands over at once.

use super::{HybridTime, OpId, Record, SourceTransactionId, TableSchema, Write, WriteOp};

/// A run of records of one stream.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SourceBatch {
    /// The records in stream order, each with its position; positions rise, and all lie above the batch before. Only
    /// Schema records may share the position of the record that follows them.
    pub records: Vec<(OpId, Record)>,
    /// Chunks that took their place in this batch: the transaction that ends here was sent before its end.
    pub adopted: Vec<ChunkOrigin>,
    /// The position to resume after once this batch is durable: at or above the last record's.
    pub upto: OpId,
    /// How far the stream is known to have come although it carried nothing (a keepalive's end position): counts only
    /// once everything before it in its connection is durable. At or above `upto`, or zero.
    pub head: OpId,
    /// The source's clock when it sent this, for lag; zero when it did not say.
    pub sent_at: HybridTime,
    /// About how many bytes the records take in memory.
    pub bytes: usize,
}

/// Where the chunks of a transaction that was sent before its end are staged, and what became of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkOrigin {
    /// The transaction that they belong to, as the batch's records name it.
    pub transaction: SourceTransactionId,
    /// Where its branch opened: its end position, index 1.
    pub opened: OpId,
    /// Which connection brought them; a number that no other connection of the stream has.
    pub connection: u64,
    /// The transaction's number within that connection (PostgreSQL's xid).
    pub xid: u32,
    /// Sub-transactions that were rolled back: their chunks do not count.
    pub rolled_back: Vec<u32>,
    /// How many writes count, over all chunks.
    pub records: u64,
}

/// A chunk of a transaction that has not ended. It has no position yet: it is staged under its connection and thrown
/// away with it, and takes its position from the [`ChunkOrigin`] of the batch that ends the transaction.
#[derive(Clone, PartialEq, Debug)]
pub struct StagedChunk {
    /// Which connection brought it.
    pub connection: u64,
    /// The transaction's number within that connection.
    pub xid: u32,
    /// The sub-transaction that wrote it (equal to `xid` for the top one).
    pub sub_xid: u32,
    /// Shapes of the tables that it writes to.
    pub schemas: Vec<TableSchema>,
    /// The writes; their positions are only their order (term 0, index counting up within the transaction). One whose
    /// unchanged cells are filled from another key stands first: what it is filled from lies in earlier chunks, or in
    /// transactions before.
    pub writes: Vec<Write>,
    /// Sub-transactions that were rolled back so far: nothing is filled from their chunks. Only said where the first
    /// write is to be filled.
    pub rolled_back: Vec<u32>,
    /// About how many bytes they take in memory.
    pub bytes: usize,
}

/// Chunks of a transaction that has not ended, and that nothing will adopt: the source rolled it back, or sent again what was
/// taken before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DroppedChunks {
    /// Which connection brought them.
    pub connection: u64,
    /// The transaction's number within that connection.
    pub xid: u32,
    /// Only those of this sub-transaction, and others go on to come; `None` is all of them.
    pub sub_xid: Option<u32>,
}

impl StagedChunk {
    /// Whether the first write is filled from another key.
    #[must_use]
    pub fn begins_with_fill(&self) -> bool {
        matches!(self.writes.first(), Some(Write { op: WriteOp::Put { fill_from: Some(_), .. }, .. }))
    }
}
