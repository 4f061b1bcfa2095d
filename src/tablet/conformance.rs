//! The suite that every tablet passes, whatever engine it is and however it is reached.
//!
//! An engine's tests say `tablet_conformance!(open)`, where `open` makes a [`Rig`]; each rule becomes a test of its own.

mod copying;
mod deciding;
mod filling;
mod reading;
mod staging;
mod storing;

pub use copying::*;
pub use deciding::*;
pub use filling::*;
pub use reading::*;
pub use staging::*;
pub use storing::*;

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
        safe: None,
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
            fills_a_row_from_the_key_it_had, reports_conflicts, reads_wait_for_the_log, reads_long_chains, reads_the_safe_point_for_as_long_as_it_is_the_newest, refuses_malformed_batches, collects_old_versions,
            forgets_truncations, lets_a_key_have_one_writer, deletes_beside_copies_bring_nothing_back,
            a_copy_keeps_rows_that_moved_here_before_it, a_copy_may_be_whole_before_its_table_is_hidden,
            the_next_copy_may_be_whole_before_its_beginning_is_heard, what_is_hidden_takes_no_key);
    };
    ($open:expr; $($rule:ident),*) => {
        $(#[tokio::test]
        async fn $rule() {
            $crate::tablet::conformance::$rule($open()).await;
        })*
    };
}
pub(crate) use tablet_conformance;
