//! The coordinator against a naive model: random histories of a source, random interleavings of its streams, entries that
//! become durable late, crashes with the last entries lost or kept, reports sent again. The model knows the whole history
//! and compares pair by pair.

use proptest::prelude::{ProptestConfig, Strategy, any, prop, proptest};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use untorn::coordinator::{
    Applied, ApplyingFact, Coordinator, Entry, Fact, Fence, InvolvedStream, Involvement, Item, Outcome, Output,
    Promise, ReadPoint, Refused, Release, Report, Settings, Work, invariants,
};
use untorn::wal::{
    BranchId, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TransactionId,
};

const TABLETS: u32 = 3;

fn at(position: usize) -> OpId {
    OpId::new(position as u64, 0)
}

fn micros(time: usize) -> HybridTime {
    HybridTime::from_micros(time as u64)
}

fn stream(number: usize) -> SourceTabletId {
    SourceTabletId(number as u32)
}

/// One use of a source id: what really happened.
#[derive(Clone, Debug, Default)]
struct Use {
    /// Its branches and the tablets that each wrote to.
    branches: BTreeMap<BranchId, BTreeSet<ReplicaTabletId>>,
    /// When it was committed; none: aborted.
    committed: Option<HybridTime>,
    /// Its first and last place in each stream (PREPARE or ordinary commit, and commit).
    places: BTreeMap<usize, (usize, usize)>,
}

/// What the source did, and what each of its streams carries: the facts of each position, 1, 2, 3, …, and when each was
/// written.
#[derive(Clone, Debug)]
struct History {
    release: Release,
    /// What was really written, before any slot was made.
    servers: Vec<Vec<(usize, Vec<Fact>)>>,
    /// Where each stream's slot starts; all of them stand at `begun`.
    starts: Vec<usize>,
    begun: usize,
    streams: Vec<Vec<(usize, Vec<Fact>)>>,
    uses: Vec<Use>,
    end: usize,
}

/// What a branch is like: drawn at random.
#[derive(Clone, Debug)]
struct Plan {
    streams: Vec<bool>,
    home: usize,
    tablets: u8,
    records: u64,
    commits: bool,
    counts: bool,
    twice: bool,
    name: u8,
    draws: Vec<u16>,
}

fn plans(streams: usize) -> impl Strategy<Value = Vec<Plan>> {
    let plan = (
        prop::collection::vec(any::<bool>(), streams),
        0..streams,
        1u8..8,
        1u64..4,
        (prop::bool::weighted(0.8), any::<bool>(), any::<bool>()),
        0u8..4,
        prop::collection::vec(any::<u16>(), 24),
    );
    let plan = plan.prop_map(|(streams, home, tablets, records, (commits, counts, twice), name, draws)| Plan {
        streams,
        home,
        tablets,
        records,
        commits,
        counts,
        twice,
        name,
        draws,
    });
    prop::collection::vec(plan, 1..12)
}

impl Plan {
    fn involved(&self) -> Vec<usize> {
        let mut involved: Vec<usize> = (0..self.streams.len()).filter(|s| self.streams[*s]).collect();
        if involved.is_empty() {
            involved.push(self.home);
        }
        involved
    }

    fn tablets(&self) -> Vec<ReplicaTabletId> {
        (0..TABLETS).filter(|tablet| self.tablets & (1 << tablet) != 0).map(ReplicaTabletId).collect()
    }
}

/// A source with a common clock: each stream carries its parts of the transactions in any order that its own rules allow.
fn common_clock(plans: &[Plan], streams: usize) -> History {
    let mut uses = vec![Use::default(); plans.len()];
    let mut carried = vec![Vec::new(); streams];
    for (number, carries) in carried.iter_mut().enumerate() {
        // The pieces of each transaction in this stream, in order; the next one is drawn until none is left.
        let mut left: Vec<VecDeque<&str>> = plans.iter().map(|plan| pieces(plan, number)).collect();
        let mut draw = 0;
        let mut opened: BTreeMap<usize, usize> = BTreeMap::new();
        while left.iter().any(|pieces| !pieces.is_empty()) {
            let open: Vec<usize> = (0..plans.len()).filter(|t| !left[*t].is_empty()).collect();
            let chosen = open[plans[draw % plans.len()].draws[draw % 24] as usize % open.len()];
            draw += 1;
            let position = carries.len() + 1;
            let piece = left[chosen].pop_front().unwrap_or_default();
            let mut facts = vec![common_clock_fact(plans, chosen, piece, position, &mut opened)];
            if let Fact::Branch { opened, tablets, .. } = &facts[0] {
                let branch = BranchId { stream: stream(number), opened: *opened };
                uses[chosen].branches.entry(branch).or_default().extend(tablets);
            }
            // Nothing below the first commit that is still to be spoken of will come.
            let undone = (0..plans.len()).filter(|t| !left[*t].is_empty() && plans[*t].commits).min();
            if draw.is_multiple_of(3) {
                facts.push(Fact::SafeTime { time: undone.map_or(micros(10_000), |t| micros(100 + t).previous()) });
            }
            carries.push((0, facts));
        }
        carries.push((0, vec![Fact::SafeTime { time: micros(10_000) }]));
    }
    for (number, plan) in plans.iter().enumerate() {
        uses[number].committed = plan.commits.then(|| micros(100 + number));
    }
    let starts = vec![0; streams];
    History {
        release: Release::CommonClock,
        servers: carried.clone(),
        starts,
        begun: 0,
        streams: carried,
        uses,
        end: 0,
    }
}

fn pieces(plan: &Plan, number: usize) -> VecDeque<&'static str> {
    let mut pieces = VecDeque::new();
    if plan.home == number {
        pieces.push_back("created");
    }
    if plan.involved().contains(&number) {
        pieces.extend(["wrote", "wrote"]);
        if plan.commits {
            pieces.push_back("applying");
        }
        if plan.commits && plan.twice {
            pieces.push_back("applying");
        }
    }
    if plan.home == number {
        pieces.push_back(if plan.commits { "commit" } else { "aborted" });
    } else if plan.commits && plan.twice {
        pieces.push_back("commit");
    }
    pieces
}

fn common_clock_fact(
    plans: &[Plan],
    chosen: usize,
    piece: &str,
    position: usize,
    opened: &mut BTreeMap<usize, usize>,
) -> Fact {
    let plan = &plans[chosen];
    let transaction = SourceTransactionId::first(&[chosen as u8]);
    let all = plan.records * 2;
    match piece {
        "created" => Fact::Created { transaction, at: at(position) },
        "aborted" => Fact::Aborted { transaction, branch: None, at: at(position) },
        "commit" => {
            let records = plan.counts.then_some(all);
            let involved = plan.involved().into_iter().map(|s| InvolvedStream { stream: stream(s), records });
            let involved = Involvement::Listed(involved.collect());
            Fact::Commit { transaction, branch: None, at: at(position), time: micros(100 + chosen), involved }
        }
        piece => {
            let opened = at(*opened.entry(chosen).or_insert(position));
            let applying = (piece == "applying").then(|| ApplyingFact {
                at: at(position),
                records: plan.counts.then_some(all),
                ..ApplyingFact::default()
            });
            let (records, tablets) = if applying.is_some() { (0, vec![]) } else { (plan.records, plan.tablets()) };
            Fact::Branch { transaction, opened, records, tablets, after: vec![], applying }
        }
    }
}

/// Several servers without a common clock: two-phase and ordinary commits, rollbacks, ids used again, in the order of
/// real time. Whoever prepares everything does so before anything commits.
fn two_phase(plans: &[Plan], streams: usize, release: Release) -> History {
    #[derive(Clone)]
    struct Running {
        plan: usize,
        prepares: Vec<usize>,
        ends: Vec<usize>,
        opened: BTreeMap<usize, usize>,
    }
    let mut carried: Vec<Vec<(usize, Vec<Fact>)>> = vec![Vec::new(); streams];
    let mut uses = vec![Use::default(); plans.len()];
    let mut waiting: VecDeque<usize> = (0..plans.len()).collect();
    let mut running: Vec<Running> = Vec::new();
    let (mut now, mut draw) = (0, 0);
    while !waiting.is_empty() || !running.is_empty() {
        now += 10;
        let random = plans[draw % plans.len()].draws[draw % 24] as usize;
        draw += 1;
        let in_use = |name: u8| running.iter().any(|r| plans[r.plan].name == name);
        let next = waiting.front().copied().filter(|plan| !in_use(plans[*plan].name));
        if running.is_empty() || (random.is_multiple_of(3) && next.is_some()) {
            let Some(plan) = next else { continue };
            waiting.pop_front();
            let prepares = plans[plan].involved();
            running.push(Running { plan, ends: prepares.clone(), prepares, opened: BTreeMap::new() });
            continue;
        }
        let chosen = random % running.len();
        let one = &mut running[chosen];
        let plan = &plans[one.plan];
        let ordinary = plan.twice && plan.commits && plan.involved().len() == 1;
        // An ordinary commit has an id of its own, a gid may be used again.
        let name = if ordinary { [b'x', one.plan as u8] } else { [b'g', plan.name] };
        let transaction = SourceTransactionId::first(&name);
        let prepare = !one.prepares.is_empty();
        let queue = if prepare { &mut one.prepares } else { &mut one.ends };
        let s = queue.remove(random / 7 % queue.len());
        let position = carried[s].len() + 1;
        let mut facts = Vec::new();
        if prepare {
            one.opened.insert(s, position);
            let applying = Some(ApplyingFact { at: at(position), prepared_at: micros(now), ..ApplyingFact::default() });
            let (records, tablets, opened) = (plan.records, plan.tablets(), at(position));
            uses[one.plan].branches.insert(BranchId { stream: stream(s), opened }, tablets.iter().copied().collect());
            uses[one.plan].places.insert(s, (position, position));
            let transaction = transaction.clone();
            facts.push(Fact::Branch { transaction, opened, records, tablets, after: vec![], applying });
        }
        if !prepare || ordinary {
            one.ends.retain(|end| *end != s);
            let branch = one.opened.get(&s).map(|opened| at(*opened));
            if let Some(place) = uses[one.plan].places.get_mut(&s) {
                place.1 = position;
            }
            if plan.commits {
                uses[one.plan].committed.get_or_insert(micros(now));
                let involved = if ordinary { Involvement::OnlyThisStream } else { Involvement::Discovered };
                facts.push(Fact::Commit { transaction, branch, at: at(position), time: micros(now), involved });
            } else {
                facts.push(Fact::Aborted { transaction, branch, at: at(position) });
            }
        }
        carried[s].push((now, facts));
        if one.prepares.is_empty() && one.ends.is_empty() {
            running.remove(chosen);
        }
    }
    let starts = vec![0; streams];
    History { release, servers: carried.clone(), starts, begun: 0, streams: carried, uses, end: now }
}

/// Slots that are made while the servers work: what ended at or below a slot's start is in the copy, and a branch that was
/// prepared before it comes late, in the place of its COMMIT PREPARED (trace 28).
fn with_slots(mut history: History, starts: &[u8]) -> History {
    for (s, start) in starts.iter().enumerate() {
        let start = *start as usize % (history.servers[s].len() + 1);
        history.starts[s] = start;
        let begun = history.servers[s][..start].last().map_or(0, |(written, _)| *written);
        history.begun = history.begun.max(begun);
        for position in 1..=start {
            let facts = std::mem::take(&mut history.streams[s][position - 1].1);
            let Some(Fact::Branch { opened, .. }) = facts.first() else { continue };
            let before = BranchId { stream: stream(s), opened: *opened };
            let Some(one) = history.uses.iter_mut().find(|one| one.branches.contains_key(&before)) else { continue };
            let tablets = one.branches.remove(&before).unwrap_or_default();
            let end = one.places.get(&s).map_or(0, |(_, end)| *end);
            one.places.remove(&s);
            if end > start {
                let late = &mut history.streams[s][end - 1].1;
                if one.committed.is_some() {
                    one.branches.insert(BranchId { stream: stream(s), opened: at(end) }, tablets);
                    // It was really prepared before everything that the stream carries.
                    one.places.insert(s, (0, end));
                    late.insert(0, facts[0].clone());
                    late.iter_mut().for_each(|fact| take_place(fact, at(end)));
                } else {
                    late.clear();
                }
            }
        }
    }
    history
}

fn take_place(fact: &mut Fact, end: OpId) {
    match fact {
        Fact::Branch { opened, applying: Some(applying), .. } => (*opened, applying.at) = (end, end),
        Fact::Commit { branch, .. } => *branch = Some(end),
        _ => {}
    }
}

/// The branches of a transaction that each tablet was told to commit.
type Parts = BTreeMap<ReplicaTabletId, BTreeSet<BranchId>>;

/// The machine with the log under it and the poller of each stream.
struct Run<'h> {
    history: &'h History,
    settings: Settings,
    machine: Coordinator,
    epoch: u64,
    log: Vec<Entry>,
    pending: VecDeque<Entry>,
    pullers: Vec<Epoch>,
    checkpoints: Vec<usize>,
    promises: Vec<(usize, Promise<OpId>)>,
    acknowledged: Vec<usize>,
    /// How far the source's history has gone.
    source_now: usize,
    round: Option<(LogPosition, usize)>,
    fence: Option<usize>,
    prepared: Vec<(SourceTabletId, Vec<SourceTransactionId>)>,
    /// Asked whether they still run; answered when everything is delivered, when nothing does.
    running: Vec<(SourceTabletId, Vec<SourceTransactionId>)>,
    /// Microseconds that passed after the history's end.
    later: usize,
    commits: BTreeMap<TransactionId, (LogPosition, HybridTime, Parts)>,
    discarded: BTreeSet<(ReplicaTabletId, BranchId)>,
    /// Where readers could begin first.
    readable_from: Option<LogPosition>,
    safe: Option<ReadPoint>,
    safes: Vec<ReadPoint>,
}

impl<'h> Run<'h> {
    fn new(history: &'h History) -> Self {
        let settings = Settings { release: history.release, clock_skew_micros: 0, ..Settings::default() };
        let count = history.streams.len();
        let machine = Coordinator::restore(settings.clone(), None).unwrap();
        let mut run = Self {
            history,
            settings,
            machine,
            epoch: 0,
            log: Vec::new(),
            pending: VecDeque::new(),
            pullers: vec![Epoch(0); count],
            checkpoints: vec![0; count],
            promises: Vec::new(),
            acknowledged: vec![0; count],
            source_now: history.begun,
            round: None,
            fence: None,
            prepared: Vec::new(),
            running: Vec::new(),
            later: 0,
            commits: BTreeMap::new(),
            discarded: BTreeSet::new(),
            readable_from: None,
            safe: None,
            safes: Vec::new(),
        };
        run.open();
        run
    }

    fn now(&self) -> HybridTime {
        micros(1000 + self.source_now + self.later)
    }

    fn open(&mut self) {
        self.machine = replay(&self.settings, None, &self.log);
        (self.round, self.fence) = (None, None);
        self.prepared.clear();
        self.running.clear();
        self.promises.clear();
        self.pending.clear();
        self.epoch += 1;
        let now = self.now();
        let tablets: Vec<_> = (0..TABLETS).map(|tablet| (tablet.to_string(), None)).collect();
        self.machine.handle_opened(now, Epoch(self.epoch), "run", &tablets).unwrap();
        for s in 0..self.checkpoints.len() {
            let name = format!("s{s}");
            self.machine.handle_stream_joined(now, &name);
            let opening = self.machine.handle_open_stream(now, &name).unwrap().value;
            self.pullers[s] = opening.puller;
            self.checkpoints[s] = opening.checkpoint.term as usize;
            assert!(self.checkpoints[s] >= self.acknowledged[s], "what was acknowledged will not be sent again");
            if self.settings.release != Release::CommonClock && opening.slot.is_none() {
                let start = self.history.starts[s];
                self.machine.handle_slot(now, stream(s), opening.puller, at(start), "", &[]).unwrap();
                self.checkpoints[s] = start;
            }
        }
        self.outputs();
    }

    fn outputs(&mut self) {
        // The log takes one entry at a time; what is said meanwhile gathers in the next.
        if self.pending.is_empty() {
            self.poll_entry();
        }
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Apply { tablet, decided } => {
                    assert!(decided.position.0 as usize <= self.log.len(), "it left before it was durable");
                    match decided.work {
                        Work::Turn { .. } => {}
                        Work::Discard { branches } => self.discarded.extend(branches.iter().map(|b| (tablet, *b))),
                        Work::Commit { transaction, time, branches, tablets: _ } => {
                            let told = (decided.position, time, BTreeMap::new());
                            let (position, known, tablets) = self.commits.entry(transaction).or_insert(told);
                            assert_eq!((*position, *known), (decided.position, time), "{transaction} is torn");
                            let branches: BTreeSet<BranchId> = branches.into_iter().collect();
                            let before = tablets.entry(tablet).or_insert_with(|| branches.clone());
                            assert_eq!(*before, branches, "{transaction} is applied otherwise the second time");
                        }
                    }
                }
                Output::TakeRound { begun_after, .. } => self.round = Some((begun_after, self.source_now)),
                Output::TakeFence { .. } => self.fence = Some(self.source_now),
                Output::CheckPrepared { stream, transactions } => self.prepared.push((stream, transactions)),
                Output::CheckRunning { stream, transactions } => self.running.push((stream, transactions)),
                Output::Nudge { .. } => {}
            }
        }
        self.readable_from = self.readable_from.or(self.machine.latest().map(|latest| latest.position));
        let safe = self.machine.safe().filter(|safe| safe.time < HybridTime::MAX);
        if let (Some(before), Some(now)) = (self.safe, safe) {
            assert!(now.time >= before.time && now.position >= before.position, "safe time went back");
        }
        if let Some(safe) = safe {
            self.safe = Some(safe);
            self.safes.push(safe);
        }
        assert_eq!(invariants::all_broken(&self.machine), Vec::<String>::new());
    }

    fn poll_entry(&mut self) {
        if let Some(entry) = self.machine.poll_entry() {
            self.pending.push_back(Entry::decode(&entry.encode().unwrap()).unwrap());
        }
    }

    /// How many records a stream's server had written by then.
    fn written(&self, s: usize, by: usize) -> usize {
        self.history.servers[s].partition_point(|(written, _)| *written <= by)
    }

    fn deliver(&mut self, s: usize, count: usize, keepalive: bool) {
        let from = self.checkpoints[s];
        let written = self.written(s, self.source_now);
        let upto = (from + count).min(written);
        let facts = self.history.streams[s][from..upto].iter().flat_map(|(_, facts)| facts).cloned().collect();
        let head = if keepalive && upto == written { at(upto) } else { OpId::ZERO };
        let report = Report {
            stream: stream(s),
            puller: self.pullers[s],
            follows: at(from),
            upto: at(upto),
            head,
            acknowledged: at(self.acknowledged[s]),
            stored: vec![],
            facts,
        };
        let promise = self.machine.handle_report(self.now(), report.clone()).unwrap();
        self.promises.push((s, promise));
        self.checkpoints[s] = upto;
        if upto > from {
            let again = self.machine.handle_report(self.now(), report);
            assert_eq!(again, Err(Refused::OutOfOrder { held: at(upto), follows: at(from) }));
        }
    }

    fn flush(&mut self, count: usize) {
        for _ in 0..count {
            if self.pending.is_empty() {
                self.poll_entry();
            }
            let Some(entry) = self.pending.pop_front() else { break };
            let position = entry.position;
            self.log.push(entry);
            self.machine.handle_durable(position);
        }
        let durable = self.log.len() as u64;
        let (answered, rest) = std::mem::take(&mut self.promises).into_iter().partition(|(_, p)| p.after.0 <= durable);
        self.promises = rest;
        let answered: Vec<(usize, Promise<OpId>)> = answered;
        for (s, promise) in answered {
            self.acknowledged[s] = self.acknowledged[s].max(promise.value.term as usize);
        }
    }

    fn answer(&mut self, random: usize) {
        let (count, now) = (self.checkpoints.len(), self.source_now);
        // Each server is asked at a moment of its own, between the question and now.
        let moment = |asked: usize, s: usize| asked + (random >> s) % (now - asked + 1);
        if let Some((begun_after, asked)) = self.round.take() {
            let positions = (0..count).map(|s| (stream(s), at(self.written(s, moment(asked, s))))).collect();
            self.machine.handle_round(self.now(), begun_after, Some(positions));
        }
        if let Some(asked) = self.fence.take() {
            let (mut before, mut positions, mut prepared) = (Vec::new(), Vec::new(), Vec::new());
            let standing = (0..count).map(|s| moment(asked, s)).max().unwrap_or(asked);
            for s in 0..count {
                let read = moment(standing, s);
                before.push((stream(s), at(self.written(s, standing))));
                prepared.extend(self.prepared_on(s, read).into_iter().map(|gid| (stream(s), gid)));
                positions.push((stream(s), at(self.written(s, now))));
            }
            self.machine.handle_fence(self.now(), Some(Fence { before, prepared, positions }));
        }
        for (stream, transactions) in std::mem::take(&mut self.prepared) {
            let s = stream.0 as usize;
            let still = self.prepared_on(s, now);
            let gone = transactions.into_iter().filter(|gid| !still.contains(gid)).collect();
            let position = at(self.written(s, now));
            self.machine.handle_fence_resolved(self.now(), stream, gone, position);
        }
    }

    /// Nothing runs any more, and every stream has carried everything.
    fn not_running(&mut self) {
        for (stream, transactions) in std::mem::take(&mut self.running) {
            let s = stream.0 as usize;
            let checkpoint = at(self.checkpoints[s]);
            let report = Report {
                stream,
                puller: self.pullers[s],
                follows: checkpoint,
                upto: checkpoint,
                facts: vec![Fact::NotRunning { transactions }],
                ..Report::default()
            };
            self.machine.handle_report(self.now(), report).unwrap();
        }
        self.outputs();
        self.later += 20_000_000;
    }

    /// What is prepared on a server at that moment.
    fn prepared_on(&self, s: usize, by: usize) -> Vec<SourceTransactionId> {
        let mut prepared = Vec::new();
        for fact in self.history.servers[s][..self.written(s, by)].iter().flat_map(|(_, facts)| facts) {
            match fact {
                Fact::Branch { transaction, .. } => prepared.push(transaction.clone()),
                Fact::Commit { transaction, .. } | Fact::Aborted { transaction, .. } => {
                    prepared.retain(|gid| gid != transaction);
                }
                _ => {}
            }
        }
        prepared
    }

    fn applied(&mut self, tablet: u32) {
        let through = LogPosition(self.log.len() as u64);
        self.machine.handle_applied(ReplicaTabletId(tablet), Applied { heard: through, applied: through });
        self.machine.handle_tick(self.now());
    }

    fn step(&mut self, (action, random): (u8, u16)) {
        let random = random as usize;
        let s = random % self.checkpoints.len();
        match action {
            0..=4 => self.deliver(s, 1 + random / 8 % 4, random & 64 != 0),
            5 | 6 => self.source_now = (self.source_now + random % 60).min(self.history.end),
            7 => self.answer(random),
            8 | 9 => self.flush(1 + random % 3),
            10 => self.applied(random as u32 % TABLETS),
            11 => self.machine.handle_tick(self.now()),
            _ => {
                // The fate of the entries on their way: so many were kept.
                self.flush(random % 3);
                self.open();
            }
        }
        self.outputs();
    }

    /// Everything is delivered, made durable, applied and acknowledged.
    fn finish(&mut self) {
        self.source_now = self.history.end;
        for _ in 0..12 {
            for s in 0..self.checkpoints.len() {
                self.deliver(s, usize::MAX / 2, true);
                self.outputs();
            }
            self.answer(0);
            self.outputs();
            self.not_running();
            self.flush(usize::MAX);
            self.outputs();
            (0..TABLETS).for_each(|tablet| self.applied(tablet));
            self.outputs();
            self.flush(usize::MAX);
            self.outputs();
        }
    }

    fn check(&self) {
        let uses = &self.history.uses;
        let whose = |branch: &BranchId| uses.iter().position(|one| one.branches.contains_key(branch));
        let mut decided: BTreeMap<usize, (LogPosition, HybridTime)> = BTreeMap::new();
        for (transaction, (position, time, tablets)) in &self.commits {
            let mut parts: BTreeMap<BranchId, BTreeSet<ReplicaTabletId>> = BTreeMap::new();
            for (tablet, branches) in tablets {
                branches.iter().for_each(|branch| assert!(parts.entry(*branch).or_default().insert(*tablet)));
            }
            let number = parts.keys().next().and_then(whose).unwrap();
            assert_eq!(parts, uses[number].branches, "{transaction} is not whole");
            assert!(uses[number].committed.is_some(), "{transaction} was aborted at the source");
            assert!(decided.insert(number, (*position, *time)).is_none(), "{transaction} is applied twice");
        }
        for (number, one) in uses.iter().enumerate().filter(|(_, one)| !one.branches.is_empty()) {
            match one.committed {
                Some(time) => {
                    let (_, given) = decided.get(&number).unwrap_or_else(|| panic!("use {number} is not decided"));
                    if self.history.release == Release::CommonClock {
                        assert_eq!(*given, time);
                    }
                }
                None => {
                    for (branch, tablets) in &one.branches {
                        let all = tablets.iter().all(|tablet| self.discarded.contains(&(*tablet, *branch)));
                        assert!(all, "{branch} of an aborted transaction is not discarded everywhere");
                    }
                }
            }
        }
        for (number, (position, _)) in &decided {
            // One half of it may be in a copy: it is there when the first reader comes.
            let before = uses[*number].committed.is_some_and(|committed| committed <= micros(self.history.begun));
            let shown = self.history.release == Release::CommonClock || Some(*position) <= self.readable_from;
            assert!(!before || shown, "use {number} is not in the first cut");
        }
        for safe in &self.safes {
            for (position, time) in decided.values() {
                let below = *time <= safe.time;
                assert!(!below || *position <= safe.position, "{time:?} was not there when {safe:?} was shown");
            }
        }
        if self.history.release == Release::Ordered {
            self.check_order(&decided);
        }
        let state = self.machine.state();
        assert_eq!(state.transactions.len(), 0, "something is left: {state:#?}");
        assert!(state.undecided.is_empty());
        self.check_recovery();
    }

    /// T1 comes before T2 where, in some stream, T1's commit precedes T2's PREPARE or ordinary commit.
    fn check_order(&self, decided: &BTreeMap<usize, (LogPosition, HybridTime)>) {
        for (first, before) in decided {
            for (second, after) in decided {
                let (one, two) = (&self.history.uses[*first].places, &self.history.uses[*second].places);
                let precedes = one.iter().any(|(s, (_, end))| two.get(s).is_some_and(|(begin, _)| end < begin));
                assert!(!precedes || before.1 < after.1, "use {first} precedes use {second}, and got a later time");
            }
        }
        let mut times: Vec<_> = decided.values().copied().collect();
        times.sort_unstable();
        assert!(times.windows(2).all(|pair| pair[0].1 < pair[1].1), "times rise with the decisions");
    }

    /// A fold of the whole log, and one from a snapshot taken anywhere, is the live state; every decision stands once.
    fn check_recovery(&self) {
        assert!(self.pending.is_empty());
        assert_eq!(replay(&self.settings, None, &self.log).state(), self.machine.state());
        for from in (0..self.log.len()).step_by(3) {
            let (position, bytes) = replay(&self.settings, None, &self.log[..from]).snapshot().unwrap();
            let after = replay(&self.settings, Some((position, &bytes)), &self.log[from..]);
            assert_eq!(after.state(), self.machine.state(), "from a snapshot at {position}");
        }
        let mut decisions = BTreeSet::new();
        for item in self.log.iter().flat_map(|entry| &entry.items) {
            if let Item::Decision { transaction, outcome: Outcome::Commit(_) | Outcome::Abort } = item {
                assert!(decisions.insert(*transaction), "{transaction} is decided twice");
            }
        }
    }
}

fn replay(settings: &Settings, snapshot: Option<(LogPosition, &[u8])>, entries: &[Entry]) -> Coordinator {
    let mut machine = Coordinator::restore(settings.clone(), snapshot).unwrap();
    entries.iter().for_each(|entry| machine.handle_replayed(entry).unwrap());
    machine
}

fn histories() -> impl Strategy<Value = History> {
    let release = prop::sample::select(vec![Release::CommonClock, Release::Ordered, Release::Atomic]);
    (1usize..4, release).prop_flat_map(|(streams, release)| {
        let starts = prop::collection::vec(any::<u8>(), streams);
        let late = prop::bool::ANY;
        (plans(streams), starts, late).prop_map(move |(plans, starts, late)| match release {
            Release::CommonClock => common_clock(&plans, streams),
            _ if late => with_slots(two_phase(&plans, streams, release), &starts),
            _ => two_phase(&plans, streams, release),
        })
    })
}

/// How many histories: `PROPTEST_CASES`, or as many as take a few seconds.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_arrive_whole_in_order_and_leave_nothing(
        history in histories(),
        steps in prop::collection::vec((0u8..13, any::<u16>()), 0..120),
    ) {
        let mut run = Run::new(&history);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
        run.check();
    }
}
