//! Deciding: what may be decided is, safe time moves, and readers are told how far they may read.

use super::decided::ReadPoint;
use super::discovery::Start;
use super::entry::{Item, Outcome, Release};
use super::gate::Missing;
use super::invariants;
use super::machine::Coordinator;
use super::transaction::Transaction;
use crate::planted::{Bug, planted};
use crate::wal::HybridTime;

impl Coordinator {
    /// Decides what may be decided, moves safe time, and opens the replica to readers.
    pub(super) fn settle(&mut self, now: HybridTime) {
        while let Some(id) = self.state.agenda.candidates.pop_front() {
            let Some(transaction) = self.state.transactions.get(id).filter(|t| t.decision.is_none()) else { continue };
            let outcome = if transaction.doomed && !planted(Bug::AbortIsCommit) {
                Outcome::Abort
            } else {
                match self.state.missing(transaction).filter(|_| !transaction.doomed) {
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
            if planted(Bug::DecidedAgain) {
                self.say(now, Item::Decision { transaction: id, outcome });
            }
        }
        if let Some(time) = self.safe_time(now)
            && self.state.safe.is_none_or(|(_, known)| known < time)
        {
            self.say(now, Item::SafeTime { time });
            let position = self.state.position;
            self.safe_pending.push_back(ReadPoint { position, time });
            if planted(Bug::SafeTimeBeforeDurable) {
                self.safe = self.safe_pending.pop_back();
            }
        }
        let over = self.is_over()
            || (planted(Bug::ReadersBeforeFirstCut) && matches!(self.state.start, Start::FirstCut { .. }));
        if self.readable_from.is_none() && over {
            self.readable_from = Some(self.state.position);
        }
        debug_assert_eq!(invariants::broken(self), None);
    }

    /// Whether readers may be served: the start is over, and once every table was copied. What is copied later is hidden
    /// from them by itself.
    fn is_over(&self) -> bool {
        self.state.start == Start::Over && (self.state.safe.is_some() || self.state.copies_are_shown())
    }

    /// The source's commit time where it has a common clock; else a time above every one in the log, close to the
    /// source's.
    fn commit_time(&self, transaction: &Transaction, now: HybridTime) -> HybridTime {
        let said = transaction.commit.as_ref().map_or(now, |commit| commit.time);
        match self.state.release {
            Release::CommonClock => said,
            Release::Ordered | Release::Atomic if planted(Bug::TimesOfServers) => said,
            Release::Ordered | Release::Atomic => self.state.last_time.next().max(said.min(now)),
        }
    }

    /// A time above every one in the log, close to the leader's clock.
    pub(super) fn next_time(&self, now: HybridTime) -> HybridTime {
        self.state.last_time.next().max(now)
    }

    /// The largest hybrid time at which a read is complete (C9). Without a common clock it is the last commit's, and before
    /// the first one the time at which the start was over: later commits are given later ones.
    fn safe_time(&self, now: HybridTime) -> Option<HybridTime> {
        if self.state.release != Release::CommonClock {
            let nothing_yet = self.state.last_time == HybridTime::MIN;
            let time = if nothing_yet { now } else { self.state.last_time };
            return (self.is_over() && !self.state.streams.is_empty()).then_some(time);
        }
        let mut live = self.state.streams.iter().filter(|stream| !stream.left).peekable();
        live.peek()?;
        let heard = live.map(|s| s.safe_time_heard.then_some(s.safe_time));
        let heard = if planted(Bug::SafeTimeIsLargest) {
            heard.max()??
        } else if planted(Bug::SafeTimeWithoutSilent) {
            heard.flatten().min()?
        } else {
            heard.min()??
        };
        let undecided = self.state.undecided.first().map(|(time, _)| time.previous());
        Some(undecided.map_or(heard, |time| time.min(heard)))
    }

    /// The `latest` read point, once anything may be shown.
    #[must_use]
    pub fn latest(&self) -> Option<ReadPoint> {
        let begun = self.state.streams.is_empty() || self.readable_from.is_some_and(|from| from <= self.durable);
        let position = if planted(Bug::LatestBeforeDurable) { self.state.position } else { self.durable };
        begun.then_some(ReadPoint { position, time: HybridTime::MAX })
    }

    /// The `safe` read point, once there is one: its safe time is durable. Without streams it is `latest`.
    #[must_use]
    pub fn safe(&self) -> Option<ReadPoint> {
        if self.state.streams.iter().all(|stream| stream.left) {
            return self.latest();
        }
        self.safe
    }
}
