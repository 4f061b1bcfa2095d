//! The process dies between any two writes to the storage: whatever is found there, doing the rest again ends in the
//! same rows and the same records of the tablet's own WAL (traces Y2, Y3, Y4).

use super::{Engine, TabletOptions, TabletWals, start};
use crate::limits::APPLY_BYTES;
use crate::proto::cdc::{self, CdcRecord, cdc_record::Record, write::Operation};
use crate::tablet::change_log::{ChangeLog, ChangeLogError, ReadChanges};
use crate::tablet::memory::{MemoryStore, MemoryView};
use crate::tablet::store::{Read, Scan, Space, Store, StoreBatch, StoreFailed};
use crate::tablet::{
    Adopt, ApplyBatch, BranchWrites, ChunkBatch, Decided, ProvisionalBatch, ReadPoint, ReadRequest, TabletError,
    TabletLeader, VersionedRow, Work,
};
use crate::wal::{
    BranchId, Cell, Column, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row, SourceTabletId, TableId,
    TableSchema, TransactionId, Write, WriteOp,
};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A store that remembers every batch.
#[derive(Clone, Default)]
pub(super) struct Recorder {
    store: MemoryStore,
    pub(super) batches: Arc<Mutex<Vec<StoreBatch>>>,
}

impl Read for Recorder {
    type Slice = Bytes;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreFailed> {
        self.store.get(space, key)
    }

    fn scan(&self, space: Space, from: &[u8], below: &[u8]) -> Scan<'_, Self> {
        let entries: Vec<_> = self.store.scan(space, from, below).collect();
        Box::new(entries.into_iter())
    }
}

impl Store for Recorder {
    type View = MemoryView;

    fn view(&self) -> MemoryView {
        self.store.view()
    }

    fn write(&self, batch: StoreBatch) -> Result<(), StoreFailed> {
        self.batches.lock().unwrap().push(batch.clone());
        self.store.write(batch)
    }

    fn sync(&self) -> Result<(), StoreFailed> {
        self.store.sync()
    }

    fn bytes(&self) -> u64 {
        self.store.bytes()
    }
}

const OPTIONS: TabletOptions = TabletOptions { keep_age: None, keep_versions: 1, wal: true };
pub(super) const S1: SourceTabletId = SourceTabletId(1);
const S2: SourceTabletId = SourceTabletId(2);
pub(super) const TABLE: TableId = TableId(1);

pub(super) fn running<S: Store>(store: S) -> Engine<S> {
    let (engines, workers) = start(vec![("r1".to_owned(), store)], OPTIONS).unwrap();
    for worker in workers {
        std::thread::spawn(|| worker.run());
    }
    engines.into_iter().next().unwrap()
}

pub(super) fn schema() -> TableSchema {
    let column = |name: &str| Column { name: name.into(), type_name: "text".into(), key: name == "k" };
    TableSchema { table: TABLE, name: "public.t".into(), version: 1, columns: vec![column("k"), column("v")] }
}

fn key(name: &str) -> Key {
    Key::from_columns([name.as_bytes()])
}

fn op(name: &str, value: Option<Vec<u8>>, fill_from: Option<&str>) -> WriteOp {
    let text = |bytes: Vec<u8>| Cell::Text(bytes.into());
    let cells = vec![text(name.into()), value.map_or(Cell::Unchanged, text)];
    WriteOp::Put { row: Row { schema_version: 1, cells }, fill_from: fill_from.map(key) }
}

fn writes(term: u64, ops: Vec<(&str, WriteOp)>) -> Vec<Write> {
    let write = |(index, (name, op)): (u64, (&str, WriteOp))| Write {
        at: OpId::new(term, index),
        table: TABLE,
        key: key(name),
        op,
    };
    (0..).zip(ops).map(write).collect()
}

pub(super) fn batch(stream: SourceTabletId, term: u64, writes: Vec<Write>, adopt: Option<Adopt>) -> ProvisionalBatch {
    let branch = BranchId { stream, opened: OpId::new(term, 0) };
    ProvisionalBatch {
        stream,
        owner: Epoch(1),
        puller: Epoch(1),
        follows: if term == 1 { OpId::ZERO } else { OpId::end_of_term(term - 1) },
        upto: OpId::end_of_term(term),
        schemas: vec![schema()],
        branches: vec![BranchWrites { branch, writes, adopt }],
        rolled_back: Vec::new(),
        report_conflicts: false,
    }
}

/// Large enough that a few of them fill a step.
fn large(of: u8) -> Option<Vec<u8>> {
    Some(vec![of; APPLY_BYTES / 3])
}

/// What the sources send: a small transaction; a large one over two streams that moves a row between them, changes a key
/// and leaves cells unchanged; a chunked one that truncates in its middle.
async fn provide(tablet: &dyn TabletLeader) {
    let first = writes(1, vec![("a", op("a", large(b'a'), None)), ("b", op("b", Some(b"1".into()), None))]);
    tablet.write_provisional(batch(S1, 1, first, None)).await.unwrap();
    let moved = vec![
        ("a", op("a", large(b'A'), None)),
        ("a", WriteOp::Delete),
        ("c", op("c", None, Some("a"))),
        ("a", op("a", large(b'n'), None)),
        ("m", op("m", large(b'm'), None)),
        ("b", op("b", None, None)),
        ("z", op("z", large(b'z'), None)),
    ];
    tablet.write_provisional(batch(S1, 2, writes(2, moved), None)).await.unwrap();
    let other = writes(1, vec![("m", WriteOp::Delete), ("s2", op("s2", large(b's'), None)), ("x", WriteOp::Delete)]);
    tablet.write_provisional(batch(S2, 1, other, None)).await.unwrap();
    let staged = [
        vec![("d", op("d", large(b'd'), None)), ("e", op("e", large(b'e'), None))],
        vec![("", WriteOp::Truncate), ("f", op("f", large(b'f'), None))],
        vec![("g", op("g", large(b'g'), None)), ("h", op("h", large(b'h'), None))],
    ];
    for (number, ops) in (1..).zip(staged) {
        let (stream, owner, puller) = (S1, Epoch(1), Epoch(1));
        let schemas = vec![schema()];
        let writes = writes(0, ops);
        let chunk = ChunkBatch { stream, owner, puller, connection: 1, xid: 9, sub_xid: 9, number, schemas, writes };
        tablet.stage_chunk(chunk).await.unwrap();
    }
    let adopt = Adopt { connection: 1, xid: 9, rolled_back: vec![], last_chunk: 3 };
    tablet.write_provisional(batch(S1, 3, vec![], Some(adopt))).await.unwrap();
}

/// The log's decisions above a position.
async fn decide(tablet: &dyn TabletLeader, follows: LogPosition) -> Result<(), TabletError> {
    let commit = |position: u64, branches: &[(SourceTabletId, u64)]| {
        let branch = |&(stream, term): &_| BranchId { stream, opened: OpId::new(term, 0) };
        let (transaction, time) = (TransactionId(position), HybridTime::from_u64(position * 10));
        let branches = branches.iter().map(branch).collect();
        let work = Work::Commit { transaction, time, branches, tablets: vec![ReplicaTabletId(1)] };
        Decided { position: LogPosition(position), work }
    };
    let mut work = vec![commit(1, &[(S1, 1)]), commit(2, &[(S1, 2), (S2, 1)]), commit(3, &[(S1, 3)])];
    work.retain(|decided| decided.position > follows);
    let through = LogPosition(3);
    let safe = Some(ReadPoint { position: through, time: HybridTime::from_u64(30) });
    tablet.apply(ApplyBatch { owner: Epoch(1), follows, through, safe, one_writer: false, work }).await.map(drop)
}

async fn history(tablet: &dyn TabletLeader) -> Vec<VersionedRow> {
    let at = ReadPoint { position: LogPosition(3), time: HybridTime::MAX };
    let mut request = ReadRequest { table: TABLE, at, key: None, after: None, history: true, max_bytes: 1 << 20 };
    let mut rows = Vec::new();
    loop {
        let page = tablet.read(request.clone()).await.unwrap();
        rows.extend(page.rows);
        request.after = page.more_after;
        if request.after.is_none() {
            return rows;
        }
    }
}

fn changes(after: OpId, acknowledged: Option<OpId>) -> ReadChanges {
    ReadChanges {
        tablet: "r1".into(),
        reader: "reader".into(),
        after,
        acknowledged,
        max_bytes: 1 << 20,
        wait: Duration::ZERO,
        need_schemas: false,
    }
}

/// The WAL's records without Schema records, which may come again.
async fn wal<S: Store>(tablet: &Engine<S>) -> Vec<Record> {
    let wals = TabletWals::new(vec![tablet.clone()]);
    let (mut after, mut records, mut index) = (OpId::ZERO, Vec::new(), 0);
    loop {
        let page = wals.read(changes(after, None)).await.unwrap();
        if page.records.is_empty() {
            return records;
        }
        for CdcRecord { at, record } in page.records {
            index += 1;
            assert_eq!(at.unwrap().index, index, "records stand at 1, 2, 3, …");
            records.extend(record.filter(|record| !matches!(record, Record::Schema(_))));
        }
        after = page.upto;
    }
}

fn kinds(records: &[Record]) -> String {
    let kind = |record: &Record| match record {
        Record::Write(_) => 'w',
        Record::Applying(_) => 'a',
        Record::Commit(_) => 'c',
        Record::SafeTime(_) => 's',
        _ => '?',
    };
    records.iter().map(kind).collect()
}

#[tokio::test]
async fn doing_the_rest_again_ends_in_the_same() {
    let recorder = Recorder::default();
    let tablet = running(recorder.clone());
    tablet.announce("log", ReplicaTabletId(1), Epoch(1)).await.unwrap();
    provide(&tablet).await;
    let provided = recorder.batches.lock().unwrap().len();
    decide(&tablet, LogPosition(0)).await.unwrap();
    let (rows, records) = (history(&tablet).await, wal(&tablet).await);
    let names: Vec<_> = rows.iter().filter(|row| row.row.is_some()).map(|row| row.key.columns().unwrap()).collect();
    assert_eq!(names.len(), 11, "{names:?}");
    // Neither is sent what its own transaction truncated, nor the delete that another stream's write beats. The
    // truncation leaves the other stream's row, so it is five deletes.
    assert_eq!(kinds(&records), "wwacwwwwwwwwwacwwwwwwwwacs");
    let deleted = |record: &Record| match record {
        Record::Write(cdc::Write { key, operation: Some(Operation::Delete(_)), .. }) => Some(key[0].clone()),
        _ => None,
    };
    let deleted: Vec<_> = records.iter().rev().filter_map(deleted).take(5).collect();
    assert_eq!(deleted, ["z", "m", "c", "b", "a"]);

    let batches = recorder.batches.lock().unwrap().clone();
    assert!(batches.len() > provided + 6, "the transactions take several steps: {}", batches.len() - provided);
    for crash in provided..=batches.len() {
        let store = MemoryStore::default();
        batches[..crash].iter().for_each(|batch| store.write(batch.clone()).unwrap());
        let tablet = running(store);
        let announced = tablet.announce("log", ReplicaTabletId(1), Epoch(1)).await.unwrap();
        if announced.applied < LogPosition(3) {
            decide(&tablet, announced.applied).await.unwrap();
        }
        assert!(history(&tablet).await == rows, "after {crash} of {} writes the rows differ", batches.len());
        assert!(wal(&tablet).await == records, "after {crash} of {} writes the WAL differs", batches.len());
        assert_eq!(tablet.stats().await.unwrap().provisional_records, 0);
    }
}

#[tokio::test]
async fn the_wal_is_kept_for_its_readers() {
    let tablet = running(MemoryStore::default());
    tablet.announce("log", ReplicaTabletId(1), Epoch(1)).await.unwrap();
    let wals = TabletWals::new(vec![tablet.clone()]);
    assert_eq!(wals.tablets().await.unwrap(), ["r1"]);
    assert!(wals.read(changes(OpId::ZERO, None)).await.unwrap().records.is_empty());
    let mut upto = OpId::ZERO;
    for n in 1..=20 {
        let write = writes(n, vec![("a", op("a", Some(b"1".into()), None))]);
        tablet.write_provisional(batch(S1, n, write, None)).await.unwrap();
        let (position, time) = (LogPosition(n), HybridTime::from_u64(n));
        let branches = vec![BranchId { stream: S1, opened: OpId::new(n, 0) }];
        let work = Work::Commit { transaction: TransactionId(n), time, branches, tablets: vec![ReplicaTabletId(1)] };
        let work = vec![Decided { position, work }];
        let follows = LogPosition(n - 1);
        let (owner, safe) = (Epoch(1), None);
        let decided = ApplyBatch { owner, follows, through: position, safe, one_writer: false, work };
        tablet.apply(decided).await.unwrap();
        upto = wals.read(changes(upto, Some(upto))).await.unwrap().upto;
    }
    let gone = wals.read(ReadChanges { reader: "late".into(), ..changes(OpId::ZERO, None) }).await;
    assert!(matches!(gone, Err(ChangeLogError::Gone { .. })), "{gone:?}");
    let ahead = wals.read(changes(OpId::new(1, 1_000), None)).await;
    assert!(matches!(ahead, Err(ChangeLogError::Gone { .. })), "{ahead:?}");
    let unknown = wals.read(ReadChanges { tablet: "r2".into(), ..changes(OpId::ZERO, None) }).await;
    assert_eq!(unknown, Err(ChangeLogError::NotFound("r2".into())));
    let mut unshaped = batch(S1, 21, writes(21, vec![("a", op("a", Some(b"1".into()), None))]), None);
    unshaped.schemas.clear();
    unshaped.branches[0].writes[0].table = TableId(2);
    let refused = tablet.write_provisional(unshaped).await;
    assert!(matches!(refused, Err(TabletError::Refused(_))), "{refused:?}");
}
