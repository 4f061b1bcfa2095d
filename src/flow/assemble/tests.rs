use super::*;
use crate::coordinator::MappedTablet;
use crate::wal::{ChunkOrigin, DroppedChunks, InvolvedTablet, Row, StagedChunk};
use proptest::prelude::*;

const STREAM: SourceTabletId = SourceTabletId(4);

fn map(tablets: u32) -> TabletMap {
    let tablet = |n| MappedTablet { id: ReplicaTabletId(n), name: format!("r{n}"), from_key: None };
    TabletMap { version: 1, tablets: (0..tablets).map(tablet).collect() }
}

fn opening(tablets: u32, marks: Vec<(ReplicaTabletId, OpId)>) -> Opening {
    Opening {
        stream: STREAM,
        owner: Epoch(1),
        puller: Epoch(2),
        map: map(tablets),
        report_conflicts: false,
        streams: [("a".to_owned(), STREAM), ("b".to_owned(), SourceTabletId(5))].into(),
        checkpoint: OpId::ZERO,
        open: Vec::new(),
        applied: Vec::new(),
        marks,
    }
}

fn id(n: u64) -> SourceTransactionId {
    SourceTransactionId::first(&n.to_be_bytes())
}

fn at(n: u64) -> OpId {
    OpId::new(1, n)
}

fn put(n: u64, key: u64) -> Write {
    let row = Row { schema_version: 1, cells: vec![Cell::Null] };
    let key = Key::from_columns([key.to_string().as_bytes()]);
    Write { at: at(n), table: TableId(0), key, op: WriteOp::Put { row, fill_from: None } }
}

fn write(n: u64, transaction: u64, key: u64) -> (OpId, Record) {
    (at(n), Record::Write { transaction: id(transaction), write: put(n, key) })
}

fn applying(n: u64, transaction: u64, records: u64) -> (OpId, Record) {
    let record =
        Record::Applying { transaction: id(transaction), records: Some(records), prepared_at: None, label: None };
    (at(n), record)
}

fn batch(records: Vec<(OpId, Record)>) -> SourceBatch {
    let upto = records.last().map_or(OpId::ZERO, |(at, _)| *at);
    SourceBatch { records, upto, ..SourceBatch::default() }
}

fn branches(report: &Report) -> Vec<(SourceTransactionId, OpId, u64, bool)> {
    let branch = |fact: &Fact| match fact {
        Fact::Branch { transaction, opened, records, applying, .. } => {
            Some((transaction.clone(), *opened, *records, applying.is_some()))
        }
        _ => None,
    };
    report.facts.iter().filter_map(branch).collect()
}

/// A stream of transactions that write to a few keys each and then end.
fn stream() -> impl Strategy<Value = Vec<(OpId, Record)>> {
    proptest::collection::vec((0_u64..6, 0_u64..20, any::<bool>()), 1..80).prop_map(|steps| {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        let mut generation = 0;
        let mut records = Vec::new();
        for (slot, key, ends) in steps {
            let n = records.len() as u64 + 1;
            let transaction = slot + 100 * generation;
            if ends {
                let taken = counts.remove(&transaction).unwrap_or(0);
                records.push(applying(n, transaction, taken));
                // The slot's next transaction is another one.
                generation += 1;
            } else {
                *counts.entry(transaction).or_default() += 1;
                records.push(write(n, transaction, key));
            }
        }
        records
    })
}

proptest! {
    /// However a stream is cut into batches and runs, and whatever each tablet holds already: what a tablet gets lies
    /// above its mark, in order, each write once, and the facts count every write once.
    #[test]
    fn every_write_goes_once_and_counts_once(
        records in stream(),
        cuts in proptest::collection::vec((1_usize..7, any::<bool>()), 80),
        marks in proptest::collection::vec(0_u64..60, 3),
    ) {
        let held: Vec<_> = marks.iter().enumerate().map(|(n, mark)| (ReplicaTabletId(n as u32), at(*mark))).collect();
        let mut assembler = Assembler::new(opening(3, held.clone()));
        let router = Router::new(map(3));
        let mut marks: BTreeMap<_, _> = held.iter().copied().collect();
        let mut got: BTreeMap<ReplicaTabletId, Vec<OpId>> = BTreeMap::new();
        let mut counted: BTreeMap<SourceTransactionId, u64> = BTreeMap::new();
        let mut follows = OpId::ZERO;
        let mut rest = &records[..];
        let mut cuts = cuts.into_iter();
        while !rest.is_empty() {
            let (len, take) = cuts.next().unwrap_or((7, true));
            let (now, later) = rest.split_at(len.min(rest.len()));
            rest = later;
            assembler.push(batch(now.to_vec())).unwrap();
            if !take && !rest.is_empty() {
                continue;
            }
            let run = assembler.take().unwrap();
            prop_assert_eq!(run.report.follows, follows);
            follows = run.report.upto;
            for (tablet, part) in run.parts {
                prop_assert_eq!(part.follows, marks[&tablet]);
                prop_assert!(part.upto > part.follows && part.upto == follows);
                for writes in part.branches {
                    for write in writes.writes {
                        prop_assert!(write.at > part.follows && write.at <= part.upto);
                        got.entry(tablet).or_default().push(write.at);
                    }
                }
                marks.insert(tablet, part.upto);
            }
            for (tablet, stored) in &run.report.stored {
                prop_assert!(*stored <= marks[tablet], "the log would say that {} stored more than it holds", tablet);
            }
            for fact in &run.report.facts {
                if let Fact::Branch { transaction, records, applying, .. } = fact {
                    let total = counted.entry(transaction.clone()).or_default();
                    *total += records;
                    if let Some(applying) = applying {
                        prop_assert_eq!(applying.records, Some(*total), "{}", transaction);
                    }
                }
            }
        }
        prop_assert!(assembler.take().is_none());
        for (tablet, mark) in held {
            let mut wanted = Vec::new();
            for (at, record) in &records {
                if let Record::Write { write, .. } = record
                    && *at > mark && router.route(write.table, &write.key) == Some(tablet)
                {
                    wanted.push(*at);
                }
            }
            let mut got = got.remove(&tablet).unwrap_or_default();
            got.sort_unstable();
            prop_assert_eq!(got, wanted);
        }
        let writes = records.iter().filter(|(_, record)| matches!(record, Record::Write { .. })).count();
        prop_assert_eq!(counted.values().sum::<u64>(), writes as u64);
    }
}

#[test]
fn a_record_that_ends_a_branch_comes_after_what_was_taken_of_it() {
    let mut assembler = Assembler::new(opening(2, Vec::new()));
    let commit = Record::Commit {
        transaction: id(1),
        branch: None,
        time: HybridTime::from_u64(9),
        involved: Involved::Listed(vec![InvolvedTablet { tablet: "b".into(), records: Some(2) }]),
    };
    let records = vec![write(1, 1, 1), (at(2), commit), write(3, 1, 2), applying(4, 1, 2)];
    assembler.push(batch(records)).unwrap();
    let report = assembler.take().unwrap().report;
    assert_eq!(branches(&report), [(id(1), at(1), 1, false), (id(1), at(1), 1, true)]);
    assert!(matches!(&report.facts[1], Fact::Commit { involved: Involvement::Listed(listed), .. }
        if listed[0].stream == SourceTabletId(5)));
}

#[test]
fn an_applying_record_that_comes_again_names_the_same_branch() {
    let mut assembler = Assembler::new(opening(2, Vec::new()));
    assembler.push(batch(vec![write(1, 1, 1), applying(2, 1, 1), applying(3, 1, 1)])).unwrap();
    let report = assembler.take().unwrap().report;
    assert_eq!(branches(&report), [(id(1), at(1), 1, true), (id(1), at(1), 0, true)]);
    assert!(assembler.push(batch(vec![write(4, 1, 1)])).is_err(), "a write after the Applying record");
}

#[test]
fn a_branch_that_was_open_goes_on_where_it_opened() {
    let open = vec![(id(1), OpId::new(0, 7))];
    let mut assembler = Assembler::new(Opening { open, ..opening(2, Vec::new()) });
    assembler.push(batch(vec![write(1, 1, 1)])).unwrap();
    assert_eq!(branches(&assembler.take().unwrap().report), [(id(1), OpId::new(0, 7), 1, false)]);
}

#[test]
fn what_cannot_be_true_stops_by_name() {
    let mut assembler = Assembler::new(opening(2, Vec::new()));
    assembler.push(batch(vec![write(5, 1, 1)])).unwrap();
    assert!(assembler.push(batch(vec![write(5, 1, 1), write(4, 1, 1)])).is_err());
    let involved = Involved::Listed(vec![InvolvedTablet { tablet: "gone".into(), records: None }]);
    let commit = Record::Commit { transaction: id(2), branch: None, time: HybridTime::MIN, involved };
    let error = Assembler::new(opening(2, Vec::new())).push(batch(vec![(at(1), commit)])).unwrap_err();
    assert!(error.contains("\"gone\""), "{error}");
}

#[test]
fn outside_of_chunks_a_fill_from_another_tablet_stops_by_name_unless_nothing_is_to_be_filled() {
    let router = Router::new(map(2));
    let key = |n: u32| Key::from_columns([n.to_string().as_bytes()]);
    let other = (1..).find(|n| router.route(TableId(0), &key(*n)) != router.route(TableId(0), &key(0))).unwrap();
    let moved = |cell| {
        let row = Row { schema_version: 1, cells: vec![cell] };
        let op = WriteOp::Put { row, fill_from: Some(key(other)) };
        let write = Write { at: at(1), table: TableId(0), key: key(0), op };
        batch(vec![(at(1), Record::Write { transaction: id(1), write })])
    };
    Assembler::new(opening(2, Vec::new())).push(moved(Cell::Null)).unwrap();
    let error = Assembler::new(opening(2, Vec::new())).push(moved(Cell::Unchanged)).unwrap_err();
    assert!(error.contains("on another replica tablet"), "{error}");
}

#[test]
fn a_chunk_that_begins_with_a_fill_is_asked_for_where_its_old_key_lives() {
    let router = Router::new(map(2));
    let key = |n: u64| Key::from_columns([n.to_string().as_bytes()]);
    let of = |n: u64| router.route(TableId(0), &key(n)).unwrap();
    let other = (1..).find(|n| of(*n) != of(0)).unwrap();
    let row = |cell| Row { schema_version: 1, cells: vec![cell] };
    let mut moved = put(1, 0);
    moved.op = WriteOp::Put { row: row(Cell::Unchanged), fill_from: Some(key(other)) };
    let deleted = Write { at: at(2), table: TableId(0), key: key(other), op: WriteOp::Delete };
    let writes = vec![moved, deleted];
    let mut assembler = Assembler::new(opening(2, Vec::new()));
    assembler.push(batch(vec![write(1, 1, 1), applying(2, 1, 1)])).unwrap();
    assert!(!assembler.is_empty());
    let chunk =
        StagedChunk { connection: 9, xid: 7, sub_xid: 8, schemas: Vec::new(), writes, rolled_back: vec![5], bytes: 0 };
    let mut routed = assembler.chunk(chunk).unwrap();
    let (holder, request) = routed.fill.take().unwrap();
    assert_eq!((holder, &request.from, request.upto), (of(other), &key(other), at(2)));
    assert_eq!((request.connection, request.xid, &request.rolled_back[..]), (9, 7, &[5][..]));
    routed.filled(row(Cell::Null));
    let ops: Vec<_> = routed.parts.iter().map(|(tablet, part)| (*tablet, part.writes[0].op.clone())).collect();
    let mut expected =
        vec![(of(0), WriteOp::Put { row: row(Cell::Null), fill_from: None }), (of(other), WriteOp::Delete)];
    expected.sort_by_key(|(tablet, _)| *tablet);
    assert_eq!(ops, expected);
}

#[test]
fn a_rollback_is_said_to_every_tablet() {
    let mut assembler = Assembler::new(opening(2, vec![(ReplicaTabletId(0), at(1))]));
    let branch = Some(BranchId { stream: STREAM, opened: at(1) });
    assembler.push(batch(vec![(at(2), Record::Aborted { transaction: id(1), branch })])).unwrap();
    let parts = assembler.take().unwrap().parts;
    assert_eq!(parts.iter().map(|(_, part)| &part.rolled_back[..]).collect::<Vec<_>>(), [[at(1)], [at(1)]]);
}

#[test]
fn a_truncate_goes_to_every_tablet_and_counts_once() {
    let mut assembler = Assembler::new(opening(3, Vec::new()));
    let write = Write { at: at(1), table: TableId(0), key: Key::default(), op: WriteOp::Truncate };
    assembler.push(batch(vec![(at(1), Record::Write { transaction: id(1), write }), applying(2, 1, 1)])).unwrap();
    let run = assembler.take().unwrap();
    assert_eq!(run.parts.len(), 3);
    assert_eq!(branches(&run.report), [(id(1), at(1), 1, true)]);
}

#[test]
fn chunks_that_come_again_are_dropped_where_their_transaction_is_stored() {
    let stored = ReplicaTabletId(1);
    let mut assembler = Assembler::new(opening(2, vec![(stored, at(9))]));
    let chunk = StagedChunk {
        connection: 9,
        xid: 77,
        sub_xid: 77,
        schemas: Vec::new(),
        writes: (0..20).map(|n| put(n, n)).collect(),
        rolled_back: Vec::new(),
        bytes: 0,
    };
    assert_eq!(assembler.chunk(chunk).unwrap().parts.len(), 2);
    let origin =
        ChunkOrigin { transaction: id(1), opened: at(5), connection: 9, xid: 77, rolled_back: Vec::new(), records: 20 };
    let adopting = SourceBatch { adopted: vec![origin], ..batch(vec![applying(5, 1, 20)]) };
    assembler.push(adopting).unwrap();
    let dropped = assembler.take_came_again();
    assert_eq!(dropped.iter().map(|(tablet, drop)| (*tablet, drop.dropped.xid)).collect::<Vec<_>>(), [(stored, 77)]);
    assert_eq!(assembler.take_came_again(), []);
    let adopted: Vec<_> = assembler.take().unwrap().parts.into_iter().map(|(tablet, _)| tablet).collect();
    assert_eq!(adopted, [ReplicaTabletId(0)]);
}

#[test]
fn chunks_are_numbered_at_each_tablet_and_adopted_by_name() {
    let mut assembler = Assembler::new(opening(2, Vec::new()));
    let chunk = |keys: std::ops::Range<u64>| StagedChunk {
        connection: 9,
        xid: 77,
        sub_xid: 77,
        schemas: Vec::new(),
        writes: keys.map(|n| put(n, n)).collect(),
        rolled_back: Vec::new(),
        bytes: 0,
    };
    let mut last = BTreeMap::new();
    for keys in [0..20, 20..40, 40..41] {
        for (tablet, batch) in assembler.chunk(chunk(keys)).unwrap().parts {
            let before: u64 = last.insert(tablet, batch.number).unwrap_or(0);
            assert_eq!(batch.number, before + 1);
        }
    }
    let both: Vec<_> = last.keys().copied().collect();
    let dropped = |xid, sub_xid| DroppedChunks { connection: 9, xid, sub_xid };
    let mut told = |dropped| assembler.dropped(dropped).into_iter().map(|(tablet, _)| tablet).collect::<Vec<_>>();
    assert_eq!(told(dropped(77, Some(78))), both, "and the transaction goes on");
    assert_eq!(told(dropped(76, None)), []);
    let origin =
        ChunkOrigin { transaction: id(1), opened: at(1), connection: 9, xid: 77, rolled_back: vec![78], records: 41 };
    let adopting = SourceBatch { adopted: vec![origin], ..batch(vec![write(42, 1, 3), applying(43, 1, 42)]) };
    assembler.push(adopting).unwrap();
    let run = assembler.take().unwrap();
    assert_eq!(branches(&run.report), [(id(1), at(1), 42, true)]);
    for (tablet, part) in &run.parts {
        assert_eq!(part.branches.len(), 1, "the rest of the transaction joins its chunks");
        let adopt = part.branches[0].adopt.as_ref().unwrap();
        assert_eq!((adopt.last_chunk, &adopt.rolled_back[..]), (last[tablet], &[78][..]));
    }
}

#[test]
fn a_keepalive_says_how_far_the_stream_is_and_nothing_else() {
    let mut assembler = Assembler::new(opening(2, Vec::new()));
    assert!(assembler.take().is_none());
    assembler.push(SourceBatch { head: at(50), ..SourceBatch::default() }).unwrap();
    let run = assembler.take().unwrap();
    assert_eq!((run.parts.len(), run.report.head, run.report.upto), (0, at(50), OpId::ZERO));
    assert_eq!(assembler.passed(), at(50));
    assembler.push(SourceBatch { head: at(40), ..SourceBatch::default() }).unwrap();
    assert!(assembler.take().is_none(), "an earlier one says nothing");
}

#[test]
fn a_shape_goes_to_every_tablet_with_the_run_that_carries_it() {
    let mut assembler = Assembler::new(opening(2, Vec::new()));
    let schema = TableSchema { table: TableId(0), name: "public.t".into(), version: 2, columns: Vec::new() };
    let said = (at(1), Record::Schema(schema.clone()));
    assembler.push(batch(vec![said, write(1, 1, 1), applying(2, 1, 1)])).unwrap();
    let parts = assembler.take().unwrap().parts;
    assert_eq!(parts.len(), 2);
    assert!(parts.iter().all(|(_, part)| part.schemas == std::slice::from_ref(&schema)));
    let (schemas, writes) = (vec![schema.clone()], vec![put(1, 1)]);
    let chunk = StagedChunk { connection: 1, xid: 1, sub_xid: 1, schemas, writes, rolled_back: Vec::new(), bytes: 1 };
    assert_eq!(assembler.chunk(chunk).unwrap().parts[0].1.schemas, [schema], "and to whoever stages a chunk");
}
