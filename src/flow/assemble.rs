//! From what a stream yields to what each replica tablet stores and what the log is told.

mod branches;
mod chunks;

pub use chunks::RoutedChunk;

use crate::coordinator::{ApplyingFact, Fact, InvolvedStream, Involvement, Report, TabletMap};
use crate::planted::{Bug, planted};
use crate::router::Router;
use crate::wal::{
    BranchId, BranchWrites, Cell, Conflict, DropChunks, Epoch, HybridTime, Involved, Key, OpId, ProvisionalBatch,
    Record, ReplicaTabletId, SourceBatch, SourceTabletId, SourceTransactionId, TableId, TableSchema, Write, WriteOp,
};
use branches::{AppliedBranches, OpenBranch};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// What an assembler must know when its stream opens.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The log's number of the stream.
    pub stream: SourceTabletId,
    /// The owner's epoch.
    pub owner: Epoch,
    /// The puller's epoch.
    pub puller: Epoch,
    /// The key → tablet map.
    pub map: TabletMap,
    /// Whether tablets are to answer conflicts (`release = "atomic"`).
    pub report_conflicts: bool,
    /// The numbers of all streams, by the names that Commit records may use.
    pub streams: BTreeMap<String, SourceTabletId>,
    /// The checkpoint that the first report follows.
    pub checkpoint: OpId,
    /// Branches that were reported and still take records: transaction and where each opened.
    pub open: Vec<(SourceTransactionId, OpId)>,
    /// Branches whose Applying record may come again, as it may from a source that names a branch by its transaction.
    pub applied: Vec<(SourceTransactionId, OpId)>,
    /// What each tablet holds of this stream. It may lie above the checkpoint, after a crash between the two.
    pub marks: Vec<(ReplicaTabletId, OpId)>,
}

/// Why nothing can be routed.
const NO_TABLETS: &str = "the log's map names no replica tablets";

/// A run of a stream, ready to go out: first the parts to their tablets, then, when all are durable, the report.
#[derive(Debug, Default, PartialEq)]
pub struct Assembled {
    /// What each tablet is to store. A tablet that holds all of its writes already is not here.
    pub parts: Vec<(ReplicaTabletId, ProvisionalBatch)>,
    /// What the log is told then; `acknowledged` is filled in by whoever sends it.
    pub report: Report,
    /// About how many bytes it takes in memory.
    pub bytes: usize,
}

impl Assembled {
    /// Adds what a tablet answered about earlier branches that wrote the same keys.
    pub fn add_conflicts(&mut self, conflicts: Vec<Conflict>) {
        if conflicts.is_empty() {
            return;
        }
        let mut by_branch: FxHashMap<OpId, Vec<BranchId>> = FxHashMap::default();
        for (branch, after) in conflicts {
            by_branch.entry(branch.opened).or_default().extend(after);
        }
        for fact in &mut self.report.facts {
            if let Fact::Branch { opened, after, .. } = fact
                && let Some(more) = by_branch.remove(opened)
            {
                after.extend(more);
                after.sort_unstable();
                after.dedup();
            }
        }
    }
}

/// Gathers a stream's batches until they are taken. So while one run is being stored, everything that comes makes up the
/// next, and a slow log or tablet makes batches larger instead of more.
#[derive(Debug)]
pub struct Assembler {
    stream: SourceTabletId,
    owner: Epoch,
    puller: Epoch,
    report_conflicts: bool,
    router: Router,
    streams: BTreeMap<String, SourceTabletId>,
    tablets: Vec<Tablet>,
    index: FxHashMap<ReplicaTabletId, usize>,
    /// Branches that still take records.
    open: FxHashMap<SourceTransactionId, OpenBranch>,
    applied: AppliedBranches,
    /// Last chunk's number at each tablet, by connection and transaction.
    chunks: FxHashMap<(u64, u32), Vec<u64>>,
    /// Chunks that nothing adopts, because they were stored before, and where they are.
    came_again: Vec<(ReplicaTabletId, DropChunks)>,
    /// Names of tables, for people.
    names: FxHashMap<TableId, String>,
    /// The checkpoint that the next report follows.
    follows: OpId,
    /// The last record's position.
    last: OpId,
    gathered: Gathered,
}

/// One replica tablet as this stream sees it.
#[derive(Debug)]
struct Tablet {
    id: ReplicaTabletId,
    /// What it will hold once everything that was taken is stored.
    mark: OpId,
    /// Whether this run has writes for it, stored now or before.
    touched: bool,
    branches: Vec<BranchWrites>,
}

/// What came since the last run was taken.
#[derive(Debug, Default)]
struct Gathered {
    /// The number of this run.
    run: u64,
    anything: bool,
    facts: Vec<Fact>,
    /// Transactions with records that no fact has said yet, in the order of their first one.
    unsaid: Vec<SourceTransactionId>,
    schemas: Vec<TableSchema>,
    safe_time: Option<HybridTime>,
    /// Where branches opened that the source rolled back.
    rolled_back: Vec<OpId>,
    upto: OpId,
    head: OpId,
    bytes: usize,
}

impl Assembler {
    /// An assembler for a stream that opens. Its tablets are the map's; one without a mark holds nothing yet.
    #[must_use]
    pub fn new(opening: Opening) -> Self {
        let marks: FxHashMap<_, _> = opening.marks.into_iter().collect();
        let tablets: Vec<_> = opening
            .map
            .tablets
            .iter()
            .map(|t| Tablet {
                id: t.id,
                mark: marks.get(&t.id).copied().unwrap_or(OpId::ZERO),
                touched: false,
                branches: Vec::new(),
            })
            .collect();
        let mut applied = AppliedBranches::default();
        opening.applied.into_iter().for_each(|(transaction, opened)| applied.remember(transaction, opened));
        Self {
            stream: opening.stream,
            owner: opening.owner,
            puller: opening.puller,
            report_conflicts: opening.report_conflicts,
            index: tablets.iter().enumerate().map(|(index, tablet)| (tablet.id, index)).collect(),
            router: Router::new(opening.map),
            streams: opening.streams,
            tablets,
            open: opening.open.into_iter().map(|(t, opened)| (t, OpenBranch::at(opened))).collect(),
            applied,
            chunks: FxHashMap::default(),
            came_again: Vec::new(),
            names: FxHashMap::default(),
            follows: opening.checkpoint,
            last: opening.checkpoint,
            gathered: Gathered { run: 1, upto: opening.checkpoint, ..Gathered::default() },
        }
    }

    /// Takes a batch in.
    ///
    /// # Errors
    /// Why the stream must stop: the batch says what cannot be true, or what this replica cannot do.
    pub fn push(&mut self, batch: SourceBatch) -> Result<(), String> {
        if batch.upto < self.gathered.upto {
            return Err(format!("the stream went back from {} to {}", self.gathered.upto, batch.upto));
        }
        self.gathered.anything |= batch.upto > self.gathered.upto
            || batch.head > self.gathered.head
            || !batch.records.is_empty()
            || !batch.adopted.is_empty();
        self.gathered.bytes += batch.bytes;
        for origin in batch.adopted {
            self.adopt(origin)?;
        }
        for (at, record) in batch.records {
            if at < self.last || at > batch.upto {
                return Err(format!(
                    "the stream's positions are out of order: a record at {at} after {} in a batch up to {}",
                    self.last, batch.upto
                ));
            }
            self.record(at, record)?;
            self.last = at;
        }
        self.gathered.upto = batch.upto;
        self.gathered.head = self.gathered.head.max(batch.head);
        self.last = self.last.max(batch.upto);
        Ok(())
    }

    /// The source does not know these transactions as running, and the stream has passed the position where it said so.
    pub fn push_not_running(&mut self, transactions: Vec<SourceTransactionId>) {
        self.gathered.anything = true;
        self.gathered.facts.push(Fact::NotRunning { transactions });
    }

    /// Asks for a report although nothing came: what was acknowledged has moved.
    pub fn push_nothing(&mut self) {
        self.gathered.anything = true;
    }

    /// How far the stream has come, counting keepalives.
    #[must_use]
    pub fn passed(&self) -> OpId {
        self.gathered.upto.max(self.gathered.head)
    }

    /// The position of the last batch taken in.
    #[must_use]
    pub fn upto(&self) -> OpId {
        self.gathered.upto
    }

    /// Whether everything was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.gathered.anything
    }

    /// Bytes gathered and not taken yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.gathered.bytes
    }

    /// Everything gathered, if there is anything.
    pub fn take(&mut self) -> Option<Assembled> {
        if !self.gathered.anything {
            return None;
        }
        for transaction in std::mem::take(&mut self.gathered.unsaid) {
            if let Some(branch) = self.open.get_mut(&transaction)
                && branch.run == self.gathered.run
                && (branch.records > 0 || !branch.tablets.is_empty())
            {
                let fact = branch.fact(self.stream, transaction, None);
                self.gathered.facts.push(fact);
            }
        }
        let Gathered { run, mut facts, schemas, safe_time, rolled_back, upto, head, bytes, .. } =
            std::mem::take(&mut self.gathered);
        // A run that does not move the stream goes to no tablet: shapes wait for one that does.
        let (schemas, waiting) = if upto > self.follows { (schemas, Vec::new()) } else { (Vec::new(), schemas) };
        self.gathered.schemas = waiting;
        // One SafeTime record says what all earlier ones of the run said, and everything before it is in the same entry.
        facts.extend(safe_time.map(|time| Fact::SafeTime { time }));
        let mut parts = Vec::new();
        let mut stored = Vec::new();
        for tablet in &mut self.tablets {
            let branches = std::mem::take(&mut tablet.branches);
            let says_anything = !branches.is_empty() || !schemas.is_empty() || !rolled_back.is_empty();
            if says_anything && tablet.mark < upto {
                let batch = ProvisionalBatch {
                    stream: self.stream,
                    owner: self.owner,
                    puller: self.puller,
                    follows: tablet.mark,
                    upto,
                    schemas: schemas.clone(),
                    branches,
                    rolled_back: rolled_back.clone(),
                    report_conflicts: self.report_conflicts,
                };
                tablet.mark = upto;
                parts.push((tablet.id, batch));
            }
            if std::mem::take(&mut tablet.touched) {
                // Where all of the run's writes were stored before, the tablet may hold less than `upto`.
                stored.push((tablet.id, tablet.mark.min(upto)));
            }
        }
        let report = Report {
            stream: self.stream,
            puller: self.puller,
            follows: std::mem::replace(&mut self.follows, upto),
            upto,
            // A keepalive that lies behind the records says nothing.
            head: if head > upto { head } else { OpId::ZERO },
            acknowledged: OpId::ZERO,
            stored,
            facts,
        };
        self.gathered.run = run + 1;
        self.gathered.upto = upto;
        self.gathered.head = head;
        Some(Assembled { parts, report, bytes })
    }

    fn record(&mut self, at: OpId, record: Record) -> Result<(), String> {
        match record {
            Record::Write { transaction, write } => self.write(transaction, write)?,
            Record::Applying { transaction, records, prepared_at, label } => {
                let known = self.open.remove(&transaction);
                let again = || self.applied.opened(&transaction).filter(|_| prepared_at.is_none());
                let mut branch = known.or_else(|| again().map(OpenBranch::at)).unwrap_or_else(|| OpenBranch::at(at));
                if prepared_at.is_none() {
                    self.applied.remember(transaction.clone(), branch.opened);
                }
                let applying = ApplyingFact { at, records, prepared_at: prepared_at.unwrap_or_default(), label };
                self.gathered.facts.push(branch.fact(self.stream, transaction, Some(applying)));
            }
            Record::Created { transaction } => self.gathered.facts.push(Fact::Created { transaction, at }),
            Record::Pending { transaction } => self.gathered.facts.push(Fact::Pending { transaction }),
            Record::Commit { transaction, branch, time, involved } => {
                self.say(&transaction);
                let involved = self.involvement(&transaction, involved)?;
                let branch = branch.map(|branch| branch.opened);
                self.gathered.facts.push(Fact::Commit { transaction, branch, at, time, involved });
            }
            Record::Aborted { transaction, branch } => {
                self.say(&transaction);
                if branch.is_none() {
                    self.open.remove(&transaction);
                }
                let branch = branch.map(|branch| branch.opened);
                self.gathered.rolled_back.extend(branch);
                self.gathered.facts.push(Fact::Aborted { transaction, branch, at });
            }
            Record::SafeTime { time } => {
                self.gathered.safe_time = self.gathered.safe_time.max(Some(time));
            }
            Record::Schema(schema) => {
                self.names.insert(schema.table, schema.name.clone());
                self.gathered.schemas.push(schema);
            }
            Record::Split { children } => {
                let children =
                    children.iter().map(|child| self.number(child, "was split into")).collect::<Result<_, _>>()?;
                self.gathered.facts.push(Fact::Split { children, at });
            }
        }
        Ok(())
    }

    fn write(&mut self, transaction: SourceTransactionId, mut write: Write) -> Result<(), String> {
        let target = self.target(&mut write)?;
        let run = self.gathered.run;
        let unsaid = &mut self.gathered.unsaid;
        let branch = match self.open.entry(transaction) {
            std::collections::hash_map::Entry::Occupied(entry) => {
                let key = entry.key().clone();
                let branch = entry.into_mut();
                if branch.run != run {
                    branch.run = run;
                    branch.places.clear();
                    unsaid.push(key);
                }
                branch
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                if self.applied.opened(entry.key()).is_some() {
                    return Err(format!("a write of transaction {} came after its Applying record", entry.key()));
                }
                unsaid.push(entry.key().clone());
                let mut branch = OpenBranch::at(write.at);
                branch.run = run;
                entry.insert(branch)
            }
        };
        branch.records += 1;
        let id = BranchId { stream: self.stream, opened: branch.opened };
        let at = write.at;
        let stored_before = match target {
            Some(1) if planted(Bug::SecondTabletsWritesLost) && branch.records == 3 => false,
            Some(index) => {
                self.tablets[index].take_write(index, id, branch, write);
                at <= self.tablets[index].mark
            }
            None => {
                let all = if planted(Bug::TruncateToOneTablet) { 1 } else { self.tablets.len() };
                for (index, tablet) in self.tablets.iter_mut().enumerate().take(all) {
                    tablet.take_write(index, id, branch, write.clone());
                }
                self.tablets.iter().any(|tablet| at <= tablet.mark)
            }
        };
        branch.stored_before |= stored_before && self.report_conflicts;
        Ok(())
    }

    /// The tablet that a write goes to; `None` is all of them.
    fn target(&self, write: &mut Write) -> Result<Option<usize>, String> {
        let route = |key: &Key| {
            let tablet = self.router.route(write.table, key).and_then(|id| self.index.get(&id).copied());
            tablet.ok_or_else(|| NO_TABLETS.to_owned())
        };
        match &mut write.op {
            WriteOp::Truncate => Ok(None),
            WriteOp::Delete => route(&write.key).map(Some),
            WriteOp::Put { row, fill_from } => {
                let tablet = route(&write.key)?;
                if let Some(old) = &fill_from {
                    if !row.cells.contains(&Cell::Unchanged) {
                        *fill_from = None;
                    } else if route(old)? != tablet {
                        let table = self.names.get(&write.table).map_or("?", String::as_str);
                        return Err(format!(
                            "an update of {table} moved key {old:?} to {:?}, on another replica tablet, without its \
                             unchanged columns; the source must send every column where a key changes",
                            write.key
                        ));
                    }
                }
                Ok(Some(tablet))
            }
        }
    }

    /// Says what was taken of a transaction's branch, before a record that ends it.
    fn say(&mut self, transaction: &SourceTransactionId) {
        if let Some(branch) = self.open.get_mut(transaction)
            && branch.records > 0
        {
            let fact = branch.fact(self.stream, transaction.clone(), None);
            self.gathered.facts.push(fact);
        }
    }

    fn involvement(&self, transaction: &SourceTransactionId, involved: Involved) -> Result<Involvement, String> {
        Ok(match involved {
            Involved::OnlyThisStream => Involvement::OnlyThisStream,
            Involved::Discovered => Involvement::Discovered,
            Involved::Listed(tablets) => {
                let streams = tablets.into_iter().map(|tablet| {
                    let stream = self.number(&tablet.tablet, &format!("transaction {transaction} wrote to"))?;
                    Ok(InvolvedStream { stream, records: tablet.records })
                });
                Involvement::Listed(streams.collect::<Result<_, String>>()?)
            }
        })
    }

    fn number(&self, name: &str, what: &str) -> Result<SourceTabletId, String> {
        self.streams.get(name).copied().ok_or_else(|| {
            format!("{what} source tablet {name:?}, which is not in the configuration; add it to [[source.tablets]]")
        })
    }
}

impl Tablet {
    /// Takes a write of a branch, unless it was stored before.
    fn take_write(&mut self, index: usize, id: BranchId, branch: &mut OpenBranch, write: Write) {
        self.touched = true;
        if !branch.tablets.contains(&self.id) {
            branch.tablets.push(self.id);
        }
        if write.at <= self.mark {
            return;
        }
        if let Some(&(_, place)) = branch.places.iter().find(|(tablet, _)| *tablet == index) {
            self.branches[place].writes.push(write);
        } else {
            branch.places.push((index, self.branches.len()));
            self.branches.push(BranchWrites { branch: id, writes: vec![write], adopt: None });
        }
    }
}

#[cfg(test)]
mod tests;
