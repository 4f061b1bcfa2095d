//! A reader of one stream that checks the contract of positions, tells records as text, and keeps the rows that they
//! make: what a replica of this one stream would show.

use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use untorn::source::{Catalog, NewSlot, OpenBranch, Resume, Source, SourceError, Stream, StreamEvent};
use untorn::wal::{
    Cell, Column, DroppedChunks, Involved, Key, OpId, Record, SourceBatch, SourceTabletId, SourceTransactionId,
    StagedChunk, TableId, TableSchema, Write, WriteOp,
};

/// How long a test waits for a stream to say what it expects; only a broken one takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A log's catalog, in memory.
#[derive(Default)]
pub struct MemoryCatalog(Mutex<Vec<TableSchema>>);

#[async_trait]
impl Catalog for MemoryCatalog {
    async fn table(&self, name: &str, columns: Vec<Column>, _: Option<u32>) -> Result<TableSchema, SourceError> {
        let mut known = self.0.lock().unwrap();
        if let Some(schema) = known.iter().find(|schema| schema.name == name && schema.columns == columns) {
            return Ok(schema.clone());
        }
        let before = known.iter().filter(|schema| schema.name == name).max_by_key(|schema| schema.version);
        let fresh = || TableId(known.iter().map(|schema| schema.table.0).max().unwrap_or(0) + 1);
        let table = before.map_or_else(fresh, |schema| schema.table);
        let version = before.map_or(1, |schema| schema.version + 1);
        let schema = TableSchema { table, name: name.into(), version, columns };
        known.push(schema.clone());
        Ok(schema)
    }
}

impl MemoryCatalog {
    /// The name of a table, and the newest columns.
    pub fn newest(&self, table: TableId) -> TableSchema {
        let known = self.0.lock().unwrap();
        known.iter().filter(|schema| schema.table == table).max_by_key(|schema| schema.version).unwrap().clone()
    }
}

/// A stream, and what it has said.
pub struct Replay {
    pub catalog: Arc<MemoryCatalog>,
    /// Where to go on, kept as a log would.
    pub resume: Resume,
    /// The records, as text without positions; `NAME:#` for ordinary transactions.
    pub told: Vec<String>,
    /// The positions of the records, in the same order.
    pub positions: Vec<OpId>,
    /// The rows of all tables by name and key.
    pub rows: BTreeMap<(String, Key), Vec<Cell>>,
    /// The largest number of bytes that one event held.
    pub largest: usize,
    /// How many chunks came.
    pub chunks: usize,
    /// The highest head.
    pub head: OpId,
    stream: Option<Box<dyn Stream>>,
    pending: HashMap<SourceTransactionId, Vec<Write>>,
    staged: HashMap<(u64, u32), Vec<StagedChunk>>,
}

impl Replay {
    pub fn new() -> Self {
        Self {
            catalog: Arc::default(),
            resume: Resume { stream: SourceTabletId(7), ..Resume::default() },
            told: Vec::new(),
            positions: Vec::new(),
            rows: BTreeMap::new(),
            largest: 0,
            chunks: 0,
            head: OpId::ZERO,
            stream: None,
            pending: HashMap::new(),
            staged: HashMap::new(),
        }
    }

    /// Creates the slot and reads its copy, and opens the stream behind it.
    pub async fn begin(&mut self, source: &dyn Source) {
        let slot = source.create_slot().await.unwrap();
        self.copy(slot).await;
        self.open(source).await.unwrap();
    }

    /// Reads a slot's copy.
    pub async fn copy(&mut self, slot: NewSlot) {
        self.resume.after = slot.start;
        self.resume.identity = slot.identity;
        let snapshot = slot.snapshot.unwrap();
        assert_eq!(snapshot.position(), slot.start);
        for table in snapshot.tables() {
            let mut reader = snapshot.read(&table.published.name, self.catalog.clone()).await.unwrap();
            let name = reader.schema().name.clone();
            while let Some((rows, _)) = reader.next().await.unwrap() {
                for (key, row) in rows {
                    let before = self.rows.insert((name.clone(), key), row.cells);
                    assert!(before.is_none(), "a row was copied twice");
                }
            }
        }
    }

    /// Opens the stream where it was left.
    pub async fn open(&mut self, source: &dyn Source) -> Result<(), SourceError> {
        let (stream, keeper) = source.open(self.resume.clone(), self.catalog.clone()).await?;
        tokio::spawn(keeper);
        self.staged.clear();
        self.stream = Some(stream);
        Ok(())
    }

    /// Opens the stream where it was left, as often as the source asks to try again.
    pub async fn reopen(&mut self, source: &dyn Source) {
        let again = async {
            while let Err(error) = self.open(source).await {
                assert!(matches!(error, SourceError::Retry(_)), "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, again).await.expect("the stream opens again");
    }

    /// Drops the connection and forgets what came after an earlier place.
    pub fn go_back(&mut self, resume: Resume) {
        self.close();
        self.pending.retain(|transaction, _| resume.open_branches.iter().any(|open| open.transaction == *transaction));
        self.resume = resume;
        self.take_told();
    }

    /// Drops the connection.
    pub fn close(&mut self) {
        self.stream = None;
        self.staged.clear();
    }

    /// The open stream.
    pub fn stream(&mut self) -> &mut dyn Stream {
        self.stream.as_deref_mut().unwrap()
    }

    /// Takes one event.
    pub async fn step(&mut self) -> Result<(), SourceError> {
        let event = tokio::time::timeout(PATIENCE, self.stream().next()).await;
        match event.unwrap_or_else(|_| panic!("nothing came; so far:\n{}", self.told.join("\n")))? {
            StreamEvent::Batch(batch) => self.take(batch),
            StreamEvent::Chunk(chunk) => {
                self.largest = self.largest.max(chunk.bytes);
                self.chunks += 1;
                self.staged.entry((chunk.connection, chunk.xid)).or_default().push(chunk);
            }
            StreamEvent::Dropped(DroppedChunks { connection, xid, sub_xid }) => {
                let staged = self.staged.entry((connection, xid)).or_default();
                staged.retain(|chunk| sub_xid.is_some_and(|sub_xid| sub_xid != chunk.sub_xid));
            }
        }
        Ok(())
    }

    /// Takes events until a record tells this.
    pub async fn until(&mut self, text: &str) {
        let from = self.told.len();
        while !self.told[from..].iter().any(|told| told.contains(text)) {
            self.step().await.unwrap();
        }
    }

    /// Takes events until the stream is known to have come this far.
    pub async fn until_head(&mut self, position: OpId) {
        while self.head.max(self.resume.after) < position {
            self.step().await.unwrap();
        }
    }

    /// Takes events until the stream has come as far as the server is now.
    pub async fn catch_up(&mut self, source: &dyn Source) {
        // An emptied message moves the flush position to the end of a record.
        source.nudge().await.unwrap();
        let position = source.flushed().await.unwrap().unwrap();
        self.until_head(position).await;
    }

    /// What was told since the last call.
    pub fn take_told(&mut self) -> Vec<String> {
        self.positions.clear();
        std::mem::take(&mut self.told)
    }

    /// A table's rows in key order, columns joined by `|`.
    pub fn table(&self, name: &str) -> Vec<String> {
        let rows = self.rows.iter().filter(|((table, _), _)| table == name);
        let mut rows: Vec<String> = rows.map(|(_, cells)| text(cells)).collect();
        rows.sort();
        rows
    }

    fn take(&mut self, batch: SourceBatch) {
        assert!(batch.head == OpId::ZERO || batch.head >= batch.upto, "head {} below {}", batch.head, batch.upto);
        assert!(batch.upto >= self.resume.after, "the batch goes back");
        let mut last = self.resume.after;
        for (at, record) in &batch.records {
            let shape = matches!(record, Record::Schema(_));
            assert!(*at > last || shape && *at == last, "{at} follows {last}");
            last = *at;
        }
        assert!(batch.upto >= last);
        self.head = self.head.max(batch.head);
        self.largest = self.largest.max(batch.bytes);
        for adopted in batch.adopted {
            let chunks = self.staged.remove(&(adopted.connection, adopted.xid)).unwrap_or_default();
            let counted = chunks.into_iter().filter(|chunk| !adopted.rolled_back.contains(&chunk.sub_xid));
            let mut writes: Vec<Write> = counted.flat_map(|chunk| chunk.writes).collect();
            writes.sort_by_key(|write| write.at);
            assert!(writes.windows(2).all(|pair| pair[0].at < pair[1].at), "two writes in one place");
            assert_eq!(writes.len() as u64, adopted.records, "the count of the staged writes");
            self.pending.entry(adopted.transaction).or_default().extend(writes);
        }
        for (at, record) in batch.records.into_iter().filter(|(_, record)| !matches!(record, Record::Schema(_))) {
            let told = self.record(at, record);
            self.told.push(told);
            self.positions.push(at);
        }
        self.resume.after = batch.upto;
    }

    fn record(&mut self, at: OpId, record: Record) -> String {
        match record {
            Record::Write { transaction, write } => {
                assert_eq!(write.at, at);
                let name = self.catalog.newest(write.table).name;
                let what = match &write.op {
                    WriteOp::Put { row, fill_from: None } => format!("put {name}{:?} {}", write.key, text(&row.cells)),
                    WriteOp::Put { row, fill_from: Some(from) } => {
                        format!("put {name}{:?} {} from {from:?}", write.key, text(&row.cells))
                    }
                    WriteOp::Delete => format!("delete {name}{:?}", write.key),
                    WriteOp::Truncate => format!("truncate {name}"),
                };
                let told = format!("{} {what}", named(&transaction));
                self.pending.entry(transaction).or_default().push(write);
                told
            }
            Record::Applying { transaction, records, prepared_at, label } => {
                let taken = self.pending.get(&transaction).map_or(0, Vec::len) as u64;
                assert_eq!(records, Some(taken), "the count of {transaction}");
                let told = format!("{} applying {taken}", named(&transaction));
                if prepared_at.is_some() {
                    let opened = OpId::new(at.term, 1);
                    let branch = OpenBranch { transaction, label, opened, records: taken, applying: true };
                    self.resume.open_branches.push(branch);
                }
                told
            }
            Record::Commit { transaction, branch, time, involved } => {
                assert!(time.micros() > 1_600_000_000_000_000, "a commit time of {time}");
                let branch = branch.expect("every commit of a PostgreSQL server ends a branch");
                match involved {
                    Involved::Discovered => self.close_branch(branch.opened),
                    _ => assert_eq!(branch.opened, OpId::new(at.term, 1), "an ordinary commit ends its own branch"),
                }
                for write in self.pending.remove(&transaction).unwrap_or_default() {
                    self.apply(write);
                }
                format!("{} commit {involved:?}", named(&transaction))
            }
            Record::Aborted { transaction, branch } => {
                self.close_branch(branch.unwrap().opened);
                self.pending.remove(&transaction);
                format!("{} aborted", named(&transaction))
            }
            other => panic!("no PostgreSQL stream sends {other:?}"),
        }
    }

    fn close_branch(&mut self, opened: OpId) {
        let before = self.resume.open_branches.len();
        self.resume.open_branches.retain(|branch| branch.opened != opened);
        assert_eq!(self.resume.open_branches.len() + 1, before, "no branch opened at {opened}");
    }

    fn apply(&mut self, write: Write) {
        let table = self.catalog.newest(write.table).name;
        match write.op {
            WriteOp::Put { row, fill_from } => {
                let from = fill_from.unwrap_or_else(|| write.key.clone());
                let old = self.rows.get(&(table.clone(), from)).cloned();
                let cells = row.cells.into_iter().enumerate().map(|(index, cell)| match cell {
                    Cell::Unchanged => old.as_ref().expect("the row to fill from")[index].clone(),
                    other => other,
                });
                let cells = cells.collect();
                self.rows.insert((table, write.key), cells);
            }
            WriteOp::Delete => {
                self.rows.remove(&(table, write.key));
            }
            WriteOp::Truncate => self.rows.retain(|(name, _), _| *name != table),
        }
    }
}

/// Ordinary transactions are named by numbers that differ from run to run.
fn named(transaction: &SourceTransactionId) -> String {
    let name = transaction.to_string();
    match name.split_once(':') {
        Some((stream, number)) if number.chars().all(|c| c.is_ascii_digit()) => format!("{stream}:#"),
        _ => name,
    }
}

fn text(cells: &[Cell]) -> String {
    let cell = |cell: &Cell| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Unchanged => "~".to_owned(),
        Cell::Text(text) => String::from_utf8_lossy(text).into_owned(),
    };
    cells.iter().map(cell).collect::<Vec<_>>().join("|")
}
