//! The model's world: who may do what next, and what must hold in every state.

use super::source::{self, ALL, STREAMS, TABLETS, Txn, at, batch_at, batches, stream, tablet};
use super::tablets::{No, Tablet};
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use untorn::coordinator::{
    Applied, Coordinator, Decided, Entry, Item, Outcome, Output, ReadPoint, Report, Settings, invariants,
};
use untorn::wal::{BranchId, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId};

/// What the clock shows after so many steps of it: enough for whoever asks again only after a while.
fn clock(steps: u64) -> HybridTime {
    HybridTime::from_micros(1_000_000 + steps * 60_000_000)
}

/// Steps of the clock: nothing needs more to come to its end.
const STEPS: u64 = 4;

/// How much may go wrong in one history.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Deaths, losses and repetitions.
    pub faults: u8,
}

/// The protocol in its world.
pub struct Protocol {
    /// See there.
    pub bounds: Bounds,
}

/// A call on its way.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    /// A batch's writes for one tablet.
    Store { owner: Epoch, stream: usize, puller: Epoch, tablet: usize, follows: usize, upto: usize },
    /// A batch's facts.
    Report {
        stream: usize,
        puller: Epoch,
        follows: usize,
        upto: usize,
        acknowledged: usize,
        not_running: Vec<SourceTransactionId>,
    },
    /// Decisions.
    Apply { owner: Epoch, tablet: usize, follows: LogPosition, through: LogPosition, work: Vec<Decided> },
}

/// What may happen next.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// The leader recovers from its log.
    Recover,
    /// The append that is on its way becomes durable.
    LogDurable,
    /// A puller asks for its stream, and hears from the tablets what they hold.
    Open(usize),
    /// A call arrives; perhaps it will again.
    Arrive { place: usize, again: bool },
    /// A tablet makes everything durable and says so.
    Sync(usize),
    /// Nothing else happens for a while.
    Wait,
    /// A call is lost; its sender gives up.
    Lost(usize),
    /// The leader's process dies, and the append that was on its way lands or does not.
    LeaderDies { lands: bool },
    /// A tablet dies and starts again.
    TabletDies(usize),
}

/// A stream's puller, in the leader's process.
#[derive(Clone, PartialEq, Debug, Default)]
struct Puller {
    epoch: Epoch,
    /// The log holds the stream up to here.
    checkpoint: usize,
    /// The tablets hold it up to here.
    marks: [usize; TABLETS],
    /// The batch that is being stored or reported.
    working: Option<usize>,
    /// What its report waits for.
    promised: Option<LogPosition>,
    /// Whether its report is on its way.
    reporting: bool,
    /// What the source was told.
    told: usize,
    /// Transactions that the source is to be asked about. It has ended them all.
    asked: Vec<SourceTransactionId>,
}

/// Decisions for one tablet, kept until it has applied them durably.
#[derive(Clone, PartialEq, Debug, Default)]
struct Executor {
    heard: LogPosition,
    kept: VecDeque<Decided>,
    busy: bool,
}

#[derive(Clone, Debug)]
struct Leader {
    epoch: Epoch,
    machine: Coordinator,
    appending: Option<Entry>,
    pullers: [Option<Puller>; STREAMS],
    executors: [Executor; TABLETS],
}

/// Everything.
#[derive(Clone, Debug)]
pub struct World {
    log: Vec<Entry>,
    epochs: u64,
    leader: Option<Leader>,
    tablets: [Tablet; TABLETS],
    calls: Vec<Call>,
    /// What each source tablet was told that it may forget.
    forgotten: [usize; STREAMS],
    faults: u8,
    /// Steps of the clock.
    steps: u64,
    /// What went wrong in a step.
    broken: Option<String>,
}

impl Hash for World {
    /// The coordinator says in its debug form everything that it is.
    fn hash<H: Hasher>(&self, state: &mut H) {
        format!("{self:?}").hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

fn settings() -> Settings {
    Settings::default()
}

impl Leader {
    /// Takes the log over.
    fn recover(log: &[Entry], epoch: Epoch, now: HybridTime) -> Result<Self, String> {
        let mut machine = Coordinator::restore(settings(), None).map_err(|error| error.to_string())?;
        log.iter().try_for_each(|entry| machine.handle_replayed(entry)).map_err(|error| error.to_string())?;
        let names: Vec<_> = (0..TABLETS).map(|number| (format!("r{number}"), None)).collect();
        machine.handle_opened(now, epoch, "model", &names)?;
        for number in 0..STREAMS {
            machine.handle_stream_joined(now, &format!("s{number}"));
        }
        let mut leader =
            Self { epoch, machine, appending: None, pullers: Default::default(), executors: Default::default() };
        leader.append();
        Ok(leader)
    }

    fn append(&mut self) {
        if self.appending.is_none() {
            self.appending = self.machine.poll_entry();
        }
    }
}

impl World {
    fn new() -> Self {
        Self {
            log: Vec::new(),
            epochs: 0,
            leader: None,
            tablets: Default::default(),
            calls: Vec::new(),
            forgotten: [0; STREAMS],
            faults: 0,
            steps: 0,
            broken: None,
        }
    }

    fn send(&mut self, call: Call) {
        self.calls.push(call);
        // Calls arrive in any order, so their order here is no part of the state.
        self.calls.sort_by_cached_key(|call| format!("{call:?}"));
    }

    /// What needs no luck: the leader's outputs, decisions to idle tablets, the next batch of idle pullers.
    fn run_on(&mut self) {
        let Some(mut leader) = self.leader.take() else { return };
        leader.append();
        while let Some(output) = leader.machine.poll_output() {
            match output {
                Output::Apply { tablet, decided } => leader.executors[tablet.0 as usize].kept.push_back(decided),
                Output::CheckRunning { stream, transactions } => {
                    if let Some(puller) = &mut leader.pullers[stream.0 as usize] {
                        puller.asked = transactions;
                    }
                }
                _ => {}
            }
        }
        for number in 0..TABLETS {
            let through = leader.machine.handed_through(tablet(number));
            let executor = &mut leader.executors[number];
            if !executor.busy && through > executor.heard {
                let follows = executor.heard;
                let work = executor.kept.iter().filter(|decided| decided.position > follows).cloned().collect();
                executor.busy = true;
                self.send(Call::Apply { owner: leader.epoch, tablet: number, follows, through, work });
            }
        }
        let durable = leader.machine.durable();
        for number in 0..STREAMS {
            if let Some(puller) = &mut leader.pullers[number] {
                self.pull(number, leader.epoch, durable, puller);
            }
        }
        let broken = invariants::all_broken(&leader.machine);
        self.leader = Some(leader);
        if let Some(broken) = broken.into_iter().next() {
            self.broken = Some(broken);
        }
    }

    fn pull(&mut self, number: usize, owner: Epoch, durable: LogPosition, puller: &mut Puller) {
        let all = batches(number);
        if puller.promised.is_some_and(|promised| promised <= durable) {
            puller.checkpoint = puller.working.unwrap_or(puller.checkpoint);
            (puller.promised, puller.working, puller.reporting) = (None, None, false);
            self.forgotten[number] = self.forgotten[number].max(puller.checkpoint);
        }
        if puller.working.is_none() {
            let next = (puller.checkpoint + 1).min(all.len());
            if next == puller.checkpoint && puller.told == puller.checkpoint && puller.asked.is_empty() {
                return;
            }
            puller.working = Some(next);
            if next > puller.checkpoint {
                for to in tablets_of(number, next) {
                    let follows = puller.marks[to];
                    if follows < next {
                        let puller = puller.epoch;
                        self.send(Call::Store { owner, stream: number, puller, tablet: to, follows, upto: next });
                    }
                }
            }
        }
        let Some(upto) = puller.working else { return };
        let stored = upto == puller.checkpoint || tablets_of(number, upto).all(|to| puller.marks[to] >= upto);
        if stored && !puller.reporting {
            puller.reporting = true;
            puller.told = puller.checkpoint;
            self.send(Call::Report {
                stream: number,
                puller: puller.epoch,
                follows: puller.checkpoint,
                upto,
                acknowledged: puller.checkpoint,
            });
        }
    }

    fn arrive(&mut self, call: Call) {
        match call {
            Call::Store { owner, stream, puller, tablet, follows, upto } => {
                let branches: Vec<BranchId> = (follows + 1..=upto)
                    .flat_map(|position| batches(stream)[position - 1].writes.clone())
                    .filter_map(|write| (write.tablet == tablet).then_some(write.branch))
                    .collect();
                let stored = self.tablets[tablet].store(owner, (stream, puller), (follows, upto), &branches);
                self.answered(stream, puller, |held| match stored {
                    Ok(()) => {
                        held.marks[tablet] = upto;
                        true
                    }
                    Err(No::Fenced | No::HoldsOther) => false,
                });
            }
            Call::Report { stream: number, puller, follows, upto, acknowledged } => {
                let Some(leader) = &mut self.leader else { return };
                let report = report(number, puller, follows, upto, acknowledged);
                let promised = leader.machine.handle_report(clock(self.steps), report);
                self.answered(number, puller, |held| match promised {
                    Ok(promise) => {
                        held.promised = Some(promise.after);
                        true
                    }
                    Err(_) => false,
                });
            }
            Call::Apply { owner, tablet: number, follows, through, work } => {
                let done = self.tablets[number].apply(owner, follows, through, &work);
                let heard = self.tablets[number].held.heard;
                if let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == owner) {
                    match done {
                        Ok(()) | Err(No::HoldsOther) => {
                            leader.executors[number].heard = heard;
                            leader.executors[number].busy = false;
                        }
                        // Another owner is known there: this one ends.
                        Err(No::Fenced) => self.leader = None,
                    }
                }
            }
        }
    }

    /// A puller's call was answered; it gives its stream up where the answer is no.
    fn answered(&mut self, stream: usize, epoch: Epoch, goes_on: impl FnOnce(&mut Puller) -> bool) {
        let Some(leader) = &mut self.leader else { return };
        let held = &mut leader.pullers[stream];
        if let Some(puller) = held.as_mut().filter(|puller| puller.epoch == epoch)
            && !goes_on(puller)
        {
            *held = None;
        }
    }

    fn open(&mut self, number: usize) {
        let Some(leader) = &mut self.leader else { return };
        let opening = match leader.machine.handle_open_stream(clock(self.steps), &format!("s{number}")) {
            Ok(promise) => promise.value,
            Err(refused) => return self.broken = Some(refused.to_string()),
        };
        let checkpoint = batch_at(opening.checkpoint);
        if checkpoint < self.forgotten[number] {
            self.broken = Some(format!("s{number} is asked to go on after {checkpoint}, and forgot that"));
        }
        let mut puller =
            Puller { epoch: opening.puller, checkpoint, told: self.forgotten[number], ..Puller::default() };
        for (to, held) in self.tablets.iter_mut().enumerate() {
            let (seen, mark) = &mut held.streams[number];
            *seen = (*seen).max(opening.puller);
            held.owner = held.owner.max(leader.epoch);
            puller.marks[to] = *mark;
        }
        leader.pullers[number] = Some(puller);
    }

    fn announce(&mut self) {
        let Some(leader) = &mut self.leader else { return };
        for (number, held) in self.tablets.iter_mut().enumerate() {
            held.owner = held.owner.max(leader.epoch);
            leader.executors[number].heard = held.held.heard;
            let applied = Applied { heard: held.held.heard, applied: held.durable.heard };
            leader.machine.handle_applied(tablet(number), applied);
        }
    }

    fn sync(&mut self, number: usize) {
        let held = &mut self.tablets[number];
        held.durable = held.held.clone();
        let through = held.durable.heard;
        if let Some(leader) = &mut self.leader {
            leader.executors[number].kept.retain(|decided| decided.position > through);
            leader.machine.handle_applied(tablet(number), Applied { heard: through, applied: through });
            leader.machine.handle_tick(clock(self.steps));
        }
    }

    fn give_up(&mut self, call: &Call) {
        match call {
            Call::Store { stream, puller, .. } | Call::Report { stream, puller, .. } => {
                self.answered(*stream, *puller, |_| false);
            }
            Call::Apply { owner, tablet, .. } => {
                if let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == *owner) {
                    leader.executors[*tablet].busy = false;
                }
            }
        }
    }

    /// The decisions that the log holds.
    fn decided(&self) -> BTreeMap<Txn, (LogPosition, Outcome)> {
        let mut decided = BTreeMap::new();
        let Ok(mut fold) = Coordinator::restore(settings(), None) else { return decided };
        for entry in &self.log {
            if fold.handle_replayed(entry).is_err() {
                return decided;
            }
            for item in &entry.items {
                if let Item::Decision { transaction, outcome } = item
                    && let Some(found) = fold.state().transactions.get(*transaction)
                    && let Some(txn) = ALL.into_iter().find(|txn| txn.id() == found.source)
                {
                    decided.entry(txn).or_insert((entry.position, *outcome));
                }
            }
        }
        decided
    }

    fn read_points(&self) -> Vec<ReadPoint> {
        let Some(leader) = &self.leader else { return Vec::new() };
        leader.machine.latest().into_iter().chain(leader.machine.safe()).collect()
    }
}

fn tablets_of(stream: usize, position: usize) -> impl Iterator<Item = usize> {
    let written: BTreeSet<usize> = batches(stream)[position - 1].writes.iter().map(|write| write.tablet).collect();
    written.into_iter()
}

fn report(number: usize, puller: Epoch, follows: usize, upto: usize, acknowledged: usize) -> Report {
    let facts = if upto > follows { batches(number)[upto - 1].facts.clone() } else { Vec::new() };
    let stored: Vec<(ReplicaTabletId, OpId)> = match upto > follows {
        true => tablets_of(number, upto).map(|to| (tablet(to), at(upto))).collect(),
        false => Vec::new(),
    };
    let (follows, upto, acknowledged) = (at(follows), at(upto), at(acknowledged));
    Report { stream: stream(number), puller, follows, upto, head: OpId::ZERO, acknowledged, stored, facts }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let may_fail = world.faults < self.bounds.faults;
        for place in 0..world.calls.len() {
            actions.push(Action::Arrive { place, again: false });
            if may_fail {
                actions.push(Action::Arrive { place, again: true });
                actions.push(Action::Lost(place));
            }
        }
        for (number, tablet) in world.tablets.iter().enumerate() {
            if tablet.held != tablet.durable {
                actions.push(Action::Sync(number));
                if may_fail {
                    actions.push(Action::TabletDies(number));
                }
            }
        }
        let Some(leader) = &world.leader else {
            actions.push(Action::Recover);
            return;
        };
        if leader.appending.is_some() {
            actions.push(Action::LogDurable);
        }
        let opens = |number: &usize| leader.pullers[*number].is_none();
        actions.extend((0..STREAMS).filter(opens).map(Action::Open));
        if may_fail {
            actions.push(Action::LeaderDies { lands: false });
            if leader.appending.is_some() {
                actions.push(Action::LeaderDies { lands: true });
            }
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Recover => {
                world.epochs += 1;
                match Leader::recover(&world.log, Epoch(world.epochs), clock(world.steps)) {
                    Ok(leader) => world.leader = Some(leader),
                    Err(error) => world.broken = Some(error),
                }
                world.announce();
            }
            Action::LogDurable => {
                let leader = world.leader.as_mut()?;
                let entry = leader.appending.take()?;
                leader.machine.handle_durable(entry.position);
                world.log.push(entry);
            }
            Action::Open(number) => world.open(number),
            Action::Arrive { place, again } => {
                let call = if again { world.calls[place].clone() } else { world.calls.remove(place) };
                world.faults += u8::from(again);
                world.arrive(call);
            }
            Action::Sync(number) => world.sync(number),
            Action::Lost(place) => {
                let call = world.calls.remove(place);
                world.faults += 1;
                world.give_up(&call);
            }
            Action::LeaderDies { lands } => {
                let leader = world.leader.take()?;
                if lands {
                    world.log.push(leader.appending?);
                }
                world.faults += 1;
            }
            Action::TabletDies(number) => {
                let tablet = &mut world.tablets[number];
                tablet.held = tablet.durable.clone();
                world.faults += 1;
            }
        }
        world.run_on();
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the coordinator's invariants hold", |_, world: &World| world.broken.is_none()),
            Property::always(
                "a decision to commit comes when everything is stored, and is what the source said",
                |_, world: &World| {
                    world.decided().into_iter().all(|(txn, (_, outcome))| match (outcome, txn.time()) {
                        (Outcome::Commit(time), Some(said)) => {
                            time == said
                                && txn.branches().iter().all(|(branch, written)| {
                                    written.iter().all(|to| {
                                        let held = &world.tablets[*to].durable;
                                        held.provisional.contains(branch) || held.versions.contains_key(branch)
                                    })
                                })
                        }
                        (Outcome::Abort, None) => true,
                        _ => false,
                    })
                },
            ),
            Property::always("a read shows whole transactions", |_, world: &World| {
                let decided = world.decided();
                world
                    .read_points()
                    .into_iter()
                    .all(|point| ALL.into_iter().all(|txn| shows(world, point, txn, &decided)))
            }),
            Property::always("a safe read shows everything up to its time", |_, world: &World| {
                let Some(safe) = world.leader.as_ref().and_then(|leader| leader.machine.safe()) else { return true };
                let decided = world.decided();
                ALL.into_iter()
                    .filter(|txn| txn.time().is_some_and(|time| time <= safe.time))
                    .all(|txn| decided.get(&txn).is_some_and(|(position, _)| *position <= safe.position))
            }),
            Property::always("nothing stands still before everything has arrived", |protocol: &Self, world: &World| {
                let mut actions = Vec::new();
                protocol.actions(world, &mut actions);
                !actions.is_empty() || arrived(world)
            }),
        ]
    }
}

/// Whether a tablet that has heard enough shows the transaction exactly where it was decided at or below the point.
fn shows(world: &World, point: ReadPoint, txn: Txn, decided: &BTreeMap<Txn, (LogPosition, Outcome)>) -> bool {
    let inside = match decided.get(&txn) {
        Some((position, Outcome::Commit(time))) => *position <= point.position && *time <= point.time,
        _ => false,
    };
    txn.branches().into_iter().all(|(branch, written)| {
        written.into_iter().map(|to| &world.tablets[to].held).all(|held| {
            let seen = held
                .versions
                .get(&branch)
                .is_some_and(|(position, time)| *position <= point.position && *time <= point.time);
            held.heard < point.position || seen == inside
        })
    })
}

/// Whether everything is where it belongs, and nothing else is left.
fn arrived(world: &World) -> bool {
    let committed = |txn: &Txn| txn.time().is_some();
    let visible: BTreeSet<(usize, BranchId)> = ALL
        .into_iter()
        .filter(committed)
        .flat_map(Txn::branches)
        .flat_map(|(branch, written)| written.into_iter().map(move |to| (to, branch)))
        .collect();
    let seen = |(number, tablet): (usize, &Tablet)| -> Vec<(usize, BranchId)> {
        tablet.held.versions.keys().map(|branch| (number, *branch)).collect()
    };
    let shown: BTreeSet<(usize, BranchId)> = world.tablets.iter().enumerate().flat_map(seen).collect();
    let nothing_left = world.tablets.iter().all(|tablet| tablet.held.provisional.is_empty());
    let forgotten = world.leader.as_ref().is_some_and(|leader| leader.machine.state().transactions.len() == 0);
    shown == visible
        && nothing_left
        && forgotten
        && (0..STREAMS).all(|s| world.forgotten[s] == source::batches(s).len())
}
