//! The stream of a simulated PostgreSQL server: pgoutput's messages go through the product's own assembler.

use super::faults::Kind;
use super::history::{RowKey, TABLES, Value};
use super::process::Life;
use super::server::{Body, Change, Item, Op, Part, Server, relations};
use super::stall::Stall;
use super::world::World;
use async_trait::async_trait;
use pg_walstream::protocol::{ColumnData, LogicalReplicationMessage as Message, TupleData};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::time::Instant;
use untorn::coordinator::{PublishedColumn, PublishedTable};
use untorn::source::postgres::GidPattern;
use untorn::source::postgres::assemble::{Assembler, Change as From};
use untorn::source::postgres::confirm::Confirmable;
use untorn::source::postgres::tuple::{Identity, Shape};
use untorn::source::{
    Catalog, CopyReader, Keeper, NewSlot, Prepared, Resume, Snapshot, SnapshotTable, Source, SourceError, Stream,
    StreamEvent,
};
use untorn::wal::{Column, HybridTime, Key, OpId, Row, SourceTransactionId, TableSchema};

/// Seconds from 1970 to PostgreSQL's epoch, in microseconds.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A server as a process reaches it.
pub struct SimPostgres {
    /// The world.
    pub world: World,
    /// The server.
    pub server: Arc<Server>,
    /// The process.
    pub life: Arc<Life>,
}

fn columns() -> Vec<Column> {
    let column = |name: &str| Column { name: name.into(), type_name: "text".into(), key: name == "id" };
    ["id", "a", "b"].map(column).into()
}

/// What a gid is, beside the transaction's name: the branch's server.
pub fn gids() -> GidPattern {
    static PATTERN: LazyLock<GidPattern> = LazyLock::new(|| GidPattern::parse("^(?<txn>.+)@.*$").unwrap());
    PATTERN.clone()
}

fn published(unpublished: &BTreeSet<usize>) -> Vec<PublishedTable> {
    let column =
        |(number, column): (i16, Column)| PublishedColumn { number, name: column.name, type_id: 25, filled: false };
    let columns: Vec<_> = (1..).zip(columns()).map(column).collect();
    let table = |(number, name): (u32, &str)| PublishedTable {
        name: name.to_owned(),
        relation: number + 1,
        columns: columns.clone(),
    };
    relations().filter(|(number, _)| !unpublished.contains(&(*number as usize))).map(table).collect()
}

/// What a server held when a slot was made there.
struct Held {
    world: World,
    position: u64,
    rows: BTreeMap<RowKey, Value>,
    tables: Vec<SnapshotTable>,
}

impl Held {
    fn of(world: &World, server: &Server, (position, rows): (u64, BTreeMap<RowKey, Value>)) -> Box<dyn Snapshot> {
        let table = |published: PublishedTable| SnapshotTable { published, estimate: None };
        let tables = published(&server.state().unpublished).into_iter().map(table).collect();
        Box::new(Self { world: world.clone(), position, rows, tables })
    }
}

#[async_trait]
impl Snapshot for Held {
    fn position(&self) -> OpId {
        OpId::end_of_term(self.position)
    }

    fn tables(&self) -> &[SnapshotTable] {
        &self.tables
    }

    async fn read(&self, table: &str, catalog: Arc<dyn Catalog>) -> Result<Box<dyn CopyReader>, SourceError> {
        self.world.sleep_ms(1, 50).await;
        let schema = catalog.table(table, columns(), None).await?;
        let shape = Shape { schema: schema.clone(), identity: Identity::Key };
        let number = relations().find(|(_, name)| *name == table).map(|(number, _)| number as usize);
        let of_table = self.rows.iter().filter(|((of, _), _)| Some(*of) == number);
        let rows = (1..).zip(of_table).map(|(line, ((_, id), value))| {
            let cells = [id, &value[0], &value[1]].map(|text| untorn::wal::Cell::Text(text.clone().into()));
            shape.copied(cells.into(), "", line).unwrap()
        });
        let rows: Vec<_> = rows.collect();
        let pages: Vec<_> = rows.chunks(50).map(<[_]>::to_vec).collect();
        Ok(Box::new(Copy { schema, pages: pages.into_iter(), world: self.world.clone() }))
    }
}

struct Copy {
    schema: TableSchema,
    pages: std::vec::IntoIter<Vec<(Key, Row)>>,
    world: World,
}

#[async_trait]
impl CopyReader for Copy {
    fn schema(&self) -> &TableSchema {
        &self.schema
    }

    fn estimate(&self) -> Option<u64> {
        None
    }

    async fn next(&mut self) -> Result<Option<(Vec<(Key, Row)>, usize)>, SourceError> {
        self.world.sleep_ms(1, if self.world.is_active(Kind::LateBranch) { 3_000 } else { 50 }).await;
        if self.world.strikes(Kind::ConnectionLost, 0.1) {
            return Err(SourceError::Retry("the connection of the copy was lost".into()));
        }
        Ok(self.pages.next().map(|page| (page, 4096)))
    }
}

#[async_trait]
impl Source for SimPostgres {
    fn name(&self) -> &str {
        &self.server.name
    }

    async fn found_slot(&self) -> Result<Option<String>, SourceError> {
        self.life.output().await;
        let answers = tokio::time::timeout(Duration::from_secs(10), self.server.answers());
        answers.await.map_err(|_| SourceError::Retry("the server does not answer".into()))?;
        Ok(self.server.state().slot.then(|| "the slot".to_owned()))
    }

    async fn create_slot(&self) -> Result<NewSlot, SourceError> {
        self.server.answers().await;
        let Some(held) = self.server.create_slot().await else {
            return Err(SourceError::Retry("another process is making the slot".into()));
        };
        let (start, identity) = (OpId::end_of_term(held.0), self.server.name.clone());
        Ok(NewSlot { start, identity, snapshot: Some(Held::of(&self.world, &self.server, held)) })
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        self.life.output().await;
        self.server.answers().await;
        Ok(Held::of(&self.world, &self.server, self.server.snapshot().await))
    }

    async fn publication(&self) -> Result<Option<(Vec<PublishedTable>, OpId)>, SourceError> {
        let tables = published(&self.server.state().unpublished);
        Ok(self.flushed().await?.map(|flushed| (tables, flushed)))
    }

    async fn open(&self, resume: Resume, catalog: Arc<dyn Catalog>) -> Result<(Box<dyn Stream>, Keeper), SourceError> {
        self.server.answers().await;
        self.world.sleep_ms(1, 100).await;
        let after = if resume.after.index == u64::MAX { resume.after.term } else { 0 };
        let connection = self.world.chance(|chance| chance.between(1, u64::MAX));
        let cursor = {
            let mut state = self.server.state();
            if state.collected || resume.after.term < state.forgotten {
                // A puller that was replaced while it opened the stream may ask for what is gone.
                if !state.collected && !self.life.holds(&self.server.name, OpId::new(state.forgotten, 0)) {
                    let forgotten = state.forgotten;
                    self.world.broken(format!(
                        "{} forgot what lies below {forgotten}, and is asked to go on after {}",
                        self.server.name, resume.after
                    ));
                }
                return Err(SourceError::Stop("the server has forgotten what comes next".into()));
            }
            if state.slot && state.confirmed > after {
                return Err(SourceError::Stop("the slot was confirmed beyond what the log knows".into()));
            }
            if !state.slot {
                return Err(SourceError::Retry("the slot is gone, or being made".into()));
            }
            state.connection = connection;
            after
        };
        self.server.changed.notify_one();
        let stream = SimStream {
            world: self.world.clone(),
            server: Arc::clone(&self.server),
            life: Arc::clone(&self.life),
            catalog,
            assembler: Assembler::new(&self.server.name, gids(), connection, &resume),
            connection,
            cursor,
            shapes: BTreeMap::new(),
            confirmable: Confirmable::default(),
            told: 0,
            stall: Stall::default(),
            fed: 0,
            burst: self.world.chance(|chance| chance.skewed(1, 40)),
            keepalive_at: Instant::now(),
        };
        Ok((Box::new(stream), Box::pin(async {})))
    }

    async fn flushed(&self) -> Result<Option<OpId>, SourceError> {
        self.life.output().await;
        self.server.answers().await;
        self.world.sleep_ms(1, 20).await;
        let flushed = {
            let mut state = self.server.state();
            state.wanted = state.wanted.max(state.lsn);
            state.lsn
        };
        self.server.changed.notify_one();
        self.world.sleep_ms(1, 20).await;
        Ok(Some(OpId::end_of_term(flushed)))
    }

    async fn prepared(&self) -> Result<Vec<Prepared>, SourceError> {
        self.server.answers().await;
        self.world.sleep_ms(1, 20).await;
        let pattern = gids();
        let state = self.server.state();
        let prepared = state.prepared.iter().map(|(gid, prepared)| Prepared {
            gid: gid.clone(),
            transaction: SourceTransactionId::first(pattern.transaction(gid).as_bytes()),
            since: prepared.time,
        });
        Ok(prepared.collect())
    }

    async fn not_running(
        &self,
        _transactions: Vec<SourceTransactionId>,
    ) -> Result<(Vec<SourceTransactionId>, OpId), SourceError> {
        Ok((Vec::new(), OpId::ZERO))
    }

    async fn nudge(&self) -> Result<(), SourceError> {
        self.server.answers().await;
        let state = &mut *self.server.state();
        state.lsn += 16;
        state.short = false;
        self.server.changed.notify_one();
        Ok(())
    }
}

struct SimStream {
    world: World,
    server: Arc<Server>,
    life: Arc<Life>,
    catalog: Arc<dyn Catalog>,
    assembler: Assembler,
    connection: u64,
    cursor: u64,
    shapes: BTreeMap<u32, TableSchema>,
    confirmable: Confirmable,
    told: u64,
    stall: Stall,
    fed: u64,
    burst: u64,
    keepalive_at: Instant,
}

impl SimStream {
    /// Learns the shapes of all tables, one by one; goes on where it was when it is called again.
    async fn learn(&mut self) -> Result<(), SourceError> {
        let unpublished = self.server.state().unpublished.clone();
        for (number, table) in relations().filter(|(number, _)| !unpublished.contains(&(*number as usize))) {
            if let std::collections::btree_map::Entry::Vacant(vacant) = self.shapes.entry(number) {
                let schema = self.catalog.table(table, columns(), Some(number + 1)).await?;
                vacant.insert(schema.clone());
                self.assembler.relation(number, Arc::new(Shape { schema, identity: Identity::Key }));
            }
        }
        Ok(())
    }

    fn say(&mut self, from: From, at: HybridTime, message: Message) -> Result<(), SourceError> {
        self.assembler.message(from, at, message).map_err(SourceError::Stop)
    }

    fn changes(&mut self, at: HybridTime, changes: &[Change], sub_xid: u32, wal_at: u64) -> Result<(), SourceError> {
        for Change { key: (table, id), op } in changes {
            let relation_id = *table as u32;
            let message = match op {
                Op::Insert(value) => Message::Insert { relation_id, tuple: tuple(id, value, false) },
                Op::Update { value, unchanged } => Message::Update {
                    relation_id,
                    old_tuple: None,
                    new_tuple: tuple(id, value, *unchanged),
                    key_type: None,
                },
                Op::Delete => Message::Delete { relation_id, old_tuple: key_tuple(id), key_type: 'K' },
                Op::Truncate => Message::Truncate { relation_ids: vec![relation_id], flags: 0 },
            };
            self.say(From { wal_at, sub_xid }, at, message)?;
        }
        Ok(())
    }

    /// Sends a transaction's blocks: half of it, something that is rolled back again, and the rest.
    fn blocks(&mut self, at: HybridTime, part: &Part, end: u64) -> Result<(), SourceError> {
        let xid = part.xid;
        let (first, rest) = part.changes.split_at(part.changes.len() / 2);
        let from = From::default();
        self.say(from, at, Message::StreamStart { xid, first_segment: true })?;
        self.changes(at, first, xid, end)?;
        let sub = xid + 1_000_000;
        let undone =
            Change { key: (super::history::MARKERS, format!("undone.{xid}")), op: Op::Insert(Value::default()) };
        self.changes(at, &[undone], sub, end)?;
        self.say(from, at, Message::StreamStop)?;
        let aborted = Message::StreamAbort { xid, subtransaction_xid: sub, abort_lsn: None, abort_timestamp: None };
        self.say(from, at, aborted)?;
        self.say(from, at, Message::StreamStart { xid, first_segment: false })?;
        self.changes(at, rest, xid, end)?;
        self.say(from, at, Message::StreamStop)?;
        self.world.reached("a transaction sent before its end");
        Ok(())
    }

    fn prepare(&mut self, gid: &str, part: &Part, end: u64, time: HybridTime) -> Result<(), SourceError> {
        let (at, timestamp, gid) = (time, postgres_time(time), gid.to_owned());
        let (prepare_lsn, end_lsn, xid, flags) = (end - 4, end, part.xid, 0);
        if part.streamed {
            self.blocks(at, part, end)?;
            let message = Message::StreamPrepare { flags, prepare_lsn, end_lsn, timestamp, xid, gid };
            return self.say(From::default(), at, message);
        }
        let begin = Message::BeginPrepare { prepare_lsn, end_lsn, timestamp, xid, gid: gid.clone() };
        self.say(From::default(), at, begin)?;
        self.changes(at, &part.changes, 0, end)?;
        let message = Message::Prepare { flags, prepare_lsn, end_lsn, timestamp, xid, gid };
        self.say(From::default(), at, message)
    }

    fn feed(&mut self, item: &Item) -> Result<(), SourceError> {
        let (at, end, timestamp) = (item.time, item.end, postgres_time(item.time));
        let (from, flags) = (From::default(), 0);
        match &item.body {
            Body::Commit(part) if part.streamed => {
                self.blocks(at, part, end)?;
                let (xid, commit_lsn) = (part.xid, end - 4);
                self.say(from, at, Message::StreamCommit { xid, flags, commit_lsn, end_lsn: end, timestamp })
            }
            Body::Commit(part) => {
                self.say(from, at, Message::Begin { final_lsn: end - 4, timestamp, xid: part.xid })?;
                self.changes(at, &part.changes, 0, end)?;
                self.say(from, at, Message::Commit { flags, commit_lsn: end - 4, end_lsn: end, timestamp })
            }
            Body::Prepare(gid, part) => self.prepare(gid, part, end, at),
            Body::CommitPrepared(gid, late) => {
                if let Some(late) = late {
                    self.prepare(gid, &late.sent, late.end, late.time)?;
                }
                let (gid, xid) = (gid.clone(), 0);
                self.say(
                    from,
                    at,
                    Message::CommitPrepared { flags, commit_lsn: end - 4, end_lsn: end, timestamp, xid, gid },
                )
            }
            Body::RollbackPrepared(gid) => {
                let message = Message::RollbackPrepared {
                    flags,
                    prepare_end_lsn: 0,
                    rollback_end_lsn: end,
                    prepare_timestamp: 0,
                    rollback_timestamp: timestamp,
                    xid: 0,
                    gid: gid.clone(),
                };
                self.say(from, at, message)
            }
        }
    }

    /// Tells the server what it may forget.
    fn tell(&mut self) {
        if let Some(upto) = self.confirmable.confirm().filter(|upto| *upto > self.told)
            && !self.world.strikes(Kind::LateAcknowledgement, 0.8)
        {
            self.told = upto;
            self.world
                .event(("confirmed", self.server.number, upto), || format!("{} may forget {upto}", self.server.name));
            self.life.acknowledged(&self.world, &self.server, upto);
            self.server.confirm(upto);
        }
    }

    fn hand_over(&mut self, event: StreamEvent) -> StreamEvent {
        self.fed = 0;
        if let StreamEvent::Batch(batch) = &event {
            self.confirmable.handed_over(batch);
            self.tell();
        }
        event
    }
}

#[async_trait]
impl Stream for SimStream {
    async fn next(&mut self) -> Result<StreamEvent, SourceError> {
        loop {
            if let Some(event) = self.assembler.poll(self.fed >= self.burst) {
                return Ok(self.hand_over(event));
            }
            self.server.answers().await;
            if self.server.state().connection != self.connection {
                return Err(SourceError::Retry("another connection has the slot".into()));
            }
            self.stall.pass(&self.world).await?;
            self.learn().await?;
            let item = self.server.item_after(self.cursor);
            if self.shapes.len() + self.server.state().unpublished.len() < TABLES.len() {
                // One was added meanwhile, and the record may speak of it.
                continue;
            }
            if let Some(item) = item {
                self.feed(&item)?;
                self.cursor = item.end;
                self.fed += 1;
                continue;
            }
            if let Some(event) = self.assembler.poll(true) {
                return Ok(self.hand_over(event));
            }
            let now = Instant::now();
            let (sent, wanted) = {
                let state = self.server.state();
                (if state.short { state.lsn - 24 } else { state.lsn }, state.wanted)
            };
            if now >= self.keepalive_at || (wanted > self.cursor && sent > self.cursor) {
                let seconds = self.world.chance(|chance| chance.between(1, 15));
                self.keepalive_at = now + Duration::from_secs(seconds);
                // Everything up to here was sent; a header may carry an older position, or none.
                let odd = self.world.chance(|chance| chance.between(0, 9));
                let said = if odd == 0 {
                    0
                } else if odd == 1 {
                    sent / 2
                } else {
                    sent
                };
                self.cursor = self.cursor.max(said);
                self.assembler.keepalive(said, self.server.now());
                self.tell();
                continue;
            }
            tokio::select! {
                biased;
                () = self.server.changed.notified() => {}
                () = tokio::time::sleep_until(self.keepalive_at) => {}
            }
        }
    }

    fn acknowledge(&mut self, upto: OpId) {
        self.confirmable.acknowledge(upto);
        self.tell();
    }

    fn acknowledged(&self) -> OpId {
        OpId::end_of_term(self.told).min(self.confirmable.acknowledged())
    }
}

fn text(text: &str) -> ColumnData {
    ColumnData::text(text.as_bytes().to_vec())
}

fn tuple(id: &str, value: &Value, unchanged: bool) -> TupleData {
    let large = if unchanged { ColumnData::unchanged() } else { text(&value[1]) };
    TupleData::new(vec![text(id), text(&value[0]), large])
}

fn key_tuple(id: &str) -> TupleData {
    TupleData::new(vec![text(id), ColumnData::null(), ColumnData::null()])
}

fn postgres_time(time: HybridTime) -> i64 {
    i64::try_from(time.micros()).unwrap() - POSTGRES_EPOCH_MICROS
}
