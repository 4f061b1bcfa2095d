//! The values that a tablet persists, each in the envelope of [`crate::wal::codec`].
//!
//! A row travels through a tablet as bytes: encoded once when its provisional record is written, copied into its
//! version when it is applied, decoded when it is read.

use super::TabletError;
use crate::wal::codec;
use crate::wal::{Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, Row, TableId, Write, WriteOp};
use serde::{Deserialize, Serialize, Serializer};

/// The version byte of every value.
pub const FORMAT_VERSION: u8 = 1;

/// Bytes that are stored as they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct Raw<'a>(#[serde(borrow)] pub &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// See [`super::keys::Kind::Binding`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Binding {
    /// The log's id.
    pub log_id: String,
    /// The tablet's number in that log.
    pub tablet: ReplicaTabletId,
    /// The highest owner's epoch seen.
    pub owner: Epoch,
}

/// See [`super::keys::Kind::Mark`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The highest position stored.
    pub stored: OpId,
    /// The highest puller epoch seen.
    pub puller: Epoch,
}

/// See [`super::keys::Kind::Applied`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AppliedThrough {
    /// The log position.
    pub position: LogPosition,
    /// The newest safe time heard.
    pub safe_time: HybridTime,
}

/// One write as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredWrite<'a> {
    /// The table.
    pub table: TableId,
    /// The row's key.
    #[serde(borrow)]
    pub key: Raw<'a>,
    /// What happens to it.
    #[serde(borrow)]
    pub op: StoredOp<'a>,
}

/// What a stored write does; rows are postcard's bytes of [`Row`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StoredOp<'a> {
    /// The row, whole.
    Put(#[serde(borrow)] Raw<'a>),
    /// The row, with cells to be filled.
    Fill {
        /// The row.
        #[serde(borrow)]
        row: Raw<'a>,
        /// The key to fill from, when it is another.
        #[serde(borrow)]
        from: Option<Raw<'a>>,
    },
    /// The row is gone.
    Delete,
    /// The stream's rows of the table are gone.
    Truncate,
}

/// See [`super::keys::Kind::Provisional`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProvisionalRecord<'a> {
    /// Writes of one batch.
    Writes(#[serde(borrow)] Vec<StoredWrite<'a>>),
    /// The writes of these chunks, in this order.
    Adopted {
        /// The connection that brought them.
        connection: u64,
        /// The transaction's number within it.
        xid: u32,
        /// Their numbers.
        chunks: Vec<u64>,
    },
}

/// See [`super::keys::Kind::Chunk`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chunk<'a> {
    /// The sub-transaction that wrote it.
    pub sub_xid: u32,
    /// Its writes.
    #[serde(borrow)]
    pub writes: Vec<StoredWrite<'a>>,
}

/// See [`super::keys::Kind::Version`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredVersion<'a> {
    /// The decision's position; 0 for copied rows.
    pub position: LogPosition,
    /// The row; `None` is a delete.
    #[serde(borrow)]
    pub row: Option<Raw<'a>>,
}

/// See [`super::keys::Kind::Turn`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredTurn {
    /// The hybrid time from which on it is seen.
    pub time: HybridTime,
    /// The base of the copy that is shown; `None`: nothing.
    pub base: Option<HybridTime>,
}

/// See [`super::keys::Kind::Copying`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Copying {
    /// Where its rows stand.
    pub base: HybridTime,
    /// All of them are here.
    pub complete: bool,
}

/// See [`super::keys::Kind::Unfilled`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unfilled<'a> {
    /// The decision's log position.
    pub position: LogPosition,
    /// The row, with cells to be filled.
    #[serde(borrow)]
    pub row: Raw<'a>,
    /// The key to fill from, when it is another.
    #[serde(borrow)]
    pub from: Option<Raw<'a>>,
}

/// See [`super::keys::Kind::Wal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredWal<'a> {
    /// Bytes of all records before it.
    pub before: u64,
    /// The CDC protocol's bytes of the record.
    #[serde(borrow)]
    pub record: Raw<'a>,
}

/// Encodes a value.
///
/// # Errors
/// [`TabletError::Refused`], which for these types does not happen.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, TabletError> {
    codec::encode(FORMAT_VERSION, value).map_err(|e| TabletError::Refused(format!("cannot be encoded: {e}")))
}

/// Decodes a value that the tablet stored.
///
/// # Errors
/// [`TabletError::Poisoned`]: damage, or a newer format. Nothing may be served from it.
pub fn decode<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, TabletError> {
    codec::decode(FORMAT_VERSION, bytes).map_err(|e| TabletError::Poisoned(format!("{what}: {e}")))
}

/// A row's bytes.
///
/// # Errors
/// As [`encode`].
pub fn encode_row(row: &Row) -> Result<Vec<u8>, TabletError> {
    postcard::to_stdvec(row).map_err(|e| TabletError::Refused(format!("cannot be encoded: {e}")))
}

/// A row from its bytes.
///
/// # Errors
/// As [`decode`].
pub fn decode_row(bytes: &[u8]) -> Result<Row, TabletError> {
    postcard::from_bytes(bytes).map_err(|e| TabletError::Poisoned(format!("a row: {e}")))
}

/// The encoded rows of writes, one each; empty where there is none.
///
/// # Errors
/// As [`encode`].
pub fn encoded_rows(writes: &[Write]) -> Result<Vec<Vec<u8>>, TabletError> {
    let row = |write: &Write| match &write.op {
        WriteOp::Put { row, .. } => encode_row(row),
        WriteOp::Delete | WriteOp::Truncate => Ok(Vec::new()),
    };
    writes.iter().map(row).collect()
}

/// The stored form of writes, given their encoded rows.
pub fn stored_writes<'a>(writes: &'a [Write], rows: &'a [Vec<u8>]) -> Vec<StoredWrite<'a>> {
    let stored = |(write, row): (&'a Write, &'a Vec<u8>)| {
        let op = match &write.op {
            WriteOp::Put { row: cells, fill_from } if cells.cells.contains(&crate::wal::Cell::Unchanged) => {
                StoredOp::Fill { row: Raw(row), from: fill_from.as_ref().map(|key| Raw(&key.0)) }
            }
            WriteOp::Put { .. } => StoredOp::Put(Raw(row)),
            WriteOp::Delete => StoredOp::Delete,
            WriteOp::Truncate => StoredOp::Truncate,
        };
        StoredWrite { table: write.table, key: Raw(&write.key.0), op }
    };
    writes.iter().zip(rows).map(stored).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Cell, Key};
    use bytes::Bytes;

    fn payload<T: Serialize>(value: &T) -> Vec<u8> {
        encode(value).unwrap()[5..].to_vec()
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut bytes = encode(&Mark { stored: OpId::new(1, 2), puller: Epoch(3) }).unwrap();
        bytes[0] = FORMAT_VERSION + 1;
        let error = decode::<Mark>("the mark of e1", &bytes).unwrap_err().to_string();
        assert!(error.contains("the mark of e1") && error.contains("version 2 is newer than 1"), "{error}");
    }

    #[test]
    fn golden_values() {
        let binding = Binding { log_id: "ab".into(), tablet: ReplicaTabletId(1), owner: Epoch(2) };
        assert_eq!(payload(&binding), [2, b'a', b'b', 1, 2]);
        assert_eq!(payload(&Mark { stored: OpId::new(1, 2), puller: Epoch(3) }), [1, 2, 3]);
        let through = AppliedThrough { position: LogPosition(4), safe_time: HybridTime::from_u64(5) };
        assert_eq!(payload(&through), [4, 5]);
        let row = Row { schema_version: 1, cells: vec![Cell::Null, Cell::Text(Bytes::from_static(b"x"))] };
        let row = encode_row(&row).unwrap();
        assert_eq!(row, [1, 2, 0, 1, 1, b'x']);
        let write = |op| StoredWrite { table: TableId(3), key: Raw(b"k\0\x01"), op };
        let writes = vec![
            write(StoredOp::Put(Raw(b"r"))),
            write(StoredOp::Fill { row: Raw(b"r"), from: Some(Raw(b"o")) }),
            write(StoredOp::Delete),
            write(StoredOp::Truncate),
        ];
        let key = [3, 3, b'k', 0, 1];
        let expected = [&key[..], &[0, 1, b'r'], &key, &[1, 1, b'r', 1, 1, b'o'], &key, &[2], &key, &[3]].concat();
        assert_eq!(payload(&ProvisionalRecord::Writes(writes.clone())), [&[0, 4][..], &expected].concat());
        let adopted = ProvisionalRecord::Adopted { connection: 5, xid: 6, chunks: vec![1, 2] };
        assert_eq!(payload(&adopted), [1, 5, 6, 2, 1, 2]);
        assert_eq!(payload(&Chunk { sub_xid: 9, writes }), [&[9, 4][..], &expected].concat());
        assert_eq!(payload(&StoredVersion { position: LogPosition(7), row: Some(Raw(b"r")) }), [7, 1, 1, b'r']);
        assert_eq!(payload(&StoredVersion { position: LogPosition(7), row: None }), [7, 0]);
        let turn = StoredTurn { time: HybridTime::from_u64(5), base: Some(HybridTime::from_u64(4)) };
        assert_eq!(payload(&turn), [5, 1, 4]);
        assert_eq!(payload(&StoredTurn { base: None, ..turn }), [5, 0]);
        assert_eq!(payload(&Copying { base: HybridTime::from_u64(4), complete: true }), [4, 1]);
        let unfilled = Unfilled { position: LogPosition(7), row: Raw(b"r"), from: Some(Raw(b"o")) };
        assert_eq!(payload(&unfilled), [7, 1, b'r', 1, 1, b'o']);
        assert_eq!(payload(&LogPosition(7)), [7], "a delete beside a copy");
        assert_eq!(payload(&StoredWal { before: 300, record: Raw(b"r") }), [172, 2, 1, b'r']);
    }

    #[test]
    fn writes_come_back_borrowed() {
        let put = |fill_from| WriteOp::Put { row: Row { schema_version: 1, cells: vec![Cell::Unchanged] }, fill_from };
        let writes =
            vec![Write { at: OpId::ZERO, table: TableId(1), key: Key::default(), op: put(Some(Key::default())) }];
        let rows = encoded_rows(&writes).unwrap();
        let bytes = encode(&ProvisionalRecord::Writes(stored_writes(&writes, &rows))).unwrap();
        let ProvisionalRecord::Writes(back) = decode("a record", &bytes).unwrap() else { panic!("writes") };
        assert_eq!(back[0].op, StoredOp::Fill { row: Raw(&rows[0]), from: Some(Raw(b"")) });
    }
}
