//! The source of the model: what each of two source tablets' streams carries.

use std::collections::{BTreeMap, BTreeSet};
use untorn::coordinator::{ApplyingFact, Fact, InvolvedStream, Involvement};
use untorn::wal::{BranchId, HybridTime, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId};

/// Source tablets.
pub const STREAMS: usize = 2;
/// Replica tablets.
pub const TABLETS: usize = 2;

/// A transaction of the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Txn {
    /// Writes on both source tablets, and on the first one to both replica tablets.
    Both,
    /// Writes on both source tablets, and is aborted by the second one.
    Aborted,
    /// Writes on both source tablets; the second one commits it.
    Later,
}

/// Every transaction.
pub const ALL: [Txn; 3] = [Txn::Both, Txn::Aborted, Txn::Later];

impl Txn {
    /// Its commit time; none where it is aborted.
    pub fn time(self) -> Option<HybridTime> {
        match self {
            Self::Both => Some(HybridTime::from_micros(100)),
            Self::Aborted => None,
            Self::Later => Some(HybridTime::from_micros(200)),
        }
    }

    /// Its id at the source.
    pub fn id(self) -> SourceTransactionId {
        SourceTransactionId::first(format!("{self:?}").as_bytes())
    }

    /// Its branches, and the replica tablets that each writes to.
    pub fn branches(self) -> BTreeMap<BranchId, BTreeSet<usize>> {
        let mut branches: BTreeMap<BranchId, BTreeSet<usize>> = BTreeMap::new();
        for write in (0..STREAMS).flat_map(batches).flat_map(|batch| batch.writes) {
            if write.txn == self {
                branches.entry(write.branch).or_default().insert(write.tablet);
            }
        }
        branches
    }
}

/// A write, as far as the model looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Whose.
    pub txn: Txn,
    /// In which branch.
    pub branch: BranchId,
    /// To which replica tablet.
    pub tablet: usize,
}

/// What a stream carries at one position.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What is written.
    pub writes: Vec<Write>,
    /// What is reported of it.
    pub facts: Vec<Fact>,
}

/// A stream's number in the log.
pub fn stream(number: usize) -> SourceTabletId {
    SourceTabletId(number as u32)
}

/// A replica tablet's number in the log.
pub fn tablet(number: usize) -> ReplicaTabletId {
    ReplicaTabletId(number as u32)
}

/// Where a batch of a stream ends; 1 is the first, and 0 its beginning.
pub fn at(batch: usize) -> OpId {
    OpId::new(u64::from(batch > 0), batch as u64 * 10)
}

/// A record within a batch.
fn within(batch: usize, record: u64) -> OpId {
    OpId::new(1, at(batch - 1).index + record)
}

/// Which batch ends there.
pub fn batch_at(position: OpId) -> usize {
    position.index as usize / 10
}

impl Batch {
    /// Writes of a branch that began at `opened`, to these tablets; `ends` with the position of its Applying record.
    fn writes(mut self, txn: Txn, branch: BranchId, tablets: &[usize], ends: Option<OpId>) -> Self {
        let records = tablets.len() as u64;
        self.facts.push(Fact::Branch {
            transaction: txn.id(),
            opened: branch.opened,
            records,
            tablets: tablets.iter().map(|number| tablet(*number)).collect(),
            after: Vec::new(),
            applying: ends.map(|at| ApplyingFact { at, records: Some(records), ..ApplyingFact::default() }),
        });
        self.writes.extend(tablets.iter().map(|&tablet| Write { txn, branch, tablet }));
        self
    }

    fn commits(mut self, txn: Txn, at: OpId, records: [u64; STREAMS]) -> Self {
        let listed = records
            .iter()
            .enumerate()
            .map(|(number, records)| InvolvedStream { stream: stream(number), records: Some(*records) });
        let (transaction, time) = (txn.id(), txn.time().unwrap_or(HybridTime::MAX));
        let involved = Involvement::Listed(listed.collect());
        self.facts.push(Fact::Commit { transaction, branch: None, at, time, involved });
        self
    }

    fn aborts(mut self, txn: Txn, at: OpId) -> Self {
        self.facts.push(Fact::Aborted { transaction: txn.id(), branch: None, at });
        self
    }

    fn promises(mut self, micros: u64) -> Self {
        self.facts.push(Fact::SafeTime { time: HybridTime::from_micros(micros) });
        self
    }
}

/// What a stream carries, in order.
pub fn batches(number: usize) -> Vec<Batch> {
    let branch = |batch, record| BranchId { stream: stream(number), opened: within(batch, record) };
    let batch = Batch::default;
    match number {
        0 => vec![
            batch().writes(Txn::Both, branch(1, 1), &[0, 1], Some(within(1, 3))),
            batch().writes(Txn::Aborted, branch(2, 1), &[0], Some(within(2, 2))).commits(
                Txn::Both,
                within(2, 3),
                [2, 1],
            ),
            batch().writes(Txn::Later, branch(3, 1), &[1], Some(within(3, 2))).promises(1_000),
        ],
        _ => vec![
            batch()
                .writes(Txn::Aborted, branch(1, 1), &[1], None)
                .writes(Txn::Both, branch(1, 2), &[1], Some(within(1, 3)))
                .promises(50),
            batch()
                .aborts(Txn::Aborted, within(2, 1))
                .writes(Txn::Later, branch(2, 2), &[0], Some(within(2, 3)))
                .commits(Txn::Later, within(2, 4), [1, 1])
                // Said by the other stream, too: whichever comes second says nothing new.
                .commits(Txn::Both, within(2, 5), [2, 1])
                .promises(1_000),
        ],
    }
}
