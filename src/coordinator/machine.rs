//! The machine: inputs in, entries and outputs out. See the room's opening for the protocol.

use super::applying::Handed;
use super::decided::ReadPoint;
use super::entry::{
    Entry, Item, MappedTablet, OLDEST_SNAPSHOT, Release, SNAPSHOT_VERSION, SNAPSHOT_WITH_RELEASES, TabletMap,
};
use super::fact::{Fact, Involvement};
use super::output::{Output, Promise};
use super::pressure::Full;
use super::questions::Questions;
use super::state::{Agenda, State};
use crate::limits::{APPLY_WINDOW, ENTRY_BYTES, TRANSACTIONS_HELD};
use crate::planted::{Bug, planted};
use crate::wal::codec::{self, CodecError};
use crate::wal::{Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, TableSchema, TransactionId};
use std::collections::{BTreeMap, VecDeque};

/// How the coordinator is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How transactions are decided.
    pub release: Release,
    /// How far the source servers' clocks may differ, in microseconds (told-apart reuse of gids needs it).
    pub clock_skew_micros: u64,
    /// `false` only in `untorn demo --without-gate`: then the first Applying record opens the gate.
    pub gate: bool,
    /// Decisions on their way to one replica tablet at once. Others wait in the fold.
    pub apply_window: usize,
    /// Transactions held beyond which streams that run ahead are to pause.
    pub transactions_held: usize,
    /// Whether people read the replica by themselves, and everything that is there: a PostgreSQL server. Then a stream's part
    /// of a table is hidden from nobody, and told from other streams' parts by nobody.
    pub read_directly: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            release: Release::CommonClock,
            clock_skew_micros: 500_000,
            gate: true,
            apply_window: APPLY_WINDOW,
            transactions_held: TRANSACTIONS_HELD,
            read_directly: false,
        }
    }
}

/// The transaction leader's machine. Inputs are `handle_*`, outputs `poll_*`, and time is an argument. The runtime
///
/// 1. restores it: [`Coordinator::restore`], [`Coordinator::handle_replayed`] for each entry after the snapshot, then
///    [`Coordinator::handle_opened`];
/// 2. feeds inputs; those which return a [`Promise`] are answered once [`Coordinator::durable`] has reached it;
/// 3. appends what [`Coordinator::poll_entry`] yields, one entry at a time and in order, and reports each by
///    [`Coordinator::handle_durable`]; an append that did not happen (conflict, fenced) ends this machine's life;
/// 4. drains [`Coordinator::poll_output`] after every input.
///
/// Its state runs ahead of the log by the entries that are on their way: an input is judged by everything that was said
/// before it. What leaves the machine is held back until the entry that it rests on is durable.
#[derive(Clone, Debug)]
pub struct Coordinator {
    pub(super) state: State,
    pub(super) settings: Settings,
    pub(super) durable: LogPosition,
    /// Entries that take no more items.
    sealed: VecDeque<Entry>,
    /// The entry that items go into; empty while there is nothing to say.
    open: Entry,
    open_bytes: usize,
    /// What is to be yielded next, one by one.
    pub(super) outputs: VecDeque<Output>,
    /// What was handed to the replica tablets, and what they said.
    pub(super) handed: Handed,
    /// Set while too much waits.
    pub(super) full: Option<Full>,
    /// How far each stream is known to have come by reports that were not worth an entry.
    pub(super) heads: BTreeMap<SourceTabletId, OpId>,
    /// Safe points that are not durable yet, and the last one that is.
    pub(super) safe_pending: VecDeque<ReadPoint>,
    pub(super) safe: Option<ReadPoint>,
    /// The first safe point that this machine offered.
    pub(super) first_safe: Option<ReadPoint>,
    /// Where readers may begin; none before the start is over.
    pub(super) readable_from: Option<LogPosition>,
    /// What the source's servers were asked.
    pub(super) questions: Questions,
    /// For each stream a transaction that held up a copy the last time one was looked for, and up to where.
    pub(super) held_up_by: BTreeMap<SourceTabletId, (OpId, TransactionId)>,
    /// Streams whose pollers stopped, and why.
    pub(super) stopped: BTreeMap<SourceTabletId, String>,
}

impl Coordinator {
    /// From a snapshot's bytes, or empty.
    ///
    /// # Errors
    /// The snapshot is damaged or newer than this build.
    pub fn restore(settings: Settings, snapshot: Option<(LogPosition, &[u8])>) -> Result<Self, CodecError> {
        let state = match snapshot {
            None => State::default(),
            Some((position, bytes)) => {
                codec::at_least(OLDEST_SNAPSHOT, bytes)?;
                let mut state: State = match bytes.first() {
                    Some(&OLDEST_SNAPSHOT) => codec::decode(OLDEST_SNAPSHOT, bytes)?,
                    Some(&SNAPSHOT_WITH_RELEASES) => {
                        let (state, released) = codec::decode(SNAPSHOT_WITH_RELEASES, bytes)?;
                        State { released, ..state }
                    }
                    _ => {
                        let (state, released, absences) = codec::decode(SNAPSHOT_VERSION, bytes)?;
                        State { released, absences, ..state }
                    }
                };
                if planted(Bug::SnapshotWithoutUndecided) {
                    state.streams.iter_mut().for_each(|stream| stream.places.clear());
                    state.undecided.clear();
                }
                if state.position != position {
                    let found = state.position;
                    return Err(CodecError::Damaged(format!("the snapshot at {position} holds the state at {found}")));
                }
                state
            }
        };
        Ok(Self {
            durable: state.position,
            state,
            settings,
            sealed: VecDeque::new(),
            open: Entry::default(),
            open_bytes: 0,
            outputs: VecDeque::new(),
            handed: Handed::default(),
            full: None,
            heads: BTreeMap::new(),
            safe_pending: VecDeque::new(),
            safe: None,
            first_safe: None,
            readable_from: None,
            questions: Questions::default(),
            held_up_by: BTreeMap::new(),
            stopped: BTreeMap::new(),
        })
    }

    /// Folds one entry of the log, in order.
    ///
    /// # Errors
    /// The entry does not follow.
    pub fn handle_replayed(&mut self, entry: &Entry) -> Result<(), CodecError> {
        let next = self.state.position.next();
        if entry.position != next {
            let found = entry.position;
            return Err(CodecError::Damaged(format!("the log's entry {next} says that it is entry {found}")));
        }
        self.state.fold_entry(entry);
        // Candidates were decided by later entries or will be looked at again when the replay is over.
        self.state.agenda = Agenda::default();
        self.durable = entry.position;
        Ok(())
    }

    /// The log is replayed and taken under this epoch: from here on the machine decides. Tablets are named with the first
    /// key of each, where the map is cut by key ranges.
    ///
    /// # Errors
    /// The log was made with another `release`, or another set of replica tablets: the text says which and how to mend it.
    pub fn handle_opened(
        &mut self,
        now: HybridTime,
        epoch: Epoch,
        owner: &str,
        tablets: &[(String, Option<Vec<u8>>)],
    ) -> Result<(), String> {
        if self.state.position == LogPosition(0) {
            self.say(now, Item::Created { release: self.settings.release });
        } else if self.state.release != self.settings.release {
            return Err(format!(
                "this log decides by {:?}, the configuration asks for {:?}: set source.kind and replica.release as they were, or begin with an empty data_dir",
                self.state.release, self.settings.release
            ));
        }
        let clock_skew_micros = self.settings.clock_skew_micros;
        self.state.epoch = epoch;
        self.say(now, Item::Opened { epoch, owner: owner.to_owned(), clock_skew_micros });
        let known: Vec<_> = self.state.map.tablets.iter().map(|t| (t.name.clone(), t.from_key.clone())).collect();
        if known.is_empty() && !tablets.is_empty() {
            let mapped = tablets.iter().enumerate().map(|(number, (name, from_key))| MappedTablet {
                id: ReplicaTabletId(number as u32),
                name: name.clone(),
                from_key: from_key.clone(),
            });
            self.say(now, Item::Map(TabletMap { version: 1, tablets: mapped.collect() }));
        } else if known != tablets {
            let names =
                |all: &[(String, Option<Vec<u8>>)]| all.iter().map(|t| t.0.clone()).collect::<Vec<_>>().join(", ");
            return Err(format!(
                "the log's map has {} replica tablets ({}), the configuration has {} ({}): rows would be routed elsewhere; set replica.tablet_count or [[replica.tablets]] as they were",
                known.len(),
                names(&known),
                tablets.len(),
                names(tablets)
            ));
        }
        let mut open: Vec<TransactionId> =
            self.state.transactions.iter().filter(|t| t.decision.is_none()).map(|t| t.id).collect();
        open.sort_unstable();
        for id in open {
            self.state.candidate(id);
        }
        if let Some((position, time)) = self.state.safe {
            self.safe_pending.push_back(ReadPoint { position, time });
        }
        self.settle(now);
        Ok(())
    }

    /// The entry at this position is durable.
    pub fn handle_durable(&mut self, position: LogPosition) {
        self.durable = position;
        while let Some(point) = self.safe_pending.front().filter(|point| point.position <= position) {
            self.safe = Some(*point);
            self.first_safe.get_or_insert(*point);
            self.safe_pending.pop_front();
        }
    }

    /// Says an item: folds it and puts it into the open entry.
    pub(super) fn say(&mut self, now: HybridTime, item: Item) {
        if self.open.items.is_empty() {
            let position = self.state.position.next();
            self.open = Entry { epoch: self.state.epoch, position, time: now.max(self.state.time), items: Vec::new() };
            self.open_bytes = 0;
            self.state.begin_entry(position, now);
        }
        self.state.fold(&item);
        self.open_bytes += about_bytes(&item);
        self.open.items.push(item);
        if self.open_bytes >= ENTRY_BYTES {
            self.seal();
        }
    }

    pub(super) fn seal(&mut self) {
        if !self.open.items.is_empty() {
            self.sealed.push_back(std::mem::take(&mut self.open));
        }
    }

    pub(super) fn promise<T>(&self, value: T) -> Promise<T> {
        Promise { after: self.state.position, value }
    }

    /// The next entry to append, if there is anything to say. Everything before it was yielded earlier.
    pub fn poll_entry(&mut self) -> Option<Entry> {
        if self.sealed.is_empty() {
            self.seal();
        }
        self.sealed.pop_front()
    }

    /// The next thing to do, if there is one: what was asked for before, then decisions, then questions.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.next_decided()).or_else(|| self.next_question())
    }

    /// Everything up to here is durable.
    #[must_use]
    pub fn durable(&self) -> LogPosition {
        self.durable
    }

    /// The fold's state as of the last entry that was yielded or closed by this call, and that position: a snapshot once it
    /// is durable.
    ///
    /// # Errors
    /// See [`codec::encode`].
    pub fn snapshot(&mut self) -> Result<(LogPosition, Vec<u8>), CodecError> {
        self.seal();
        Ok((
            self.state.position,
            codec::encode(SNAPSHOT_VERSION, &(&self.state, &self.state.released, &self.state.absences))?,
        ))
    }

    /// The fold's state, which runs ahead of the log by what is on its way.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The map.
    #[must_use]
    pub fn map(&self) -> &TabletMap {
        &self.state.map
    }

    /// Every table's newest shape.
    #[must_use]
    pub fn tables(&self) -> Vec<TableSchema> {
        self.state.schemas().collect()
    }

    /// Every version of every table's shape.
    #[must_use]
    pub fn table_versions(&self) -> Vec<TableSchema> {
        self.state.schema_versions().collect()
    }
}

/// About how many bytes an item takes in an entry: good enough to bound entries.
fn about_bytes(item: &Item) -> usize {
    match item {
        Item::Report(report) => {
            let listed = |fact: &Fact| match fact {
                Fact::Commit { involved: Involvement::Listed(listed), .. } => listed.len() * 8,
                Fact::NotRunning { transactions } => transactions.len() * 24,
                _ => 0,
            };
            40 + report.facts.iter().map(|fact| 40 + listed(fact)).sum::<usize>()
        }
        Item::Published { table, .. } => 24 + table.name.len() + table.columns.len() * 24,
        Item::CopyAsked { table, .. }
        | Item::Copy { table, .. }
        | Item::CopyHidden { table, .. }
        | Item::CopyShown { table, .. } => 24 + table.len(),
        Item::Round { positions, .. } => 16 + positions.len() * 16,
        _ => 24,
    }
}
