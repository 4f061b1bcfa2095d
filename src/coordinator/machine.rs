//! The machine: inputs in, entries and outputs out. See the room's opening for the protocol.

use super::decided::{Applied, Decided, ReadPoint, Work};
use super::discovery::Start;
use super::entry::{CopyState, Entry, FORMAT_VERSION, Fence, Item, MappedTablet, Outcome, Release, TabletMap};
use super::fact::{Fact, Report};
use super::gate::Missing;
use super::output::{OpenBranchView, Output, Promise, Refused, StreamOpening};
use super::state::{Agenda, Piece, State};
use super::transaction::{Branch, Transaction};
use crate::limits::{ENTRY_BYTES, NUDGE_AFTER_MS, ORPHAN_CHECK_AFTER_MS, ORPHAN_CHECK_MAX};
use crate::wal::codec::{self, CodecError};
use crate::wal::{
    BranchId, Column, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId,
    TableId, TableSchema, TransactionId,
};
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
}

impl Default for Settings {
    fn default() -> Self {
        Self { release: Release::CommonClock, clock_skew_micros: 500_000, gate: true }
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
#[derive(Debug)]
pub struct Coordinator {
    pub(super) state: State,
    settings: Settings,
    pub(super) durable: LogPosition,
    /// Entries that take no more items.
    sealed: VecDeque<Entry>,
    /// The entry that items go into; empty while there is nothing to say.
    open: Entry,
    open_bytes: usize,
    /// How many pieces of work were popped off the front of `state.work` for good, and how many were yielded.
    work_yielded: usize,
    /// Pieces of work taken off the queue, waiting to be handed to tablets one by one.
    outputs: VecDeque<Output>,
    /// What the tablets said and the log does not yet.
    tablets_applied: BTreeMap<ReplicaTabletId, LogPosition>,
    /// How far each stream is known to have come by reports that were not worth an entry.
    heads: BTreeMap<SourceTabletId, OpId>,
    /// Safe points that are not durable yet, and the last one that is.
    safe_pending: VecDeque<ReadPoint>,
    safe: Option<ReadPoint>,
    /// Where readers may begin; none before the start is over.
    readable_from: Option<LogPosition>,
    round: Asked,
    fence: Asked,
    prepared: Asked,
    /// When a stream was last nudged, and when orphans were last asked for.
    nudged: HybridTime,
    orphans_asked: HybridTime,
    pub(super) stopped: BTreeMap<SourceTabletId, String>,
}

/// A question that is out once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Nobody asked.
    No,
    /// The answer has not come.
    OnItsWay,
    /// The last one failed: asked again at the next tick.
    Failed,
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
                let state: State = codec::decode(FORMAT_VERSION, bytes)?;
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
            work_yielded: 0,
            outputs: VecDeque::new(),
            tablets_applied: BTreeMap::new(),
            heads: BTreeMap::new(),
            safe_pending: VecDeque::new(),
            safe: None,
            readable_from: None,
            round: Asked::No,
            fence: Asked::No,
            prepared: Asked::No,
            nudged: HybridTime::MIN,
            orphans_asked: HybridTime::MIN,
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

    /// Whether the stream is known or may join. Without a common clock only the start fence keeps back what a new stream
    /// copies and what was prepared meanwhile, so nobody joins behind it.
    #[must_use]
    pub fn may_join(&self, name: &str) -> bool {
        self.state.start == Start::Slots
            || self.state.release == Release::CommonClock
            || self.state.stream_named(name).is_some()
    }

    /// A stream of the configuration; joins it if the log does not know it.
    pub fn handle_stream_joined(&mut self, now: HybridTime, name: &str) -> SourceTabletId {
        if let Some(known) = self.state.stream_named(name) {
            return known.stream;
        }
        let stream = SourceTabletId(self.state.streams.len() as u32);
        let at = self.state.safe.map_or(HybridTime::MIN, |(_, time)| time);
        self.say(now, Item::StreamJoined { stream, name: name.to_owned(), at });
        stream
    }

    /// A puller takes a stream.
    ///
    /// # Errors
    /// The stream is unknown.
    pub fn handle_open_stream(&mut self, now: HybridTime, name: &str) -> Result<Promise<StreamOpening>, Refused> {
        let Some(record) = self.state.stream_named(name) else {
            return Err(Refused::UnknownStream(name.to_owned()));
        };
        let (stream, puller) = (record.stream, Epoch(record.puller.0 + 1));
        self.stopped.remove(&stream);
        self.say(now, Item::PullerOpened { stream, epoch: puller });
        let mut open_branches: Vec<OpenBranchView> = self
            .state
            .transactions
            .iter()
            .flat_map(|t| {
                t.branches.iter().filter(|b| b.stream == stream && !b.ended && !b.bystander).map(move |b| (t, b))
            })
            .map(|(transaction, branch)| OpenBranchView {
                transaction: transaction.source.clone(),
                label: branch.label().map(str::to_owned),
                opened: branch.opened,
                records: branch.records,
                applying: branch.applying,
                belongs_to: transaction.id,
            })
            .collect();
        open_branches.sort_unstable_by_key(|branch| branch.opened);
        let record = &self.state.streams[stream.0 as usize];
        let opening = StreamOpening {
            stream,
            puller,
            checkpoint: record.checkpoint,
            stored: record.stored.clone(),
            open_branches,
            slot: record.slot,
            identity: record.identity.clone(),
            copies: record.copies.clone(),
        };
        Ok(self.promise(opening))
    }

    /// A table's shape.
    pub fn handle_table(&mut self, now: HybridTime, name: &str, columns: Vec<Column>) -> Promise<TableSchema> {
        let number = self.state.tables.iter().position(|t| t.name == name).unwrap_or(self.state.tables.len());
        let table = TableId(number as u32);
        let versions = self.state.tables.get(number).map_or(&[][..], |t| &t.versions);
        let known = versions.iter().position(|known| *known == columns);
        let version = known.unwrap_or(versions.len()) as u32 + 1;
        if known.is_none() {
            self.say(now, Item::Table { table, name: name.to_owned(), version, columns: columns.clone() });
        }
        self.promise(TableSchema { table, name: name.to_owned(), version, columns })
    }

    /// A stream's slot stands, and every table of it is copied: it carries what commits above this position.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_slot(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        puller: Epoch,
        start: OpId,
        identity: &str,
    ) -> Result<Promise<()>, Refused> {
        self.check_puller(stream, puller)?;
        self.say(now, Item::Slot { stream, start, identity: identity.to_owned() });
        Ok(self.promise(()))
    }

    /// How far a table's copy is.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_copy(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        puller: Epoch,
        table: &str,
        state: CopyState,
    ) -> Result<Promise<()>, Refused> {
        self.check_puller(stream, puller)?;
        self.say(now, Item::Copy { stream, table: table.to_owned(), state });
        Ok(self.promise(()))
    }

    fn check_puller(&self, stream: SourceTabletId, puller: Epoch) -> Result<(), Refused> {
        match self.state.stream(stream) {
            None => Err(Refused::UnknownStream(stream.to_string())),
            Some(record) if record.puller != puller => Err(Refused::Fenced { held: record.puller }),
            Some(_) => Ok(()),
        }
    }

    /// A poller's report. The promise's value is the checkpoint.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn handle_report(&mut self, now: HybridTime, mut report: Report) -> Result<Promise<OpId>, Refused> {
        self.state.check_report(&report)?;
        let Some(record) = self.state.stream(report.stream) else {
            return Err(Refused::UnknownStream(report.stream.to_string()));
        };
        let upto = report.upto;
        let head = self.heads.entry(report.stream).or_default();
        *head = report.head.max(*head);
        report.head = *head;
        let taken = report.head.max(upto).max(record.head);
        if report.acknowledged > taken {
            return Err(Refused::Damage(format!(
                "stream {} says that it acknowledged {} to its source, and only {taken} was taken",
                record.name, report.acknowledged
            )));
        }
        let says_nothing =
            report.facts.is_empty() && upto == report.follows && report.acknowledged <= record.acknowledged;
        if says_nothing && !self.waits_for_head(report.stream, record.head) {
            // The checkpoint that it repeats may stand in an entry that is still on its way.
            return Ok(self.promise(upto));
        }
        self.say(now, Item::Report(report));
        self.settle(now);
        Ok(self.promise(upto))
    }

    /// Whether somebody waits for this stream to have come further than it is known to.
    fn waits_for_head(&self, stream: SourceTabletId, head: OpId) -> bool {
        let reached = |positions: &[(SourceTabletId, OpId)]| positions.iter().any(|(s, at)| *s == stream && head < *at);
        match &self.state.start {
            Start::Slots => false,
            Start::Fenced { fence, outstanding } => {
                reached(&fence.positions) || outstanding.iter().any(|o| o.stream == stream && o.gone_at.is_some())
            }
            Start::FirstCut { .. } | Start::Over => {
                // Positions rise from round to round: whoever has passed the last one has passed all.
                self.state.discovery.rounds.back().is_some_and(|round| reached(&round.positions))
            }
        }
    }

    /// What `TakeFence` found; nothing when a server did not answer (it will be asked for again).
    pub fn handle_fence(&mut self, now: HybridTime, fence: Option<Fence>) {
        let Some(fence) = fence.filter(|fence| self.names_every_stream(&fence.positions)) else {
            self.fence = Asked::Failed;
            return;
        };
        self.fence = Asked::No;
        if self.state.start == Start::Slots {
            self.say(now, Item::Fence(fence));
            self.tell_heads(now);
            self.settle(now);
        }
    }

    /// Whether no stream was left out: the server of one that was could hold a branch.
    fn names_every_stream(&self, positions: &[(SourceTabletId, OpId)]) -> bool {
        let mut live = self.state.streams.iter().filter(|stream| !stream.left);
        live.all(|stream| positions.iter().any(|(named, _)| *named == stream.stream))
    }

    /// What `CheckPrepared` found to be gone, and a flush position read after that.
    pub fn handle_fence_resolved(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        transactions: Vec<SourceTransactionId>,
        position: OpId,
    ) {
        self.prepared = Asked::No;
        if !transactions.is_empty() {
            self.say(now, Item::FenceResolved { stream, transactions, position });
            self.tell_heads(now);
            self.settle(now);
        }
    }

    /// What `TakeRound` found; no positions when a server did not answer (it will be asked for again).
    pub fn handle_round(
        &mut self,
        now: HybridTime,
        begun_after: LogPosition,
        positions: Option<Vec<(SourceTabletId, OpId)>>,
    ) {
        let Some(positions) = positions.filter(|positions| self.names_every_stream(positions)) else {
            self.round = Asked::Failed;
            return;
        };
        self.round = Asked::No;
        self.say(now, Item::Round { begun_after, positions });
        self.tell_heads(now);
        self.settle(now);
    }

    /// Somebody waits for heads now: those that were heard and not worth an entry are.
    fn tell_heads(&mut self, now: HybridTime) {
        for (stream, head) in self.heads.clone() {
            let Some(record) = self.state.stream(stream) else { continue };
            if head > record.head {
                let (puller, at, acknowledged) = (record.puller, record.checkpoint, record.acknowledged);
                let report = Report { stream, puller, follows: at, upto: at, head, acknowledged, ..Report::default() };
                self.say(now, Item::Report(report));
            }
        }
    }

    /// How far a replica tablet is.
    pub fn handle_applied(&mut self, tablet: ReplicaTabletId, applied: Applied) {
        let known = self.tablets_applied.entry(tablet).or_default();
        *known = applied.applied.max(*known);
    }

    /// The poller of this stream stopped (or runs again): what `explain` says of whoever waits for it.
    pub fn handle_stream_stopped(&mut self, stream: SourceTabletId, cause: Option<String>) {
        match cause {
            Some(cause) => self.stopped.insert(stream, cause),
            None => self.stopped.remove(&stream),
        };
    }

    /// Time has passed: about every 100 ms. Never needed for a decision: for nudges, orphans, questions that failed, and to
    /// tell the log what the tablets applied when nothing else is said.
    pub fn handle_tick(&mut self, now: HybridTime) {
        for asked in [&mut self.round, &mut self.fence, &mut self.prepared] {
            if *asked == Asked::Failed {
                *asked = Asked::No;
            }
        }
        self.tell_applied(now);
        let since = |then: HybridTime| now.micros().saturating_sub(then.micros()) / 1000;
        if since(self.nudged) >= NUDGE_AFTER_MS
            && let Some(stream) = self.lagging_stream()
        {
            self.nudged = now;
            self.outputs.push_back(Output::Nudge { stream });
        }
        if let Start::Fenced { outstanding, .. } = &self.state.start
            && self.prepared == Asked::No
            && let Some(first) = outstanding.iter().find(|o| o.gone_at.is_none())
        {
            let stream = first.stream;
            let left = outstanding.iter().filter(|o| o.stream == stream && o.gone_at.is_none());
            let transactions = left.map(|o| o.transaction.clone()).collect();
            self.prepared = Asked::OnItsWay;
            self.outputs.push_back(Output::CheckPrepared { stream, transactions });
        }
        if self.state.release == Release::CommonClock && since(self.orphans_asked) >= ORPHAN_CHECK_AFTER_MS {
            self.orphans_asked = now;
            self.ask_for_orphans(now);
        }
    }

    /// The stream that has to come further before anything moves: the fence's or the oldest round's.
    fn lagging_stream(&self) -> Option<SourceTabletId> {
        if let Start::Fenced { fence, outstanding } = &self.state.start {
            let behind =
                |(stream, at): &&(SourceTabletId, OpId)| self.state.head(*stream).is_some_and(|head| head < *at);
            let gone = outstanding.iter().find(|o| o.gone_at.is_some()).map(|o| o.stream);
            return fence.positions.iter().find(behind).map(|(stream, _)| *stream).or(gone);
        }
        self.state.discovery.laggard(|stream| self.state.head(stream))
    }

    /// Asks about transactions that have been open for long and have no Commit record (C8). Age only makes us ask.
    fn ask_for_orphans(&mut self, now: HybridTime) {
        let old = |t: &&Transaction| {
            t.commit.is_none()
                && t.decision.is_none()
                && now.micros().saturating_sub(t.since.micros()) / 1000 >= ORPHAN_CHECK_AFTER_MS
        };
        let mut asked: BTreeMap<SourceTabletId, Vec<(TransactionId, SourceTransactionId)>> = BTreeMap::new();
        for transaction in self.state.transactions.iter().filter(old) {
            // Without its Created record nobody knows which stream would carry its Commit record: all are asked.
            let passed = self.state.not_running.get(&transaction.id);
            let carrier = self.state.carrier(transaction);
            let carries = |stream: SourceTabletId| carrier.is_none_or(|carrier| carrier == stream);
            let live = self.state.streams.iter().filter(|s| !s.left).map(|s| s.stream);
            for stream in live.filter(|s| carries(*s) && !passed.is_some_and(|passed| passed.contains(s))) {
                asked.entry(stream).or_default().push((transaction.id, transaction.source.clone()));
            }
        }
        for (stream, mut transactions) in asked {
            transactions.sort_unstable_by_key(|(id, _)| *id);
            transactions.truncate(ORPHAN_CHECK_MAX);
            let transactions = transactions.into_iter().map(|(_, source)| source).collect();
            self.outputs.push_back(Output::CheckRunning { stream, transactions });
        }
    }

    /// Puts into the log how far the tablets are.
    fn tell_applied(&mut self, now: HybridTime) {
        for (tablet, through) in self.tablets_applied.clone() {
            if self.state.applied.get(&tablet).is_some_and(|known| *known < through) {
                self.say(now, Item::Applied { tablet, through });
            }
        }
        self.settle(now);
    }

    /// The entry at this position is durable.
    pub fn handle_durable(&mut self, position: LogPosition) {
        self.durable = position;
        while let Some(point) = self.safe_pending.front().filter(|point| point.position <= position) {
            self.safe = Some(*point);
            self.safe_pending.pop_front();
        }
    }

    /// Says an item: folds it and puts it into the open entry.
    fn say(&mut self, now: HybridTime, item: Item) {
        if self.open.items.is_empty() {
            let position = self.state.position.next();
            self.open = Entry { epoch: self.state.epoch, position, time: now.max(self.state.time), items: Vec::new() };
            self.open_bytes = 0;
            self.state.begin_entry(position, now);
        }
        let before = self.state.work.len();
        self.state.fold(&item);
        // Folding an Applied item takes work off the front; what was taken had been yielded.
        self.work_yielded = self.work_yielded.saturating_sub(before.saturating_sub(self.state.work.len()));
        self.open_bytes += about_bytes(&item);
        self.open.items.push(item);
        if self.open_bytes >= ENTRY_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if !self.open.items.is_empty() {
            self.sealed.push_back(std::mem::take(&mut self.open));
        }
    }

    fn promise<T>(&self, value: T) -> Promise<T> {
        Promise { after: self.state.position, value }
    }

    /// Decides what may be decided, moves safe time, and opens the replica to readers.
    fn settle(&mut self, now: HybridTime) {
        while let Some(id) = self.state.agenda.candidates.pop_front() {
            let Some(transaction) = self.state.transactions.get(id).filter(|t| t.decision.is_none()) else { continue };
            let outcome = if transaction.doomed {
                Outcome::Abort
            } else {
                match self.state.missing(transaction) {
                    None => Outcome::Commit(self.commit_time(transaction, now)),
                    Some(Missing::Applying(_)) if !self.settings.gate => {
                        Outcome::Commit(self.commit_time(transaction, now))
                    }
                    Some(Missing::EarlierWrite(earlier)) => {
                        self.state.agenda.waiters.entry(earlier).or_default().insert(id);
                        continue;
                    }
                    Some(_) => continue,
                }
            };
            self.say(now, Item::Decision { transaction: id, outcome });
        }
        if let Some(time) = self.safe_time(now)
            && self.state.safe.is_none_or(|(_, known)| known < time)
        {
            self.say(now, Item::SafeTime { time });
            let position = self.state.position;
            self.safe_pending.push_back(ReadPoint { position, time });
        }
        if self.readable_from.is_none() && self.state.start == Start::Over {
            self.readable_from = Some(self.state.position);
        }
        debug_assert_eq!(super::invariants::broken(self), None);
    }

    /// The source's commit time where it has a common clock; else a time above every one in the log, close to the
    /// source's.
    fn commit_time(&self, transaction: &Transaction, now: HybridTime) -> HybridTime {
        let said = transaction.commit.as_ref().map_or(now, |commit| commit.time);
        match self.state.release {
            Release::CommonClock => said,
            Release::Ordered | Release::Atomic => self.state.last_time.next().max(said.min(now)),
        }
    }

    /// The largest hybrid time at which a read is complete (C9). Without a common clock it is the last commit's, and before
    /// the first one the time at which the start was over: later commits are given later ones.
    fn safe_time(&self, now: HybridTime) -> Option<HybridTime> {
        if self.state.release != Release::CommonClock {
            let nothing_yet = self.state.last_time == HybridTime::MIN;
            let time = if nothing_yet { now } else { self.state.last_time };
            return (self.state.start == Start::Over && !self.state.streams.is_empty()).then_some(time);
        }
        let mut live = self.state.streams.iter().filter(|stream| !stream.left).peekable();
        live.peek()?;
        let heard = live.map(|s| s.safe_time_heard.then_some(s.safe_time)).min()??;
        let undecided = self.state.undecided.first().map(|(time, _)| time.previous());
        Some(undecided.map_or(heard, |time| time.min(heard)))
    }

    /// The next entry to append, if there is anything to say. Everything before it was yielded earlier.
    pub fn poll_entry(&mut self) -> Option<Entry> {
        if self.sealed.is_empty() {
            self.seal();
        }
        self.sealed.pop_front()
    }

    /// The next thing to do, if there is one.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        while let Some((position, piece)) = self.state.work.get(self.work_yielded) {
            if *position > self.durable {
                break;
            }
            let (position, piece) = (*position, piece.clone());
            self.work_yielded += 1;
            self.hand_out(position, &piece);
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
        }
        if !self.state.discovery.unproved.is_empty()
            && self.round == Asked::No
            && matches!(self.state.start, Start::FirstCut { .. } | Start::Over)
        {
            self.round = Asked::OnItsWay;
            // What is heard from here on stands in a later entry: this round does not prove it.
            self.seal();
            return Some(Output::TakeRound { begun_after: self.state.position });
        }
        let mut live = self.state.streams.iter().filter(|stream| !stream.left).peekable();
        if self.state.start == Start::Slots
            && self.fence == Asked::No
            && live.peek().is_some()
            && live.all(|stream| stream.slot.is_some())
        {
            self.fence = Asked::OnItsWay;
            return Some(Output::TakeFence);
        }
        None
    }

    /// Turns a piece of work into one output for each tablet that has not durably done it.
    fn hand_out(&mut self, position: LogPosition, piece: &Piece) {
        let mut outputs = Vec::new();
        let mut hand = |tablet: ReplicaTabletId, work: Work| outputs.push((tablet, work));
        match piece {
            Piece::Discarded { branch, tablets } => {
                for tablet in tablets {
                    hand(*tablet, Work::Discard { branches: vec![*branch] });
                }
            }
            Piece::Decided(id) | Piece::Late { transaction: id, branch: _ } => {
                let Some(transaction) = self.state.transactions.get(*id) else { return };
                let Some(decision) = transaction.decision else { return };
                let late = match piece {
                    Piece::Late { branch, .. } => Some(*branch),
                    _ => None,
                };
                let mut branches: Vec<&Branch> =
                    transaction.branches.iter().filter(|b| late.is_none_or(|late| b.id() == late)).collect();
                branches.sort_unstable_by_key(|branch| branch.id());
                let tablets = transaction.tablets();
                for tablet in &tablets {
                    let here = branches.iter().filter(|b| b.tablets.contains(tablet)).map(|b| b.id());
                    let here: Vec<BranchId> = here.collect();
                    if here.is_empty() {
                        continue;
                    }
                    let work = match decision.outcome {
                        Outcome::Abort => Work::Discard { branches: here },
                        Outcome::Commit(time) => {
                            Work::Commit { transaction: *id, time, branches: here, tablets: tablets.to_vec() }
                        }
                    };
                    hand(*tablet, work);
                }
            }
        }
        for (tablet, work) in outputs {
            if self.state.applied.get(&tablet).is_none_or(|applied| *applied < position) {
                self.outputs.push_back(Output::Apply { tablet, decided: Decided { position, work } });
            }
        }
    }

    /// Everything up to here is durable.
    #[must_use]
    pub fn durable(&self) -> LogPosition {
        self.durable
    }

    /// The `latest` read point, once anything may be shown.
    #[must_use]
    pub fn latest(&self) -> Option<ReadPoint> {
        let begun = self.state.streams.is_empty() || self.readable_from.is_some_and(|from| from <= self.durable);
        begun.then_some(ReadPoint { position: self.durable, time: HybridTime::MAX })
    }

    /// The `safe` read point, once there is one: its safe time is durable. Without streams it is `latest`.
    #[must_use]
    pub fn safe(&self) -> Option<ReadPoint> {
        if self.state.streams.iter().all(|stream| stream.left) {
            return self.latest();
        }
        self.safe
    }

    /// The fold's state as of the last entry that was yielded or closed by this call, and that position: a snapshot once it
    /// is durable.
    ///
    /// # Errors
    /// See [`codec::encode`].
    pub fn snapshot(&mut self) -> Result<(LogPosition, Vec<u8>), CodecError> {
        self.seal();
        Ok((self.state.position, codec::encode(FORMAT_VERSION, &self.state)?))
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
                Fact::Commit { involved: super::fact::Involvement::Listed(listed), .. } => listed.len() * 8,
                Fact::NotRunning { transactions } => transactions.len() * 24,
                _ => 0,
            };
            40 + report.facts.iter().map(|fact| 40 + listed(fact)).sum::<usize>()
        }
        Item::Round { positions, .. } => 16 + positions.len() * 16,
        _ => 24,
    }
}
