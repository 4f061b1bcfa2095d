//! A service's answer as a batch, or what is wrong with it.

use super::StreamNames;
use super::fault::Faults;
use crate::limits::{CDC_RECORD_BYTES_MAX, SOURCE_TRANSACTION_ID_BYTES_MAX};
use crate::proto::cdc as pb;
use crate::proto::cdc::cdc_record::Record as PbRecord;
use crate::proto::wire::{Malformed, op_id, required};
use crate::source::{Catalog, SourceError};
use crate::wal::{
    Column, HybridTime, Involved, InvolvedTablet, Key, OpId, Record, Row, SourceBatch, SourceTransactionId, TableId,
    TableSchema, Write, WriteOp,
};
use prost::Message;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Decodes the answers of one stream, in order.
pub struct Decoder {
    streams: Arc<StreamNames>,
    catalog: Arc<dyn Catalog>,
    tables: FxHashMap<String, KnownTable>,
    /// Shapes that came without a position: the next record's is theirs, so that they reach every tablet before it.
    unplaced: Vec<TableSchema>,
    /// The stream's Split record was taken: nothing may follow it.
    ended: bool,
}

/// A table whose Schema record came.
struct KnownTable {
    /// The catalog's number.
    id: TableId,
    /// By the source's version.
    versions: FxHashMap<u32, KnownShape>,
}

/// A version of a table's columns.
struct KnownShape {
    /// The catalog's version.
    version: u32,
    columns: Vec<pb::Column>,
    /// How many of them are part of the key.
    keys: usize,
}

/// What is wrong with a record.
enum Fault {
    /// It breaks the protocol.
    Record(String),
    /// It names a tablet of the source that the configuration does not.
    Unread(String),
    /// The catalog did not take its schema.
    Catalog(SourceError),
}

impl From<Malformed> for Fault {
    fn from(fault: Malformed) -> Self {
        Self::Record(fault.to_string())
    }
}

impl Fault {
    /// How the stream ends when this is wrong with its record at `at`.
    fn ends(self, faults: &Faults, at: OpId) -> SourceError {
        match self {
            Self::Record(fault) => faults.record(at, fault),
            Self::Unread(tablet) => faults.unread(at, &tablet),
            Self::Catalog(error) => error,
        }
    }
}

impl Decoder {
    /// For a stream that was just opened, among all `streams` of the configuration.
    #[must_use]
    pub fn new(streams: Arc<StreamNames>, catalog: Arc<dyn Catalog>) -> Self {
        Self { streams, catalog, tables: FxHashMap::default(), unplaced: Vec::new(), ended: false }
    }

    /// The batch of an answer to a request for what comes after `after`; nothing of it if anything in it is wrong.
    ///
    /// # Errors
    /// What breaks the protocol, and what the catalog said.
    pub async fn decode(
        &mut self,
        faults: &Faults,
        after: OpId,
        response: pb::GetCdcRecordsResponse,
    ) -> Result<SourceBatch, SourceError> {
        for schema in response.schemas {
            let numbered = self.schema(schema).await.map_err(|fault| fault.ends(faults, after))?;
            self.unplaced.push(numbered);
        }
        let mut batch =
            SourceBatch { records: Vec::with_capacity(response.records.len()), upto: after, ..SourceBatch::default() };
        for record in response.records {
            let bytes = record.encoded_len();
            let at = op_id("records.at", record.at).map_err(|fault| faults.record(batch.upto, fault))?;
            self.check_place(after, batch.upto, at, bytes).map_err(|fault| faults.record(at, fault))?;
            let record = self.record(at, record.record).await.map_err(|fault| fault.ends(faults, at))?;
            batch.records.extend(self.unplaced.drain(..).map(|schema| (at, Record::Schema(schema))));
            batch.records.push((at, record));
            batch.upto = at;
            batch.bytes += bytes + size_of::<(OpId, Record)>();
        }
        let upto = op_id("upto", response.upto).map_err(|fault| faults.record(batch.upto, fault))?;
        if upto < batch.upto {
            let fault = format!("`upto` is {upto}, below {}, which was reached", batch.upto);
            return Err(faults.record(batch.upto, fault));
        }
        batch.upto = upto;
        batch.sent_at = HybridTime::from_micros(response.sent_at_micros);
        Ok(batch)
    }

    fn check_place(&self, after: OpId, last: OpId, at: OpId, bytes: usize) -> Result<(), String> {
        if at <= after {
            return Err(format!("the record lies at or below {after}, the position asked for"));
        }
        if at == last {
            return Err("two records have this position".to_owned());
        }
        if at < last {
            return Err(format!("the positions go back from {last}"));
        }
        if bytes > CDC_RECORD_BYTES_MAX {
            return Err(format!("the record has {bytes} bytes, at most {CDC_RECORD_BYTES_MAX} are taken"));
        }
        if self.ended {
            return Err("the record follows a Split record, which ends a stream".to_owned());
        }
        Ok(())
    }

    async fn record(&mut self, at: OpId, record: Option<PbRecord>) -> Result<Record, Fault> {
        let unknown = || Fault::Record("the record is of no kind that this version of untorn knows".to_owned());
        Ok(match record.ok_or_else(unknown)? {
            PbRecord::Write(write) => self.write(at, write)?,
            PbRecord::Created(created) => {
                Record::Created { transaction: transaction("created.transaction", created.transaction)? }
            }
            PbRecord::Pending(pending) => {
                Record::Pending { transaction: transaction("pending.transaction", pending.transaction)? }
            }
            PbRecord::Applying(applying) => Record::Applying {
                transaction: transaction("applying.transaction", applying.transaction)?,
                records: applying.records,
                prepared_at: None,
                label: None,
            },
            PbRecord::Commit(commit) => self.commit(commit)?,
            PbRecord::Aborted(aborted) => {
                Record::Aborted { transaction: transaction("aborted.transaction", aborted.transaction)?, branch: None }
            }
            PbRecord::SafeTime(safe) => {
                let time = HybridTime::from_u64(safe.hybrid_time);
                if time == HybridTime::MAX {
                    return Err(Malformed::new("safe_time.hybrid_time", "promises that nothing ever comes").into());
                }
                Record::SafeTime { time }
            }
            PbRecord::Schema(schema) => Record::Schema(self.schema(schema).await?),
            PbRecord::Split(split) => {
                if split.children.is_empty() {
                    return Err(Malformed::new("split.children", "is empty").into());
                }
                let children = split.children.iter().map(|child| self.stream_of(child)).collect::<Result<_, _>>()?;
                self.ended = true;
                Record::Split { children }
            }
        })
    }

    /// The configured name of the stream that carries a tablet of the source.
    fn stream_of(&self, tablet: &str) -> Result<String, Fault> {
        self.streams.get(tablet).cloned().ok_or_else(|| Fault::Unread(tablet.to_owned()))
    }

    fn commit(&self, commit: pb::Commit) -> Result<Record, Fault> {
        let mut seen = BTreeSet::new();
        let mut involved = Vec::with_capacity(commit.involved.len());
        for tablet in &commit.involved {
            if !seen.insert(&tablet.tablet) {
                let fault = format!("names tablet {:?} twice", tablet.tablet);
                return Err(Malformed::new("commit.involved", fault).into());
            }
            involved.push(InvolvedTablet { tablet: self.stream_of(&tablet.tablet)?, records: tablet.records });
        }
        let time = HybridTime::from_u64(commit.commit_hybrid_time);
        if time == HybridTime::MIN || time == HybridTime::MAX {
            return Err(Malformed::new("commit.commit_hybrid_time", "is no time that something commits at").into());
        }
        Ok(Record::Commit {
            transaction: transaction("commit.transaction", commit.transaction)?,
            branch: None,
            time,
            involved: Involved::Listed(involved),
        })
    }

    /// Takes a table's shape; the catalog numbers it.
    async fn schema(&mut self, schema: pb::Schema) -> Result<TableSchema, Fault> {
        if schema.table.is_empty() {
            return Err(Malformed::new("schema.table", "is empty").into());
        }
        let known = self.tables.get(&schema.table).and_then(|table| table.versions.get(&schema.version));
        if known.is_some_and(|shape| shape.columns != schema.columns) {
            let fault = format!("version {} of table {:?} has other columns than before", schema.version, schema.table);
            return Err(Fault::Record(fault));
        }
        let columns: Vec<Column> = schema.columns.iter().cloned().map(Column::from).collect();
        let numbered = self.catalog.table(&schema.table, columns, None).await.map_err(Fault::Catalog)?;
        let keys = schema.columns.iter().filter(|column| column.key).count();
        let shape = KnownShape { version: numbered.version, columns: schema.columns, keys };
        let table = self.tables.entry(schema.table);
        let table = table.or_insert_with(|| KnownTable { id: numbered.table, versions: FxHashMap::default() });
        table.versions.insert(schema.version, shape);
        Ok(numbered)
    }

    fn write(&self, at: OpId, write: pb::Write) -> Result<Record, Fault> {
        let transaction = transaction("write.transaction", write.transaction)?;
        let Some(table) = self.tables.get(&write.table) else {
            let fault = format!("no Schema record of table {:?} came before this Write record", write.table);
            return Err(Fault::Record(fault));
        };
        let op = match required("write.operation", write.operation)? {
            pb::write::Operation::Put(row) => put(&write.table, table, &write.key, row)?,
            pb::write::Operation::Delete(pb::Delete {}) => {
                // A delete does not say which version of the columns it follows.
                if !table.versions.values().any(|shape| shape.keys == write.key.len()) || write.key.is_empty() {
                    return Err(wrong_key(&write.table, write.key.len()));
                }
                WriteOp::Delete
            }
            pb::write::Operation::Truncate(pb::Truncate {}) => {
                if !write.key.is_empty() {
                    return Err(Malformed::new("write.key", "must be empty for a truncate").into());
                }
                WriteOp::Truncate
            }
        };
        let key = match op {
            WriteOp::Truncate => Key::default(),
            _ => Key::from_columns(write.key.iter().map(|column| &column[..])),
        };
        Ok(Record::Write { transaction, write: Write { at, table: table.id, key, op } })
    }
}

/// The put of a row, under the catalog's version of its columns.
fn put(name: &str, table: &KnownTable, key: &[bytes::Bytes], mut row: pb::Row) -> Result<WriteOp, Fault> {
    let Some(shape) = table.versions.get(&row.schema_version) else {
        let fault = format!("no Schema record of version {} of table {name:?} came before", row.schema_version);
        return Err(Fault::Record(fault));
    };
    if row.values.len() != shape.columns.len() {
        let fault = format!("has {} values, table {name:?} has {} columns", row.values.len(), shape.columns.len());
        return Err(Malformed::new("row.values", fault).into());
    }
    if key.is_empty() || key.len() != shape.keys {
        return Err(wrong_key(name, key.len()));
    }
    let old_key = std::mem::take(&mut row.old_key);
    if !old_key.is_empty() && old_key.len() != shape.keys {
        return Err(wrong_key(name, old_key.len()));
    }
    let fill_from = (!old_key.is_empty() && old_key != key).then(|| Key::from_columns(old_key.iter().map(|c| &c[..])));
    Ok(WriteOp::Put { row: Row { schema_version: shape.version, ..row.try_into()? }, fill_from })
}

fn wrong_key(table: &str, columns: usize) -> Fault {
    Fault::Record(format!("a key of {columns} columns is not that of table {table:?}"))
}

fn transaction(
    field: &'static str,
    transaction: Option<pb::SourceTransactionId>,
) -> Result<SourceTransactionId, Malformed> {
    let transaction = required(field, transaction)?;
    match transaction.id.len() {
        0 => Err(Malformed::new(field, "has an empty id")),
        1..=SOURCE_TRANSACTION_ID_BYTES_MAX => Ok(transaction.into()),
        bytes => Err(Malformed::new(
            field,
            format!("has an id of {bytes} bytes, at most {SOURCE_TRANSACTION_ID_BYTES_MAX} are taken"),
        )),
    }
}
