//! The fold's state: everything that the log says, and nothing else.

use super::decided::Turn;
use super::discovery::{Discovery, Start};
use super::entry::{Release, ReleaseId, TabletMap};
use super::joining::Absence;
use super::stream::{Place, StreamRecord};
use super::transaction::{Branch, Transaction};
use super::transactions::Transactions;
use crate::wal::{
    BranchId, Column, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, TableId, TableSchema,
    TransactionId,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Something that the replica tablets must do, in log order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Piece {
    /// Carry out a transaction's decision.
    Decided(TransactionId),
    /// Throw away one branch of a transaction that goes on, or that was aborted before the branch was heard of.
    Discarded { branch: BranchId, tablets: SmallVec<[ReplicaTabletId; 4]> },
    /// Apply a branch that was heard of after its transaction's decision: only without the gate.
    Late { transaction: TransactionId, branch: BranchId },
    /// Change what readers see of one stream's part of a table.
    Turned { stream: SourceTabletId, table: TableId, turn: Turn },
}

impl Piece {
    /// The transaction that it belongs to, where one is known by it.
    pub(super) fn transaction(&self) -> Option<TransactionId> {
        match self {
            Self::Decided(transaction) | Self::Late { transaction, .. } => Some(*transaction),
            Self::Discarded { .. } | Self::Turned { .. } => None,
        }
    }
}

/// A table as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableRecord {
    pub(super) name: String,
    /// The columns of version 1, 2, ….
    pub(super) versions: Vec<Vec<Column>>,
}

/// The fold's state. Recovery is "read and fold": two folds of one log are equal, whoever folds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// How transactions are decided.
    pub release: Release,
    /// The log's current owner.
    pub epoch: Epoch,
    /// How far the source servers' clocks may differ.
    pub clock_skew_micros: u64,
    /// The last entry folded.
    pub position: LogPosition,
    /// The owner's clock at that entry; it only rises.
    pub time: HybridTime,
    /// The key → tablet map.
    pub map: TabletMap,
    /// The streams, by number.
    pub streams: Vec<StreamRecord>,
    pub(super) tables: Vec<TableRecord>,
    /// The transactions that are not forgotten.
    pub transactions: Transactions,
    /// Later incarnations of ids that were used again, oldest first.
    pub(super) reused: BTreeMap<Arc<[u8]>, Vec<TransactionId>>,
    /// Rounds and who waits for them.
    pub discovery: Discovery,
    /// How far the start is.
    pub start: Start,
    /// The log position up to which each replica tablet has durably applied the log.
    pub applied: BTreeMap<ReplicaTabletId, LogPosition>,
    pub(super) work: VecDeque<(LogPosition, Piece)>,
    /// Transactions whose Commit record is known and that are not decided, by commit time.
    pub undecided: BTreeSet<(HybridTime, TransactionId)>,
    /// Finished transactions that safe time has not passed yet (common clock): a Commit record of theirs may come again.
    pub(super) above_safe: BTreeSet<(HybridTime, TransactionId)>,
    /// The largest hybrid time decided.
    pub last_time: HybridTime,
    /// Safe time, and the entry that established it.
    pub safe: Option<(LogPosition, HybridTime)>,
    /// Undecided branches by name (`release = "atomic"`): whose keys later ones may have to wait for.
    pub(super) by_branch: BTreeMap<BranchId, TransactionId>,
    /// Which streams have passed a place at which the source did not know the transaction as running, where it is not known
    /// which of them would carry its Commit record.
    pub(super) not_running: BTreeMap<TransactionId, BTreeSet<SourceTabletId>>,
    /// The last release of each replica tablet that was decided. A snapshot has it beside the rest, because those of
    /// version 2 lack it.
    #[serde(skip)]
    pub released: BTreeMap<ReplicaTabletId, ReleaseId>,
    /// When the rows of streams that joined anew were missed, oldest first: one for each time, as streams are. Beside the
    /// rest in a snapshot, too.
    #[serde(skip)]
    pub absences: Vec<Absence>,
    /// What the log does not say.
    #[serde(skip)]
    pub(super) agenda: Agenda,
}

/// Whom to look at next. Not part of the state: whoever restores it looks at every open transaction, and so finds the
/// same again. Two states are equal whatever stands here.
#[derive(Clone, Debug, Default)]
pub(super) struct Agenda {
    /// Transactions whose gate may have opened.
    pub(super) candidates: VecDeque<TransactionId>,
    /// Who waits for whose earlier write (`release = "atomic"`).
    pub(super) waiters: BTreeMap<TransactionId, BTreeSet<TransactionId>>,
}

impl PartialEq for Agenda {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            release: Release::default(),
            epoch: Epoch(0),
            clock_skew_micros: 0,
            position: LogPosition(0),
            time: HybridTime::MIN,
            map: TabletMap::default(),
            streams: Vec::new(),
            tables: Vec::new(),
            transactions: Transactions::default(),
            reused: BTreeMap::new(),
            discovery: Discovery::default(),
            start: Start::Over,
            applied: BTreeMap::new(),
            work: VecDeque::new(),
            undecided: BTreeSet::new(),
            above_safe: BTreeSet::new(),
            last_time: HybridTime::MIN,
            safe: None,
            by_branch: BTreeMap::new(),
            not_running: BTreeMap::new(),
            released: BTreeMap::new(),
            absences: Vec::new(),
            agenda: Agenda::default(),
        }
    }
}

impl State {
    /// A stream by number.
    #[must_use]
    pub fn stream(&self, stream: SourceTabletId) -> Option<&StreamRecord> {
        self.streams.get(stream.0 as usize)
    }

    pub(super) fn stream_mut(&mut self, stream: SourceTabletId) -> Option<&mut StreamRecord> {
        self.streams.get_mut(stream.0 as usize)
    }

    /// The stream of this name that has not left; else the last one that had it.
    #[must_use]
    pub fn stream_named(&self, name: &str) -> Option<&StreamRecord> {
        let named = || self.streams.iter().rev().filter(|stream| stream.name == name);
        named().find(|stream| !stream.left).or_else(|| named().next())
    }

    /// A table's number, given to it now if it has none.
    pub(super) fn table_number(&mut self, name: &str) -> TableId {
        let known = self.tables.iter().position(|table| table.name == name);
        let number = known.unwrap_or_else(|| {
            self.tables.push(TableRecord { name: name.to_owned(), versions: Vec::new() });
            self.tables.len() - 1
        });
        TableId(number as u32)
    }

    /// A stream's name, for people.
    #[must_use]
    pub fn stream_name(&self, stream: SourceTabletId) -> &str {
        self.stream(stream).map_or("?", |record| &record.name)
    }

    pub(super) fn head(&self, stream: SourceTabletId) -> Option<OpId> {
        self.stream(stream).filter(|record| !record.left).map(|record| record.head)
    }

    /// Every table's newest shape.
    pub(super) fn schemas(&self) -> impl Iterator<Item = TableSchema> + '_ {
        self.tables.iter().enumerate().filter_map(|(number, table)| {
            Some(TableSchema {
                table: TableId(number as u32),
                name: table.name.clone(),
                version: table.versions.len() as u32,
                columns: table.versions.last()?.clone(),
            })
        })
    }

    /// Every version of every table's shape.
    pub(super) fn schema_versions(&self) -> impl Iterator<Item = TableSchema> + '_ {
        self.tables.iter().enumerate().flat_map(|(number, table)| {
            table.versions.iter().enumerate().map(move |(version, columns)| TableSchema {
                table: TableId(number as u32),
                name: table.name.clone(),
                version: version as u32 + 1,
                columns: columns.clone(),
            })
        })
    }

    /// The stream that would carry the transaction's Commit record, where that is known and the stream goes on.
    pub(super) fn carrier(&self, transaction: &Transaction) -> Option<SourceTabletId> {
        transaction.carrier().filter(|stream| self.stream(*stream).is_some_and(|record| !record.left))
    }

    /// A transaction's gate may have opened.
    pub(super) fn candidate(&mut self, id: TransactionId) {
        if self.agenda.candidates.back() != Some(&id) {
            self.agenda.candidates.push_back(id);
        }
    }

    /// Looks again at those who wait for an earlier write of this transaction.
    pub(super) fn wake_later_writers(&mut self, id: TransactionId) {
        let woken = self.agenda.waiters.remove(&id).unwrap_or_default();
        woken.into_iter().for_each(|id| self.candidate(id));
    }

    /// Looks again at later uses of this transaction's id, which wait until it has ended in every stream.
    pub(super) fn wake_later_uses(&mut self, id: TransactionId) {
        if let Some(found) = self.transactions.get(id)
            && let Some(later) = self.reused.get(&found.source.id).cloned()
        {
            later.into_iter().for_each(|id| self.candidate(id));
        }
    }

    /// The newest place at which a stream spoke of a branch: it may be forgotten only once that is acknowledged.
    pub(super) fn mention(&mut self, id: TransactionId, stream: SourceTabletId, opened: Option<OpId>, at: OpId) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let found = match opened {
            Some(opened) => transaction.branches.iter_mut().find(|b| b.stream == stream && b.opened == opened),
            None => transaction.branches.iter_mut().find(|b| b.stream == stream),
        };
        let branch = match found {
            Some(branch) => branch,
            None => {
                let bystander = Branch { bystander: true, ..Branch::new(stream, at) };
                transaction.branches.push(bystander);
                let last = transaction.branches.len() - 1;
                &mut transaction.branches[last]
            }
        };
        branch.mentioned = branch.mentioned.max(at);
        if branch.unacknowledged {
            return;
        }
        // One that has left acknowledges nothing any more; its branch may still turn out to be of another use of the id.
        if let Some(record) = self.streams.get_mut(stream.0 as usize)
            && !record.left
            && at > record.acknowledged
        {
            branch.unacknowledged = true;
            record.unacknowledged.push_back((at, id));
        }
    }

    /// Passes every place of a stream that the cut may pass, and names the transaction at the first that it may not.
    pub(super) fn advance_cut(&mut self, stream: SourceTabletId) {
        while let Some(record) = self.streams.get_mut(stream.0 as usize) {
            let Some(&place) = record.places.front() else { return };
            match place {
                Place::Prepare { transaction, opened } => {
                    record.places.pop_front();
                    if let Some(found) = self.transactions.get_mut(transaction)
                        && let Some(branch) = found.branch_mut(stream, opened)
                    {
                        branch.inside = true;
                        if found.commit.is_some() {
                            self.candidate(transaction);
                        }
                    }
                }
                Place::Commit { transaction } => {
                    if self.transactions.get(transaction).is_some_and(|t| t.decision.is_none()) {
                        self.candidate(transaction);
                        return;
                    }
                    record.places.pop_front();
                }
            }
        }
    }

    /// Whether the transaction's commit is the first place that the cut has not passed, in some stream.
    pub(super) fn at_cut(&self, transaction: &Transaction) -> bool {
        transaction.branches.iter().any(|branch| {
            branch.ended
                && self.stream(branch.stream).and_then(|s| s.places.front()).is_some_and(
                    |place| matches!(place, Place::Commit { transaction: first } if *first == transaction.id),
                )
        })
    }
}
