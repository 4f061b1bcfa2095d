//! What a script acts on: a coordinator, the log under it, the streams and the tablets around it.

use super::trace;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use untorn::coordinator::{
    Coordinator, Decided, Entry, Item, Output, Promise, ReadPoint, Refused, Settings, State, Work, invariants,
};
use untorn::wal::{Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, TransactionId};

/// A stream as its poller sees it.
#[derive(Clone, Default)]
pub struct Stream {
    pub number: SourceTabletId,
    pub puller: Epoch,
    /// What was taken so far: the next report follows it.
    pub checkpoint: OpId,
    pub head: u64,
    pub acknowledged: OpId,
    /// Where the newest branch of each transaction opened.
    pub opened: BTreeMap<String, OpId>,
    /// The base of the copies that began last.
    pub base: HybridTime,
}

/// What a transaction's decision asked of tablets, as far as it was seen.
#[derive(Clone, PartialEq, Debug)]
struct Committed {
    time: HybridTime,
    position: LogPosition,
    tablets: Vec<ReplicaTabletId>,
}

pub struct World {
    pub settings: Settings,
    pub machine: Option<Coordinator>,
    pub tablet_names: Vec<String>,
    pub streams: BTreeMap<String, Stream>,
    pub now: HybridTime,
    epoch: u64,
    /// Every durable entry since the log's beginning, also those that a snapshot replaced.
    pub log: Vec<Entry>,
    snapshot: Option<(LogPosition, Vec<u8>)>,
    /// Entries whose barrier has not come.
    held: VecDeque<Entry>,
    pub hold: bool,
    /// Entries are taken from the machine after every command.
    pub polls: bool,
    /// Answers that wait for the log.
    promises: Vec<(String, Promise<OpId>)>,
    pub round_begun_after: Option<LogPosition>,
    shown: trace::Shown,
    committed: BTreeMap<TransactionId, Committed>,
    received: BTreeSet<(TransactionId, ReplicaTabletId)>,
    read: (Option<ReadPoint>, Option<ReadPoint>),
    pub lines: Vec<String>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            machine: None,
            tablet_names: Vec::new(),
            streams: BTreeMap::new(),
            now: HybridTime::MIN,
            epoch: 0,
            log: Vec::new(),
            snapshot: None,
            held: VecDeque::new(),
            hold: false,
            polls: true,
            promises: Vec::new(),
            round_begun_after: None,
            shown: trace::Shown::default(),
            committed: BTreeMap::new(),
            received: BTreeSet::new(),
            read: (None, None),
            lines: Vec::new(),
        }
    }
}

impl World {
    pub fn machine(&mut self) -> &mut Coordinator {
        self.machine.as_mut().expect("the script begins with `open`")
    }

    pub fn stream(&mut self, name: &str) -> Result<&mut Stream, String> {
        self.streams.get_mut(name).ok_or_else(|| format!("no stream {name}"))
    }

    pub fn tablet(&self, name: &str) -> Result<ReplicaTabletId, String> {
        let found = self.tablet_names.iter().position(|tablet| tablet == name);
        found.map(|number| ReplicaTabletId(number as u32)).ok_or_else(|| format!("no tablet {name}"))
    }

    /// A new machine from what is durable, as after a crash or at the first start.
    pub fn open(&mut self, names: &[String]) -> Result<(), String> {
        self.held.clear();
        self.promises.clear();
        self.hold = false;
        self.shown.forget_unshown();
        let mut machine = self.restored(self.log.len())?;
        self.epoch += 1;
        let tablets: Vec<_> = self.tablet_names.iter().map(|name| (name.clone(), None)).collect();
        machine.handle_opened(self.now, Epoch(self.epoch), "leader", &tablets)?;
        machine.handle_configured(self.now, &names.iter().map(String::as_str).collect::<Vec<_>>());
        self.machine = Some(machine);
        for name in names {
            self.open_stream(name).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// A puller takes a stream and begins where the log says.
    pub fn open_stream(&mut self, name: &str) -> Result<(), Refused> {
        let now = self.now;
        let opening = self.machine().handle_open_stream(now, name)?.value;
        let stream = self.streams.entry(name.to_owned()).or_default();
        stream.number = opening.stream;
        stream.puller = opening.puller;
        stream.checkpoint = opening.checkpoint;
        stream.head = 0;
        let open = opening.open_branches.iter().map(|branch| (trace::source_name(&branch.transaction), branch.opened));
        stream.opened = open.collect();
        Ok(())
    }

    pub fn promised(&mut self, stream: &str, promise: Promise<OpId>) {
        if self.hold {
            let line = format!("{stream} is answered once {} is durable", promise.after);
            self.lines.push(line);
        }
        self.promises.push((stream.to_owned(), promise));
    }

    pub fn refused(&mut self, e: &Refused) {
        self.lines.push(format!("refused: {e}"));
    }

    /// Moves entries to the log and outputs to whom they concern, until nothing is left to do.
    pub fn drain(&mut self) -> Result<(), String> {
        loop {
            let mut busy = false;
            while let Some(entry) = self.machine().poll_entry() {
                let entry = Entry::decode(&entry.encode().map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
                let line = self.shown.entry(self.machine.as_ref().expect("open").state(), &entry);
                self.lines.push(if self.hold { format!("held {line}") } else { format!("log {line}") });
                self.held.push_back(entry);
                busy = true;
            }
            if !self.hold {
                busy |= self.durable(usize::MAX);
            }
            busy |= self.outputs()?;
            if !busy {
                break;
            }
        }
        let machine = self.machine.as_ref().expect("open");
        self.lines.extend(self.shown.changes(machine));
        self.reads()
    }

    /// Hands out what the machine asks for.
    pub fn outputs(&mut self) -> Result<bool, String> {
        let mut any = false;
        while let Some(output) = self.machine().poll_output() {
            self.output(output)?;
            any = true;
        }
        Ok(any)
    }

    /// The barrier of so many held entries has come.
    pub fn durable(&mut self, count: usize) -> bool {
        let mut moved = false;
        for _ in 0..count {
            let Some(entry) = self.held.pop_front() else { break };
            let position = entry.position;
            self.log.push(entry);
            self.machine().handle_durable(position);
            moved = true;
        }
        moved
    }

    fn output(&mut self, output: Output) -> Result<(), String> {
        let machine = self.machine.as_ref().expect("open");
        self.lines.push(trace::output(machine.state(), &self.tablet_names, &output));
        match output {
            Output::Apply { tablet, decided } => self.apply(tablet, decided),
            Output::TakeRound { begun_after, .. } => {
                self.round_begun_after = Some(begun_after);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A decision leaves the machine only when it is durable, and says the same to every tablet and every time.
    fn apply(&mut self, tablet: ReplicaTabletId, Decided { position, work }: Decided) -> Result<(), String> {
        if position.0 > self.log.len() as u64 {
            return Err(format!("tablet {tablet} was told of {position}, which is not durable"));
        }
        let Work::Commit { transaction, time, branches: _, tablets } = work else { return Ok(()) };
        let said = Committed { time, position, tablets };
        let before = self.committed.entry(transaction).or_insert_with(|| said.clone());
        if *before != said && self.settings.gate {
            return Err(format!("{transaction} was applied as {before:?} and as {said:?}"));
        }
        self.received.insert((transaction, tablet));
        Ok(())
    }

    fn reads(&mut self) -> Result<(), String> {
        let machine = self.machine.as_ref().expect("open");
        let read = (machine.latest(), machine.safe());
        for (before, now) in [(self.read.0, read.0), (self.read.1, read.1)] {
            // After a crash a machine may show nothing for a while, and never something older. Before the first commit
            // `safe` is `latest`, which has no time.
            if let (Some(before), Some(now)) = (before, now)
                && (now.position < before.position || (now.time < before.time && before.time < HybridTime::MAX))
            {
                return Err(format!("a read point went back from {before:?} to {now:?}"));
            }
        }
        self.read = (read.0.or(self.read.0), read.1.or(self.read.1));
        self.lines.extend(self.shown.read(machine));
        let durable = self.log.last().map_or(LogPosition(0), |entry| entry.position);
        let (kept, answered): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.promises).into_iter().partition(|(_, promise)| promise.after > durable);
        self.promises = kept;
        if answered.is_empty() {
            return Ok(());
        }
        let known = self.restored(self.log.len())?;
        for (name, promise) in answered {
            let held = known.state().stream_named(&name).map_or(OpId::ZERO, |stream| stream.checkpoint);
            if held < promise.value {
                return Err(format!("{name} was told that {} is durable, and the log says {held}", promise.value));
            }
        }
        Ok(())
    }

    /// The machine that recovery makes of the first entries of the log.
    fn restored(&self, entries: usize) -> Result<Coordinator, String> {
        let snapshot = self.snapshot.as_ref().filter(|(position, _)| position.0 as usize <= entries);
        let from = snapshot.map_or(0, |(position, _)| position.0 as usize);
        let snapshot = snapshot.map(|(position, bytes)| (*position, &bytes[..]));
        replay(&self.settings, snapshot, &self.log[from..entries])
    }

    /// A snapshot replaces the log up to here.
    pub fn take_snapshot(&mut self) -> Result<(), String> {
        self.drain()?;
        let snapshot = self.machine().snapshot().map_err(|e| e.to_string())?;
        self.lines.push(format!("snapshot at {}", snapshot.0));
        self.snapshot = Some(snapshot);
        Ok(())
    }

    /// After every command: the invariants hold, and a fold of the whole log is the live state.
    pub fn check(&mut self) -> Result<(), String> {
        let Some(machine) = self.machine.as_ref().filter(|_| self.polls) else { return Ok(()) };
        let broken = invariants::all_broken(machine);
        if !broken.is_empty() && self.settings.gate {
            return Err(broken.join("; "));
        }
        let entries: Vec<Entry> = self.log.iter().chain(&self.held).cloned().collect();
        equal(machine.state(), replay(&self.settings, None, &entries)?.state(), "a fold of the whole log")
    }

    /// At the end: a snapshot taken anywhere and the entries after it give the live state, and nothing was torn.
    pub fn check_end(&mut self) -> Result<(), String> {
        let Some(machine) = &self.machine else { return Err("the script opens nothing".into()) };
        let entries: Vec<Entry> = self.log.iter().chain(&self.held).cloned().collect();
        for at in 0..entries.len() {
            let mut before = replay(&self.settings, None, &entries[..at])?;
            let (position, bytes) = before.snapshot().map_err(|e| e.to_string())?;
            let after = replay(&self.settings, Some((position, &bytes)), &entries[at..])?;
            equal(machine.state(), after.state(), &format!("a fold from a snapshot at {position}"))?;
        }
        for (transaction, committed) in &self.committed {
            let lacks = committed.tablets.iter().find(|tablet| !self.received.contains(&(*transaction, **tablet)));
            if let Some(tablet) = lacks {
                return Err(format!("{transaction} was applied, and not to {tablet}"));
            }
        }
        let decisions = self.log.iter().flat_map(|entry| &entry.items).filter_map(|item| match item {
            Item::Decision { transaction, .. } => Some(*transaction),
            _ => None,
        });
        let mut decided = BTreeSet::new();
        match decisions.into_iter().find(|transaction| !decided.insert(*transaction)) {
            Some(twice) => Err(format!("{twice} was decided twice")),
            None => Ok(()),
        }
    }
}

/// What recovery makes of a snapshot and the entries after it.
pub fn replay(
    settings: &Settings,
    snapshot: Option<(LogPosition, &[u8])>,
    entries: &[Entry],
) -> Result<Coordinator, String> {
    let mut machine = Coordinator::restore(settings.clone(), snapshot).map_err(|e| e.to_string())?;
    entries.iter().try_for_each(|entry| machine.handle_replayed(entry)).map_err(|e| e.to_string())?;
    Ok(machine)
}

fn equal(live: &State, folded: &State, what: &str) -> Result<(), String> {
    (live == folded).then_some(()).ok_or_else(|| format!("{what} is\n{folded:#?}\nand the live state is\n{live:#?}"))
}
