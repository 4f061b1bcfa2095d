//! The replica tablets of the model: the contract of a tablet, over sets of branches.

use super::source::STREAMS;
use std::collections::{BTreeMap, BTreeSet};
use untorn::coordinator::{Decided, Work};
use untorn::wal::{BranchId, Epoch, HybridTime, LogPosition};

/// What a tablet holds; a crash takes it back to what was durable.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Held {
    /// Branches that are not decided.
    pub provisional: BTreeSet<BranchId>,
    /// Branches that are visible: since which position, at which time.
    pub versions: BTreeMap<BranchId, (LogPosition, HybridTime)>,
    /// It has heard the log up to here.
    pub heard: LogPosition,
}

/// A tablet.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tablet {
    /// What it holds.
    pub held: Held,
    /// What of it is durable.
    pub durable: Held,
    /// The highest owner's epoch it has seen.
    pub owner: Epoch,
    /// The highest puller's epoch of each stream, and how far it holds the stream: always durable.
    pub streams: [(Epoch, usize); STREAMS],
}

/// A tablet's no.
pub enum No {
    /// A higher epoch was seen.
    Fenced,
    /// It holds something else than what this follows.
    HoldsOther,
}

impl Tablet {
    /// Provisional records of one batch: durable at once.
    pub fn store(
        &mut self,
        owner: Epoch,
        (stream, puller): (usize, Epoch),
        (follows, upto): (usize, usize),
        branches: &[BranchId],
    ) -> Result<(), No> {
        let (seen, held) = &mut self.streams[stream];
        if owner < self.owner || puller < *seen {
            return Err(No::Fenced);
        }
        (self.owner, *seen) = (owner, puller);
        if *held != follows {
            return Err(No::HoldsOther);
        }
        *held = upto;
        self.held.provisional.extend(branches);
        self.durable = self.held.clone();
        Ok(())
    }

    /// Carries decisions out; durable only with the next barrier.
    pub fn apply(
        &mut self,
        owner: Epoch,
        follows: LogPosition,
        through: LogPosition,
        work: &[Decided],
    ) -> Result<(), No> {
        if owner < self.owner {
            return Err(No::Fenced);
        }
        self.owner = owner;
        if self.held.heard != follows {
            return Err(No::HoldsOther);
        }
        for Decided { position, work } in work {
            for branch in work.branches() {
                // A branch that is not there was applied, or discarded, before.
                let here = self.held.provisional.remove(branch);
                if let (true, Work::Commit { time, .. }) = (here, work) {
                    self.held.versions.insert(*branch, (*position, *time));
                }
            }
        }
        self.held.heard = through;
        Ok(())
    }
}
