//! The suite that every tablet passes, whatever engine it is and however it is reached.
//!
//! An engine's tests say `tablet_conformance!(open)`, where `open` makes a [`Rig`]; each rule becomes a test of its own.

use super::{
    Adopt, ApplyBatch, BranchWrites, ChunkBatch, CopyBatch, Decided, DropChunks, FillRequest, ProvisionalBatch,
    ReadPoint, ReadRequest, Stored, TabletError, TabletLeader, Turn, Work,
};
use crate::limits::PAGE_BYTES;
use crate::wal::{
    BranchId, Cell, Column, DroppedChunks, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row,
    SourceTabletId, TableId, TableSchema, TransactionId, Write, WriteOp,
};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A running tablet and the threads that serve it.
pub type Running = (Arc<dyn TabletLeader>, Vec<JoinHandle<()>>);

/// A tablet under test, which can be started again from what it keeps.
pub struct Rig {
    running: Option<Running>,
    open: Box<dyn Fn() -> Running>,
}

impl Rig {
    /// A tablet that `open` starts, now and after each stop.
    pub fn new(open: impl Fn() -> Running + 'static) -> Self {
        Self { running: Some(open()), open: Box::new(open) }
    }

    fn tablet(&self) -> &dyn TabletLeader {
        self.running.as_ref().unwrap().0.as_ref()
    }

    fn restart(&mut self) {
        let (tablet, threads) = self.running.take().unwrap();
        drop(tablet);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.running = Some((self.open)());
    }
}

const S1: SourceTabletId = SourceTabletId(1);
const S2: SourceTabletId = SourceTabletId(2);
const OWNER: Epoch = Epoch(1);
const PULLER: Epoch = Epoch(1);
const TABLE: TableId = TableId(1);

fn key(name: &str) -> Key {
    Key::from_columns([name.as_bytes()])
}

fn text(value: &str) -> Cell {
    Cell::Text(value.as_bytes().to_vec().into())
}

fn row(name: &str, value: &str) -> Row {
    Row { schema_version: 1, cells: vec![text(name), text(value)] }
}

fn at(index: u64) -> OpId {
    OpId::new(1, index)
}

fn write(index: u64, name: &str, op: WriteOp) -> Write {
    Write { at: at(index), table: TABLE, key: key(name), op }
}

fn put(index: u64, name: &str, value: &str) -> Write {
    write(index, name, WriteOp::Put { row: row(name, value), fill_from: None })
}

fn delete(index: u64, name: &str) -> Write {
    write(index, name, WriteOp::Delete)
}

fn truncate(index: u64) -> Write {
    Write { at: at(index), table: TABLE, key: Key::default(), op: WriteOp::Truncate }
}

/// A write that leaves the value as it was.
fn unchanged(index: u64, name: &str, fill_from: Option<&str>) -> Write {
    let row = Row { schema_version: 1, cells: vec![text(name), Cell::Unchanged] };
    write(index, name, WriteOp::Put { row, fill_from: fill_from.map(key) })
}

fn schema() -> TableSchema {
    let column = |name: &str, key| Column { name: name.into(), type_name: "text".into(), key };
    TableSchema {
        table: TABLE,
        name: "public.t".into(),
        version: 1,
        columns: vec![column("k", true), column("v", false)],
    }
}

fn branch(stream: SourceTabletId, opened: u64) -> BranchId {
    BranchId { stream, opened: at(opened) }
}

/// A batch of one stream: it follows `follows` and ends with its last write.
fn batch(stream: SourceTabletId, follows: u64, branches: Vec<(u64, Vec<Write>)>) -> ProvisionalBatch {
    let upto = branches.iter().flat_map(|(_, writes)| writes).map(|write| write.at).max().unwrap_or(at(follows));
    ProvisionalBatch {
        stream,
        owner: OWNER,
        puller: PULLER,
        follows: if follows == 0 { OpId::ZERO } else { at(follows) },
        upto,
        schemas: vec![schema()],
        branches: branches
            .into_iter()
            .map(|(opened, writes)| BranchWrites { branch: branch(stream, opened), writes, adopt: None })
            .collect(),
        rolled_back: Vec::new(),
        report_conflicts: false,
    }
}

fn commit(position: u64, time: u64, branches: Vec<BranchId>) -> Decided {
    let transaction = TransactionId(position);
    let work =
        Work::Commit { transaction, time: HybridTime::from_u64(time), branches, tablets: vec![ReplicaTabletId(1)] };
    Decided { position: LogPosition(position), work }
}

fn decisions(follows: u64, through: u64, work: Vec<Decided>) -> ApplyBatch {
    ApplyBatch {
        owner: OWNER,
        follows: LogPosition(follows),
        through: LogPosition(through),
        safe_time: HybridTime::MIN,
        one_writer: false,
        work,
    }
}

fn request(position: u64, time: u64) -> ReadRequest {
    ReadRequest {
        table: TABLE,
        at: ReadPoint { position: LogPosition(position), time: HybridTime::from_u64(time) },
        key: None,
        after: None,
        history: false,
        max_bytes: PAGE_BYTES,
    }
}

const LATEST: u64 = u64::MAX;

impl Rig {
    async fn announced(self) -> Self {
        self.tablet().announce("log", ReplicaTabletId(1), OWNER).await.unwrap();
        self
    }

    async fn store(&self, batch: ProvisionalBatch) -> Stored {
        self.tablet().write_provisional(batch).await.unwrap()
    }

    async fn decide(&self, follows: u64, work: Vec<Decided>) {
        let through = work.last().map_or(follows + 1, |decided| decided.position.0);
        self.tablet().apply(decisions(follows, through, work)).await.unwrap();
    }

    /// Stores and commits one transaction of one stream.
    async fn transaction(&self, stream: SourceTabletId, position: u64, time: u64, follows: u64, writes: Vec<Write>) {
        let opened = writes[0].at.index;
        self.store(batch(stream, follows, vec![(opened, writes)])).await;
        self.decide(position - 1, vec![commit(position, time, vec![branch(stream, opened)])]).await;
    }

    /// Key and value of every row shown.
    async fn rows(&self, position: u64, time: u64) -> Vec<(String, String)> {
        let page = self.tablet().read(request(position, time)).await.unwrap();
        assert_eq!(page.more_after, None);
        page.rows.iter().map(|row| shown(row.row.as_ref().unwrap())).collect()
    }

    async fn history(&self, position: u64) -> Vec<(u64, String)> {
        let request = ReadRequest { history: true, ..request(position, LATEST) };
        let page = self.tablet().read(request).await.unwrap();
        let value = |row: Option<&Row>| row.map_or("gone".into(), |row| shown(row).1);
        page.rows.iter().map(|row| (row.time.to_u64(), value(row.row.as_ref()))).collect()
    }

    async fn chunk(&self, connection: u64, sub_xid: u32, number: u64, writes: Vec<Write>) -> Result<(), TabletError> {
        let chunk = ChunkBatch {
            stream: S1,
            owner: OWNER,
            puller: PULLER,
            connection,
            xid: 7,
            sub_xid,
            number,
            schemas: vec![schema()],
            writes,
        };
        self.tablet().stage_chunk(chunk).await
    }

    fn dropping(&self, sub_xid: Option<u32>) -> DropChunks {
        let dropped = DroppedChunks { connection: 1, xid: 7, sub_xid };
        DropChunks { stream: S1, owner: OWNER, puller: PULLER, dropped }
    }

    async fn drop_chunks(&self, sub_xid: Option<u32>) {
        self.tablet().drop_chunks(self.dropping(sub_xid)).await.unwrap();
    }

    /// What a row that was `from` before, and kept its value, is filled with: by connection 1, behind `upto`.
    async fn filled(&self, from: &str, upto: u64, rolled_back: &[u32]) -> Result<String, TabletError> {
        let request = FillRequest {
            stream: S1,
            owner: OWNER,
            puller: PULLER,
            connection: 1,
            xid: 7,
            rolled_back: rolled_back.to_vec(),
            upto: at(upto),
            schemas: vec![schema()],
            table: TABLE,
            from: key(from),
            row: Row { schema_version: 1, cells: vec![text("new"), Cell::Unchanged] },
        };
        let (name, value) = shown(&self.tablet().fill(request).await?);
        assert_eq!(name, "new");
        Ok(value)
    }

    async fn copy(&self, stream: SourceTabletId, base: u64, last: bool, rows: &[(&str, &str)]) {
        let rows = rows.iter().map(|(name, value)| (key(name), row(name, value))).collect();
        let base = HybridTime::from_u64(base);
        let copy = CopyBatch { stream, owner: OWNER, base, last, schema: schema(), rows };
        self.tablet().copy_rows(copy).await.unwrap();
    }

    /// What readers see of the stream's part of the table changes at this position.
    async fn turn(&self, stream: SourceTabletId, position: u64, turn: Turn) {
        let work = Work::Turn { stream, table: schema().table, turn };
        self.decide(position - 1, vec![Decided { position: LogPosition(position), work }]).await;
    }

    /// A copy that is begun, whole, and shown, at three positions in a row.
    async fn copied(&self, stream: SourceTabletId, position: u64, base: u64, rows: &[(&str, &str)]) {
        let (base_time, time) = (HybridTime::from_u64(base), HybridTime::from_u64(base + 1));
        self.turn(stream, position, Turn::Begun { base: base_time }).await;
        self.copy(stream, base, true, rows).await;
        self.turn(stream, position + 1, Turn::Shown { base: base_time, time }).await;
    }
}

fn shown(row: &Row) -> (String, String) {
    let cell = |cell: &Cell| match cell {
        Cell::Text(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => format!("{other:?}"),
    };
    (cell(&row.cells[0]), cell(&row.cells[1]))
}

fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn adopting(follows: u64, upto: u64, connection: u64, rolled_back: Vec<u32>, last_chunk: u64) -> ProvisionalBatch {
    let mut batch = batch(S1, follows, vec![(upto, vec![])]);
    batch.upto = at(upto);
    batch.branches[0].adopt = Some(Adopt { connection, xid: 7, rolled_back, last_chunk });
    batch
}

/// Tablets let whoever comes before their owner's first announcement ask again, and refuse another log.
pub async fn binds_to_one_log(rig: Rig) {
    let early = rig.tablet().write_provisional(batch(S1, 0, vec![])).await;
    assert!(matches!(early, Err(TabletError::Indeterminate(_))), "{early:?}");
    let mut rig = rig.announced().await;
    rig.restart();
    let other = rig.tablet().announce("other", ReplicaTabletId(1), Epoch(9)).await;
    assert!(matches!(other, Err(TabletError::Refused(_))), "{other:?}");
    let other = rig.tablet().announce("log", ReplicaTabletId(2), Epoch(9)).await;
    assert!(matches!(other, Err(TabletError::Refused(_))), "{other:?}");
    let announced = rig.tablet().announce("log", ReplicaTabletId(1), OWNER).await.unwrap();
    assert_eq!((announced.marks.len(), announced.heard), (0, LogPosition(0)));
}

/// Undecided writes are invisible; decided ones are seen from their position on, whole.
pub async fn shows_what_is_decided_at_its_position(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(2, "a", "1"), put(3, "b", "1")])])).await;
    assert_eq!(rig.rows(0, LATEST).await, pairs(&[]));
    rig.decide(0, vec![commit(4, 100, vec![branch(S1, 1)])]).await;
    assert_eq!(rig.rows(3, LATEST).await, pairs(&[]));
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));
    assert_eq!(rig.rows(4, 99).await, pairs(&[]));
    assert_eq!(rig.rows(4, 100).await, pairs(&[("a", "1"), ("b", "1")]));
}

/// A batch is stored once; one that does not follow is answered with what is held (C5, trace 5).
pub async fn stores_once_and_without_gaps(rig: Rig) {
    let mut rig = rig.announced().await;
    let first = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    assert_eq!(rig.store(first.clone()).await, Stored { mark: at(1), conflicts: vec![] });
    rig.restart();
    let again = rig.tablet().write_provisional(first).await;
    assert_eq!(again, Err(TabletError::OutOfOrder { held: at(1), follows: OpId::ZERO }));
    let gap = rig.tablet().write_provisional(batch(S1, 2, vec![(3, vec![put(3, "c", "1")])])).await;
    assert_eq!(gap, Err(TabletError::OutOfOrder { held: at(1), follows: at(2) }));
    // What lies at or below the mark is dropped from a batch that follows it.
    rig.store(batch(S1, 1, vec![(1, vec![put(1, "a", "again"), put(2, "b", "1")])])).await;
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 2);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));
    let announced = rig.tablet().announce_puller(S1, OWNER, Epoch(2)).await.unwrap();
    assert_eq!((announced.stored, announced.puller), (at(2), Epoch(2)));
}

/// Lower epochs of owners and pullers are refused, after a restart too (C7).
pub async fn fences_lower_epochs(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.tablet().announce("log", ReplicaTabletId(1), Epoch(3)).await.unwrap();
    rig.restart();
    let owner = rig.tablet().write_provisional(batch(S1, 0, vec![])).await;
    assert_eq!(owner, Err(TabletError::Fenced { held: Epoch(3) }));
    assert_eq!(rig.tablet().apply(decisions(0, 1, vec![])).await, Err(TabletError::Fenced { held: Epoch(3) }));
    let low = rig.tablet().announce("log", ReplicaTabletId(1), Epoch(2)).await;
    assert_eq!(low, Err(TabletError::Fenced { held: Epoch(3) }));
    rig.tablet().announce_puller(S1, Epoch(3), Epoch(5)).await.unwrap();
    rig.restart();
    let low = ProvisionalBatch { owner: Epoch(3), puller: Epoch(4), ..batch(S1, 0, vec![]) };
    assert_eq!(rig.tablet().write_provisional(low.clone()).await, Err(TabletError::Fenced { held: Epoch(5) }));
    let other_stream = ProvisionalBatch { stream: S2, ..low };
    rig.tablet().write_provisional(other_stream).await.unwrap();
}

/// Decisions are heard in order, and hearing one again changes nothing.
pub async fn applies_in_order_and_again(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")]), (2, vec![put(2, "b", "1")])])).await;
    rig.decide(0, vec![commit(2, 10, vec![branch(S1, 1)])]).await;
    let wrong = rig.tablet().apply(decisions(0, 3, vec![])).await;
    assert_eq!(wrong, Err(TabletError::HeardOther { heard: LogPosition(2), follows: LogPosition(0) }));
    let applied = rig.tablet().sync().await.unwrap();
    assert_eq!((applied.heard, applied.applied), (LogPosition(2), LogPosition(2)));
    // A branch that is gone was applied.
    rig.decide(2, vec![commit(3, 10, vec![branch(S1, 1)]), commit(4, 20, vec![branch(S1, 2)])]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    let announced = rig.tablet().announce("log", ReplicaTabletId(1), OWNER).await.unwrap();
    assert_eq!((announced.heard, announced.applied), (LogPosition(4), LogPosition(4)));
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_branches, 0);
    let above = rig.tablet().apply(decisions(4, 5, vec![commit(6, 1, vec![])])).await;
    assert!(matches!(above, Err(TabletError::Refused(_))), "{above:?}");
}

/// A transaction that takes several steps to apply is applied whole.
pub async fn applies_a_large_transaction(rig: Rig) {
    let mut rig = rig.announced().await;
    let value = "x".repeat(64 << 10);
    let mut follows = 0;
    for run in 0..4 {
        let writes = (1..=16).map(|n| put(run * 16 + n, &format!("{:03}", run * 16 + n), &value)).collect();
        rig.store(batch(S1, follows, vec![(1, writes)])).await;
        follows = (run + 1) * 16;
    }
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 64);
    rig.restart();
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 64);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]).await;
    let (mut seen, mut after) = (0, None);
    loop {
        let page = rig.tablet().read(ReadRequest { after, ..request(1, LATEST) }).await.unwrap();
        seen += page.rows.len();
        assert!(page.rows.len() < 32, "a page holds about {PAGE_BYTES} bytes");
        after = page.more_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, 64);
    let stats = rig.tablet().stats().await.unwrap();
    assert_eq!((stats.provisional_branches, stats.provisional_records, stats.provisional_bytes), (0, 0, 0));
}

/// Aborted branches leave nothing.
pub async fn discards_aborted_branches(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")]), (2, vec![put(2, "a", "2")])])).await;
    let discard = Decided { position: LogPosition(1), work: Work::Discard { branches: vec![branch(S1, 2)] } };
    rig.decide(0, vec![discard, commit(2, 10, vec![branch(S1, 1)])]).await;
    assert_eq!(rig.rows(2, LATEST).await, pairs(&[("a", "1")]));
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_branches, 0);
}

/// A version older than a newer committed one does not win, and stays in the history.
pub async fn keeps_older_commits_as_history(rig: Rig) {
    let rig = rig.announced().await;
    rig.transaction(S1, 1, 20, 0, vec![put(1, "a", "new")]).await;
    rig.transaction(S2, 2, 10, 0, vec![put(1, "a", "old")]).await;
    rig.transaction(S1, 3, 30, 1, vec![delete(2, "a"), put(3, "b", "1")]).await;
    assert_eq!(rig.rows(2, LATEST).await, pairs(&[("a", "new")]));
    assert_eq!(rig.rows(2, 15).await, pairs(&[("a", "old")]));
    assert_eq!(rig.rows(1, 15).await, pairs(&[]));
    assert_eq!(rig.rows(3, LATEST).await, pairs(&[("b", "1")]));
    let told = |history: &[(u64, &str)]| history.iter().map(|(t, v)| (*t, (*v).to_owned())).collect::<Vec<_>>();
    assert_eq!(rig.history(3).await, told(&[(30, "gone"), (20, "new"), (10, "old"), (30, "1")]));
    assert_eq!(rig.history(1).await, told(&[(20, "new")]));
}

/// Within one transaction later writes of a branch win, and a write beats another stream's delete (trace 13).
pub async fn resolves_writes_of_one_transaction(rig: Rig) {
    let rig = rig.announced().await;
    let writes = vec![put(1, "moved", "there"), put(2, "twice", "1"), put(3, "twice", "2")];
    rig.store(batch(S1, 0, vec![(1, writes)])).await;
    rig.store(batch(S2, 0, vec![(1, vec![delete(1, "moved"), put(2, "gone", "1"), delete(3, "gone")])])).await;
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1), branch(S2, 1)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("moved", "there"), ("twice", "2")]));
    assert_eq!(rig.history(1).await.len(), 3, "one version a key and transaction");
}

/// TRUNCATE removes what its stream wrote, for readers above it (trace 30).
pub async fn truncates_one_streams_rows(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.copied(S1, 1, 1, &[("copied", "1")]).await;
    rig.transaction(S1, 3, 10, 0, vec![put(1, "a", "1")]).await;
    rig.transaction(S2, 4, 20, 0, vec![put(1, "b", "1")]).await;
    rig.transaction(S1, 5, 30, 1, vec![put(2, "before", "1"), truncate(3), put(4, "after", "1")]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("after", "1"), ("b", "1")]));
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "1"), ("b", "1"), ("copied", "1")]));
    assert_eq!(rig.rows(5, 29).await, pairs(&[("a", "1"), ("b", "1"), ("copied", "1")]));
}

/// Rows of a copy are seen from the place and time on at which it is shown, and those of an attempt that was cut off never;
/// what was decided above the base stays above them, and what lies below is gone, but no other stream's.
pub async fn shows_a_copy_from_its_turn_on(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.transaction(S1, 1, 10, 0, vec![put(1, "a", "old"), put(2, "ghost", "old")]).await;
    rig.transaction(S2, 2, 11, 0, vec![put(1, "other", "1")]).await;
    rig.turn(S1, 3, Turn::Begun { base: base(20) }).await;
    rig.copy(S1, 20, false, &[("a", "cut off"), ("cut off", "1")]).await;
    rig.turn(S1, 4, Turn::Begun { base: base(30) }).await;
    // The stream's own changes go on: one of them is in the snapshot, too.
    rig.transaction(S1, 5, 31, 2, vec![put(3, "b", "newer")]).await;
    rig.copy(S1, 30, false, &[("a", "new")]).await;
    rig.copy(S1, 30, true, &[("b", "new"), ("c", "new")]).await;
    let before = pairs(&[("a", "old"), ("b", "newer"), ("ghost", "old"), ("other", "1")]);
    assert_eq!(rig.rows(5, LATEST).await, before);
    rig.turn(S1, 6, Turn::Shown { base: base(30), time: base(40) }).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    let after = pairs(&[("a", "new"), ("b", "newer"), ("c", "new"), ("other", "1")]);
    assert_eq!(rig.rows(6, LATEST).await, after);
    assert_eq!(rig.rows(6, 40).await, after);
    assert_eq!(rig.rows(6, 39).await, before, "a time before it was shown");
    assert_eq!(rig.rows(5, LATEST).await, before, "a position before it was shown");
    rig.transaction(S1, 7, 50, 3, vec![delete(4, "c")]).await;
    assert_eq!(rig.rows(7, LATEST).await, pairs(&[("a", "new"), ("b", "newer"), ("other", "1")]));
}

/// A table that is hidden shows nothing of its stream until a copy is shown, and nothing from before then.
pub async fn hides_what_left_and_shows_what_comes_back(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.transaction(S1, 1, 10, 0, vec![put(1, "a", "1"), put(2, "left", "1")]).await;
    rig.transaction(S2, 2, 11, 0, vec![put(1, "other", "1")]).await;
    rig.turn(S1, 3, Turn::Hidden { time: base(20) }).await;
    rig.transaction(S1, 4, 21, 2, vec![put(3, "late", "1")]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("other", "1")]));
    assert_eq!(rig.rows(4, 19).await, pairs(&[("a", "1"), ("left", "1"), ("other", "1")]));
    rig.copied(S1, 5, 30, &[("a", "back")]).await;
    assert_eq!(rig.rows(6, LATEST).await, pairs(&[("a", "back"), ("other", "1")]));
    assert_eq!(rig.rows(6, 30).await, pairs(&[("other", "1")]));
}

/// Cells that a stream leaves out while a copy is on its way are filled from the copy, whether the copied row comes before
/// or after them; one whose row the copy does not have was deleted before the snapshot.
pub async fn fills_cells_from_a_copy_on_its_way(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.turn(S1, 1, Turn::Hidden { time: base(10) }).await;
    // Before it begins: what it leaves out is nowhere, and nobody will see it.
    rig.turn(S1, 2, Turn::Begun { base: base(20) }).await;
    rig.copy(S1, 20, false, &[("early", "copied")]).await;
    rig.transaction(S1, 3, 21, 0, vec![unchanged(1, "early", None), unchanged(2, "late", None)]).await;
    rig.transaction(S1, 4, 22, 2, vec![unchanged(3, "late", None), unchanged(4, "gone", None)]).await;
    let moved = vec![unchanged(5, "moved", Some("from")), delete(6, "from")];
    rig.transaction(S1, 5, 23, 4, moved).await;
    rig.transaction(S1, 6, 24, 6, vec![delete(7, "gone")]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S1, 20, true, &[("late", "copied"), ("from", "copied")]).await;
    // After the last row nothing is left to come.
    rig.transaction(S1, 7, 25, 7, vec![unchanged(8, "late", None)]).await;
    rig.turn(S1, 8, Turn::Shown { base: base(20), time: base(30) }).await;
    let expected = pairs(&[("early", "copied"), ("late", "copied"), ("moved", "copied")]);
    assert_eq!(rig.rows(8, LATEST).await, expected);
}

/// A row that moves to another tablet while its table is copied: it is asked for again until the copy has brought the old
/// one, waits for no copy that has not begun, and writes of the stream's own count before they are shown.
pub async fn fills_a_row_that_moves_while_its_table_is_copied(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.turn(S1, 1, Turn::Hidden { time: base(10) }).await;
    assert_eq!(rig.filled("a", 0, &[]).await, Ok("Unchanged".into()), "the copy will have it under its new key");
    rig.turn(S1, 2, Turn::Begun { base: base(20) }).await;
    let not_yet = rig.filled("a", 0, &[]).await;
    assert!(matches!(not_yet, Err(TabletError::Indeterminate(_))), "{not_yet:?}");
    rig.transaction(S1, 3, 21, 0, vec![put(1, "b", "own"), unchanged(2, "a", None)]).await;
    assert_eq!(rig.filled("b", 2, &[]).await, Ok("own".into()));
    assert!(rig.filled("a", 2, &[]).await.is_err());
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S1, 20, true, &[("a", "copied")]).await;
    assert_eq!(rig.filled("a", 2, &[]).await, Ok("copied".into()));
    rig.transaction(S1, 4, 22, 2, vec![unchanged(3, "c", Some("b")), delete(4, "b")]).await;
    rig.turn(S1, 5, Turn::Shown { base: base(20), time: base(30) }).await;
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("a", "copied"), ("c", "own")]));
}

/// While what is shown is copied again, cells are filled from what is shown, and in the end from the copy.
pub async fn a_copy_mends_cells_that_were_filled_from_what_was_wrong(rig: Rig) {
    let rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.transaction(S1, 1, 10, 0, vec![put(1, "a", "wrong")]).await;
    rig.turn(S1, 2, Turn::Begun { base: base(20) }).await;
    rig.transaction(S1, 3, 21, 1, vec![unchanged(2, "a", None)]).await;
    rig.transaction(S1, 4, 22, 2, vec![unchanged(3, "a", None)]).await;
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "wrong")]));
    rig.copy(S1, 20, true, &[("a", "right")]).await;
    rig.turn(S1, 5, Turn::Shown { base: base(20), time: base(30) }).await;
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("a", "right")]));
}

/// Chunks count once adopted, without those of rolled-back sub-transactions.
pub async fn adopts_chunks(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.chunk(1, 7, 1, vec![put(1, "a", "1")]).await.unwrap();
    rig.chunk(1, 8, 2, vec![put(2, "rolled-back", "1")]).await.unwrap();
    rig.chunk(1, 7, 3, vec![put(3, "a", "2"), put(4, "b", "1")]).await.unwrap();
    let gap = rig.chunk(1, 7, 5, vec![]).await;
    assert!(matches!(gap, Err(TabletError::ChunksLost(_))), "{gap:?}");
    let lost = rig.tablet().write_provisional(adopting(0, 9, 1, vec![8], 2)).await;
    assert!(matches!(lost, Err(TabletError::ChunksLost(_))), "{lost:?}");
    let mut end = adopting(0, 9, 1, vec![8], 3);
    end.branches[0].writes = vec![put(9, "c", "1")];
    rig.store(end).await;
    rig.restart();
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 4);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 9)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("a", "2"), ("b", "1"), ("c", "1")]));
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_bytes, 0);
}

/// A new connection throws away what earlier ones staged; what was adopted stays.
pub async fn drops_chunks_of_earlier_connections(rig: Rig) {
    let rig = rig.announced().await;
    rig.chunk(1, 7, 1, vec![put(1, "adopted", "1")]).await.unwrap();
    rig.store(adopting(0, 9, 1, vec![], 1)).await;
    let taken = rig.chunk(1, 7, 1, vec![put(1, "again", "1")]).await;
    assert!(matches!(taken, Err(TabletError::ChunksLost(_))), "{taken:?}");
    rig.chunk(3, 7, 1, vec![put(1, "lost", "1")]).await.unwrap();
    rig.chunk(2, 7, 1, vec![put(1, "again", "1")]).await.unwrap();
    let lost = rig.tablet().write_provisional(adopting(9, 12, 3, vec![], 1)).await;
    assert!(matches!(lost, Err(TabletError::ChunksLost(_))), "{lost:?}");
    rig.store(adopting(9, 12, 2, vec![], 1)).await;
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 9)]), commit(2, 20, vec![branch(S1, 12)])]).await;
    assert_eq!(rig.rows(2, LATEST).await, pairs(&[("adopted", "1"), ("again", "1")]));
}

/// Chunks that nothing will adopt go: a whole transaction's, or one sub-transaction's while the others go on; what
/// was adopted stays.
pub async fn drops_chunks_that_go_nowhere(rig: Rig) {
    let mut rig = rig.announced().await;
    let held = async |rig: &Rig| rig.tablet().stats().await.unwrap().provisional_records;
    rig.chunk(1, 7, 1, vec![put(1, "a", "1")]).await.unwrap();
    rig.chunk(1, 8, 2, vec![put(2, "rolled-back", "1"), put(3, "rolled-back", "2")]).await.unwrap();
    assert_eq!(held(&rig).await, 3);
    rig.drop_chunks(Some(8)).await;
    rig.drop_chunks(Some(8)).await;
    assert_eq!(held(&rig).await, 1);
    rig.chunk(1, 7, 3, vec![put(4, "b", "1")]).await.unwrap();
    rig.store(adopting(0, 9, 1, vec![8], 3)).await;
    rig.drop_chunks(None).await;
    assert_eq!(held(&rig).await, 2, "what was adopted stays");
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 9)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));

    rig.chunk(1, 7, 1, vec![put(1, "c", "1")]).await.unwrap();
    rig.chunk(1, 7, 2, vec![put(2, "c", "2")]).await.unwrap();
    rig.drop_chunks(None).await;
    let stats = rig.tablet().stats().await.unwrap();
    assert_eq!((stats.provisional_records, stats.provisional_bytes), (0, 0));
    let fenced = rig.tablet().drop_chunks(DropChunks { owner: Epoch(0), ..rig.dropping(None) }).await;
    assert_eq!(fenced, Err(TabletError::Fenced { held: OWNER }));

    // A transaction may use the number again, and a puller that begins anew finds nothing of it, after a crash neither.
    rig.chunk(1, 7, 1, vec![put(1, "c", "3")]).await.unwrap();
    rig.tablet().sync().await.unwrap();
    rig.restart();
    assert_eq!(held(&rig).await, 1);
    rig.tablet().announce_puller(S2, OWNER, PULLER).await.unwrap();
    assert_eq!(held(&rig).await, 1);
    rig.tablet().announce_puller(S1, OWNER, PULLER).await.unwrap();
    assert_eq!(held(&rig).await, 0);
}

/// Unchanged cells come from the newest earlier write of the key by the same stream (trace 37).
pub async fn fills_unchanged_cells(rig: Rig) {
    let rig = rig.announced().await;
    rig.copied(S1, 1, 1, &[("a", "copied")]).await;
    rig.transaction(S1, 3, 10, 0, vec![unchanged(1, "a", None)]).await;
    assert_eq!(rig.rows(3, LATEST).await, pairs(&[("a", "copied")]));
    rig.transaction(S1, 4, 20, 1, vec![put(2, "a", "own"), unchanged(3, "a", None)]).await;
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "own")]));
    // The key changes: the old row's delete comes first, and its value was written in this very transaction.
    let moved = vec![put(4, "a", "last"), delete(5, "a"), unchanged(6, "b", Some("a"))];
    rig.transaction(S1, 5, 30, 3, moved).await;
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("b", "last")]));
    // A rolled-back write never counts.
    rig.store(batch(S1, 6, vec![(7, vec![put(7, "b", "never")])])).await;
    let discard = Decided { position: LogPosition(6), work: Work::Discard { branches: vec![branch(S1, 7)] } };
    rig.decide(5, vec![discard]).await;
    rig.transaction(S1, 7, 50, 7, vec![unchanged(8, "b", None)]).await;
    assert_eq!(rig.rows(7, LATEST).await, pairs(&[("b", "last")]));
    // Nothing to fill from is damage, never a guess.
    rig.store(batch(S1, 8, vec![(9, vec![unchanged(9, "nowhere", None)])])).await;
    let damage = rig.tablet().apply(decisions(7, 8, vec![commit(8, 60, vec![branch(S1, 9)])])).await;
    assert!(matches!(damage, Err(TabletError::Refused(_))), "{damage:?}");
}

/// A row whose key changed is filled before it is stored from the newest write of its old key *before it*: one that is
/// decided, one that is not, one of its own transaction; never one that was rolled back, or comes later (trace 37).
pub async fn fills_a_row_from_the_key_it_had(rig: Rig) {
    let mut rig = rig.announced().await;
    let value = |value: &str| Ok(value.to_owned());
    rig.copied(S1, 1, 1, &[("a", "copied")]).await;
    rig.copied(S2, 3, 1, &[("b", "another stream's")]).await;
    assert_eq!(rig.filled("a", 0, &[]).await, value("copied"));
    let nowhere = rig.filled("b", 0, &[]).await;
    assert!(matches!(nowhere, Err(TabletError::Refused(_))), "{nowhere:?}");
    rig.transaction(S1, 5, 10, 0, vec![put(1, "a", "decided")]).await;
    assert_eq!(rig.filled("a", 1, &[]).await, value("decided"));

    // One branch writes the row, the next leaves its value as it is; a third, rolled back, is later than the row at 4.
    let branches = vec![(2, vec![put(2, "a", "undecided")]), (3, vec![unchanged(3, "a", None), put(4, "b", "1")])];
    rig.store(batch(S1, 1, branches)).await;
    rig.store(batch(S1, 4, vec![(5, vec![put(5, "a", "rolled back")])])).await;
    assert_eq!(rig.filled("a", 4, &[]).await, value("undecided"));
    assert_eq!(rig.filled("a", 5, &[]).await, value("rolled back"), "nobody has said so");
    let said = ProvisionalBatch { rolled_back: vec![at(5), at(77)], upto: at(6), ..batch(S1, 5, vec![]) };
    rig.store(said).await;
    assert_eq!(rig.filled("a", 6, &[]).await, value("undecided"));
    rig.restart();
    assert_eq!(rig.filled("a", 6, &[]).await, value("undecided"));
    assert_eq!(rig.filled("a", 1, &[]).await, value("decided"), "what comes later does not change the answer");

    // The row's own transaction comes first, as far as it is staged, without what it rolled back.
    rig.chunk(1, 7, 1, vec![put(1, "a", "own"), put(2, "c", "own")]).await.unwrap();
    rig.chunk(1, 8, 2, vec![delete(3, "a"), put(4, "c", "rolled back")]).await.unwrap();
    assert_eq!(rig.filled("a", 6, &[8]).await, value("own"));
    let gone = rig.filled("a", 6, &[]).await;
    assert!(matches!(gone, Err(TabletError::Refused(_))), "{gone:?}");
    rig.chunk(1, 7, 3, vec![unchanged(5, "c", None)]).await.unwrap();
    assert_eq!(rig.filled("c", 6, &[8]).await, value("own"));
    assert_eq!(rig.filled("c", 6, &[]).await, value("rolled back"));
    rig.chunk(1, 9, 4, vec![truncate(6)]).await.unwrap();
    let emptied = rig.filled("c", 6, &[8]).await;
    assert!(matches!(emptied, Err(TabletError::Refused(_))), "{emptied:?}");
    assert_eq!(rig.filled("c", 6, &[8, 9]).await, value("own"));

    // What was discarded leaves no trace.
    let discard = Decided { position: LogPosition(6), work: Work::Discard { branches: vec![branch(S1, 5)] } };
    rig.decide(5, vec![discard, commit(7, 30, vec![branch(S1, 2)]), commit(8, 40, vec![branch(S1, 3)])]).await;
    rig.restart();
    assert_eq!(rig.filled("a", 6, &[8, 9]).await, value("own"));
    assert_eq!(rig.rows(8, LATEST).await, pairs(&[("a", "undecided"), ("b", "1")]));
}

/// Earlier undecided branches of the same stream that wrote the same keys are named (trace 9).
pub async fn reports_conflicts(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")]), (2, vec![put(2, "b", "1")])])).await;
    rig.store(batch(S2, 0, vec![(1, vec![put(1, "c", "1")])])).await;
    let asks = |batch| ProvisionalBatch { report_conflicts: true, ..batch };
    let stored = rig.store(asks(batch(S1, 2, vec![(3, vec![put(3, "a", "2"), put(4, "c", "2")])]))).await;
    assert_eq!(stored.conflicts, [(branch(S1, 3), vec![branch(S1, 1)])]);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]).await;
    let stored = rig.store(asks(batch(S1, 4, vec![(5, vec![put(5, "a", "3"), put(6, "b", "3")])]))).await;
    assert_eq!(stored.conflicts, [(branch(S1, 5), vec![branch(S1, 2), branch(S1, 3)])]);
    let stored = rig.store(asks(batch(S1, 6, vec![(7, vec![truncate(7)])]))).await;
    assert_eq!(stored.conflicts, [(branch(S1, 7), vec![branch(S1, 2), branch(S1, 3), branch(S1, 5)])]);
}

/// A read waits until the tablet has heard the log up to its point.
pub async fn reads_wait_for_the_log(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")])])).await;
    let reader = rig.rows(1, LATEST);
    let applier = rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]);
    let (rows, ()) = tokio::join!(reader, applier);
    assert_eq!(rows, pairs(&[("a", "1")]));
}

/// A key with many versions is read at every time.
pub async fn reads_long_chains(rig: Rig) {
    let rig = rig.announced().await;
    for n in 1..=100 {
        let value = n.to_string();
        rig.transaction(S1, n, n * 10, (n - 1) * 2, vec![put(n * 2 - 1, "a", &value), put(n * 2, "b", &value)]).await;
    }
    for (time, value) in [(9, None), (10, Some("1")), (505, Some("50")), (LATEST, Some("100"))] {
        let expected = value.map(|value| vec![("a", value), ("b", value)]).unwrap_or_default();
        assert_eq!(rig.rows(100, time).await, pairs(&expected), "{time}");
    }
    let newest = ReadRequest { key: Some(key("b")), history: true, max_bytes: 1, ..request(70, LATEST) };
    let page = rig.tablet().read(newest.clone()).await.unwrap();
    assert_eq!(page.rows.len(), 1, "of one key, the newest versions that fit");
    let all = rig.tablet().read(ReadRequest { max_bytes: 1 << 20, ..newest }).await.unwrap();
    assert_eq!((page.more_after.is_some(), all.more_after), (all.rows.len() > 1, None));
    let one = ReadRequest { key: Some(key("b")), ..request(70, LATEST) };
    assert_eq!(rig.tablet().read(one).await.unwrap().rows[0].time, HybridTime::from_u64(700));
}

/// What no tablet can do is refused, and changes nothing.
pub async fn refuses_malformed_batches(rig: Rig) {
    let rig = rig.announced().await;
    let mut foreign = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    foreign.branches[0].branch = branch(S2, 1);
    let mut unended = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    unended.branches[0].writes[0].key = Key(b"a".to_vec().into());
    let mut long = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    long.branches[0].writes[0].key = Key::from_columns([vec![b'x'; 1 << 16].as_slice()]);
    let mut beyond = batch(S1, 0, vec![(1, vec![put(2, "a", "1")])]);
    beyond.upto = at(1);
    for bad in [foreign, unended, long, beyond] {
        let refused = rig.tablet().write_provisional(bad).await;
        assert!(matches!(refused, Err(TabletError::Refused(_))), "{refused:?}");
    }
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")])])).await;
}

/// Versions that no reader can see go; reads below what is kept are refused, after a restart too.
pub async fn collects_old_versions(rig: Rig) {
    let mut rig = rig.announced().await;
    let second = |n: u64| HybridTime::from_micros(n * 1_000_000).to_u64();
    for n in 1..=40 {
        let index = (n - 1) * 2;
        let mut writes = vec![put(index + 1, "a", &n.to_string())];
        writes.push(if n == 1 { put(index + 2, "gone", "1") } else { delete(index + 2, "gone") });
        rig.store(batch(S1, index, vec![(index + 1, writes)])).await;
        let mut decided = decisions(n - 1, n, vec![commit(n, second(n * 60), vec![branch(S1, index + 1)])]);
        decided.safe_time = HybridTime::from_u64(second(n * 60));
        rig.tablet().apply(decided).await.unwrap();
    }
    rig.tablet().sync().await.unwrap();
    rig.restart();
    // Ten minutes are kept.
    assert_eq!(rig.rows(40, LATEST).await, pairs(&[("a", "40")]));
    assert_eq!(rig.rows(40, second(31 * 60)).await, pairs(&[("a", "31")]));
    let old = rig.tablet().read(request(40, second(28 * 60))).await;
    assert!(matches!(old, Err(TabletError::TooOld { .. })), "{old:?}");
    let old = rig.tablet().read(request(28, LATEST)).await;
    assert!(matches!(old, Err(TabletError::TooOld { .. })), "{old:?}");
    let left = rig.history(40).await.len();
    assert!(left < 40, "{left} of 80 versions are left");
}

/// A truncation is forgotten once nothing is left of what it removed: rows that are shown at lower times again would
/// tell. Other streams' rows stay.
pub async fn forgets_truncations(rig: Rig) {
    let mut rig = rig.announced().await;
    let second = |n: u64| HybridTime::from_micros(n * 1_000_000).to_u64();
    rig.copied(S1, 1, 1, &[("copied", "1")]).await;
    rig.copied(S2, 3, 1, &[("other", "1")]).await;
    rig.transaction(S1, 5, second(1), 0, vec![put(1, "a", "1")]).await;
    rig.transaction(S1, 6, second(2), 1, vec![truncate(2)]).await;
    for n in 3..=40 {
        rig.store(batch(S1, n - 1, vec![(n, vec![put(n, "b", &n.to_string())])])).await;
        let mut decided = decisions(n + 3, n + 4, vec![commit(n + 4, second(n * 60), vec![branch(S1, n)])]);
        decided.safe_time = HybridTime::from_u64(second(n * 60));
        rig.tablet().apply(decided).await.unwrap();
        assert_eq!(rig.rows(n + 4, LATEST).await, pairs(&[("b", &n.to_string()), ("other", "1")]));
    }
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S1, 1, true, &[("copied", "again")]).await;
    assert_eq!(rig.rows(44, LATEST).await, pairs(&[("b", "40"), ("copied", "again"), ("other", "1")]));
}

/// Without a common clock, whoever puts a row under a key where another stream's is, is refused until that one is gone;
/// a row that moves from one to the other is not (trace 13).
pub async fn lets_a_key_have_one_writer(rig: Rig) {
    let mut rig = rig.announced().await;
    let next = |stream, follows| batch(stream, follows, vec![(follows + 1, vec![put(follows + 1, "next", "1")])]);
    let refused =
        |key: &str, first| Err(TabletError::WrittenTwice { table: "public.t".into(), key: format!("({key})"), first });
    let commit = async |rig: &Rig, position: u64, branches: Vec<BranchId>| {
        let decided = vec![commit(position, position * 10, branches)];
        let decided = ApplyBatch { one_writer: true, ..decisions(position - 1, position, decided) };
        rig.tablet().apply(decided).await.unwrap();
    };
    // Moved within one transaction, whichever branch comes first, and by one after the other.
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "m", "1"), put(2, "n", "1"), put(3, "a", "first")])])).await;
    commit(&rig, 1, vec![branch(S1, 1)]).await;
    rig.store(batch(S1, 3, vec![(4, vec![delete(4, "m")])])).await;
    rig.store(batch(S2, 0, vec![(1, vec![put(1, "m", "2")])])).await;
    commit(&rig, 2, vec![branch(S2, 1), branch(S1, 4)]).await;
    rig.store(batch(S1, 4, vec![(5, vec![delete(5, "n")])])).await;
    commit(&rig, 3, vec![branch(S1, 5)]).await;
    rig.store(batch(S2, 1, vec![(2, vec![put(2, "n", "2"), put(3, "own", "2")])])).await;
    commit(&rig, 4, vec![branch(S2, 2)]).await;

    rig.store(batch(S2, 3, vec![(4, vec![put(4, "a", "second")])])).await;
    commit(&rig, 5, vec![branch(S2, 4)]).await;
    assert_eq!(rig.tablet().write_provisional(next(S2, 4)).await.map(drop), refused("a", S1));
    rig.restart();
    assert_eq!(rig.tablet().announce_puller(S2, OWNER, PULLER).await.map(drop), refused("a", S1));
    let shown = pairs(&[("a", "second"), ("m", "2"), ("n", "2"), ("own", "2")]);
    assert_eq!(rig.rows(5, LATEST).await, shown, "what was decided is shown whole");
    // The first one's row goes, and takes the second one's not with it.
    rig.store(batch(S1, 5, vec![(6, vec![delete(6, "a")])])).await;
    commit(&rig, 6, vec![branch(S1, 6)]).await;
    assert_eq!(rig.rows(6, LATEST).await, shown);
    rig.store(next(S2, 4)).await;

    // Two rows of one key in one transaction; then the first one's goes, and its others.
    let both = |stream, follows, value| {
        batch(stream, follows, vec![(follows + 1, vec![put(follows + 1, "b", value), put(follows + 2, "c", value)])])
    };
    rig.store(both(S1, 6, "first")).await;
    rig.store(both(S2, 5, "second")).await;
    commit(&rig, 7, vec![branch(S1, 7), branch(S2, 6)]).await;
    assert_eq!(rig.tablet().write_provisional(next(S2, 7)).await.map(drop), refused("b", S1));
    rig.store(batch(S1, 8, vec![(9, vec![delete(9, "b")])])).await;
    commit(&rig, 8, vec![branch(S1, 9)]).await;
    assert_eq!(rig.tablet().write_provisional(next(S2, 7)).await.map(drop), refused("c", S1));
    rig.store(batch(S1, 9, vec![(10, vec![truncate(10)])])).await;
    commit(&rig, 9, vec![branch(S1, 10)]).await;
    rig.store(next(S2, 7)).await;
    let shown = [("a", "second"), ("b", "second"), ("c", "second"), ("m", "2"), ("n", "2"), ("own", "2")];
    assert_eq!(rig.rows(9, LATEST).await, pairs(&shown));
}

/// Makes one test of each rule. `$open` is a function that returns a [`Rig`].
macro_rules! tablet_conformance {
    ($open:expr) => {
        $crate::tablet::conformance::tablet_conformance!($open;
            binds_to_one_log, shows_what_is_decided_at_its_position, stores_once_and_without_gaps, fences_lower_epochs,
            applies_in_order_and_again, applies_a_large_transaction, discards_aborted_branches,
            keeps_older_commits_as_history, resolves_writes_of_one_transaction, truncates_one_streams_rows,
            shows_a_copy_from_its_turn_on, hides_what_left_and_shows_what_comes_back,
            fills_cells_from_a_copy_on_its_way, fills_a_row_that_moves_while_its_table_is_copied, a_copy_mends_cells_that_were_filled_from_what_was_wrong, adopts_chunks,
            drops_chunks_of_earlier_connections, drops_chunks_that_go_nowhere, fills_unchanged_cells,
            fills_a_row_from_the_key_it_had, reports_conflicts, reads_wait_for_the_log, reads_long_chains, refuses_malformed_batches, collects_old_versions,
            forgets_truncations, lets_a_key_have_one_writer);
    };
    ($open:expr; $($rule:ident),*) => {
        $(#[tokio::test]
        async fn $rule() {
            $crate::tablet::conformance::$rule($open()).await;
        })*
    };
}
pub(crate) use tablet_conformance;
