//! What only rises: checkpoints, safe time, epochs, the positions of the log; and a decision is made once.

use crate::universe::world::World;
use std::collections::{BTreeMap, BTreeSet};
use untorn::coordinator::{Entry, Item, ReadPoint};
use untorn::wal::{Epoch, HybridTime, LogPosition, OpId, SourceTabletId, TransactionId};

/// What is reached when a stream leaves.
pub const LEAVES: &str = "a stream leaves";

/// The entry and the time from which a part of a table is shown, or hidden.
type Turned = (LogPosition, HybridTime, bool);

/// Sees every entry of the log.
#[derive(Default)]
pub struct LogWatch {
    last: LogPosition,
    epoch: Epoch,
    safe_time: HybridTime,
    streams: BTreeMap<SourceTabletId, (String, OpId, Epoch)>,
    decided: BTreeSet<TransactionId>,
    slots: BTreeSet<SourceTabletId>,
    /// By stream and table.
    turns: BTreeMap<(String, String), Vec<Turned>>,
}

impl LogWatch {
    /// How far the log holds a stream.
    pub fn checkpoint(&self, name: &str) -> OpId {
        self.streams.values().rev().find(|(of, _, _)| of == name).map_or(OpId::ZERO, |(_, checkpoint, _)| *checkpoint)
    }

    /// The last entry that landed.
    pub fn last(&self) -> LogPosition {
        self.last
    }

    /// Whether a reader at this point sees the stream's part of the table.
    pub fn shows(&self, stream: &str, table: &str, at: ReadPoint) -> bool {
        let turns = self.turns.get(&(stream.to_owned(), table.to_owned())).into_iter().flatten();
        let turn = turns.rev().find(|(position, time, _)| *position <= at.position && *time <= at.time);
        turn.is_some_and(|(_, _, shown)| *shown)
    }

    fn turned(&mut self, world: &World, stream: SourceTabletId, table: &str, (time, shown): (HybridTime, bool)) {
        let Some((name, _, _)) = self.streams.get(&stream) else { return };
        let (last, what) = (self.last, if shown { "shown" } else { "hidden" });
        world.event((last, time, shown), || format!("{table} of {stream} {name} is {what} from {last} and {time} on"));
        let turns = self.turns.entry((name.clone(), table.to_owned())).or_default();
        match (turns.last().is_some_and(|(_, _, shown)| *shown), shown) {
            (true, true) => world.reached("a table copied again is shown"),
            (true, false) => world.reached("a table that was shown is hidden"),
            (false, true) if turns.iter().any(|(_, _, shown)| *shown) => {
                world.reached("a table that was hidden is shown again");
            }
            _ => {}
        }
        turns.push((self.last, time, shown));
    }

    /// How many streams' slots stand for good.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// An entry landed.
    pub fn landed(&mut self, world: &World, at: LogPosition, epoch: Epoch, bytes: &[u8]) {
        let rises = |what: &str, rises: bool| {
            if !rises {
                world.broken(format!("monotone: {what} goes back in the entry at {at}"));
            }
        };
        rises("the log", at == self.last.next());
        rises("the epoch", epoch >= self.epoch);
        (self.last, self.epoch) = (at, epoch);
        let entry = match Entry::decode(bytes) {
            Ok(entry) => entry,
            Err(error) => return world.broken(format!("the entry at {at} cannot be read: {error}")),
        };
        for item in &entry.items {
            match item {
                Item::StreamJoined { stream, name, .. } => {
                    self.streams.insert(*stream, (name.clone(), OpId::ZERO, Epoch(0)));
                }
                Item::PullerOpened { stream, epoch } => {
                    if let Some((_, _, held)) = self.streams.get_mut(stream) {
                        rises("a puller's epoch", *epoch > *held);
                        *held = *epoch;
                    }
                }
                Item::Slot { stream, start, .. } => {
                    self.slots.insert(*stream);
                    if let Some((_, checkpoint, _)) = self.streams.get_mut(stream) {
                        *checkpoint = (*start).max(*checkpoint);
                    }
                }
                Item::Report(report) => {
                    if let Some((_, checkpoint, _)) = self.streams.get_mut(&report.stream) {
                        rises("a checkpoint", report.follows == *checkpoint && report.upto >= *checkpoint);
                        *checkpoint = report.upto;
                    }
                }
                Item::CopyShown { stream, table, time, .. } => self.turned(world, *stream, table, (*time, true)),
                Item::CopyHidden { stream, table, time, .. } => self.turned(world, *stream, table, (*time, false)),
                Item::StreamShown { .. } => world.reached("a stream that joined takes part"),
                Item::StreamLeft { .. } => world.reached(LEAVES),
                Item::SafeTime { time } => {
                    rises("safe time", *time >= self.safe_time);
                    self.safe_time = *time;
                }
                Item::Decision { transaction, .. } if !self.decided.insert(*transaction) => {
                    world.broken(format!("monotone: {transaction} is decided again at {at}"));
                }
                _ => {}
            }
        }
    }
}
