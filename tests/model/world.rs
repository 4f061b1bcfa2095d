//! The model's world: what may happen next, and what must hold in every state.
//!
//! An append to the log is one step with the report that it carries: a leader that dies just before is one that never had the
//! report, and one that dies just after is one whose answer was lost.

use super::source::{ALL, STREAMS, TABLETS, Txn, at, batch_at, batches, stream, tablet};
use super::tablets::Tablet;
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use untorn::coordinator::{
    Applied, Coordinator, Decided, Fact, Item, Outcome, Output, ReadPoint, Report, Settings, invariants,
};
use untorn::planted::{Bug, plant};
use untorn::wal::{BranchId, Epoch, HybridTime, LogPosition, OpId, SourceTransactionId};

/// What the clock shows after so many waits: it moves only where nothing else does, because nothing but a question that is
/// asked again depends on it.
fn clock(waits: u64) -> HybridTime {
    HybridTime::from_micros(1_000_000 + waits * 60_000_000)
}

/// Waits after which everything must have come to its end.
const WAITS: u64 = 3;

/// The protocol in its world.
pub struct Protocol {
    /// How often the leader may die in one history. Tablets may die at any time.
    pub deaths: u64,
    /// A mistake that is planted in the coordinator.
    pub bug: Option<Bug>,
}

/// What may happen next.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action {
    /// A replica tablet stores its part of a stream's next batch.
    Store { stream: usize, tablet: usize },
    /// The next batch's facts are reported and appended; after the last, what was acknowledged to the source is.
    Report { stream: usize },
    /// A report arrives that was taken before, or is a replaced puller's.
    ReportAgain { stream: usize, upto: usize, puller: Epoch },
    /// A tablet hears its next decision.
    Hear { tablet: usize },
    /// A tablet makes everything durable and says so.
    Sync { tablet: usize },
    /// A tablet dies and starts again: what it only heard is gone.
    TabletDies { tablet: usize },
    /// The source answers that it does not know the transactions that it was asked about.
    Answer { stream: usize },
    /// Nothing else happens for a while.
    Wait,
    /// The leader dies, and another recovers from the log.
    LeaderDies,
}

/// Everything.
#[derive(Clone, Debug)]
pub struct World {
    leader: Coordinator,
    epoch: Epoch,
    deaths: u64,
    waits: u64,
    tablets: [Tablet; TABLETS],
    /// Decisions handed to each tablet, until it has durably applied them.
    kept: [Vec<Decided>; TABLETS],
    /// What each tablet last said that it had durably applied.
    said: [LogPosition; TABLETS],
    pullers: [Epoch; STREAMS],
    /// Transactions that the source is asked about: it has ended them all.
    asked: [Vec<SourceTransactionId>; STREAMS],
    /// How many batches of each stream the log holds.
    checkpoints: [usize; STREAMS],
    /// What each source tablet may have forgotten.
    forgotten: [usize; STREAMS],
    /// The decisions that the log holds.
    decided: BTreeMap<Txn, (LogPosition, Outcome)>,
    broken: Option<String>,
}

/// What is written goes into a hash.
struct Hashed<'h, H>(&'h mut H);

impl<H: Hasher> fmt::Write for Hashed<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The coordinator says in its debug form everything that it is.
        let _ = fmt::write(&mut Hashed(state), format_args!("{self:?}"));
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            leader: Coordinator::restore(Settings::default(), None).unwrap(),
            epoch: Epoch(0),
            deaths: 0,
            waits: 0,
            asked: Default::default(),
            tablets: Default::default(),
            kept: Default::default(),
            said: Default::default(),
            pullers: Default::default(),
            checkpoints: Default::default(),
            forgotten: Default::default(),
            decided: BTreeMap::new(),
            broken: None,
        };
        world.recover();
        world
    }

    fn now(&self) -> HybridTime {
        clock(self.waits)
    }

    /// A leader takes the log over.
    fn recover(&mut self) {
        let (position, bytes) = self.leader.snapshot().unwrap();
        let snapshot = (position > LogPosition(0)).then_some((position, &bytes[..]));
        self.leader = Coordinator::restore(Settings::default(), snapshot).unwrap();
        self.epoch.0 += 1;
        let names: Vec<_> = (0..TABLETS).map(|number| (format!("r{number}"), None)).collect();
        self.leader.handle_opened(self.now(), self.epoch, "model", &names).unwrap();
        let streams: Vec<String> = (0..STREAMS).map(|number| format!("s{number}")).collect();
        self.leader.handle_configured(self.now(), &streams.iter().map(String::as_str).collect::<Vec<_>>());
        self.kept = Default::default();
        self.asked = Default::default();
        for number in 0..TABLETS {
            self.tablets[number].owner = self.epoch;
            self.announce(number);
        }
        for (number, name) in streams.iter().enumerate() {
            let opened = self.leader.handle_open_stream(self.now(), name).unwrap().value;
            self.pullers[number] = opened.puller;
            self.tablets.iter_mut().for_each(|tablet| tablet.streams[number].0 = opened.puller);
            if batch_at(opened.checkpoint) != self.checkpoints[number] {
                self.broken = Some(format!("s{number} goes on after {}", opened.checkpoint));
            }
        }
        self.run_on();
    }

    /// A tablet says what it has heard and durably applied.
    fn announce(&mut self, number: usize) {
        let Tablet { held, durable, .. } = &self.tablets[number];
        self.said[number] = durable.heard;
        self.kept[number].retain(|decided| decided.position > durable.heard);
        self.leader.handle_applied(tablet(number), Applied { heard: held.heard, applied: durable.heard });
        self.leader.handle_tick(self.now());
    }

    /// What follows by itself: the log takes what the leader says, and the leader's outputs go out.
    fn run_on(&mut self) {
        while let Some(entry) = self.leader.poll_entry() {
            for item in &entry.items {
                let Item::Decision { transaction, outcome } = item else { continue };
                let found = self.leader.state().transactions.get(*transaction);
                let txn = found.and_then(|found| ALL.into_iter().find(|txn| txn.id() == found.source));
                match (txn, outcome) {
                    (Some(txn), _) => {
                        let earlier = self.decided.insert(txn, (entry.position, *outcome));
                        // What was aborted and forgotten may be begun and aborted again.
                        if earlier.is_some_and(|(_, before)| before != *outcome || before != Outcome::Abort) {
                            self.broken = Some(format!("{txn:?} is decided again at {}", entry.position));
                        }
                    }
                    (None, Outcome::Abort) => {}
                    (None, Outcome::Commit(_)) => {
                        self.broken = Some(format!("{transaction} is committed and not held"))
                    }
                }
            }
            self.leader.handle_durable(entry.position);
        }
        while let Some(output) = self.leader.poll_output() {
            match output {
                Output::Apply { tablet, decided } => self.kept[tablet.0 as usize].push(decided),
                Output::CheckRunning { stream, transactions } => self.asked[stream.0 as usize] = transactions,
                _ => {}
            }
        }
        if let Some(broken) = invariants::all_broken(&self.leader).into_iter().next() {
            self.broken = Some(broken);
        }
    }

    /// A report up to a batch; without new facts where the batch is `follows`.
    fn report(&self, number: usize, puller: Epoch, follows: usize, upto: usize) -> Report {
        let (mut facts, mut stored) = (Vec::new(), Vec::new());
        if upto > follows {
            facts = batches(number)[upto - 1].facts.clone();
            stored = tablets_of(number, upto).map(|to| (tablet(to), at(upto))).collect();
        }
        let acknowledged = at(follows);
        Report {
            stream: stream(number),
            puller,
            follows: at(follows),
            upto: at(upto),
            head: OpId::ZERO,
            acknowledged,
            stored,
            facts,
        }
    }

    /// The next batch of a stream, and whether a tablet lacks its part of it.
    fn next_batch(&self, number: usize) -> Option<usize> {
        (self.checkpoints[number] < batches(number).len()).then_some(self.checkpoints[number] + 1)
    }

    fn lacks(&self, number: usize, upto: usize, to: usize) -> bool {
        self.tablets[to].streams[number].1 < upto
    }

    /// The position of the decisions that a tablet hears next.
    fn next_heard(&self, number: usize) -> Option<LogPosition> {
        let heard = self.tablets[number].held.heard;
        self.kept[number].iter().map(|decided| decided.position).find(|position| *position > heard)
    }

    /// What brings the world further.
    fn progress(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for stream in 0..STREAMS {
            let Some(next) = self.next_batch(stream) else {
                if self.forgotten[stream] < self.checkpoints[stream] {
                    actions.push(Action::Report { stream });
                } else if !self.asked[stream].is_empty() {
                    actions.push(Action::Answer { stream });
                }
                continue;
            };
            let lacking: Vec<usize> = tablets_of(stream, next).filter(|to| self.lacks(stream, next, *to)).collect();
            if lacking.is_empty() {
                actions.push(Action::Report { stream });
            }
            actions.extend(lacking.into_iter().map(|tablet| Action::Store { stream, tablet }));
        }
        for (number, Tablet { held, durable, .. }) in self.tablets.iter().enumerate() {
            if self.next_heard(number).is_some() {
                actions.push(Action::Hear { tablet: number });
            }
            if held != durable || self.said[number] < durable.heard {
                actions.push(Action::Sync { tablet: number });
            }
        }
        if actions.is_empty() && !self.arrived() && self.waits < WAITS {
            actions.push(Action::Wait);
        }
        actions
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Store { stream, tablet } => {
                let Some(upto) = self.next_batch(stream) else { return };
                let writes = batches(stream)[upto - 1].writes.clone();
                let here = writes.into_iter().filter(|write| write.tablet == tablet).map(|write| write.branch);
                let follows = self.tablets[tablet].streams[stream].1;
                let puller = (stream, self.pullers[stream]);
                let branches: Vec<BranchId> = here.collect();
                if self.tablets[tablet].store(self.epoch, puller, (follows, upto), &branches).is_err() {
                    self.broken = Some(format!("tablet {tablet} refuses its owner"));
                }
            }
            Action::Report { stream } => {
                let follows = self.checkpoints[stream];
                let upto = self.next_batch(stream).unwrap_or(follows);
                let report = self.report(stream, self.pullers[stream], follows, upto);
                if let Err(refused) = self.leader.handle_report(self.now(), report) {
                    self.broken = Some(format!("s{stream} stops: {refused}"));
                }
                self.forgotten[stream] = follows;
                self.checkpoints[stream] = upto;
            }
            Action::ReportAgain { stream, upto, puller } => {
                let report = self.report(stream, puller, upto - 1, upto);
                if self.leader.handle_report(self.now(), report).is_ok() {
                    self.broken = Some(format!("the report of s{stream} up to {upto} by {puller} is taken again"));
                }
            }
            Action::Hear { tablet } => {
                let Some(through) = self.next_heard(tablet) else { return };
                let kept = self.kept[tablet].iter();
                let work: Vec<Decided> = kept.filter(|decided| decided.position == through).cloned().collect();
                let follows = self.tablets[tablet].held.heard;
                if self.tablets[tablet].apply(self.epoch, follows, through, &work).is_err() {
                    self.broken = Some(format!("tablet {tablet} refuses decisions"));
                }
            }
            Action::Sync { tablet } => {
                self.tablets[tablet].durable = self.tablets[tablet].held.clone();
                self.announce(tablet);
            }
            Action::TabletDies { tablet } => {
                self.tablets[tablet].held = self.tablets[tablet].durable.clone();
                self.announce(tablet);
            }
            Action::Answer { stream } => {
                let held = self.checkpoints[stream];
                let transactions = std::mem::take(&mut self.asked[stream]);
                let mut report = self.report(stream, self.pullers[stream], held, held);
                report.facts.push(Fact::NotRunning { transactions });
                if let Err(refused) = self.leader.handle_report(self.now(), report) {
                    self.broken = Some(format!("s{stream} stops: {refused}"));
                }
            }
            Action::Wait => {
                self.waits += 1;
                self.leader.handle_tick(self.now());
            }
            Action::LeaderDies => {
                self.deaths += 1;
                self.recover();
            }
        }
        self.run_on();
    }

    fn read_points(&self) -> impl Iterator<Item = ReadPoint> {
        self.leader.latest().into_iter().chain(self.leader.safe())
    }

    /// Whether every tablet that has heard every decision up to the point shows the transaction exactly where the point lies behind its decision.
    fn shows(&self, point: ReadPoint, txn: Txn) -> bool {
        let below = |position: LogPosition, time: HybridTime| position <= point.position && time <= point.time;
        let inside = match self.decided.get(&txn) {
            Some((position, Outcome::Commit(time))) => below(*position, *time),
            _ => false,
        };
        txn.branches().into_iter().all(|(branch, written)| {
            written.into_iter().all(|to| {
                let seen = self.tablets[to].held.versions.get(&branch);
                let seen = seen.is_some_and(|(position, time)| below(*position, *time));
                let waits = self.next_heard(to).is_some_and(|position| position <= point.position);
                waits || seen == inside
            })
        })
    }

    /// Whether a decision is what the source said, and rests on what is stored.
    fn rests(&self, txn: Txn, outcome: Outcome) -> bool {
        match (outcome, txn.time()) {
            (Outcome::Commit(time), Some(said)) => {
                let stored = |branch: BranchId, to: usize| {
                    let held = &self.tablets[to].durable;
                    held.provisional.contains(&branch) || held.versions.contains_key(&branch)
                };
                let whole =
                    |(branch, written): (BranchId, BTreeSet<usize>)| written.into_iter().all(|to| stored(branch, to));
                time == said && txn.branches().into_iter().all(whole)
            }
            (Outcome::Abort, None) => true,
            _ => false,
        }
    }

    /// Whether everything is where it belongs, and nothing else is left.
    fn arrived(&self) -> bool {
        let committed = ALL.into_iter().filter(|txn| txn.time().is_some()).flat_map(Txn::branches);
        let visible: BTreeSet<(usize, BranchId)> =
            committed.flat_map(|(branch, written)| written.into_iter().map(move |to| (to, branch))).collect();
        let shown: BTreeSet<(usize, BranchId)> = (0..TABLETS)
            .flat_map(|number| self.tablets[number].held.versions.keys().map(move |branch| (number, *branch)))
            .collect();
        shown == visible
            && self.tablets.iter().all(|tablet| tablet.held.provisional.is_empty())
            && self.leader.state().transactions.is_empty()
            && (0..STREAMS).all(|number| self.forgotten[number] == batches(number).len())
    }
}

/// The replica tablets that a batch writes to.
fn tablets_of(stream: usize, batch: usize) -> impl Iterator<Item = usize> {
    let written: BTreeSet<usize> = batches(stream)[batch - 1].writes.iter().map(|write| write.tablet).collect();
    written.into_iter()
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        plant(self.bug);
        vec![World::new()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        plant(self.bug);
        if world.broken.is_some() {
            return;
        }
        actions.extend(world.progress());
        for (number, held) in world.tablets.iter().enumerate() {
            if held.held != held.durable {
                actions.push(Action::TabletDies { tablet: number });
            }
        }
        for stream in 0..STREAMS {
            let (checkpoint, puller) = (world.checkpoints[stream], world.pullers[stream]);
            if checkpoint > 0 {
                actions.push(Action::ReportAgain { stream, upto: checkpoint, puller });
            }
            if let Some(upto) = world.next_batch(stream).filter(|_| world.deaths > 0) {
                actions.push(Action::ReportAgain { stream, upto, puller: Epoch(puller.0 - 1) });
            }
        }
        if world.deaths < self.deaths {
            actions.push(Action::LeaderDies);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        plant(self.bug);
        let mut world = before.clone();
        if catch_unwind(AssertUnwindSafe(|| world.step(action))).is_err() {
            world.broken = Some("the coordinator panics".into());
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the invariants hold, and nobody is refused", |_, world: &World| world.broken.is_none()),
            Property::always("a decision is the source's, and rests on what is durable", |_, world: &World| {
                world.decided.iter().all(|(txn, (_, outcome))| world.rests(*txn, *outcome))
            }),
            Property::always("a read shows whole transactions", |_, world: &World| {
                world.read_points().all(|point| ALL.into_iter().all(|txn| world.shows(point, txn)))
            }),
            Property::always("a safe read shows everything up to its time", |_, world: &World| {
                let Some(safe) = world.leader.safe() else { return true };
                let committed = ALL.into_iter().filter(|txn| txn.time().is_some_and(|time| time <= safe.time));
                let mut positions = committed.map(|txn| world.decided.get(&txn).map(|(position, _)| *position));
                positions.all(|position| position.is_some_and(|position| position <= safe.position))
            }),
            Property::always("nothing stands still before everything has arrived", |_, world: &World| {
                world.broken.is_some() || !world.progress().is_empty() || world.arrived()
            }),
        ]
    }
}
