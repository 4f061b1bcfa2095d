use super::*;
use crate::source::OpenBranch;
use crate::source::postgres::tuple::Identity;
use crate::wal::{Column, StagedChunk, TableId, TableSchema, Write};
use pg_walstream::protocol::{ColumnData, TupleData};
use proptest::prelude::*;

const ACCOUNTS: u32 = 1;
const EVENTS: u32 = 2;

fn shape(table: u32, version: u32) -> Arc<Shape> {
    let columns = ["id", "body"].map(|name| Column {
        name: name.into(),
        type_name: "text".into(),
        key: table == ACCOUNTS && name == "id",
    });
    let name = if table == ACCOUNTS { "public.accounts" } else { "public.events" }.to_owned();
    let schema = TableSchema { table: TableId(table), name, version, columns: columns.into() };
    Arc::new(Shape { schema, identity: Identity::Key })
}

/// An assembler and the text of what it handed over.
struct Bench {
    assembler: Assembler,
    chunks: Vec<StagedChunk>,
    upto: OpId,
}

impl Bench {
    fn new() -> Self {
        Self::resume(&Resume { stream: SourceTabletId(3), after: OpId::end_of_term(100), ..Resume::default() })
    }

    fn resume(resume: &Resume) -> Self {
        let gids = GidPattern::parse("^(?<txn>[^@]+)@.*$").unwrap();
        let mut assembler = Assembler::new("a", gids, 9, resume);
        assembler.relation(ACCOUNTS, shape(ACCOUNTS, 1));
        assembler.relation(EVENTS, shape(EVENTS, 1));
        Self { assembler, chunks: Vec::new(), upto: resume.after }
    }

    fn send(&mut self, messages: impl IntoIterator<Item = Message>) -> &mut Self {
        for message in messages {
            self.assembler.message(Change::default(), HybridTime::MIN, message).unwrap();
        }
        self
    }

    fn fails(&mut self, message: Message) -> String {
        self.assembler.message(Change::default(), HybridTime::MIN, message).unwrap_err()
    }

    /// What was handed over, a line a record: `position transaction what`.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(event) = self.assembler.poll(true) {
            let batch = match event {
                StreamEvent::Batch(batch) => batch,
                StreamEvent::Dropped(dropped) => {
                    assert_eq!(dropped.connection, 9);
                    let sub_xid = dropped.sub_xid.map(|sub_xid| format!("/{sub_xid}")).unwrap_or_default();
                    told.push(format!("drop {}{sub_xid}", dropped.xid));
                    continue;
                }
                StreamEvent::Chunk(chunk) => {
                    told.push(format!("chunk {}/{} of {}", chunk.xid, chunk.sub_xid, chunk.writes.len()));
                    self.chunks.push(chunk);
                    continue;
                }
            };
            assert!(batch.upto >= self.upto, "{} follows {}", batch.upto, self.upto);
            let mut last = self.upto;
            for origin in &batch.adopted {
                let (connection, xid, records) = (origin.connection, origin.xid, origin.records);
                assert_eq!(connection, 9);
                told.push(format!("{} adopts {records} of {xid} without {:?}", origin.opened, origin.rolled_back));
            }
            let schemas = |record: &Record| matches!(record, Record::Schema(_));
            for (at, record) in batch.records.into_iter().filter(|(_, record)| !schemas(record)) {
                assert!(at > last && at <= batch.upto, "{at} follows {last}");
                last = at;
                told.push(format!("{at} {}", tell(&record)));
            }
            if batch.head > OpId::ZERO {
                assert!(batch.head >= batch.upto);
                told.push(format!("head {}", batch.head.term));
            }
            self.upto = batch.upto;
        }
        told
    }
}

fn tell(record: &Record) -> String {
    match record {
        Record::Write { transaction, write } => {
            let op = match &write.op {
                WriteOp::Put { row, .. } => format!("put v{}", row.schema_version),
                WriteOp::Delete => "delete".into(),
                WriteOp::Truncate => "truncate".into(),
            };
            format!("{transaction} {op} {:?}{:?}", write.table, write.key)
        }
        Record::Applying { transaction, records, label, prepared_at } => {
            let label = label.as_ref().map(|label| format!(" as {label}")).unwrap_or_default();
            let prepared = if prepared_at.is_some() { " prepared" } else { "" };
            format!("{transaction}{prepared} applying {}{label}", records.unwrap())
        }
        Record::Commit { transaction, branch: Some(branch), involved: Involved::Discovered, .. } => {
            format!("{transaction} commit {branch}")
        }
        Record::Commit { transaction, branch: Some(branch), involved: Involved::OnlyThisStream, .. } => {
            assert_eq!(branch.opened.index, 1, "it ends its own branch, which opened at its first record");
            format!("{transaction} commit")
        }
        Record::Aborted { transaction, branch: Some(branch) } => format!("{transaction} aborted {branch}"),
        other => panic!("{other:?}"),
    }
}

fn tuple(id: &str) -> TupleData {
    TupleData::new(vec![ColumnData::text(id.as_bytes().to_vec()), ColumnData::null()])
}

fn insert(id: &str) -> Message {
    Message::Insert { relation_id: ACCOUNTS, tuple: tuple(id) }
}

fn begin(xid: u32, final_lsn: u64) -> Message {
    Message::Begin { final_lsn, timestamp: 0, xid }
}

fn commit(end_lsn: u64) -> Message {
    Message::Commit { flags: 0, commit_lsn: end_lsn - 8, end_lsn, timestamp: 0 }
}

fn begin_prepare(end_lsn: u64, gid: &str) -> Message {
    Message::BeginPrepare { prepare_lsn: end_lsn - 8, end_lsn, timestamp: 0, xid: 1, gid: gid.into() }
}

fn prepare(end_lsn: u64, gid: &str) -> Message {
    Message::Prepare { flags: 0, prepare_lsn: end_lsn - 8, end_lsn, timestamp: 0, xid: 1, gid: gid.into() }
}

fn commit_prepared(end_lsn: u64, gid: &str) -> Message {
    Message::CommitPrepared { flags: 0, commit_lsn: end_lsn - 8, end_lsn, timestamp: 0, xid: 1, gid: gid.into() }
}

fn rollback_prepared(rollback_end_lsn: u64, gid: &str) -> Message {
    let (prepare_timestamp, rollback_timestamp) = (0, 0);
    let (flags, prepare_end_lsn, xid, gid) = (0, 0, 1, gid.into());
    Message::RollbackPrepared {
        flags,
        prepare_end_lsn,
        rollback_end_lsn,
        prepare_timestamp,
        rollback_timestamp,
        xid,
        gid,
    }
}

/// A PREPARE with one row.
fn prepared(end: u64, gid: &str, id: &str) -> [Message; 3] {
    [begin_prepare(end, gid), insert(id), prepare(end, gid)]
}

fn block(bench: &mut Bench, xid: u32, changes: &[(u32, &str)]) {
    bench.send([Message::StreamStart { xid, first_segment: true }]);
    for (sub_xid, id) in changes {
        let change = Change { sub_xid: *sub_xid, ..Change::default() };
        bench.assembler.message(change, HybridTime::MIN, insert(id)).unwrap();
    }
    bench.send([Message::StreamStop]);
}

fn stream_commit(xid: u32, end_lsn: u64) -> Message {
    Message::StreamCommit { xid, flags: 0, commit_lsn: end_lsn - 8, end_lsn, timestamp: 0 }
}

fn stream_abort(xid: u32, subtransaction_xid: u32) -> Message {
    Message::StreamAbort { xid, subtransaction_xid, abort_lsn: None, abort_timestamp: None }
}

#[test]
fn an_ordinary_transaction_takes_the_end_position_of_its_commit() {
    let mut bench = Bench::new();
    bench.send([begin(7, 190), insert("1"), insert("2"), commit(200)]);
    let expected = ["200.1 a:7 put v1 t1(1)", "200.2 a:7 put v1 t1(2)", "200.3 a:7 applying 2", "200.4 a:7 commit"];
    assert_eq!(bench.told(), expected);
    assert_eq!(bench.upto, OpId::end_of_term(200));
}

#[test]
fn a_transaction_without_changes_moves_the_position_and_says_nothing() {
    let mut bench = Bench::new();
    assert_eq!(bench.send([begin(7, 190), commit(200)]).told(), [""; 0]);
    assert_eq!(bench.upto, OpId::end_of_term(200));
}

#[test]
fn branches_open_and_end_one_by_one() {
    let mut bench = Bench::new();
    bench.send(prepared(200, "x", "1")).send(prepared(210, "y", "2"));
    bench.send([commit_prepared(220, "y"), rollback_prepared(230, "x")]);
    let expected = [
        "200.1 x put v1 t1(1)",
        "200.2 x prepared applying 1",
        "210.1 y put v1 t1(2)",
        "210.2 y prepared applying 1",
        "220.1 y commit s3@210.1",
        "230.1 x aborted s3@200.1",
    ];
    assert_eq!(bench.told(), expected);
}

#[test]
fn a_gid_used_again_opens_another_branch() {
    let mut bench = Bench::new();
    bench.send(prepared(200, "g", "1")).send([rollback_prepared(210, "g")]);
    bench.send(prepared(220, "g", "1")).send([commit_prepared(230, "g")]);
    let told = bench.told();
    assert_eq!(told[2], "210.1 g aborted s3@200.1");
    assert_eq!(told[5], "230.1 g commit s3@220.1");
}

#[test]
fn a_branch_is_found_by_its_full_gid_also_after_a_restart() {
    let mut bench = Bench::new();
    bench.send(prepared(200, "pay@a", "1")).send(prepared(210, "pay@b", "2"));
    let told = bench.told();
    assert_eq!(told[1], "200.2 pay prepared applying 1 as pay@a");
    let transaction = SourceTransactionId::first(b"pay");
    let open = |label: &str, term| OpenBranch {
        transaction: transaction.clone(),
        label: Some(label.into()),
        opened: OpId::new(term, 1),
        records: 1,
        applying: true,
    };
    let open_branches = vec![open("pay@a", 200), open("pay@b", 210)];
    let after = OpId::end_of_term(210);
    let mut bench = Bench::resume(&Resume { stream: SourceTabletId(3), after, open_branches, ..Resume::default() });
    bench.send([commit_prepared(220, "pay@b"), rollback_prepared(230, "pay@a")]);
    assert_eq!(bench.told(), ["220.1 pay commit s3@210.1", "230.1 pay aborted s3@200.1"]);
}

#[test]
fn a_prepare_that_comes_late_takes_the_place_of_its_commit() {
    let mut bench = Bench::new();
    bench.send([begin(7, 190), insert("1"), commit(200)]).send(prepared(90, "late", "2"));
    assert_eq!(bench.told().len(), 3, "the PREPARE is kept");
    bench.send([commit_prepared(210, "late")]);
    let expected = ["210.1 late put v1 t1(2)", "210.2 late prepared applying 1", "210.3 late commit s3@210.1"];
    assert_eq!(bench.told(), expected);
}

#[test]
fn what_was_taken_before_is_dropped_when_it_is_sent_again() {
    let open = OpenBranch {
        transaction: SourceTransactionId::first(b"open"),
        label: None,
        opened: OpId::new(90, 1),
        records: 1,
        applying: true,
    };
    let after = OpId::end_of_term(100);
    let resume = Resume { stream: SourceTabletId(3), after, open_branches: vec![open], ..Resume::default() };
    let mut bench = Bench::resume(&resume);
    bench.send([begin(7, 70), insert("1"), commit(80)]);
    bench.send(prepared(85, "ended", "2")).send(prepared(90, "open", "3")).send([commit_prepared(95, "ended")]);
    assert_eq!(bench.told(), [""; 0]);
    bench.send([commit_prepared(110, "open")]);
    assert_eq!(bench.told(), ["110.1 open commit s3@90.1"]);
}

#[test]
fn an_end_that_no_branch_fits_ends_nothing() {
    let mut bench = Bench::new();
    bench.send([commit_prepared(200, "locks"), rollback_prepared(210, "early")]);
    assert_eq!(bench.told(), [""; 0]);
    assert_eq!(bench.upto, OpId::end_of_term(210));
}

#[test]
fn a_streamed_transaction_is_staged_and_adopted_at_its_end() {
    let mut bench = Bench::new();
    block(&mut bench, 7, &[(7, "1"), (8, "2"), (7, "3")]);
    bench.send([begin(9, 190), insert("4"), commit(200)]);
    block(&mut bench, 7, &[(10, "5"), (8, "6")]);
    bench.send([stream_abort(7, 8), stream_commit(7, 210)]);
    let expected = [
        "chunk 7/7 of 1",
        "chunk 7/8 of 1",
        "chunk 7/7 of 1",
        "200.1 a:9 put v1 t1(4)",
        "200.2 a:9 applying 1",
        "200.3 a:9 commit",
        "chunk 7/10 of 1",
        "chunk 7/8 of 1",
        "drop 7/8",
        "210.1 adopts 3 of 7 without [8]",
        "210.6 a:7 applying 3",
        "210.7 a:7 commit",
    ];
    assert_eq!(bench.told(), expected);
    let order: Vec<u64> = bench.chunks.iter().flat_map(|chunk| &chunk.writes).map(|write| write.at.index).collect();
    assert_eq!(order, [1, 2, 3, 4, 5], "a later write of a key wins, whichever sub-transaction made it");
}

/// An update that changes the key and leaves the body as it was.
fn moved(from: &str, to: &str) -> Message {
    let column = |id: &str, body: ColumnData| TupleData::new(vec![ColumnData::text(id.as_bytes().to_vec()), body]);
    Message::Update {
        relation_id: ACCOUNTS,
        old_tuple: Some(column(from, ColumnData::null())),
        new_tuple: column(to, ColumnData::unchanged()),
        key_type: Some('K'),
    }
}

#[test]
fn a_row_that_is_filled_from_another_key_stands_at_the_head_of_a_chunk() {
    let mut bench = Bench::new();
    bench.send([begin(6, 140), insert("0"), commit(150)]);
    bench.send([begin(7, 190), insert("1"), moved("1", "2"), insert("3"), moved("2", "4"), commit(200)]);
    let expected = [
        "150.1 a:6 put v1 t1(0)",
        "150.2 a:6 applying 1",
        "150.3 a:6 commit",
        "chunk 7/7 of 1",
        "chunk 7/7 of 3",
        "chunk 7/7 of 2",
        "200.1 adopts 6 of 7 without []",
        "200.7 a:7 applying 6",
        "200.8 a:7 commit",
    ];
    assert_eq!(bench.told(), expected);
    let heads: Vec<bool> = bench.chunks.iter().map(StagedChunk::begins_with_fill).collect();
    assert_eq!(heads, [false, true, true]);
}

#[test]
fn a_row_is_not_filled_from_what_was_rolled_back_before_it() {
    let mut bench = Bench::new();
    block(&mut bench, 7, &[(7, "1"), (8, "2")]);
    bench.send([stream_abort(7, 8), Message::StreamStart { xid: 7, first_segment: false }]);
    let change = Change { sub_xid: 9, ..Change::default() };
    bench.assembler.message(change, HybridTime::MIN, moved("1", "2")).unwrap();
    bench.send([Message::StreamStop]);
    assert_eq!(bench.told(), ["chunk 7/7 of 1", "chunk 7/8 of 1", "drop 7/8", "chunk 7/9 of 2"]);
    assert_eq!(bench.chunks[2].rolled_back, [8]);
}

#[test]
fn a_streamed_transaction_that_is_prepared_becomes_a_branch() {
    let mut bench = Bench::new();
    block(&mut bench, 7, &[(7, "1")]);
    bench.send([Message::StreamPrepare {
        flags: 0,
        prepare_lsn: 192,
        end_lsn: 200,
        timestamp: 0,
        xid: 7,
        gid: "large".into(),
    }]);
    bench.send([commit_prepared(210, "large")]);
    let told = bench.told();
    assert_eq!(
        told[1..],
        ["200.1 adopts 1 of 7 without []", "200.2 large prepared applying 1", "210.1 large commit s3@200.1"]
    );
}

#[test]
fn a_streamed_transaction_that_is_rolled_back_leaves_nothing() {
    let mut bench = Bench::new();
    block(&mut bench, 7, &[(7, "1"), (8, "2")]);
    bench.send([stream_abort(7, 8), stream_abort(7, 7), stream_abort(70, 71)]);
    assert_eq!(bench.told(), ["chunk 7/7 of 1", "chunk 7/8 of 1", "drop 7/8", "drop 7"]);
    assert!(bench.fails(stream_commit(7, 210)).contains("never began"));
}

#[test]
fn chunks_of_what_was_taken_before_are_dropped_at_its_end() {
    let mut bench = Bench::new();
    block(&mut bench, 7, &[(7, "1")]);
    bench.send([stream_commit(7, 90)]);
    assert_eq!(bench.told(), ["chunk 7/7 of 1", "drop 7"]);
}

#[test]
fn a_large_transaction_that_is_sent_whole_is_staged_too() {
    let mut bench = Bench::new();
    let long = "x".repeat(CHUNK_BYTES / 4);
    bench.send([
        begin(7, 190),
        insert("1"),
        insert(&long),
        insert(&long),
        insert(&long),
        insert(&long),
        insert("2"),
        commit(200),
    ]);
    let told = bench.told();
    assert_eq!(told[..2], ["chunk 7/7 of 3", "chunk 7/7 of 2"]);
    assert_eq!(
        told[2..],
        ["chunk 7/7 of 1", "200.1 adopts 6 of 7 without []", "200.7 a:7 applying 6", "200.8 a:7 commit"]
    );
}

#[test]
fn columns_that_a_transaction_changes_are_its_own_until_it_commits() {
    let mut bench = Bench::new();
    bench.send([Message::StreamStart { xid: 7, first_segment: true }]);
    bench.assembler.relation(ACCOUNTS, shape(ACCOUNTS, 2));
    bench.send([insert("1"), Message::StreamStop, begin(9, 190), insert("2"), commit(200), stream_commit(7, 210)]);
    bench.send([begin(10, 215), insert("3"), commit(220)]);
    let told = bench.told();
    assert!(told.contains(&"200.1 a:9 put v1 t1(2)".into()), "{told:?}");
    assert!(told.contains(&"220.1 a:10 put v2 t1(3)".into()), "{told:?}");
}

#[test]
fn a_keepalive_is_a_record_in_its_place_and_only_grows() {
    let mut bench = Bench::new();
    bench.assembler.keepalive(50, HybridTime::MIN);
    assert_eq!(bench.told(), [""; 0], "the stream is further");
    bench.assembler.keepalive(120, HybridTime::MIN);
    bench.assembler.keepalive(0, HybridTime::MIN);
    bench.assembler.keepalive(110, HybridTime::MIN);
    assert_eq!(bench.told(), ["head 120"]);
    assert_eq!(bench.upto, OpId::end_of_term(100), "nothing to resume behind");
    bench.send([begin(7, 190), insert("1")]);
    bench.assembler.keepalive(180, HybridTime::MIN);
    bench.send([commit(200)]);
    assert!(!bench.told().contains(&"head 180".into()), "the commit behind it says more");
}

#[test]
fn a_keepalive_moves_the_checkpoint_from_time_to_time_and_never_within_a_transaction() {
    let mut bench = Bench::new();
    let second = |seconds: u64| HybridTime::from_micros(seconds * 1_000_000);
    bench.assembler.keepalive(120, second(100));
    bench.assembler.keepalive(130, second(109));
    bench.told();
    assert_eq!(bench.upto, OpId::end_of_term(100));
    bench.assembler.keepalive(140, second(110));
    bench.told();
    assert_eq!(bench.upto, OpId::end_of_term(140));
    bench.assembler.keepalive(150, second(119));
    bench.send([begin(7, 190), insert("1")]);
    bench.assembler.keepalive(180, second(130));
    bench.told();
    assert_eq!(bench.upto, OpId::end_of_term(140));
    bench.send([commit(200)]);
    bench.assembler.keepalive(210, second(131));
    bench.told();
    assert_eq!(bench.upto, OpId::end_of_term(210));
}

#[test]
fn truncate_is_one_write_a_table() {
    let mut bench = Bench::new();
    let truncate = Message::Truncate { relation_ids: vec![ACCOUNTS, EVENTS], flags: 1 };
    bench.send([begin(7, 190), truncate, commit(200)]);
    assert_eq!(bench.told()[..2], ["200.1 a:7 truncate t1()", "200.2 a:7 truncate t2()"]);
}

#[test]
fn a_row_without_a_key_has_the_same_one_whenever_it_is_sent() {
    let keys = |connection: u64, streamed: bool| {
        let mut assembler = Assembler::new("a", GidPattern::default(), connection, &Resume::default());
        assembler.relation(EVENTS, shape(EVENTS, 1));
        let mut send = |wal_at, message| {
            assembler.message(Change { wal_at, sub_xid: 7 }, HybridTime::MIN, message).unwrap();
        };
        let row = || Message::Insert { relation_id: EVENTS, tuple: tuple("same") };
        send(0, if streamed { Message::StreamStart { xid: 7, first_segment: true } } else { begin(7, 190) });
        for wal_at in [10, 10, 20] {
            send(wal_at, row());
        }
        send(0, if streamed { Message::StreamStop } else { commit(200) });
        let mut keys = Vec::new();
        while let Some(event) = assembler.poll(true) {
            let writes: Vec<Write> = match event {
                StreamEvent::Chunk(chunk) => chunk.writes,
                StreamEvent::Dropped(dropped) => panic!("{dropped:?}"),
                StreamEvent::Batch(batch) => {
                    let write = |(_, record)| if let Record::Write { write, .. } = record { Some(write) } else { None };
                    batch.records.into_iter().filter_map(write).collect()
                }
            };
            keys.extend(writes.into_iter().map(|write| write.key));
        }
        keys
    };
    let sent = keys(1, false);
    let content = Key(Key::shared(&sent[0].0).to_vec().into());
    assert_eq!(sent, [(10, 0), (10, 1), (20, 0)].map(|(place, nth)| content.at_place(place, nth)));
    assert_eq!(sent, keys(2, true));
}

#[test]
fn damage_is_named() {
    assert!(Bench::new().fails(commit(200)).contains("COMMIT without a transaction"));
    assert!(Bench::new().fails(insert("1")).contains("outside a transaction"));
    assert!(Bench::new().send([begin(7, 190)]).fails(begin(8, 191)).contains("inside another"));
    let block = Message::StreamStart { xid: 8, first_segment: true };
    assert!(Bench::new().send([begin(7, 190)]).fails(block.clone()).contains("inside another"));
    assert!(Bench::new().send([block.clone()]).fails(block).contains("inside another"));
    let unknown = Message::Insert { relation_id: 77, tuple: tuple("1") };
    assert!(Bench::new().send([begin(7, 190)]).fails(unknown).contains("relation 77"));
    let narrow = Message::Insert { relation_id: ACCOUNTS, tuple: TupleData::new(vec![]) };
    assert!(Bench::new().send([begin(7, 190)]).fails(narrow).contains("public.accounts: 0 columns"));
}

/// What a server's history holds, in the order in which it is sent.
#[derive(Clone, Debug)]
enum Step {
    Ordinary,
    Prepare,
    /// Ends the open branch of this number, counted around.
    End(usize, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Ordinary),
        Just(Step::Prepare),
        (any::<usize>(), any::<bool>()).prop_map(|(which, commits)| Step::End(which, commits)),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The messages of a history, with the end position of each transaction's last one.
fn history(steps: &[Step]) -> Vec<(u64, Vec<Message>)> {
    let (mut open, mut sent, mut end): (Vec<String>, _, _) = (Vec::new(), Vec::new(), 100);
    for step in steps {
        end += 10;
        match step {
            Step::Ordinary => sent.push((end, vec![begin(end as u32, end - 8), insert(&end.to_string()), commit(end)])),
            Step::Prepare => {
                // A gid that has ended may be used again at once.
                let gid = (0..).map(|number| format!("g{number}")).find(|gid| !open.contains(gid)).unwrap();
                sent.push((end, prepared(end, &gid, &end.to_string()).into()));
                open.push(gid);
            }
            Step::End(which, commits) if !open.is_empty() => {
                let gid = open.remove(which % open.len());
                let message = if *commits { commit_prepared(end, &gid) } else { rollback_prepared(end, &gid) };
                sent.push((end, vec![message]));
            }
            Step::End(..) => {}
        }
    }
    sent
}

proptest! {
    /// Wherever a connection is cut, and from wherever at or below the checkpoint the server sends again, the records
    /// are those of one connection that was never cut.
    #[test]
    fn a_cut_connection_changes_nothing(steps in steps(), cut: usize, again: usize) {
        let history = history(&steps);
        prop_assume!(!history.is_empty());
        let cut = cut % (history.len() + 1);
        let again = again % (cut + 1);
        let messages = |from: usize, to: usize| history[from..to].iter().flat_map(|(_, messages)| messages.clone());
        let whole = Bench::new().send(messages(0, history.len())).told();

        let mut first = Bench::new();
        let mut told = first.send(messages(0, cut)).told();
        let open = first.assembler.branches.iter().map(|(gid, open)| OpenBranch {
            transaction: open.transaction.clone(),
            label: Some(gid.clone()),
            opened: open.opened,
            records: 1,
            applying: true,
        });
        let open_branches = open.collect();
        let resume = Resume { stream: SourceTabletId(3), after: first.upto, open_branches, ..Resume::default() };
        let mut second = Bench::resume(&resume);
        told.extend(second.send(messages(again, history.len())).told());
        prop_assert_eq!(told, whole);
    }
}
