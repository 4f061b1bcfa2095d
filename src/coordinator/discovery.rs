//! Discovery and the start fence: when is everyone known who is involved in a transaction?
//!
//! At the first COMMIT PREPARED of a transaction every branch of it is prepared already, and so flushed on its server.
//! A **round** reads the flush position of every server. If the commit had happened before the round began, then every
//! PREPARE lies at or below the round's position of its server; once every stream has come that far, the branches seen
//! are all there are. A commit had happened before a round began if its record had been heard by then, or if it lies at
//! or below its own server's position of an *earlier* round: so a stream that lags is not measured against now.
//!
//! A stream that was just created may send what was prepared before it late, at its COMMIT PREPARED. Therefore nothing
//! counts before the **start fence** is passed: every stream has passed the position read after the last slot stood,
//! and everything that was prepared then has ended in its stream.

use super::entry::Fence;
use crate::limits::ROUNDS_KEPT;
use crate::wal::{LogPosition, OpId, SourceTabletId, SourceTransactionId, TransactionId};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// One reading of every server's flush position that some stream has not reached yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Commits heard at or below this log position had happened before it began.
    pub begun_after: LogPosition,
    /// The flush positions, by stream.
    pub positions: Vec<(SourceTabletId, OpId)>,
    /// Transactions whose branches are all known once it is passed.
    pub waiting: Vec<TransactionId>,
}

impl Round {
    pub(super) fn position(&self, stream: SourceTabletId) -> Option<OpId> {
        self.positions.iter().find(|(s, _)| *s == stream).map(|(_, at)| *at)
    }

    fn covers(&self, commit: &Unproved) -> bool {
        self.position(commit.stream).is_some_and(|flushed| commit.at <= flushed)
    }
}

/// A first COMMIT PREPARED that no round proves yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unproved {
    /// Whose.
    pub transaction: TransactionId,
    /// The stream that carried it.
    pub stream: SourceTabletId,
    /// Where it stands there.
    pub at: OpId,
    /// The log entry that told of it.
    pub heard: LogPosition,
}

/// Rounds and the commits that wait for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovery {
    /// Rounds that some stream has not passed, oldest first. Positions rise from one to the next.
    pub rounds: VecDeque<Round>,
    /// Commits that no round proves yet, in the order in which they were heard.
    pub unproved: VecDeque<Unproved>,
}

impl Discovery {
    /// A first COMMIT PREPARED was heard: it waits for the round after the first one that covers it.
    pub(super) fn heard(&mut self, commit: Unproved) {
        // Positions rise with the rounds, so those that cover the commit are the last ones.
        let covering = self.rounds.partition_point(|round| !round.covers(&commit));
        match self.rounds.get_mut(covering + 1) {
            Some(round) => round.waiting.push(commit.transaction),
            None => self.unproved.push_back(commit),
        }
    }

    /// The commit was another transaction's.
    pub(super) fn rename(&mut self, from: TransactionId, to: TransactionId) {
        let unproved = self.unproved.iter_mut().map(|commit| &mut commit.transaction);
        let waiting = self.rounds.iter_mut().flat_map(|round| &mut round.waiting);
        unproved.chain(waiting).filter(|id| **id == from).for_each(|id| *id = to);
    }

    /// A round was taken.
    pub(super) fn taken(&mut self, begun_after: LogPosition, positions: Vec<(SourceTabletId, OpId)>) {
        let mut waiting = Vec::new();
        let before = self.rounds.back();
        self.unproved.retain(|commit| {
            let proved = commit.heard <= begun_after || before.is_some_and(|round| round.covers(commit));
            if proved {
                waiting.push(commit.transaction);
            }
            !proved
        });
        self.rounds.push_back(Round { begun_after, positions, waiting });
        self.thin();
    }

    /// Keeps the number of rounds bounded: whoever waits for one that is dropped waits for the next, which proves more.
    fn thin(&mut self) {
        if self.rounds.len() <= ROUNDS_KEPT {
            return;
        }
        let rounds = std::mem::take(&mut self.rounds);
        let last = rounds.len() - 1;
        let mut carried = Vec::new();
        for (number, mut round) in rounds.into_iter().enumerate() {
            if number % 2 == 1 && number != last {
                carried.append(&mut round.waiting);
            } else {
                round.waiting.append(&mut carried);
                self.rounds.push_back(round);
            }
        }
    }

    /// Takes out the rounds that every stream has passed, and answers who waited for them.
    pub(super) fn passed(&mut self, head: impl Fn(SourceTabletId) -> Option<OpId>) -> Vec<TransactionId> {
        let mut discovered = Vec::new();
        while let Some(round) = self.rounds.front() {
            if round.positions.iter().any(|(stream, at)| head(*stream).is_some_and(|head| head < *at)) {
                break;
            }
            if let Some(round) = self.rounds.pop_front() {
                discovered.extend(round.waiting);
            }
        }
        discovered
    }

    /// The first stream, by number, that the oldest round waits for.
    pub(super) fn laggard(&self, head: impl Fn(SourceTabletId) -> Option<OpId>) -> Option<SourceTabletId> {
        let round = self.rounds.front()?;
        round
            .positions
            .iter()
            .find(|(stream, at)| head(*stream).is_some_and(|head| head < *at))
            .map(|(stream, _)| *stream)
    }
}

/// One branch that was prepared when the fence was taken and has not ended in its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outstanding {
    /// Its stream.
    pub stream: SourceTabletId,
    /// Its transaction, as the stream names it.
    pub transaction: SourceTransactionId,
    /// Set when it is gone from the server: resolved once the stream has passed this position.
    pub gone_at: Option<OpId>,
}

/// How far the start is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// Set at first where there is no common clock; waits for every stream's slot, and then for the fence.
    Slots,
    /// Set by the fence; waits until every stream has passed it and everything listed has ended.
    Fenced {
        /// The fence.
        fence: Fence,
        /// What has not ended of what was prepared.
        outstanding: Vec<Outstanding>,
    },
    /// Set when the fence is passed; waits until everything committed by then is decided: the first cut.
    FirstCut {
        /// The fence: commits at or below its positions need no round.
        fence: Fence,
        /// How many transactions are not decided.
        undecided: u64,
    },
    /// Set when the first cut is decided, and at once where there is a common clock. Readers are served.
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SourceTabletId = SourceTabletId(0);
    const B: SourceTabletId = SourceTabletId(1);

    fn at(term: u64) -> OpId {
        OpId::new(term, 0)
    }

    fn commit(id: u64, stream: SourceTabletId, term: u64, heard: u64) -> Unproved {
        Unproved { transaction: TransactionId(id), stream, at: at(term), heard: LogPosition(heard) }
    }

    #[test]
    fn a_lagging_stream_is_not_measured_against_now() {
        let mut discovery = Discovery::default();
        discovery.taken(LogPosition(1), vec![(A, at(100)), (B, at(10))]);
        discovery.taken(LogPosition(2), vec![(A, at(200)), (B, at(20))]);
        discovery.taken(LogPosition(3), vec![(A, at(300)), (B, at(30))]);
        // B lags: its commit at 5 was before the first round began to be read, so the second one proves it.
        discovery.heard(commit(1, B, 5, 9));
        assert!(discovery.unproved.is_empty());
        let heads = |stream| Some(if stream == A { at(250) } else { at(25) });
        assert_eq!(discovery.passed(heads), [TransactionId(1)]);
        assert_eq!(discovery.laggard(heads), Some(A));
    }

    #[test]
    fn a_round_that_began_before_the_commit_was_heard_proves_nothing() {
        let mut discovery = Discovery::default();
        discovery.heard(commit(1, A, 50, 9));
        discovery.taken(LogPosition(8), vec![(A, at(40)), (B, at(10))]);
        assert_eq!(discovery.unproved.len(), 1);
        discovery.taken(LogPosition(9), vec![(A, at(60)), (B, at(12))]);
        assert_eq!(discovery.passed(|_| Some(at(60))), [TransactionId(1)]);
    }

    #[test]
    fn thinning_loses_nobody() {
        let mut discovery = Discovery::default();
        for n in 0..=ROUNDS_KEPT as u64 {
            discovery.heard(commit(n, A, n, n));
            discovery.taken(LogPosition(n), vec![(A, at(n))]);
        }
        assert!(discovery.rounds.len() <= ROUNDS_KEPT);
        assert_eq!(discovery.passed(|_| Some(at(u64::MAX))).len(), ROUNDS_KEPT + 1);
    }
}
