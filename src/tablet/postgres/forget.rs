//! What is staged is forgotten once the server has it durably: some of the oldest at a time, beside the server's next
//! work, so that the server never waits for it.

use super::apply::group_end;
use crate::coordinator::Decided;
use crate::wal::LogPosition;
use std::collections::VecDeque;

/// Positions of the server's WAL that are waited for: a second's worth of calls, and more.
const UNFLUSHED_MAX: usize = 64;

/// Decisions that the server has applied, and that are still staged here.
#[derive(Default, Debug)]
pub(super) struct Unforgotten {
    /// In log order.
    applied: Vec<Decided>,
    durable: Durable,
    /// What becomes durable once the server's WAL is on disk up to a position.
    unflushed: VecDeque<(u64, Durable)>,
}

/// What the server holds durably.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Durable {
    /// Everything up to here that concerned it.
    pub(super) through: LogPosition,
    /// The position of its progress row.
    pub(super) progress: LogPosition,
}

impl Unforgotten {
    /// The server has applied these, perhaps not durably. Those of a call that failed later are told again.
    pub(super) fn push(&mut self, applied: &[Decided]) {
        let told = self.applied.last().map_or(LogPosition(0), |last| last.position);
        let new = applied.partition_point(|decided| decided.position <= told);
        self.applied.extend_from_slice(&applied[new..]);
    }

    /// The owner tells again what it has not heard to be forgotten.
    pub(super) fn clear(&mut self) {
        self.applied.clear();
    }

    /// This is durable once the server's WAL is on disk up to `wal`.
    pub(super) fn durable_at(&mut self, wal: u64, durable: Durable) {
        // Where the disk is far behind, a later one says the same.
        if self.unflushed.len() < UNFLUSHED_MAX {
            self.unflushed.push_back((wal, durable));
        }
    }

    /// The server's WAL is on disk up to here.
    pub(super) fn flushed(&mut self, wal: u64) {
        while let Some((_, durable)) = self.unflushed.pop_front_if(|(at, _)| *at <= wal) {
            self.durable = durable;
        }
    }

    /// What the server has applied so far is durable there.
    pub(super) fn is_durable(&mut self, durable: Durable) {
        self.durable = durable;
        self.unflushed.clear();
    }

    /// Takes about so many of the oldest of what may be forgotten, whole positions, and says what is forgotten with them.
    pub(super) fn take(&mut self, most: usize) -> (Vec<Decided>, Durable) {
        let durable = self.applied.partition_point(|decided| decided.position <= self.durable.through);
        let end = group_end(&self.applied[..durable], 0, most);
        let taken: Vec<Decided> = self.applied.drain(..end).collect();
        let through = match taken.last() {
            Some(last) if end < durable => last.position,
            _ => self.durable.through,
        };
        (taken, Durable { through, ..self.durable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::Work;

    fn decided(position: u64) -> Decided {
        Decided { position: LogPosition(position), work: Work::Discard { branches: Vec::new() } }
    }

    fn positions(taken: &[Decided]) -> Vec<u64> {
        taken.iter().map(|decided| decided.position.0).collect()
    }

    #[test]
    fn nothing_is_forgotten_before_it_is_durable() {
        let mut unforgotten = Unforgotten::default();
        unforgotten.push(&[decided(2), decided(3)]);
        assert!(unforgotten.take(9).0.is_empty());
        let durable = Durable { through: LogPosition(2), progress: LogPosition(2) };
        unforgotten.is_durable(durable);
        let (taken, forgotten) = unforgotten.take(9);
        assert_eq!((positions(&taken), forgotten), (vec![2], durable));
        let durable = Durable { through: LogPosition(9), progress: LogPosition(3) };
        unforgotten.is_durable(durable);
        let (taken, forgotten) = unforgotten.take(9);
        assert_eq!((positions(&taken), forgotten), (vec![3], durable));
        assert_eq!(unforgotten.take(9), (vec![], durable));
    }

    #[test]
    fn what_commits_did_not_wait_for_is_durable_once_the_wal_is_on_disk() {
        let mut unforgotten = Unforgotten::default();
        let at = |position| Durable { through: LogPosition(position), progress: LogPosition(position) };
        unforgotten.push(&[decided(1), decided(2)]);
        unforgotten.durable_at(100, at(1));
        unforgotten.durable_at(200, at(2));
        unforgotten.flushed(199);
        assert_eq!((positions(&unforgotten.take(9).0), unforgotten.durable), (vec![1], at(1)));
        // A barrier has passed: nothing earlier is to come after it.
        unforgotten.is_durable(at(2));
        unforgotten.flushed(300);
        assert_eq!((positions(&unforgotten.take(9).0), unforgotten.durable), (vec![2], at(2)));
    }

    #[test]
    fn much_is_forgotten_piece_by_piece_and_no_position_is_divided() {
        let mut unforgotten = Unforgotten::default();
        unforgotten.push(&[decided(1), decided(2), decided(2)]);
        // The call failed after these, and they are told again.
        unforgotten.push(&[decided(1), decided(2), decided(2), decided(3), decided(4)]);
        let all = LogPosition(7);
        unforgotten.is_durable(Durable { through: all, progress: LogPosition(4) });
        let mut taken = || {
            let (taken, Durable { through, progress }) = unforgotten.take(2);
            assert_eq!(progress, LogPosition(4));
            (positions(&taken), through.0)
        };
        assert_eq!([taken(), taken(), taken()], [(vec![1], 1), (vec![2, 2], 2), (vec![3, 4], 7)]);
    }
}
