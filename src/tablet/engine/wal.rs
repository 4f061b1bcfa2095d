//! The tablet's own WAL: what it applied, as a stream that a CDC service hands on, so that a replica can be a source.
//!
//! Records stand at 1, 2, 3, … in the form in which they are sent. A transaction's are written in the step that deletes
//! its provisional records, or before it, and [`Kind::WalEnd`] moves in that step: what lies above it after a crash is
//! half a transaction, which is deleted and comes again when the transaction is applied again.

use super::apply::Step;
use super::state::State;
use crate::limits::TABLET_WAL_BYTES;
use crate::proto::cdc;
use crate::tablet::TabletError;
use crate::tablet::format::{Raw, StoredOp, StoredWal, StoredWrite, decode, decode_row, encode};
use crate::tablet::keys::{self, Kind, Parts};
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::wal::{Cell, HybridTime, Key, ReplicaTabletId, Row, SourceTabletId, TableId, TableSchema, TransactionId};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// The term of every position: a WAL has one writer for ever, and its indexes are never given twice.
pub(super) const TERM: u64 = 1;
/// Records that are trimmed for each one written, at most: above 1, so that trimming keeps up.
const TRIMMED_FOR_EACH: u64 = 2;

/// A place in the WAL: the last index at or below it, and the bytes of all records up to there.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Place {
    index: u64,
    bytes: u64,
}

/// What readers of the WAL wait for. Set by the worker.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct WalEnds {
    /// The end of the last whole transaction.
    pub(super) written: u64,
    /// What of it is durable, and may be shown (C4).
    pub(super) durable: u64,
}

/// What the worker holds of the WAL.
#[derive(Default, Debug)]
pub(super) struct OwnWal {
    /// Where the next record follows.
    at: Place,
    /// The end of the last whole transaction that is written.
    end: Place,
    /// Everything at or below was trimmed.
    trimmed: Place,
    /// The last position that each reader acknowledged.
    readers: BTreeMap<String, u64>,
    /// Shapes whose Schema record was written since the tablet was opened.
    known: BTreeSet<(TableId, u32)>,
    /// Write records of the transaction that is being applied.
    records: u64,
}

/// The transaction's id in the stream: the log's number, the same on all tablets of the log.
fn transaction_id(id: TransactionId) -> Option<cdc::SourceTransactionId> {
    Some(cdc::SourceTransactionId { id: Bytes::copy_from_slice(&id.0.to_be_bytes()), incarnation: 0 })
}

/// A tablet's name as a source: its number in the log, which all tablets of the log agree on.
pub(super) fn tablet_name(id: ReplicaTabletId) -> String {
    id.to_string()
}

/// A shape as a CDC service sends it.
pub(super) fn schema_record(schema: &TableSchema) -> cdc::Schema {
    let column = |column: &crate::wal::Column| cdc::Column {
        name: column.name.clone(),
        type_name: column.type_name.clone(),
        key: column.key,
    };
    cdc::Schema {
        table: schema.name.clone(),
        version: schema.version,
        columns: schema.columns.iter().map(column).collect(),
    }
}

fn row_record(row: Row) -> cdc::Row {
    let mut record = cdc::Row { schema_version: row.schema_version, ..cdc::Row::default() };
    for (column, cell) in (0_u32..).zip(row.cells) {
        let value = match cell {
            Cell::Text(text) => text,
            Cell::Null => {
                record.null_columns.push(column);
                Bytes::new()
            }
            Cell::Unchanged => {
                record.unchanged_columns.push(column);
                Bytes::new()
            }
        };
        record.values.push(value);
    }
    record
}

impl OwnWal {
    fn append(&mut self, batch: &mut StoreBatch, record: cdc::cdc_record::Record) -> Result<(), TabletError> {
        let index = self.at.index + 1;
        let at = Some(cdc::OpId { term: TERM, index });
        let bytes = cdc::CdcRecord { at, record: Some(record) }.encode_to_vec();
        batch.put(Space::Wal, keys::wal(index), encode(&StoredWal { before: self.at.bytes, record: Raw(&bytes) })?);
        self.at = Place { index, bytes: self.at.bytes + bytes.len() as u64 };
        Ok(())
    }

    fn note_end(&self, step: &mut Step) -> Result<(), TabletError> {
        step.wal_end = Some(self.at);
        step.batch.put(Space::Wal, Kind::WalEnd.only(), encode(&(self.at.index, self.at.bytes))?);
        Ok(())
    }
}

impl<S: Store> State<S> {
    /// Finds the WAL again, without the half of a transaction that a crash left at its end.
    pub(super) fn recover_wal(&mut self) -> Result<(), TabletError> {
        let store = self.store.clone();
        if let Some(value) = store.get(Space::Wal, &Kind::WalEnd.only())? {
            let (index, bytes) = decode("the WAL's end", value.as_ref())?;
            self.wal.end = Place { index, bytes };
            self.wal.at = self.wal.end;
        }
        let (from, below) = Kind::Wal.all();
        if let Some(first) = store.scan(Space::Wal, &from, &below).next() {
            let (key, value) = first?;
            let index = Parts(&key.as_ref()[1..]).u64().unwrap_or_default();
            let first: StoredWal<'_> = decode("a WAL record", value.as_ref())?;
            self.wal.trimmed = Place { index: index.saturating_sub(1), bytes: first.before };
        } else {
            self.wal.trimmed = self.wal.end;
        }
        let mut half = StoreBatch::default();
        for entry in store.scan(Space::Wal, &keys::wal(self.wal.end.index + 1), &below) {
            half.delete(Space::Wal, entry?.0.as_ref().to_vec());
        }
        store.write(half)?;
        let (from, below) = Kind::WalReader.all();
        for entry in store.scan(Space::Wal, &from, &below) {
            let (key, value) = entry?;
            let name = String::from_utf8_lossy(&key.as_ref()[1..]).into_owned();
            self.wal.readers.insert(name, decode("a WAL reader", value.as_ref())?);
        }
        let index = self.wal.end.index;
        self.shared.wal.send_replace(WalEnds { written: index, durable: index });
        Ok(())
    }

    /// The step that ends here was not written: the WAL goes on where it was.
    pub(super) fn wal_rewind(&mut self) {
        self.wal.at = self.wal.end;
        self.wal.records = 0;
        self.wal.known.clear();
    }

    /// A step that moved the WAL's end is written.
    pub(super) fn wal_written(&mut self, end: Place) {
        self.wal.end = end;
        let written = self.wal.end.index;
        self.shared.wal.send_modify(|ends| ends.written = written);
    }

    /// A barrier has passed.
    pub(super) fn wal_durable(&mut self) {
        let durable = self.wal.end.index;
        self.shared.wal.send_if_modified(|ends| std::mem::replace(&mut ends.durable, durable) != durable);
    }

    /// Refuses rows whose shape the tablet does not know: its WAL could not say what they are.
    pub(super) fn check_shape(&self, table: TableId, version: Option<u32>) -> Result<(), TabletError> {
        let known = match version {
            Some(version) => self.schemas.contains_key(&(table, version)),
            None => self.schemas.range((table, 0)..=(table, u32::MAX)).next().is_some(),
        };
        if known || !self.options.wal {
            return Ok(());
        }
        Err(TabletError::Refused(format!("the shape of table {table} is not known here: send it with the batch")))
    }

    /// The Write record of a write that became a version.
    pub(super) fn wal_write(
        &mut self,
        step: &mut Step,
        transaction: TransactionId,
        write: &StoredWrite<'_>,
        row: Option<Raw<'_>>,
    ) -> Result<(), TabletError> {
        use cdc::write::Operation;
        let row = row.map(|row| decode_row(row.0)).transpose()?;
        let newest = || self.schemas.range((write.table, 0)..=(write.table, u32::MAX)).next_back();
        let shape = match &row {
            Some(row) => self.schemas.get_key_value(&(write.table, row.schema_version)),
            None => newest(),
        };
        let Some((&id, schema)) = shape else {
            return Err(TabletError::Refused(format!("the shape of table {} is not known here", write.table)));
        };
        let table = schema.name.clone();
        if self.wal.known.insert(id) {
            self.wal.append(&mut step.batch, cdc::cdc_record::Record::Schema(schema_record(schema)))?;
        }
        let key = Key(Bytes::copy_from_slice(write.key.0)).columns().unwrap_or_default();
        let operation = match (write.op, row) {
            (StoredOp::Truncate, _) => Operation::Truncate(cdc::Truncate {}),
            (_, Some(row)) => Operation::Put(row_record(row)),
            (_, None) => Operation::Delete(cdc::Delete {}),
        };
        let record = cdc::Write {
            transaction: transaction_id(transaction),
            table,
            key: key.into_iter().map(Bytes::from).collect(),
            operation: Some(operation),
        };
        self.wal.records += 1;
        self.wal.append(&mut step.batch, cdc::cdc_record::Record::Write(record))
    }

    /// Whether another stream's write of the same transaction beats this delete.
    pub(super) fn is_beaten(
        &self,
        time: HybridTime,
        stream: SourceTabletId,
        write: &StoredWrite<'_>,
    ) -> Result<bool, TabletError> {
        let from = keys::version(write.table, write.key.0, time, SourceTabletId(0));
        let below = keys::version(write.table, write.key.0, time.previous(), SourceTabletId(0));
        for entry in self.store.scan(Space::Versions, &from, &below) {
            let (key, value) = entry?;
            let version: crate::tablet::format::StoredVersion<'_> = decode("a version", value.as_ref())?;
            let other = keys::VersionKey::parse(key.as_ref()).is_some_and(|key| key.stream != stream);
            if other && version.row.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The records that end a transaction: all of it is carried, and it is committed.
    pub(super) fn wal_commit(
        &mut self,
        step: &mut Step,
        id: TransactionId,
        time: HybridTime,
        tablets: &[ReplicaTabletId],
    ) -> Result<(), TabletError> {
        use cdc::cdc_record::Record;
        let records = Some(std::mem::take(&mut self.wal.records));
        let transaction = transaction_id(id);
        let applying = cdc::Applying { transaction: transaction.clone(), records };
        // Every tablet's Commit record says the same; so none says how many records the others carry.
        let involved = |&tablet: &_| cdc::InvolvedTablet { tablet: tablet_name(tablet), records: None };
        let involved = tablets.iter().map(involved).collect();
        let commit = cdc::Commit { transaction, commit_hybrid_time: time.to_u64(), involved };
        self.wal.append(&mut step.batch, Record::Applying(applying))?;
        self.wal.append(&mut step.batch, Record::Commit(commit))?;
        self.wal.note_end(step)
    }

    /// A SafeTime record: everything committed at or below it has been carried.
    pub(super) fn wal_safe_time(&mut self, step: &mut Step, time: HybridTime) -> Result<(), TabletError> {
        let record = cdc::cdc_record::Record::SafeTime(cdc::SafeTime { hybrid_time: time.to_u64() });
        self.wal.append(&mut step.batch, record)?;
        self.wal.note_end(step)
    }

    /// Trims what every reader has acknowledged, and what is more than may be kept.
    pub(super) fn wal_trim(&mut self, step: &mut Step, written: u64) -> Result<(), TabletError> {
        let acknowledged = self.wal.readers.values().min().copied().unwrap_or_default();
        let too_much = self.wal.end.bytes.saturating_sub(self.wal.trimmed.bytes) > TABLET_WAL_BYTES;
        let most = if too_much { self.wal.end.index } else { acknowledged.min(self.wal.end.index) };
        let upto = most.min(self.wal.trimmed.index + written * TRIMMED_FOR_EACH);
        if upto <= self.wal.trimmed.index {
            return Ok(());
        }
        let bytes = match self.store.get(Space::Wal, &keys::wal(upto + 1))? {
            Some(next) => decode::<StoredWal<'_>>("a WAL record", next.as_ref())?.before,
            None => self.wal.end.bytes,
        };
        for index in self.wal.trimmed.index + 1..=upto {
            step.batch.delete(Space::Wal, keys::wal(index));
        }
        self.wal.trimmed = Place { index: upto, bytes };
        Ok(())
    }

    /// A reader has everything up to here; a new reader is noted from here on.
    pub(super) fn wal_acknowledge(&mut self, reader: &str, index: u64) -> Result<(), TabletError> {
        if self.wal.readers.get(reader).is_some_and(|held| *held >= index) {
            return Ok(());
        }
        let mut batch = StoreBatch::default();
        batch.put(Space::Wal, keys::wal_reader(reader), encode(&index)?);
        self.store.write(batch)?;
        self.wal.readers.insert(reader.to_owned(), index);
        Ok(())
    }

    /// Where the WAL stands.
    pub(super) fn wal_index(&self) -> u64 {
        self.wal.at.index
    }
}
