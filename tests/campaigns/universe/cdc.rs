//! A source with a common clock: tablets whose streams carry Created, Write, Applying, Commit, Aborted and SafeTime records.

use super::faults::Kind;
use super::history::{RowKey, TABLES};
use super::process::Life;
use super::server::{Change, Op};
use super::stall::{Silence, Stall};
use super::world::World;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use untorn::source::{Catalog, Keeper, NewSlot, Resume, Source, SourceError, Stream, StreamEvent};
use untorn::wal::{
    Cell, Column, HybridTime, Involved, InvolvedTablet, Key, OpId, Record, Row, SourceBatch, SourceTransactionId,
    TableSchema, Write, WriteOp,
};

/// What is written into a stream; writes take the log's numbers of tables only when they are sent.
#[derive(Clone, Debug)]
pub enum Logged {
    /// A write of a transaction.
    Write(SourceTransactionId, Change),
    /// Anything else.
    Other(Record),
}

/// A tablet's state.
#[derive(Default)]
pub struct TabletState {
    wal: VecDeque<(OpId, Logged)>,
    last: u64,
    trimmed: u64,
    /// The largest time that a SafeTime record promised.
    pub promised: HybridTime,
    /// Commit times of decided transactions of which this stream still has to carry something.
    pub owed: BTreeSet<HybridTime>,
    collected: bool,
}

/// A source tablet.
pub struct CdcTablet {
    /// Its place.
    pub number: usize,
    /// Its name.
    pub name: String,
    world: World,
    state: Mutex<TabletState>,
    changed: Notify,
    silence: Silence,
    /// Transactions that may still commit, over all tablets.
    pub running: Arc<Mutex<BTreeSet<SourceTransactionId>>>,
}

impl CdcTablet {
    /// A tablet with an empty WAL.
    pub fn new(world: &World, number: usize, running: &Arc<Mutex<BTreeSet<SourceTransactionId>>>) -> Arc<Self> {
        Arc::new(Self {
            number,
            name: format!("tablet-{number}"),
            world: world.clone(),
            state: Mutex::default(),
            changed: Notify::new(),
            silence: Silence::default(),
            running: Arc::clone(running),
        })
    }

    /// Its state.
    pub fn state(&self) -> MutexGuard<'_, TabletState> {
        self.state.lock().unwrap()
    }

    /// Appends to its WAL.
    pub fn log(&self, logged: Logged) {
        let state = &mut *self.state();
        state.last += 1;
        let last = state.last;
        self.world.event(("wal", self.number, last), || format!("{} writes {last} {logged:?}", self.name));
        state.wal.push_back((OpId::new(1, last), logged));
        self.changed.notify_one();
    }

    /// Promises that nothing at or below the largest time that is safe will come any more.
    pub fn promise(&self, now: HybridTime) {
        let time = {
            let state = self.state();
            state.owed.first().map_or(now, |owed| owed.previous().min(now))
        };
        if time > self.state().promised {
            self.state().promised = time;
            self.log(Logged::Other(Record::SafeTime { time }));
        }
    }

    /// Neither sends nor answers for so long.
    pub fn falls_silent(&self, millis: u64) {
        self.silence.lasts(millis);
    }

    /// Forgets records that no reader has acknowledged.
    pub fn collect(&self) {
        let state = &mut *self.state();
        if !state.wal.is_empty() {
            state.collected = true;
        }
    }

    /// Whether it forgot what was still needed.
    pub fn is_collected(&self) -> bool {
        self.state().collected
    }

    async fn answers(&self) {
        self.silence.is_over().await;
    }

    /// Forgets what a reader acknowledged.
    pub fn acknowledge(&self, upto: u64) {
        let state = &mut *self.state();
        state.trimmed = state.trimmed.max(upto);
        while state.wal.front().is_some_and(|(at, _)| at.index <= state.trimmed) {
            state.wal.pop_front();
        }
    }
}

/// A transaction's id at this source.
pub fn id(number: u32) -> SourceTransactionId {
    SourceTransactionId::first(format!("x{number}").as_bytes())
}

/// Whom a Commit record names.
pub fn involved(parts: &BTreeMap<usize, usize>, counted: bool) -> Involved {
    let tablets = parts.iter().map(|(number, records)| InvolvedTablet {
        tablet: format!("tablet-{number}"),
        records: counted.then_some(*records as u64),
    });
    Involved::Listed(tablets.collect())
}

/// A tablet as a process reaches it.
pub struct SimCdc {
    /// The world.
    pub world: World,
    /// The tablet.
    pub tablet: Arc<CdcTablet>,
    /// The process.
    pub life: Arc<Life>,
}

#[async_trait]
impl Source for SimCdc {
    fn name(&self) -> &str {
        &self.tablet.name
    }

    async fn create_slot(&self) -> Result<NewSlot, SourceError> {
        Ok(NewSlot { start: OpId::ZERO, identity: String::new(), snapshot: None })
    }

    async fn open(&self, resume: Resume, catalog: Arc<dyn Catalog>) -> Result<(Box<dyn Stream>, Keeper), SourceError> {
        self.world.sleep_ms(1, 100).await;
        self.tablet.answers().await;
        let (trimmed, collected) = {
            let state = self.tablet.state();
            (state.trimmed, state.collected)
        };
        if collected || resume.after.index < trimmed {
            // A puller that was replaced while it opened the stream may ask for what is gone.
            if !collected && !self.life.holds(&self.tablet.name, OpId::new(1, trimmed)) {
                self.world.broken(format!(
                    "{} forgot what lies below {trimmed}, and is asked to go on after {}",
                    self.tablet.name, resume.after
                ));
            }
            return Err(SourceError::Stop("the tablet has forgotten what comes next".into()));
        }
        let stream = SimCdcStream {
            world: self.world.clone(),
            tablet: Arc::clone(&self.tablet),
            life: Arc::clone(&self.life),
            catalog,
            schemas: BTreeMap::new(),
            cursor: resume.after.index,
            told: 0,
            stall: Stall::default(),
        };
        Ok((Box::new(stream), Box::pin(async {})))
    }

    async fn not_running(
        &self,
        transactions: Vec<SourceTransactionId>,
    ) -> Result<(Vec<SourceTransactionId>, OpId), SourceError> {
        self.life.output().await;
        self.tablet.answers().await;
        self.world.sleep_ms(1, 200).await;
        let running = self.tablet.running.lock().unwrap();
        let gone: Vec<_> = transactions.into_iter().filter(|id| !running.contains(id)).collect();
        if !gone.is_empty() {
            self.world.reached("an orphan is found by asking");
        }
        Ok((gone, OpId::new(1, self.tablet.state().last)))
    }
}

struct SimCdcStream {
    world: World,
    tablet: Arc<CdcTablet>,
    life: Arc<Life>,
    catalog: Arc<dyn Catalog>,
    schemas: BTreeMap<usize, TableSchema>,
    cursor: u64,
    told: u64,
    stall: Stall,
}

fn write(at: OpId, Change { key: (table, id), op }: &Change, schema: &TableSchema) -> Write {
    let text = |text: &str| Cell::Text(text.to_owned().into());
    let key = Key::from_columns([id.as_bytes()]);
    let cells = |value: &super::history::Value, large: Cell| vec![text(id), text(&value[0]), large];
    let row = |cells| WriteOp::Put { row: Row { schema_version: schema.version, cells }, fill_from: None };
    let (key, op) = match op {
        // This kind of source always sends whole rows.
        Op::Insert(value) | Op::Update { value, .. } => (key, row(cells(value, text(&value[1])))),
        Op::Delete => (key, WriteOp::Delete),
        Op::Truncate => (Key::default(), WriteOp::Truncate),
    };
    debug_assert_eq!(schema.name, TABLES[*table]);
    Write { at, table: schema.table, key, op }
}

impl SimCdcStream {
    async fn learn(&mut self) -> Result<Vec<TableSchema>, SourceError> {
        let mut learned = Vec::new();
        for (number, table) in TABLES.iter().enumerate() {
            if !self.schemas.contains_key(&number) {
                let column = |name: &str| Column { name: name.into(), type_name: "text".into(), key: name == "id" };
                let schema = self.catalog.table(table, ["id", "a", "b"].map(column).into(), None).await?;
                self.schemas.insert(number, schema.clone());
                learned.push(schema);
            }
        }
        Ok(learned)
    }
}

#[async_trait]
impl Stream for SimCdcStream {
    async fn next(&mut self) -> Result<StreamEvent, SourceError> {
        loop {
            self.tablet.answers().await;
            self.stall.pass(&self.world).await?;
            self.learn().await?;
            let most = self.world.chance(|chance| chance.skewed(1, 60)) as usize;
            let taken: Vec<(OpId, Logged)> = {
                let state = self.tablet.state();
                let from = state.wal.partition_point(|(at, _)| at.index <= self.cursor);
                state.wal.range(from..).take(most).cloned().collect()
            };
            let Some((last, _)) = taken.last() else {
                tokio::select! {
                    biased;
                    () = self.tablet.changed.notified() => {}
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
                continue;
            };
            let upto = *last;
            self.cursor = upto.index;
            let mut batch = SourceBatch { upto, sent_at: self.world.now(), ..SourceBatch::default() };
            for (at, logged) in taken {
                batch.bytes += 100;
                let record = match logged {
                    Logged::Write(transaction, change) => {
                        let write = write(at, &change, &self.schemas[&change.key.0]);
                        Record::Write { transaction, write }
                    }
                    Logged::Other(record) => record,
                };
                batch.records.push((at, record));
            }
            return Ok(StreamEvent::Batch(batch));
        }
    }

    fn acknowledge(&mut self, upto: OpId) {
        if upto.index > self.told && !self.world.strikes(Kind::LateAcknowledgement, 0.8) {
            self.told = upto.index;
            self.world
                .event(("confirmed", self.tablet.number, upto), || format!("{} may forget {upto}", self.tablet.name));
            self.life.acknowledged_cdc(&self.world, &self.tablet.name, upto);
            self.tablet.acknowledge(upto.index);
        }
    }

    fn acknowledged(&self) -> OpId {
        OpId::new(u64::from(self.told > 0), self.told)
    }
}

/// A key that stands for itself: whose tablet it is.
pub fn home(key: &RowKey, tablets: usize) -> usize {
    let hash =
        key.1.bytes().fold(key.0 as u64 + 7, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    ((hash >> 17) % tablets as u64) as usize
}
