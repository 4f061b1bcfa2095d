//! What the traces say, with names instead of numbers.

use std::collections::BTreeMap;
use untorn::coordinator::{
    Coordinator, CopyState, Entry, Item, Missing, Outcome, Output, ReadPoint, State, Status, Transaction, Turn, Work,
};
use untorn::wal::{BranchId, HybridTime, OpId, SourceTabletId, SourceTransactionId, TransactionId};

/// What the script's reader was shown last, so that only changes are shown.
#[derive(Default)]
pub struct Shown {
    names: BTreeMap<TransactionId, String>,
    transactions: BTreeMap<TransactionId, String>,
    read: String,
}

pub fn source_name(source: &SourceTransactionId) -> String {
    source.to_string()
}

/// A hybrid time as scripts write it: microseconds, and the logical counter where it isn't zero.
pub fn time(time: HybridTime) -> String {
    match (time == HybridTime::MAX, time.logical()) {
        (true, _) => "the end of time".into(),
        (_, 0) => time.micros().to_string(),
        (_, 4095) => format!("just below {}", time.micros() + 1),
        (_, logical) => format!("{}+{logical}", time.micros()),
    }
}

/// A position as scripts count it.
pub fn at(at: OpId) -> String {
    if at.index == 0 { at.term.to_string() } else { at.to_string() }
}

fn branches(state: &State, branches: &[BranchId]) -> String {
    let named = branches.iter().map(|branch| format!("{}@{}", state.stream_name(branch.stream), at(branch.opened)));
    named.collect::<Vec<_>>().join(" ")
}

fn positions(state: &State, positions: &[(SourceTabletId, OpId)]) -> String {
    let named = positions.iter().map(|(stream, position)| format!("{}={}", state.stream_name(*stream), at(*position)));
    named.collect::<Vec<_>>().join(" ")
}

fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" ")
}

/// Servers by name, where not all of them are asked.
fn servers(state: &State, of: &[SourceTabletId]) -> String {
    match state.streams.iter().filter(|stream| !stream.left).all(|stream| of.contains(&stream.stream)) {
        true => "every server".into(),
        false => list(of.iter().map(|stream| state.stream_name(*stream))),
    }
}

/// One line for what an output asks.
pub fn output(state: &State, tablets: &[String], output: &Output) -> String {
    match output {
        Output::Apply { tablet, decided } => {
            let tablet = &tablets[tablet.0 as usize];
            let position = decided.position;
            match &decided.work {
                Work::Commit { transaction, time: at, branches: parts, tablets: all } => {
                    let name = state.transactions.get(*transaction).map(|t| t.source.to_string()).unwrap_or_default();
                    let (parts, at) = (branches(state, parts), time(*at));
                    format!("{tablet}: commit {name} at {at}, {position}, of {parts} ({} tablets)", all.len())
                }
                Work::Discard { branches: parts } => {
                    format!("{tablet}: discard {}, {position}", branches(state, parts))
                }
                Work::Turn { stream, table, turn } => {
                    let part = format!("{table} of {}", state.stream_name(*stream));
                    match turn {
                        Turn::Begun { base } => {
                            format!("{tablet}: a copy of {part} begins at {}, {position}", time(*base))
                        }
                        Turn::Shown { base, time: from } => {
                            format!("{tablet}: show {part} as of {} from {}, {position}", time(*base), time(*from))
                        }
                        Turn::Hidden { time: from } => {
                            format!("{tablet}: hide {part} from {}, {position}", time(*from))
                        }
                    }
                }
            }
        }
        Output::TakeRound { begun_after, of } => {
            format!("ask {} how far it is (begun after {begun_after})", servers(state, of))
        }
        Output::TakeFence { of } => format!("ask {} for the start fence", servers(state, of)),
        Output::CheckPrepared { stream, transactions } => {
            format!("ask {} whether it still has prepared: {}", state.stream_name(*stream), list(transactions))
        }
        Output::CheckRunning { stream, transactions } => {
            format!("ask {} whether it still runs: {}", state.stream_name(*stream), list(transactions))
        }
        Output::Nudge { stream } => format!("nudge {}", state.stream_name(*stream)),
    }
}

/// Where readers may begin.
pub fn read(machine: &Coordinator) -> String {
    let latest = machine.latest().map_or_else(|| "not ready".into(), |point| point.position.to_string());
    format!("read: latest {latest}, {}", safe(machine))
}

/// Whose rows of a table a reader at a time would miss.
pub fn missed(machine: &Coordinator, table: &str, at: HybridTime) -> String {
    let missed = machine.state().absent(table, at).map_or_else(
        || "misses nothing".into(),
        |(record, absence)| format!("misses {} from {} until {}", record.name, time(absence.from), time(absence.until)),
    );
    format!("{table} at {} {missed}", time(at))
}

fn safe(machine: &Coordinator) -> String {
    match machine.safe() {
        None => "safe not ready".into(),
        Some(ReadPoint { time: HybridTime::MAX, .. }) => "safe is latest".into(),
        Some(ReadPoint { position, time: at }) => format!("safe {} from {position}", time(at)),
    }
}

/// What a transaction lacks.
pub fn missing(state: &State, missing: Missing) -> String {
    let stream = |stream: Option<SourceTabletId>| {
        stream.map_or_else(String::new, |stream| format!(" of {}", state.stream_name(stream)))
    };
    let named = |id: TransactionId| state.transactions.get(id).map(|t| t.source.to_string()).unwrap_or_default();
    match missing {
        Missing::Commit(from) => format!("the Commit record{}", stream(from)),
        Missing::Applying(from) => format!("the Applying record{}", stream(Some(from))),
        Missing::StartFence(from) => format!("the start fence{}", stream(from)),
        Missing::Discovery(from) => format!("discovery{}", stream(from)),
        Missing::GidInUse(from) => format!("the end of an earlier use{}", stream(Some(from))),
        Missing::Cut(from, None) => format!("the cut{}", stream(Some(from))),
        Missing::Cut(from, Some(first)) => format!("the cut{}, behind {}", stream(Some(from)), named(first)),
        Missing::EarlierWrite(earlier) => format!("the earlier write of {}", named(earlier)),
    }
}

fn status(state: &State, transaction: &Transaction) -> String {
    let name = transaction.status();
    match transaction.decision {
        None if transaction.status() == Status::WaitingToCommit => {
            let lacks = state.missing(transaction);
            format!("{name}, lacks {}", lacks.map_or_else(|| "nothing".into(), |lacks| missing(state, lacks)))
        }
        _ => name.to_string(),
    }
}

impl Shown {
    /// Everything is shown again: after a crash.
    pub fn forget_unshown(&mut self) {
        *self = Self::default();
    }

    fn name(&mut self, state: &State, id: TransactionId) -> String {
        if let Some(transaction) = state.transactions.get(id) {
            self.names.insert(id, transaction.source.to_string());
        }
        self.names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// One line for an entry.
    pub fn entry(&mut self, state: &State, entry: &Entry) -> String {
        let items: Vec<_> = entry.items.iter().map(|item| self.item(state, item)).collect();
        format!("{} {}", entry.position, items.join(" | "))
    }

    fn item(&mut self, state: &State, item: &Item) -> String {
        match item {
            Item::Opened { epoch, .. } => format!("opened {epoch}"),
            Item::Created { release } => format!("created {release:?}"),
            Item::Map(map) => format!("map {}", list(map.tablets.iter().map(|tablet| &tablet.name))),
            Item::StreamJoined { name, at, .. } => format!("joined {name} at {}", time(*at)),
            Item::StreamLeft { stream } => format!("left {}", state.stream_name(*stream)),
            Item::PullerOpened { stream, epoch } => format!("puller {} {epoch}", state.stream_name(*stream)),
            Item::Table { name, version, .. } => format!("table {name} version {version}"),
            Item::Slot { stream, start, .. } => format!("slot {} at {}", state.stream_name(*stream), at(*start)),
            Item::Copy { stream, table, state: copy } => {
                let part = format!("{table} of {}", state.stream_name(*stream));
                match copy {
                    CopyState::Pending => format!("copy of {part} pending"),
                    CopyState::Running { base, .. } => format!("copy of {part} begins at {}", time(*base)),
                    CopyState::Done { snapshot, rows, .. } => {
                        format!("copy of {part} done as of {}, {rows} rows", at(*snapshot))
                    }
                }
            }
            Item::CopyAsked { stream, table, after } => {
                let after = if *after == OpId::MAX { "a look".into() } else { at(*after) };
                format!("copy of {table} of {} asked for, after {after}", state.stream_name(*stream))
            }
            Item::Published { stream, table } => {
                format!("{} publishes {}@{}", state.stream_name(*stream), table.name, table.relation)
            }
            Item::Spoken { stream, table, relation, .. } => {
                format!("{} speaks of {table}@{relation}", state.stream_name(*stream))
            }
            Item::CopyHidden { stream, table, time: from, gone } => {
                let gone = if *gone { ", which is gone" } else { "" };
                format!("hide {table} of {} from {}{gone}", state.stream_name(*stream), time(*from))
            }
            Item::CopyShown { stream, table, base, time: from } => {
                format!("SHOW {table} of {} as of {} from {}", state.stream_name(*stream), time(*base), time(*from))
            }
            Item::StreamCounted { stream } => format!("rounds ask {}", state.stream_name(*stream)),
            Item::JoinFence { streams, fence } => {
                let names = list(streams.iter().map(|stream| state.stream_name(*stream)));
                format!("fence for {names} {}", positions(state, &fence.positions))
            }
            Item::StreamShown { stream, time: from } => {
                format!("{} takes part from {}", state.stream_name(*stream), time(*from))
            }
            Item::Fence(fence) => format!("fence {}", positions(state, &fence.positions)),
            Item::FenceResolved { stream, transactions, position } => {
                format!("gone from {}: {} by {}", state.stream_name(*stream), list(transactions), at(*position))
            }
            Item::Round { begun_after, positions: read } => {
                format!("round after {begun_after}: {}", positions(state, read))
            }
            Item::Report(report) => {
                let mut said = format!("{} to {}", state.stream_name(report.stream), at(report.upto));
                if report.head > report.upto {
                    said += &format!(" head {}", at(report.head));
                }
                if report.acknowledged > OpId::ZERO {
                    said += &format!(" acknowledged {}", at(report.acknowledged));
                }
                said
            }
            Item::Decision { transaction, outcome } => match outcome {
                Outcome::Commit(at) => format!("COMMIT {} at {}", self.name(state, *transaction), time(*at)),
                Outcome::Abort => format!("ABORT {}", self.name(state, *transaction)),
            },
            Item::Applied { tablet, through } => format!("{tablet} applied through {through}"),
            Item::Released { tablet, release, through } => {
                format!("{tablet} releases {}.{} through {through}", release.epoch.0, release.number)
            }
            Item::SafeTime { time: at } => format!("safe time {}", time(*at)),
        }
    }

    /// A line for each transaction that stands otherwise than before.
    pub fn changes(&mut self, machine: &Coordinator) -> Vec<String> {
        let state = machine.state();
        let mut now: Vec<&Transaction> = state.transactions.iter().collect();
        now.sort_unstable_by_key(|t| t.id);
        let now: BTreeMap<TransactionId, String> = now.into_iter().map(|t| (t.id, status(state, t))).collect();
        let mut lines = Vec::new();
        let gone: Vec<_> = self.transactions.keys().filter(|id| !now.contains_key(id)).copied().collect();
        for id in gone {
            lines.push(format!("{} is forgotten", self.name(state, id)));
        }
        for (id, status) in &now {
            if self.transactions.get(id) != Some(status) {
                lines.push(format!("{} is {status}", self.name(state, *id)));
            }
        }
        self.transactions = now;
        lines
    }

    /// Where readers may begin, when it moved otherwise than with the log's end.
    pub fn read(&mut self, machine: &Coordinator) -> Option<String> {
        let ready = if machine.latest().is_some() { "latest ready" } else { "latest not ready" };
        let line = format!("read: {ready}, {}", safe(machine));
        (self.read != line).then(|| {
            self.read.clone_from(&line);
            line
        })
    }
}
