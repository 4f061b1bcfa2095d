//! Facts: what a poller reports of its stream, and what the log keeps of it. Rows never come here.

use crate::wal::{BranchId, Epoch, HybridTime, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId};
use serde::{Deserialize, Serialize};

/// An involved source tablet of a Commit record, by the log's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InvolvedStream {
    /// Its stream.
    pub stream: SourceTabletId,
    /// How many Write records that stream carries of the transaction, where the source knows it.
    pub records: Option<u64>,
}

/// Who is involved, as far as a Commit record says ([`crate::wal::Involved`] with the log's numbers).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Involvement {
    /// The record lists them.
    Listed(Vec<InvolvedStream>),
    /// Only the stream that carries the record.
    OnlyThisStream,
    /// Found out by discovery: whoever had prepared a branch when the first COMMIT PREPARED was seen.
    Discovered,
}

/// One fact of one stream. Facts of a stream are reported in stream order; what they say may be said twice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Fact {
    /// The source began a transaction; this stream will carry its Commit or Aborted record.
    Created {
        /// Which.
        transaction: SourceTransactionId,
        /// Where the record stands.
        at: OpId,
    },
    /// The transaction was alive at this place.
    Pending {
        /// Which.
        transaction: SourceTransactionId,
    },
    /// Records of a branch were taken: all of them are durable at the named replica tablets.
    Branch {
        /// Which transaction it belongs to, as the stream says.
        transaction: SourceTransactionId,
        /// Where the branch opened in this stream.
        opened: OpId,
        /// How many Write records of it this report covers, stored now or before.
        records: u64,
        /// The replica tablets that hold writes of it, by this report.
        tablets: Vec<ReplicaTabletId>,
        /// Earlier undecided branches that wrote one of its keys, as the tablets saw them (`release = "atomic"` only).
        after: Vec<BranchId>,
        /// Set when the stream has now carried every record of the branch: its Applying record.
        applying: Option<ApplyingFact>,
    },
    /// The source committed the transaction. For a branch whose transaction has its Commit record already, only the
    /// end of that branch.
    Commit {
        /// Which.
        transaction: SourceTransactionId,
        /// The branch of this stream that it ends (PostgreSQL), by where it opened.
        branch: Option<OpId>,
        /// Where the record stands.
        at: OpId,
        /// The source's commit time.
        time: HybridTime,
        /// Who is involved.
        involved: Involvement,
    },
    /// The source aborted the transaction; with a branch, that branch only.
    Aborted {
        /// Which.
        transaction: SourceTransactionId,
        /// The one branch of this stream that it ends (PostgreSQL), by where it opened.
        branch: Option<OpId>,
        /// Where the record stands.
        at: OpId,
    },
    /// The stream's SafeTime record.
    SafeTime {
        /// Its time.
        time: HybridTime,
    },
    /// The source said that it does not know these transactions as running, at a point that this stream has passed:
    /// their Commit record can no longer come by this stream (C8).
    NotRunning {
        /// Which.
        transactions: Vec<SourceTransactionId>,
    },
    /// The source tablet was split; its stream ends here and the children's streams go on.
    Split {
        /// The children's streams.
        children: Vec<SourceTabletId>,
        /// Where the record stands.
        at: OpId,
    },
}

/// A stream's Applying record of a branch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ApplyingFact {
    /// Where it stands.
    pub at: OpId,
    /// How many Write records the stream says it carried, where it counts them.
    pub records: Option<u64>,
    /// When the branch was prepared (PostgreSQL), else zero.
    pub prepared_at: HybridTime,
    /// What the source will end the branch by, where that is not the transaction's id (a full gid).
    pub label: Option<String>,
}

/// What a poller reports at once: the facts of a run of its stream, after all of it is durable at the replica tablets.
/// It goes into the log in one entry, with its checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The stream.
    pub stream: SourceTabletId,
    /// The puller's epoch, given by the log.
    pub puller: Epoch,
    /// The checkpoint that this report follows: the `upto` of the report before.
    pub follows: OpId,
    /// The checkpoint that it moves to.
    pub upto: OpId,
    /// How far the stream is known to have come (a keepalive); zero where it did not say, else at or above `upto`.
    pub head: OpId,
    /// What was acknowledged to the source so far: it will never send it again.
    pub acknowledged: OpId,
    /// The highest position stored at each replica tablet that this run wrote to.
    pub stored: Vec<(ReplicaTabletId, OpId)>,
    /// The facts in stream order.
    pub facts: Vec<Fact>,
}
