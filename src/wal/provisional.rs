//! What a poller hands to replica tablets: a stream's writes, as provisional records.

use super::{BranchId, DroppedChunks, Epoch, Key, OpId, Row, SourceTabletId, TableId, TableSchema, Write};

/// One branch's writes within a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct BranchWrites {
    /// The branch.
    pub branch: BranchId,
    /// The writes in stream order, each above the batch's `follows`.
    pub writes: Vec<Write>,
    /// Chunks that take their place here, before `writes`: what was staged for this branch ahead of its end.
    pub adopt: Option<Adopt>,
}

/// Chunks that become part of a branch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adopt {
    /// The connection that brought them.
    pub connection: u64,
    /// The transaction's number within it.
    pub xid: u32,
    /// Sub-transactions whose chunks do not count.
    pub rolled_back: Vec<u32>,
    /// The number of the last chunk that was staged at this tablet: a tablet that holds another refuses.
    pub last_chunk: u64,
}

/// A run of one stream's writes for one tablet.
#[derive(Clone, PartialEq, Debug)]
pub struct ProvisionalBatch {
    /// The stream.
    pub stream: SourceTabletId,
    /// The owner's epoch.
    pub owner: Epoch,
    /// The puller's epoch.
    pub puller: Epoch,
    /// The stored position that this batch follows at this tablet.
    pub follows: OpId,
    /// The position that it moves to: at or above every write's.
    pub upto: OpId,
    /// Shapes of tables that this tablet may not know yet.
    pub schemas: Vec<TableSchema>,
    /// The writes.
    pub branches: Vec<BranchWrites>,
    /// Where branches of this stream opened that the source has rolled back: nothing is filled from them any more,
    /// although they may stay undecided until every branch of their transaction has ended.
    pub rolled_back: Vec<OpId>,
    /// Whether to answer which earlier undecided branches wrote the same keys (`release = "atomic"`).
    pub report_conflicts: bool,
}

/// A branch and the earlier undecided branches of its stream that wrote one of its keys.
pub type Conflict = (BranchId, Vec<BranchId>);

/// A chunk of a transaction that has not ended, for one tablet. Not durable when answered: the batch that adopts it
/// makes it so.
#[derive(Clone, PartialEq, Debug)]
pub struct ChunkBatch {
    /// The stream.
    pub stream: SourceTabletId,
    /// The owner's epoch.
    pub owner: Epoch,
    /// The puller's epoch.
    pub puller: Epoch,
    /// The connection that brought it. A number not seen before makes the tablet throw away what it staged for other
    /// connections of this stream and nobody adopted, as [`crate::tablet::TabletLeader::announce_puller`] does.
    pub connection: u64,
    /// The transaction's number within it.
    pub xid: u32,
    /// The sub-transaction that wrote it.
    pub sub_xid: u32,
    /// This chunk's number at this tablet for this transaction: 1, 2, 3, …. Another than the next is refused.
    pub number: u64,
    /// Shapes of tables that this tablet may not know yet.
    pub schemas: Vec<TableSchema>,
    /// The writes; their positions are only their order.
    pub writes: Vec<Write>,
}

/// Staged chunks that nothing will adopt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropChunks {
    /// The stream.
    pub stream: SourceTabletId,
    /// The owner's epoch.
    pub owner: Epoch,
    /// The puller's epoch.
    pub puller: Epoch,
    /// Which; the numbers of those that are dropped stay taken as long as their transaction goes on.
    pub dropped: DroppedChunks,
}

/// A row that an update gave another key without sending the cells that did not change: they are filled before it is
/// stored, because its old key may live on another tablet than its new one. This is asked at the old key's.
///
/// The newest write of the old key before the row is looked for in this order: the row's own transaction, as far as it
/// is staged here; branches of the stream that ended before it, decided or not, those that were rolled back excepted;
/// versions that the stream wrote; the copied row. The key was locked at the source from that write's commit on until
/// the row's, so nothing that comes later, or again after a crash, changes the answer.
#[derive(Clone, PartialEq, Debug)]
pub struct FillRequest {
    /// The stream.
    pub stream: SourceTabletId,
    /// The owner's epoch.
    pub owner: Epoch,
    /// The puller's epoch.
    pub puller: Epoch,
    /// The connection that brings the row's transaction.
    pub connection: u64,
    /// The transaction's number within it.
    pub xid: u32,
    /// Its sub-transactions that were rolled back so far.
    pub rolled_back: Vec<u32>,
    /// What the stream carried before the row: branches that opened above this are later, or the row's own, stored
    /// before a crash.
    pub upto: OpId,
    /// Shapes of tables that this tablet may not know yet.
    pub schemas: Vec<TableSchema>,
    /// The table.
    pub table: TableId,
    /// The key that the row had before.
    pub from: Key,
    /// The row.
    pub row: Row,
}
