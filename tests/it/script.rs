//! A scripted source with a common clock: transfers between accounts, spread over source tablets, cut into batches and
//! delayed at random, with aborted transactions among them. Its history is known, so what a replica must show is exact.

use async_trait::async_trait;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use untorn::source::{Catalog, Keeper, NewSlot, Resume, Source, SourceError, Stream, StreamEvent};
use untorn::wal::{
    Cell, Column, HybridTime, Involved, InvolvedTablet, Key, OpId, Record, Row, SourceBatch, SourceTransactionId,
    TableSchema, Write, WriteOp,
};

/// The table that every transfer writes to.
pub const TABLE: &str = "public.accounts";
const ACCOUNTS: usize = 24;
/// The transaction that never ends.
pub const ORPHAN: u64 = 9_999_999;

/// What one record of a script says; tables are named, because numbers come from the log.
#[derive(Clone)]
enum Said {
    Put { account: usize, balance: i64 },
    Applying { records: u64 },
    Commit { time: HybridTime, involved: Vec<(usize, u64)> },
    Aborted,
    Created,
    SafeTime(HybridTime),
}

#[derive(Clone)]
struct Scripted {
    transaction: u64,
    said: Said,
}

/// The source universe: every record of every stream, and the model after every commit.
pub struct Script {
    streams: Vec<Vec<Scripted>>,
    /// Balances after each commit, by commit time.
    pub model: BTreeMap<HybridTime, BTreeMap<usize, i64>>,
    /// The accounts that each commit wrote.
    pub writes: BTreeMap<HybridTime, Vec<usize>>,
    /// Every version: account and commit time.
    pub versions: BTreeSet<(usize, HybridTime)>,
    seed: u64,
}

/// A transaction that the generator has begun.
struct Open {
    id: u64,
    /// Records that each stream still has to carry, last one first.
    rest: BTreeMap<usize, Vec<Said>>,
    writes: Vec<(usize, i64)>,
    counts: BTreeMap<usize, u64>,
    aborts: bool,
    time: Option<HybridTime>,
}

impl Script {
    /// `transactions` transfers over this many source tablets.
    pub fn generate(streams: usize, transactions: u64, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut script = Self {
            streams: vec![Vec::new(); streams],
            model: BTreeMap::new(),
            writes: BTreeMap::new(),
            versions: BTreeSet::new(),
            seed,
        };
        let mut balances: BTreeMap<usize, i64> = BTreeMap::new();
        let mut clock = 1_000_000;
        let first: Vec<_> = (0..ACCOUNTS).map(|account| (account, 100)).collect();
        let mut open = vec![script.begin(1, first, false)];
        let mut next = 2;
        while !open.is_empty() || next <= transactions {
            let busy: BTreeSet<usize> =
                open.iter().flat_map(|o| o.writes.iter().map(|(account, _)| *account)).collect();
            if next <= transactions && open.len() < 4 && !balances.is_empty() && rng.random_bool(0.3) {
                let free: Vec<_> = (0..ACCOUNTS).filter(|account| !busy.contains(account)).collect();
                let accounts = rng.random_range(2..=4).min(free.len());
                if accounts >= 2 {
                    let mut chosen: Vec<_> = (0..accounts).map(|_| free[rng.random_range(0..free.len())]).collect();
                    chosen.sort_unstable();
                    chosen.dedup();
                    let mut amounts: Vec<i64> = chosen.iter().map(|_| rng.random_range(-9..=9)).collect();
                    let sum: i64 = amounts.iter().sum();
                    amounts[0] -= sum;
                    let writes = chosen.iter().zip(amounts).map(|(account, by)| (*account, balances[account] + by));
                    let writes = writes.collect();
                    open.push(script.begin(next, writes, rng.random_bool(0.1)));
                    next += 1;
                }
                continue;
            }
            let Some(place) = (!open.is_empty()).then(|| rng.random_range(0..open.len())) else { continue };
            let transaction = &mut open[place];
            // The source commits at some moment; the streams carry what they carry before and after it.
            if transaction.time.is_none() && rng.random_bool(0.3) {
                clock += rng.random_range(1..50);
                let time = HybridTime::from_micros(clock);
                transaction.time = Some(time);
                let home = *transaction.counts.keys().next().unwrap();
                let said = if transaction.aborts {
                    Said::Aborted
                } else {
                    for (account, balance) in &transaction.writes {
                        balances.insert(*account, *balance);
                        script.versions.insert((*account, time));
                    }
                    script.writes.insert(time, transaction.writes.iter().map(|(account, _)| *account).collect());
                    script.model.insert(time, balances.clone());
                    Said::Commit { time, involved: transaction.counts.clone().into_iter().collect() }
                };
                script.streams[home].push(Scripted { transaction: transaction.id, said });
            } else if let Some(&stream) = {
                let streams: Vec<_> = transaction.rest.keys().collect();
                streams.get(rng.random_range(0..streams.len().max(1))).copied()
            } {
                let rest = transaction.rest.get_mut(&stream).unwrap();
                let said = rest.pop().unwrap();
                if rest.is_empty() {
                    transaction.rest.remove(&stream);
                }
                script.streams[stream].push(Scripted { transaction: transaction.id, said });
            }
            let transaction = &open[place];
            if transaction.rest.is_empty() && transaction.time.is_some() {
                open.remove(place);
            }
            // Safe time: below every commit of which a stream still has something to carry.
            let safe =
                open.iter().filter_map(|o| o.time).min().map_or(HybridTime::from_micros(clock), HybridTime::previous);
            let stream = rng.random_range(0..streams);
            script.streams[stream].push(Scripted { transaction: 0, said: Said::SafeTime(safe) });
        }
        for stream in &mut script.streams {
            let said = Said::SafeTime(HybridTime::from_micros(clock));
            stream.push(Scripted { transaction: 0, said });
        }
        script
    }

    /// A transaction that writes in every stream and never ends.
    pub fn add_orphan(&mut self) {
        for account in 0..self.streams.len() {
            let said = Said::Put { account, balance: -1 };
            self.streams[account].push(Scripted { transaction: ORPHAN, said });
        }
    }

    fn begin(&mut self, id: u64, writes: Vec<(usize, i64)>, aborts: bool) -> Open {
        let mut rest: BTreeMap<usize, Vec<Said>> = BTreeMap::new();
        let mut counts: BTreeMap<usize, u64> = BTreeMap::new();
        for (account, balance) in &writes {
            let stream = account % self.streams.len();
            *counts.entry(stream).or_default() += 1;
            rest.entry(stream).or_default().push(Said::Put { account: *account, balance: *balance });
        }
        let home = *counts.keys().next().unwrap();
        for (stream, rest) in &mut rest {
            if !aborts {
                rest.insert(0, Said::Applying { records: counts[stream] });
            }
            if *stream == home {
                rest.push(Said::Created);
            }
        }
        Open { id, rest, writes, counts, aborts, time: None }
    }

    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// The time of the last commit: a replica that has reached it has everything.
    pub fn end(&self) -> HybridTime {
        *self.model.keys().next_back().unwrap()
    }

    /// What the source held at a time.
    pub fn at(&self, time: HybridTime) -> BTreeMap<usize, i64> {
        self.model.range(..=time).next_back().map(|(_, model)| model.clone()).unwrap_or_default()
    }

    fn record(&self, stream: usize, place: usize, schema: &TableSchema) -> Record {
        let Scripted { transaction, said } = self.streams[stream][place].clone();
        let transaction = SourceTransactionId::first(format!("t{transaction}").as_bytes());
        match said {
            Said::Put { account, balance } => {
                let cells = [account.to_string(), balance.to_string()];
                let write = Write {
                    at: position(place),
                    table: schema.table,
                    key: Key::from_columns([cells[0].as_bytes()]),
                    op: WriteOp::Put {
                        row: Row {
                            schema_version: schema.version,
                            cells: cells.into_iter().map(|text| Cell::Text(text.into())).collect(),
                        },
                        fill_from: None,
                    },
                };
                Record::Write { transaction, write }
            }
            Said::Applying { records } => {
                Record::Applying { transaction, records: Some(records), prepared_at: None, label: None }
            }
            Said::Commit { time, involved } => Record::Commit {
                transaction,
                branch: None,
                time,
                involved: Involved::Listed(
                    involved
                        .into_iter()
                        .map(|(stream, records)| InvolvedTablet { tablet: name(stream), records: Some(records) })
                        .collect(),
                ),
            },
            Said::Aborted => Record::Aborted { transaction, branch: None },
            Said::Created => Record::Created { transaction },
            Said::SafeTime(time) => Record::SafeTime { time },
        }
    }
}

/// The name of a source tablet.
pub fn name(stream: usize) -> String {
    format!("source-{stream}")
}

fn position(place: usize) -> OpId {
    OpId::new(1, place as u64 + 1)
}

/// One source tablet of a script. Its server keeps running while appliers come and go.
pub struct ScriptedSource {
    script: Arc<Script>,
    stream: usize,
    name: String,
    /// How many of its records have happened.
    pub happened: Arc<AtomicUsize>,
    /// Set: records that can never be true come.
    pub damaged: Arc<AtomicBool>,
    /// The highest position that was acknowledged; nothing at or below it may be asked for again.
    pub acknowledged: Arc<Mutex<OpId>>,
    /// Set: the source knows no transaction as running.
    pub nothing_runs: AtomicBool,
    opened: AtomicUsize,
}

impl ScriptedSource {
    /// A source tablet of which nothing has happened yet.
    pub fn new(script: &Arc<Script>, stream: usize) -> Arc<Self> {
        Arc::new(Self {
            script: Arc::clone(script),
            stream,
            name: name(stream),
            happened: Arc::default(),
            damaged: Arc::default(),
            acknowledged: Arc::new(Mutex::new(OpId::ZERO)),
            nothing_runs: AtomicBool::new(false),
            opened: AtomicUsize::new(0),
        })
    }

    /// Everything has happened.
    pub fn finish(&self) {
        self.happened.store(self.script.streams[self.stream].len(), Ordering::SeqCst);
    }

    /// A little more happens.
    pub fn go_on(&self, records: usize) {
        let len = self.script.streams[self.stream].len();
        let now = self.happened.load(Ordering::SeqCst);
        self.happened.store((now + records).min(len), Ordering::SeqCst);
    }
}

#[async_trait]
impl Source for ScriptedSource {
    fn name(&self) -> &str {
        &self.name
    }

    async fn create_slot(&self) -> Result<NewSlot, SourceError> {
        Ok(NewSlot { start: OpId::ZERO, identity: String::new(), snapshot: None })
    }

    async fn open(&self, resume: Resume, catalog: Arc<dyn Catalog>) -> Result<(Box<dyn Stream>, Keeper), SourceError> {
        assert!(resume.after >= *self.acknowledged.lock().unwrap(), "{}: what was acknowledged is gone", self.name);
        let column = |name: &str, key| Column { name: name.into(), type_name: "int8".into(), key };
        let schema = catalog.table(TABLE, vec![column("id", true), column("balance", false)], None).await?;
        let opened = self.opened.fetch_add(1, Ordering::SeqCst) as u64;
        let stream = ScriptedStream {
            script: Arc::clone(&self.script),
            stream: self.stream,
            happened: Arc::clone(&self.happened),
            damaged: Arc::clone(&self.damaged),
            acknowledged: Arc::clone(&self.acknowledged),
            next: resume.after.index as usize,
            schema,
            first: true,
            rng: SmallRng::seed_from_u64(self.script.seed ^ opened ^ (self.stream as u64) << 32),
        };
        Ok((Box::new(stream), Box::pin(async {})))
    }

    async fn not_running(
        &self,
        transactions: Vec<SourceTransactionId>,
    ) -> Result<(Vec<SourceTransactionId>, OpId), SourceError> {
        let position = OpId::new(1, self.happened.load(Ordering::SeqCst) as u64);
        Ok(if self.nothing_runs.load(Ordering::SeqCst) { (transactions, position) } else { (Vec::new(), position) })
    }
}

struct ScriptedStream {
    script: Arc<Script>,
    stream: usize,
    happened: Arc<AtomicUsize>,
    damaged: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<OpId>>,
    next: usize,
    schema: TableSchema,
    first: bool,
    rng: SmallRng,
}

#[async_trait]
impl Stream for ScriptedStream {
    async fn next(&mut self) -> Result<StreamEvent, SourceError> {
        loop {
            let happened = self.happened.load(Ordering::SeqCst);
            if self.damaged.load(Ordering::SeqCst) {
                return Err(SourceError::Stop("record 7 cannot be decoded".into()));
            }
            if self.next < happened {
                let to = happened.min(self.next + self.rng.random_range(1..12));
                let mut records = Vec::new();
                if std::mem::take(&mut self.first) {
                    records.push((position(self.next), Record::Schema(self.schema.clone())));
                }
                records.extend(
                    (self.next..to)
                        .map(|place| (position(place), self.script.record(self.stream, place, &self.schema))),
                );
                self.next = to;
                let upto = position(to - 1);
                let bytes = records.len() * 100;
                return Ok(StreamEvent::Batch(SourceBatch { records, upto, bytes, ..SourceBatch::default() }));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn acknowledge(&mut self, upto: OpId) {
        let mut acknowledged = self.acknowledged.lock().unwrap();
        *acknowledged = upto.max(*acknowledged);
    }

    fn acknowledged(&self) -> OpId {
        *self.acknowledged.lock().unwrap()
    }
}
