//! The vocabulary of change streams: what a record is, where it stands, and when it was committed.
//!
//! A **stream** carries the change records of one source tablet: in order within the stream, at least once, with no
//! order across streams. An [`OpId`] is a position in one stream; a checkpoint is the last one taken, and reading
//! resumes strictly after it. Nothing in this room does I/O, and everything in the crate may use it.

mod batch;
pub mod codec;
mod content;
mod hybrid_time;
mod ids;
mod key;
mod op_id;
mod provisional;
mod record;
mod row;

pub use batch::{ChunkOrigin, DroppedChunks, SourceBatch, StagedChunk};
pub use hybrid_time::HybridTime;
pub use ids::{
    BranchId, Epoch, LogPosition, ReplicaTabletId, SourceTabletId, SourceTransactionId, TableId, TransactionId,
};
pub use key::Key;
pub use op_id::OpId;
pub use provisional::{Adopt, BranchWrites, ChunkBatch, Conflict, DropChunks, FillRequest, ProvisionalBatch};
pub use record::{Involved, InvolvedTablet, Record, Write, WriteOp};
pub use row::{Cell, Column, Row, TableSchema};
