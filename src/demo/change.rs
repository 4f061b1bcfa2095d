//! What a source tablet's WAL keeps, and the protocol's record that it becomes when it is sent.

use crate::proto::cdc::{
    Aborted, Applying, CdcRecord, Column, Commit, Created, InvolvedTablet, OpId, Pending, Row, SafeTime, Schema,
    SourceTransactionId, Write, cdc_record::Record, write::Operation,
};
use crate::wal::HybridTime;
use bytes::Bytes;
use smallvec::SmallVec;

/// The bank's only table.
pub const TABLE: &str = "public.accounts";

/// The number of a transaction of the source.
pub type Number = u64;

/// A record as the WAL keeps it: numbers instead of names, so that a backlog of a stalled reader stays small.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The shape of the bank's table.
    Schema,
    /// A transaction began, and its Commit or Aborted record will stand in this WAL.
    Created(Number),
    /// A transaction is alive.
    Pending(Number),
    /// An account's new balance.
    Write {
        /// By which transaction.
        transaction: Number,
        /// The account.
        account: u32,
        /// What it holds from the commit on.
        balance: i64,
    },
    /// This WAL carries no further write of the transaction.
    Applying {
        /// Which transaction.
        transaction: Number,
        /// How many writes of it this WAL carries.
        records: u32,
    },
    /// The transaction is committed.
    Commit {
        /// Which.
        transaction: Number,
        /// When.
        time: HybridTime,
        /// The tablets that it wrote to, each with its number of writes.
        involved: SmallVec<[(u16, u16); 4]>,
    },
    /// The transaction is aborted.
    Aborted(Number),
    /// This WAL carries nothing more of transactions committed at or below this time.
    SafeTime(HybridTime),
}

impl Change {
    /// The record as it is sent from position `at`. `accounts` has the text of each account's number, `tablets` the
    /// tablets' names.
    #[must_use]
    pub fn record(&self, at: crate::wal::OpId, accounts: &[Bytes], tablets: &[String]) -> CdcRecord {
        let named = |number: Number| Some(name(number));
        let record = match *self {
            Self::Schema => Record::Schema(schema()),
            Self::Created(number) => Record::Created(Created { transaction: named(number) }),
            Self::Pending(number) => Record::Pending(Pending { transaction: named(number) }),
            Self::Write { transaction, account, balance } => {
                let account = accounts.get(account as usize).cloned().unwrap_or_default();
                let values = vec![account.clone(), balance.to_string().into()];
                let row = Row { schema_version: 1, values, ..Row::default() };
                Record::Write(Write {
                    transaction: named(transaction),
                    table: TABLE.into(),
                    key: vec![account],
                    operation: Some(Operation::Put(row)),
                })
            }
            Self::Applying { transaction, records } => {
                Record::Applying(Applying { transaction: named(transaction), records: Some(records.into()) })
            }
            Self::Commit { transaction, time, ref involved } => {
                let involved = involved.iter().map(|&(tablet, records)| InvolvedTablet {
                    tablet: tablets.get(usize::from(tablet)).cloned().unwrap_or_default(),
                    records: Some(records.into()),
                });
                Record::Commit(Commit {
                    transaction: named(transaction),
                    commit_hybrid_time: time.to_u64(),
                    involved: involved.collect(),
                })
            }
            Self::Aborted(number) => Record::Aborted(Aborted { transaction: named(number) }),
            Self::SafeTime(time) => Record::SafeTime(SafeTime { hybrid_time: time.to_u64() }),
        };
        CdcRecord { at: Some(OpId { term: at.term, index: at.index }), record: Some(record) }
    }

    /// About how many bytes the record takes when it is sent.
    #[must_use]
    pub fn sent_bytes(&self) -> usize {
        match self {
            Self::Schema => 80,
            Self::Write { .. } => 80,
            Self::Commit { involved, .. } => 48 + 16 * involved.len(),
            _ => 32,
        }
    }
}

/// The shape of the bank's table.
#[must_use]
pub fn schema() -> Schema {
    let column = |name: &str, key| Column { name: name.into(), type_name: "int8".into(), key };
    Schema { table: TABLE.into(), version: 1, columns: vec![column("id", true), column("balance", false)] }
}

/// What the source calls a transaction: text, so that people can read it on the screen and ask `explain` for it.
fn name(number: Number) -> SourceTransactionId {
    SourceTransactionId { id: format!("transfer-{number}").into(), incarnation: 0 }
}

/// The number of a transaction by its name; `None` for a name that the source never gave.
#[must_use]
pub fn number(transaction: &crate::wal::SourceTransactionId) -> Option<Number> {
    std::str::from_utf8(&transaction.id).ok()?.strip_prefix("transfer-")?.parse().ok()
}
