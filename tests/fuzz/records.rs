//! Records of a CDC service, taken as a client takes them, and rows, printed as `scan` prints them.

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use untorn::admin::scan::{JsonRows, ScanRow, csv_row};
use untorn::proto::cdc as pb;
use untorn::source::cdc::decode::Decoder;
use untorn::source::cdc::fault::Faults;
use untorn::source::cdc::{CdcTablet, StreamNames};
use untorn::source::{Catalog, SourceError};
use untorn::wal::{Column, HybridTime, OpId, TableId, TableSchema};

struct Numbering;

#[async_trait]
impl Catalog for Numbering {
    async fn table(&self, name: &str, columns: Vec<Column>, _: Option<u32>) -> Result<TableSchema, SourceError> {
        Ok(TableSchema { table: TableId(name.len() as u32), name: name.to_owned(), version: 1, columns })
    }
}

/// Two answers, one after the other.
pub fn answers(data: &[u8]) {
    let names = StreamNames::from([("t1".to_owned(), "a".to_owned()), ("t2".to_owned(), "b".to_owned())]);
    let mut decoder = Decoder::new(Arc::new(names), Arc::new(Numbering));
    let tablet = CdcTablet { name: "a".into(), url: "http://127.0.0.1:1".into(), tablet: "t1".into() };
    let mut after = OpId::new(1, 5);
    for part in super::services::parts(data).take(2) {
        let Ok(response) = pb::GetCdcRecordsResponse::decode(part) else { return };
        let Ok(batch) = block_on(decoder.decode(&Faults { tablet: tablet.clone() }, after, response)) else { return };
        let mut last = after;
        for (at, _) in &batch.records {
            assert!(*at >= last && *at > after && *at <= batch.upto);
            last = *at;
        }
        after = batch.upto;
    }
}

/// An answer with a record of each kind.
pub fn all_answers() -> Vec<Vec<u8>> {
    use pb::cdc_record::Record;
    let transaction = || Some(pb::SourceTransactionId { id: b"transfer".to_vec().into(), incarnation: 0 });
    let column = |name: &str, key| pb::Column { name: name.into(), type_name: "int8".into(), key };
    let columns = vec![column("id", true), column("balance", false)];
    let row =
        pb::Row { schema_version: 1, values: vec![b"1".to_vec().into(), b"2".to_vec().into()], ..pb::Row::default() };
    let write = |operation| pb::Write {
        transaction: transaction(),
        table: "public.t".into(),
        key: vec![b"1".to_vec().into()],
        operation: Some(operation),
    };
    let involved = vec![pb::InvolvedTablet { tablet: "t1".into(), records: Some(2) }];
    let records = [
        Record::Schema(pb::Schema { table: "public.t".into(), version: 1, columns }),
        Record::Created(pb::Created { transaction: transaction() }),
        Record::Pending(pb::Pending { transaction: transaction() }),
        Record::Write(write(pb::write::Operation::Put(row))),
        Record::Write(write(pb::write::Operation::Delete(pb::Delete {}))),
        Record::Applying(pb::Applying { transaction: transaction(), records: Some(2) }),
        Record::Commit(pb::Commit { transaction: transaction(), commit_hybrid_time: 1 << 20, involved }),
        Record::Aborted(pb::Aborted { transaction: transaction() }),
        Record::SafeTime(pb::SafeTime { hybrid_time: 2 << 20 }),
        Record::Split(pb::Split { children: vec!["t2".into()] }),
    ];
    let at = |index: u64| Some(pb::OpId { term: 1, index });
    let placed =
        records.into_iter().zip(6..).map(|(record, index)| pb::CdcRecord { at: at(index), record: Some(record) });
    let records: Vec<_> = placed.collect();
    let answer = |records: &[pb::CdcRecord]| {
        let upto = records.last().and_then(|record| record.at);
        pb::GetCdcRecordsResponse { records: records.to_vec(), upto, ..pb::GetCdcRecordsResponse::default() }
    };
    let part = |records: &[pb::CdcRecord]| super::services::part(&answer(records).encode_to_vec());
    vec![part(&records), [part(&records[..4]), part(&records[4..])].concat()]
}

const TYPES: [&str; 12] =
    ["int4", "int8", "float8", "numeric", "bool", "json", "jsonb", "timestamp", "timestamptz", "date", "bytea", "text"];

/// A row: the first byte says of which types, the rest are its cells. Printed as JSON it is one line and one object.
pub fn rows(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let cells: Vec<&[u8]> = data.split(|byte| *byte == b'|').take(TYPES.len()).collect();
    let column = |(place, _): (usize, &&[u8])| Column {
        name: format!("c{place}\""),
        type_name: TYPES[(place + usize::from(*first)) % TYPES.len()].into(),
        key: false,
    };
    let columns: Vec<Column> = cells.iter().enumerate().map(column).collect();
    let cell = |cell: &&[u8]| (*cell != b"~").then(|| Bytes::copy_from_slice(cell));
    let row = ScanRow { cells: cells.iter().map(cell).collect(), time: HybridTime::from_micros(7) };
    csv_row(&row, true, &mut Vec::new());
    let mut line = String::new();
    if JsonRows::new(&columns, true).row(&row, &mut line).is_ok() {
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        // A number of JSON may be larger than any that is computed with.
        let object: BTreeMap<String, serde::de::IgnoredAny> = serde_json::from_str(&line).expect(&line);
        assert_eq!(object.len(), columns.len() + 1);
    }
}

/// A row of every type.
pub fn all_rows() -> Vec<Vec<u8>> {
    let cells = [
        "-7|9223372036854775807|1.5e-7|NaN|t|{\"a\": [1]}|null|2026-01-02 03:04:05.678|2026-01-02 03:04:05+05:30|0044-03-15 BC|\\x00ff|~",
        "0|00|-Infinity|12.50|f|[1,2]|{}|infinity|2026-01-02 03:04:05-08|10000-01-01||a\"b",
    ];
    cells.iter().map(|cells| [b"\0", cells.as_bytes()].concat()).collect()
}
