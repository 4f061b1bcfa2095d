//! Carrying decisions out: every replica tablet is told of those that concern it, in log order, until it has durably
//! applied them.
//!
//! The fold holds what is to be done ([`State::work`](super::State)), a small piece a decision, until every tablet that it
//! concerns has done it. A tablet has a window of decisions on their way to it; one that takes none is held back, and
//! catches up from the fold when it takes them again. So a tablet that stalls costs its window, whatever the others go on
//! to do (C10). Only the way to the first safe point is not cut in windows: a tablet whose readers come by themselves makes
//! nothing visible before it, and so has applied nothing.

use super::decided::{Applied, Decided, ReadPoint, Work};
use super::entry::{Item, Outcome};
use super::machine::Coordinator;
use super::output::Output;
use super::state::{Piece, State};
use super::transaction::Branch;
use crate::planted::{Bug, planted};
use crate::wal::{BranchId, HybridTime, LogPosition, ReplicaTabletId, SourceTabletId, TransactionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What was handed out, and what came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Handed {
    /// Every decision at or below this one was handed to every tablet that it concerns and that is not held back.
    through: LogPosition,
    tablets: BTreeMap<ReplicaTabletId, Window>,
}

/// One replica tablet's decisions on their way.
#[derive(Clone, Debug, Default)]
struct Window {
    /// Where those stand that were handed out and that it has not durably applied.
    outstanding: VecDeque<LogPosition>,
    /// It is held back: it was handed what stands at or below this position only.
    back: Option<LogPosition>,
    /// What the tablet said of itself last, where the log does not know it yet.
    applied: LogPosition,
    refusal: Option<Refusal>,
}

impl Window {
    /// Whether the tablet has said that it has this durably. It may have said so before it was handed out, to a new leader:
    /// then nobody would say it again, and the window would stay taken.
    fn has_applied(&self, position: LogPosition) -> bool {
        self.applied >= position
    }
}

/// A tablet's no to a decision.
#[derive(Clone, Debug)]
struct Refusal {
    /// The entry that it does not apply.
    position: LogPosition,
    /// The streams whose branches that entry's decisions would apply there.
    streams: BTreeSet<SourceTabletId>,
    cause: String,
}

impl Coordinator {
    /// How far a replica tablet is. One that has applied what it refused before takes it now.
    pub fn handle_applied(&mut self, tablet: ReplicaTabletId, applied: Applied) {
        let window = self.handed.tablets.entry(tablet).or_default();
        window.applied = applied.applied.max(window.applied);
        let done = window.outstanding.partition_point(|position| *position <= applied.applied);
        window.outstanding.drain(..done);
        window.refusal.take_if(|refusal| refusal.position <= applied.heard);
    }

    /// A replica tablet says no to the decisions of this entry, or to the one of this transaction among them, for a reason
    /// that doing it again does not mend. The streams that carried them stop ([`Coordinator::must_stop`]) until the tablet has
    /// applied it.
    pub fn handle_refused(
        &mut self,
        tablet: ReplicaTabletId,
        position: LogPosition,
        transaction: Option<TransactionId>,
        cause: String,
    ) {
        let mut streams = BTreeSet::new();
        for (_, piece) in self.state.work_at(position) {
            if transaction.is_none_or(|refused| piece.transaction() == Some(refused)) {
                streams.extend(self.state.asks(position, piece, tablet).iter().flat_map(Work::streams));
            }
        }
        self.handed.tablets.entry(tablet).or_default().refusal = Some(Refusal { position, streams, cause });
    }

    /// Why a stream must stand still: a replica tablet refuses what it carried.
    #[must_use]
    pub fn must_stop(&self, stream: SourceTabletId) -> Option<String> {
        let refusals =
            self.handed.tablets.iter().filter_map(|(tablet, window)| Some((*tablet, window.refusal.as_ref()?)));
        let (tablet, refusal) = refusals.into_iter().find(|(_, refusal)| refusal.streams.contains(&stream))?;
        let name = self.tablet_name(tablet);
        Some(format!("replica tablet {name} refuses what this stream carried: {}", refusal.cause))
    }

    /// Why a replica tablet does not go on.
    pub(super) fn refusal(&self, tablet: ReplicaTabletId) -> Option<&str> {
        Some(&self.handed.tablets.get(&tablet)?.refusal.as_ref()?.cause)
    }

    /// Everything that concerns the tablet at or below this position was yielded.
    #[must_use]
    pub fn handed_through(&self, tablet: ReplicaTabletId) -> LogPosition {
        self.handed.tablets.get(&tablet).and_then(|window| window.back).unwrap_or_else(|| self.may_be_handed())
    }

    /// Decisions up to here may leave: those that are durable.
    fn may_be_handed(&self) -> LogPosition {
        if planted(Bug::AppliedBeforeDurable) { self.state.position } else { self.durable }
    }

    /// A safe point that rests on nothing but decisions that the tablet was handed, the newest that is known here.
    #[must_use]
    pub fn handed_safe(&self, tablet: ReplicaTabletId) -> Option<ReadPoint> {
        let through = self.handed_through(tablet);
        let mut known = [self.safe(), self.first_safe].into_iter().flatten();
        // While there is no stream, everything is safe to read; what a tablet is told of it holds for ever.
        known.find(|safe| safe.position <= through).filter(|safe| safe.time < HybridTime::MAX)
    }

    /// The first replica tablet that is held back, because it takes no decisions.
    pub(super) fn held_back(&self) -> Option<ReplicaTabletId> {
        self.handed.tablets.iter().find(|(_, window)| window.back.is_some()).map(|(tablet, _)| *tablet)
    }

    /// Puts into the log how far the tablets are.
    pub(super) fn tell_applied(&mut self, now: HybridTime) {
        let said: Vec<_> = self.handed.tablets.iter().map(|(tablet, window)| (*tablet, window.applied)).collect();
        for (tablet, through) in said {
            if self.state.applied.get(&tablet).is_some_and(|known| *known < through) {
                self.say(now, Item::Applied { tablet, through });
            }
        }
        self.settle(now);
    }

    /// The next decision for a tablet, of those that are durable.
    pub(super) fn next_decided(&mut self) -> Option<Output> {
        if planted(Bug::RestartAppliesNothing) && self.handed.through == LogPosition(0) {
            self.handed.through = self.durable;
        }
        self.catch_up();
        while self.outputs.is_empty() {
            let first = self.state.work.partition_point(|(position, _)| *position <= self.handed.through);
            let next = self.state.work.get(first).map(|(position, _)| *position);
            let Some(position) = next.filter(|next| *next <= self.may_be_handed()) else {
                self.handed.through = self.may_be_handed();
                break;
            };
            self.handed.through = position;
            self.hand_out(position);
        }
        self.outputs.pop_front()
    }

    /// Hands an entry's decisions to the tablets that they concern.
    fn hand_out(&mut self, position: LogPosition) {
        let window = self.settings.apply_window;
        for (_, piece) in self.state.work_at(position) {
            for tablet in self.state.concerned(piece) {
                let handed = self.handed.tablets.entry(tablet).or_default();
                if handed.back.is_some() || handed.has_applied(position) {
                    continue;
                }
                if let Some(work) = self.state.asks(position, piece, tablet) {
                    handed.outstanding.push_back(position);
                    self.outputs.push_back(Output::Apply { tablet, decided: Decided { position, work } });
                }
            }
        }
        let begins = self.first_safe.is_some_and(|ReadPoint { position: first, .. }| first <= position);
        for (tablet, handed) in &mut self.handed.tablets {
            let has_begun = begins || self.state.applied.get(tablet).is_some_and(|applied| *applied > LogPosition(0));
            if has_begun && handed.back.is_none() && handed.outstanding.len() >= window {
                handed.back = Some(position);
            }
        }
    }

    /// Hands to tablets that were held back, and have taken half of their window since, what they have missed.
    fn catch_up(&mut self) {
        let window = self.settings.apply_window;
        for (&tablet, handed) in &mut self.handed.tablets {
            let Some(back) = handed.back.filter(|_| handed.outstanding.len() <= window / 2) else { continue };
            let mut reached = back;
            let first = self.state.work.partition_point(|(position, _)| *position <= back);
            for (position, piece) in self.state.work.range(first..) {
                let full = handed.outstanding.len() >= window && *position > reached;
                if full || *position > self.handed.through {
                    break;
                }
                reached = *position;
                if handed.has_applied(*position) {
                    continue;
                }
                if let Some(work) = self.state.asks(*position, piece, tablet) {
                    handed.outstanding.push_back(*position);
                    let decided = Decided { position: *position, work };
                    self.outputs.push_back(Output::Apply { tablet, decided });
                }
            }
            handed.back = (handed.outstanding.len() >= window).then_some(reached);
        }
    }
}

impl State {
    /// The work that one entry asks for.
    fn work_at(&self, position: LogPosition) -> impl Iterator<Item = &(LogPosition, Piece)> {
        let first = self.work.partition_point(|(at, _)| *at < position);
        self.work.range(first..).take_while(move |(at, _)| *at == position)
    }

    /// The tablets that a piece of work concerns.
    fn concerned(&self, piece: &Piece) -> Vec<ReplicaTabletId> {
        match piece {
            Piece::Discarded { tablets, .. } => tablets.to_vec(),
            Piece::Turned { .. } => self.map.tablets.iter().map(|tablet| tablet.id).collect(),
            Piece::Decided(id) | Piece::Late { transaction: id, .. } => {
                self.transactions.get(*id).map_or_else(Vec::new, |found| found.tablets().to_vec())
            }
        }
    }

    /// What a piece of work asks of a tablet; `None` where nothing, or where it has durably done it.
    fn asks(&self, position: LogPosition, piece: &Piece, tablet: ReplicaTabletId) -> Option<Work> {
        if self.applied.get(&tablet).is_some_and(|applied| *applied >= position) {
            return None;
        }
        let (id, late) = match piece {
            Piece::Discarded { branch, tablets } => {
                return tablets.contains(&tablet).then(|| Work::Discard { branches: vec![*branch] });
            }
            Piece::Turned { stream, table, turn } => {
                return Some(Work::Turn { stream: *stream, table: *table, turn: *turn });
            }
            Piece::Decided(id) => (id, None),
            Piece::Late { transaction, branch } => (transaction, Some(*branch)),
        };
        let transaction = self.transactions.get(*id)?;
        let here = |b: &&Branch| b.tablets.contains(&tablet) && late.is_none_or(|late| b.id() == late);
        let mut branches: Vec<BranchId> = transaction.branches.iter().filter(here).map(Branch::id).collect();
        if branches.is_empty() {
            return None;
        }
        branches.sort_unstable();
        Some(match transaction.decision?.outcome {
            Outcome::Abort => Work::Discard { branches },
            Outcome::Commit(time) => {
                Work::Commit { transaction: *id, time, branches, tablets: transaction.tablets().to_vec() }
            }
        })
    }

    /// Whether every tablet that a piece of work concerns has durably done it.
    fn is_done(&self, position: LogPosition, piece: &Piece) -> bool {
        let done = |tablet: &ReplicaTabletId| self.applied.get(tablet).is_none_or(|applied| *applied >= position);
        match piece {
            Piece::Discarded { tablets, .. } => tablets.iter().all(done),
            Piece::Turned { .. } => self.map.tablets.iter().all(|tablet| done(&tablet.id)),
            Piece::Decided(id) | Piece::Late { transaction: id, .. } => self.transactions.get(*id).is_none_or(|t| {
                let mut tablets = t.branches.iter().flat_map(|b| &b.tablets);
                if planted(Bug::ForgottenWhenOneApplied) { tablets.any(done) } else { tablets.all(done) }
            }),
        }
    }

    /// A tablet has durably applied the log up to here: the work that only it was waited for is over.
    pub(super) fn fold_applied(&mut self, tablet: ReplicaTabletId, through: LogPosition) {
        let applied = self.applied.entry(tablet).or_default();
        let before = std::mem::replace(applied, through.max(*applied));
        // What stands at or below `before` waits for others.
        let rest = self.work.split_off(self.work.partition_point(|(position, _)| *position <= before));
        for (position, piece) in rest {
            if position > through || !self.is_done(position, &piece) {
                self.work.push_back((position, piece));
            } else if let Piece::Decided(id) = piece {
                self.fold_all_applied(id);
            }
        }
    }
}
