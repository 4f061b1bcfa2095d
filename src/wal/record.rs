//! What a stream carries.

use super::{BranchId, HybridTime, Key, OpId, Row, SourceTransactionId, TableId, TableSchema};
use serde::{Deserialize, Serialize};

/// What a write does to its key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum WriteOp {
    /// The row is now this. `fill_from` is given when an update changed the key and unchanged cells must be filled from
    /// the old one. The old key's delete is a write of its own and comes after this one, so that the old key's newest
    /// earlier write is the row to fill from. At the head of a chunk it is filled before it is stored, from whichever
    /// replica tablet holds the old key; elsewhere when its transaction is applied, and both keys must live on one.
    Put {
        /// The new row.
        row: Row,
        /// The key that unchanged cells are filled from, when it is another than the write's.
        fill_from: Option<Key>,
    },
    /// The row is gone. Under a key that names a content and no row ([`Key::of_content`]) exactly one of the identical rows
    /// is, and the replica tablet settles which when it applies the transaction.
    Delete,
    /// All rows of the table that this stream wrote are gone; the key is empty. Goes to every replica tablet.
    Truncate,
}

/// One write of a transaction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Write {
    /// Its position in its stream.
    pub at: OpId,
    /// The table.
    pub table: TableId,
    /// The key; empty for [`WriteOp::Truncate`].
    pub key: Key,
    /// What happens to it.
    pub op: WriteOp,
}

/// An involved source tablet as a Commit record names it, by the source's own name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InvolvedTablet {
    /// The source tablet's name.
    pub tablet: String,
    /// How many Write records its stream carries of this transaction, where the source knows it.
    pub records: Option<u64>,
}

/// Who is involved in a transaction, as far as its Commit record says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Involved {
    /// The record lists them (`cdc`).
    Listed(Vec<InvolvedTablet>),
    /// Only the stream that carries the record (an ordinary PostgreSQL commit).
    OnlyThisStream,
    /// Unknown: found out by discovery (a COMMIT PREPARED).
    Discovered,
}

/// One record of a stream.
#[derive(Clone, PartialEq, Debug)]
pub enum Record {
    /// The source began a transaction, and this stream will carry its Commit or Aborted record.
    Created {
        /// Which.
        transaction: SourceTransactionId,
    },
    /// The transaction was alive when this record was written.
    Pending {
        /// Which.
        transaction: SourceTransactionId,
    },
    /// A write of a transaction.
    Write {
        /// Which.
        transaction: SourceTransactionId,
        /// The write.
        write: Write,
    },
    /// This stream has now carried every record of the transaction.
    Applying {
        /// Which.
        transaction: SourceTransactionId,
        /// How many Write records that were, where the source counts them.
        records: Option<u64>,
        /// When the branch was prepared, for sources that find out later which use of an id it belongs to.
        prepared_at: Option<HybridTime>,
        /// What the source will end this branch by, where that is not the transaction's id: the full gid, when
        /// `gid_pattern` takes only a part of it. Kept with the open branch, because a stream that resumes behind this
        /// record finds the branch by nothing else.
        label: Option<String>,
    },
    /// The source committed the transaction.
    Commit {
        /// Which.
        transaction: SourceTransactionId,
        /// The branch of this stream that the record ends, for sources whose branches end one by one (PostgreSQL).
        branch: Option<BranchId>,
        /// The source's commit time.
        time: HybridTime,
        /// Who is involved.
        involved: Involved,
    },
    /// The source aborted the transaction, or (with a branch) rolled that branch back.
    Aborted {
        /// Which.
        transaction: SourceTransactionId,
        /// The one branch that was rolled back, for sources whose branches end one by one.
        branch: Option<BranchId>,
    },
    /// This stream has carried every write, Applying and Commit record that it will ever carry of transactions
    /// committed at or below this time.
    SafeTime {
        /// The time.
        time: HybridTime,
    },
    /// The shape of a table, before the first write that uses it.
    Schema(TableSchema),
    /// This source tablet was split; its stream ends here.
    Split {
        /// The names of the tablets that go on in its place.
        children: Vec<String>,
    },
}
