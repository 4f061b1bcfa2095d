//! A PostgreSQL server, as far as its replication stream shows it: two-phase commits, a slot, positions.

use super::faults::Kind;
use super::history::{RowKey, TABLES, Value};
use super::stall::Silence;
use super::world::World;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use untorn::wal::HybridTime;

/// What a statement did to a row.
#[derive(Clone, Debug)]
pub enum Op {
    /// A new row.
    Insert(Value),
    /// A row that was there: the second column may be left out of the stream.
    Update {
        /// What it holds now.
        value: Value,
        /// Whether the large value is marked as unchanged.
        unchanged: bool,
    },
    /// The row is gone.
    Delete,
    /// All of this server's rows of the table are.
    Truncate,
}

/// One statement's effect.
#[derive(Clone, Debug)]
pub struct Change {
    /// Whose.
    pub key: RowKey,
    /// What.
    pub op: Op,
}

/// A transaction's part on one server.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The server's number for it.
    pub xid: u32,
    /// Its statements in order.
    pub changes: Vec<Change>,
    /// Whether the server sends it before its end, in blocks.
    pub streamed: bool,
}

/// A record of the WAL that ends a transaction's part.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it ends.
    pub end: u64,
    /// The server's clock.
    pub time: HybridTime,
    /// What it says.
    pub body: Body,
}

/// See [`Item`].
#[derive(Clone, Debug)]
pub enum Body {
    /// An ordinary commit.
    Commit(Arc<Part>),
    /// PREPARE TRANSACTION.
    Prepare(String, Arc<Part>),
    /// COMMIT PREPARED; a branch that the slot had not sent comes with it, as it was prepared.
    CommitPrepared(String, Option<Prepared>),
    /// ROLLBACK PREPARED.
    RollbackPrepared(String),
}

/// A prepared branch.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Where its PREPARE ends.
    pub end: u64,
    /// When it was prepared, by the server's clock.
    pub time: HybridTime,
    /// What it wrote.
    pub part: Arc<Part>,
    /// What of it the publication had.
    pub sent: Arc<Part>,
    /// Prepared before the slot stood: sent only with its COMMIT PREPARED.
    pub late: bool,
}

/// The state behind a server's lock.
pub struct State {
    /// The end of its WAL.
    pub lsn: u64,
    /// Counts commits and prepares: places in the server's order.
    pub order: u64,
    /// What a stream can still send.
    pub wal: VecDeque<Item>,
    /// The slot forgot everything up to here.
    pub confirmed: u64,
    /// The end of the last record that it forgot.
    pub forgotten: u64,
    /// Tables, by number, that the publication does not have yet.
    pub unpublished: BTreeSet<usize>,
    /// Committed rows.
    pub rows: BTreeMap<RowKey, Value>,
    /// Prepared branches by gid.
    pub prepared: BTreeMap<String, Prepared>,
    /// Whether there is a slot.
    pub slot: bool,
    /// Whether the slot lost WAL that was not confirmed.
    pub collected: bool,
    /// The flush position lies inside a record that is not sent.
    pub short: bool,
    /// Somebody waits for the stream to come this far.
    pub wanted: u64,
    /// The connection that has the slot.
    pub connection: u64,
    /// Somebody is making the slot, and has its name meanwhile.
    creating: bool,
    next_xid: u32,
}

impl State {
    /// What of a transaction's part the publication has.
    fn published(&self, part: &Part) -> Part {
        let changes = part.changes.iter().filter(|change| !self.unpublished.contains(&change.key.0));
        Part { changes: changes.cloned().collect(), ..*part }
    }
}

/// A server.
pub struct Server {
    /// Its place among all servers.
    pub number: usize,
    /// The source tablet's name.
    pub name: String,
    /// How far its clock is off, in microseconds.
    pub clock_off_micros: i64,
    world: World,
    state: Mutex<State>,
    silence: Silence,
    /// There is something to send.
    pub changed: Notify,
}

impl Server {
    /// A server with these rows.
    pub fn new(world: &World, number: usize, clock_off_micros: i64, rows: BTreeMap<RowKey, Value>) -> Arc<Self> {
        let state = State {
            lsn: 1000,
            order: 0,
            wal: VecDeque::new(),
            confirmed: 0,
            forgotten: 0,
            unpublished: BTreeSet::new(),
            rows,
            prepared: BTreeMap::new(),
            slot: false,
            collected: false,
            short: false,
            wanted: 0,
            connection: 0,
            creating: false,
            next_xid: 700,
        };
        Arc::new(Self {
            number,
            name: format!("shard-{number}"),
            clock_off_micros,
            world: world.clone(),
            state: Mutex::new(state),
            silence: Silence::default(),
            changed: Notify::new(),
        })
    }

    /// Its state.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Its clock.
    pub fn now(&self) -> HybridTime {
        HybridTime::from_micros(self.world.now().micros().saturating_add_signed(self.clock_off_micros))
    }

    /// Waits while it is silent.
    pub async fn answers(&self) {
        self.silence.is_over().await;
    }

    /// Neither sends nor answers for so long.
    pub fn falls_silent(&self, millis: u64) {
        self.silence.lasts(millis);
    }

    fn write(&self, state: &mut State, body: Body) -> u64 {
        state.lsn += self.world.chance(|chance| chance.between(8, 400));
        state.order += 1;
        let item = Item { end: state.lsn, time: self.now(), body };
        self.world.event(("wal", self.number, item.end), || format!("{} writes {:?}", self.name, item));
        if state.slot {
            state.wal.push_back(item);
        }
        state.short = self.world.strikes(Kind::ShortFlush, 0.3);
        if state.short {
            state.lsn += 24;
        }
        self.changed.notify_one();
        state.order
    }

    fn take_xid(state: &mut State) -> u32 {
        state.next_xid += 1;
        state.next_xid
    }

    /// An ordinary commit; answers its place.
    pub fn commit(&self, mut part: Part) -> u64 {
        let state = &mut *self.state();
        part.xid = Self::take_xid(state);
        apply(&mut state.rows, &part);
        let sent = state.published(&part);
        self.write(state, Body::Commit(Arc::new(sent)))
    }

    /// Prepares a branch; answers its place.
    pub fn prepare(&self, gid: &str, mut part: Part) -> u64 {
        let state = &mut *self.state();
        part.xid = Self::take_xid(state);
        let (sent, part) = (Arc::new(state.published(&part)), Arc::new(part));
        let place = self.write(state, Body::Prepare(gid.to_owned(), Arc::clone(&sent)));
        let end = state.wal.back().map_or(state.lsn, |item| item.end);
        let prepared = Prepared { end, time: self.now(), part, sent, late: false };
        assert!(state.prepared.insert(gid.to_owned(), prepared).is_none(), "gid {gid} is in use on {}", self.name);
        place
    }

    /// Commits a prepared branch; answers its place.
    pub fn commit_prepared(&self, gid: &str) -> u64 {
        let state = &mut *self.state();
        let prepared = state.prepared.remove(gid).unwrap();
        apply(&mut state.rows, &prepared.part);
        self.write(state, Body::CommitPrepared(gid.to_owned(), Some(prepared).filter(|prepared| prepared.late)))
    }

    /// Rolls a prepared branch back.
    pub fn rollback_prepared(&self, gid: &str) {
        let state = &mut *self.state();
        state.prepared.remove(gid).unwrap();
        self.write(state, Body::RollbackPrepared(gid.to_owned()));
    }

    /// What is committed once everything that is prepared now has ended, and the position of that.
    pub async fn snapshot(&self) -> (u64, BTreeMap<RowKey, Value>) {
        self.end_of_prepared().await;
        let state = &*self.state();
        (state.lsn, state.rows.clone())
    }

    /// Makes a slot, once everything that is prepared now has ended; answers where it starts, and what is in the copy. What
    /// stood under its name is dropped first. `None` while somebody else is making it.
    pub async fn create_slot(&self) -> Option<(u64, BTreeMap<RowKey, Value>)> {
        let _creation = {
            let state = &mut *self.state();
            if std::mem::replace(&mut state.creating, true) {
                return None;
            }
            (state.slot, state.connection, state.collected) = (false, 0, false);
            state.wal.clear();
            Creation(self)
        };
        self.end_of_prepared().await;
        let state = &mut *self.state();
        for prepared in state.prepared.values_mut() {
            prepared.late = true;
            self.world.struck(Kind::LateBranch);
        }
        (state.slot, state.confirmed) = (true, state.lsn);
        Some((state.lsn, state.rows.clone()))
    }

    /// The publication has all tables from here on; whether it had not.
    pub fn publishes_all(&self) -> bool {
        let added = !std::mem::take(&mut self.state().unpublished).is_empty();
        self.changed.notify_one();
        added
    }

    async fn end_of_prepared(&self) {
        let running: Vec<(String, u64)> =
            self.state().prepared.iter().map(|(gid, prepared)| (gid.clone(), prepared.end)).collect();
        let left = |state: &State| {
            running.iter().any(|(gid, end)| state.prepared.get(gid).is_some_and(|held| held.end == *end))
        };
        while left(&self.state()) {
            self.world.sleep_ms(10, 100).await;
        }
    }

    /// The first record that ends above this position.
    pub fn item_after(&self, position: u64) -> Option<Item> {
        let state = self.state();
        state.wal.get(state.wal.partition_point(|item| item.end <= position)).cloned()
    }

    /// The slot forgets everything up to here.
    pub fn confirm(&self, upto: u64) {
        let state = &mut *self.state();
        state.confirmed = state.confirmed.max(upto);
        while state.wal.front().is_some_and(|item| item.end <= state.confirmed) {
            state.forgotten = state.wal.pop_front().map_or(0, |item| item.end);
        }
    }
}

/// A slot that is being made: one that is cut off leaves the name free.
struct Creation<'a>(&'a Server);

impl Drop for Creation<'_> {
    fn drop(&mut self) {
        self.0.state().creating = false;
    }
}

fn apply(rows: &mut BTreeMap<RowKey, Value>, part: &Part) {
    for Change { key, op } in &part.changes {
        match op {
            Op::Insert(value) | Op::Update { value, .. } => drop(rows.insert(key.clone(), value.clone())),
            Op::Delete => drop(rows.remove(key)),
            Op::Truncate => rows.retain(|(table, _), _| *table != key.0),
        }
    }
}

/// How many tables there are, as relation numbers.
pub fn relations() -> impl Iterator<Item = (u32, &'static str)> {
    (0..).zip(TABLES)
}
