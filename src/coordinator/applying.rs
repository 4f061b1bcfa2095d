//! Carrying decisions out: every replica tablet is told of those that concern it, in log order, until it has durably
//! applied them.

use super::decided::{Applied, Decided, Work};
use super::entry::{Item, Outcome};
use super::machine::Coordinator;
use super::output::Output;
use super::state::Piece;
use super::transaction::Branch;
use crate::wal::{BranchId, HybridTime, LogPosition, ReplicaTabletId};

impl Coordinator {
    /// How far a replica tablet is.
    pub fn handle_applied(&mut self, tablet: ReplicaTabletId, applied: Applied) {
        let known = self.tablets_applied.entry(tablet).or_default();
        *known = applied.applied.max(*known);
    }

    /// Puts into the log how far the tablets are.
    pub(super) fn tell_applied(&mut self, now: HybridTime) {
        for (tablet, through) in self.tablets_applied.clone() {
            if self.state.applied.get(&tablet).is_some_and(|known| *known < through) {
                self.say(now, Item::Applied { tablet, through });
            }
        }
        self.settle(now);
    }

    /// The next decision for a tablet, of those that are durable.
    pub(super) fn next_decided(&mut self) -> Option<Output> {
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
            Piece::Turned { stream, table, turn } => {
                for tablet in &self.state.map.tablets {
                    hand(tablet.id, Work::Turn { stream: *stream, table: *table, turn: *turn });
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
}
