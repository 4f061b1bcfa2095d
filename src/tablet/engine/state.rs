//! What a tablet knows in memory, and how it is found again on disk.

use super::TabletOptions;
use super::chunks::Staging;
use super::collect::Collection;
use super::conflicts::Conflicts;
use super::one_writer::Writers;
use super::removal::Removals;
use super::wal::{OwnWal, WalEnds};
use crate::coordinator::{Applied, ReadPoint};
use crate::mvcc::{Truncation, Truncations, TurnAt};
use crate::planted::{Bug, planted};
use crate::tablet::format::{
    AppliedThrough, Binding, Copying, Mark, ProvisionalRecord, StoredOp, StoredTurn, StoredWrite, decode, encode,
};
use crate::tablet::keys::{self, Kind, Parts};
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::tablet::{Announced, StreamMark, TabletError, TabletStats};
use crate::wal::{
    BranchId, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, SourceTabletId, TableId, TableSchema,
};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use tokio::sync::watch;

/// What readers share with the worker.
pub(super) struct Shared<S> {
    /// The storage.
    pub(super) store: S,
    /// The tablet has heard the log up to here. Set by the worker, waited for by readers.
    pub(super) heard: watch::Sender<LogPosition>,
    /// How far the tablet's own WAL is.
    pub(super) wal: watch::Sender<WalEnds>,
    /// The tablet's number, once it is bound to a log.
    pub(super) number: OnceLock<ReplicaTabletId>,
    /// Set by the worker *before* `heard` passes a truncation's position.
    truncations: RwLock<Arc<Truncations>>,
    /// The oldest read point that is kept apart. Raised by the worker *before* it drops what lies below.
    kept: RwLock<ReadPoint>,
}

impl<S> Shared<S> {
    /// The truncations known now.
    pub(super) fn truncations(&self) -> Arc<Truncations> {
        Arc::clone(&self.truncations.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The oldest read point that may be asked for now.
    pub(super) fn kept(&self) -> ReadPoint {
        *self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the oldest read point.
    pub(super) fn keep_from(&self, point: ReadPoint) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = point;
    }

    /// Makes a truncation known to readers.
    pub(super) fn truncate(&self, table: TableId, stream: SourceTabletId, truncation: Truncation) {
        let mut truncations = self.truncations.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut truncations).insert(table, stream, truncation);
    }

    /// Forgets a truncation that removes nothing any more.
    pub(super) fn forget_truncation(&self, table: TableId, stream: SourceTabletId, truncation: Truncation) {
        let mut truncations = self.truncations.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut truncations).remove(table, stream, truncation);
    }

    /// Makes a turn known to readers.
    pub(super) fn turn(&self, table: TableId, stream: SourceTabletId, turn: TurnAt) {
        let mut truncations = self.truncations.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut truncations).turn(table, stream, turn);
    }
}

/// An undecided branch: a small record in memory, its writes on disk (C10).
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    /// Its provisional records are numbered 0 up to this.
    pub(super) records: u32,
    /// How many writes they hold.
    pub(super) writes: u64,
    /// Bytes of their values.
    pub(super) bytes: u64,
    /// Each truncation, and how many of the branch's writes stand before it.
    pub(super) truncations: Vec<(TableId, u64)>,
    /// Whether what a write does depends on earlier ones: it fills cells from another key, or removes one of several
    /// identical rows.
    pub(super) looks_back: bool,
    /// Whether one of its provisional records adopts chunks.
    pub(super) adopts: bool,
    /// Whether the source has rolled it back.
    pub(super) rolled_back: bool,
}

impl Branch {
    /// Counts a run of writes in.
    pub(super) fn count<'a>(&mut self, writes: impl IntoIterator<Item = &'a StoredWrite<'a>>) {
        for write in writes {
            match write.op {
                StoredOp::Truncate => self.truncations.push((write.table, self.writes)),
                StoredOp::Fill { from, .. } => self.looks_back |= from.is_some(),
                StoredOp::Delete => self.looks_back |= Key::is_content(write.key.0),
                StoredOp::Put(_) => {}
            }
            self.writes += 1;
        }
    }
}

/// Sums over undecided branches, or over what is staged for some.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Their writes.
    pub(super) writes: u64,
    /// Their bytes.
    pub(super) bytes: u64,
}

impl Held {
    /// Counts a branch in.
    pub(super) fn add(&mut self, branch: &Branch) {
        self.writes += branch.writes;
        self.bytes += branch.bytes;
    }

    /// Counts it out.
    pub(super) fn remove(&mut self, branch: &Branch) {
        self.writes -= branch.writes;
        self.bytes -= branch.bytes;
    }
}

/// One tablet, as its worker holds it.
pub(super) struct State<S> {
    pub(super) store: S,
    pub(super) shared: Arc<Shared<S>>,
    pub(super) options: TabletOptions,
    pub(super) binding: Option<Binding>,
    pub(super) marks: BTreeMap<SourceTabletId, Mark>,
    pub(super) heard: AppliedThrough,
    /// What was heard when the last barrier passed.
    applied: LogPosition,
    pub(super) schemas: BTreeMap<(TableId, u32), TableSchema>,
    pub(super) branches: BTreeMap<BranchId, Branch>,
    /// What the branches hold, all together.
    pub(super) held: Held,
    pub(super) staging: Staging,
    /// Copies on their way.
    pub(super) copying: BTreeMap<(TableId, SourceTabletId), Copying>,
    /// The bases of copies whose rows are all here, and whose beginnings were not heard yet. What is heard until then may
    /// still belong to the copy before.
    pub(super) arrived: BTreeMap<(TableId, SourceTabletId), HybridTime>,
    /// Built when the first batch asks for conflicts, or the first row is to be filled.
    pub(super) conflicts: Option<Conflicts>,
    pub(super) collection: Collection,
    pub(super) writers: Writers,
    pub(super) removals: Removals,
    pub(super) wal: OwnWal,
    /// Versions written since the last collection.
    pub(super) versions_written: usize,
}

fn damaged(what: &str) -> TabletError {
    TabletError::Poisoned(format!("a {what} key is damaged"))
}

impl<S: Store> State<S> {
    /// Reads back what is on disk.
    pub(super) fn open(store: S, options: TabletOptions) -> Result<Self, TabletError> {
        // What was written but not synced by a process that was killed is still there to be read; it must be durable
        // before anything is answered from it.
        store.sync()?;
        let one = |kind: Kind| store.get(kind.space(), &kind.only());
        let binding = one(Kind::Binding)?.map(|v| decode("the binding", v.as_ref())).transpose()?;
        let heard: AppliedThrough =
            one(Kind::Applied)?.map(|v| decode("the applied position", v.as_ref())).transpose()?.unwrap_or_default();
        let none = ReadPoint { position: LogPosition(0), time: HybridTime::MIN };
        let kept = match one(Kind::Horizon)? {
            Some(value) => {
                let (position, time) = decode("the horizon", value.as_ref())?;
                ReadPoint { position, time }
            }
            None => none,
        };
        let shared = Arc::new(Shared {
            store: store.clone(),
            heard: watch::Sender::new(heard.position),
            wal: watch::Sender::default(),
            number: OnceLock::new(),
            truncations: RwLock::default(),
            kept: RwLock::new(kept),
        });
        let mut state = Self {
            store,
            shared,
            options,
            binding,
            marks: BTreeMap::new(),
            heard,
            applied: heard.position,
            schemas: BTreeMap::new(),
            branches: BTreeMap::new(),
            held: Held::default(),
            staging: Staging::default(),
            copying: BTreeMap::new(),
            arrived: BTreeMap::new(),
            conflicts: None,
            collection: Collection::default(),
            writers: Writers::default(),
            removals: Removals::default(),
            wal: OwnWal::default(),
            versions_written: 0,
        };
        state.recover()?;
        Ok(state)
    }

    fn recover(&mut self) -> Result<(), TabletError> {
        let store = self.store.clone();
        let scan = |kind: Kind| {
            let (from, below) = kind.all();
            store.scan(kind.space(), &from, &below)
        };
        for entry in scan(Kind::Mark) {
            let (key, value) = entry?;
            let stream = Parts(&key.as_ref()[1..]).u32().ok_or_else(|| damaged("mark"))?;
            self.marks.insert(SourceTabletId(stream), decode("a mark", value.as_ref())?);
        }
        for entry in scan(Kind::Schema) {
            let schema: TableSchema = decode("a schema", entry?.1.as_ref())?;
            self.schemas.insert((schema.table, schema.version), schema);
        }
        for entry in scan(Kind::Truncation) {
            let (key, _) = entry?;
            let mut parts = Parts(&key.as_ref()[1..]);
            let mut read = || {
                let (table, stream) = (TableId(parts.u32()?), SourceTabletId(parts.u32()?));
                let time = HybridTime::from_u64(parts.u64()?);
                Some((table, stream, Truncation { time, position: LogPosition(parts.u64()?) }))
            };
            let (table, stream, truncation) = read().ok_or_else(|| damaged("truncation"))?;
            self.shared.truncate(table, stream, truncation);
        }
        for entry in scan(Kind::Turn) {
            let (key, value) = entry?;
            let mut parts = Parts(&key.as_ref()[1..]);
            let mut read = || Some((TableId(parts.u32()?), SourceTabletId(parts.u32()?), LogPosition(parts.u64()?)));
            let (table, stream, position) = read().ok_or_else(|| damaged("turn"))?;
            let StoredTurn { time, base } = decode("a turn", value.as_ref())?;
            self.shared.turn(table, stream, TurnAt { position, time, base });
        }
        let part = |key: &[u8]| {
            let mut parts = Parts(&key[1..]);
            let mut read = || Some((TableId(parts.u32()?), SourceTabletId(parts.u32()?)));
            read().ok_or_else(|| damaged("copy"))
        };
        for entry in scan(Kind::Copying) {
            let (key, value) = entry?;
            self.copying.insert(part(key.as_ref())?, decode("a copy on its way", value.as_ref())?);
        }
        for entry in scan(Kind::Arrived) {
            let (key, value) = entry?;
            self.arrived.insert(part(key.as_ref())?, decode("a copy that has arrived", value.as_ref())?);
        }
        self.staging = Staging::recover(&store)?;
        for entry in scan(Kind::Provisional) {
            let (key, value) = entry?;
            let id = branch_of(key.as_ref()).ok_or_else(|| damaged("provisional record"))?;
            let branch = self.branches.entry(id).or_default();
            branch.records += 1;
            branch.bytes += value.as_ref().len() as u64;
            match decode("a provisional record", value.as_ref())? {
                ProvisionalRecord::Writes(writes) => branch.count(&writes),
                ProvisionalRecord::Adopted { connection, xid, chunks } => {
                    self.staging.adopted_before(&store, (id.stream, connection, xid), &chunks, branch)?;
                }
            }
        }
        for entry in scan(Kind::RolledBack) {
            let id = branch_of(entry?.0.as_ref()).ok_or_else(|| damaged("rolled-back branch"))?;
            if let Some(branch) = self.branches.get_mut(&id) {
                branch.rolled_back = true;
            }
        }
        if let Some(binding) = &self.binding {
            let _ = self.shared.number.set(binding.tablet);
        }
        self.recover_writers()?;
        self.recover_removals()?;
        self.recover_wal()?;
        self.branches.values().for_each(|branch| self.held.add(branch));
        Ok(())
    }

    /// The barrier has passed: what was heard is applied durably.
    pub(super) fn now_durable(&mut self) {
        self.applied = self.heard.position;
        self.wal_durable();
    }

    /// How far the tablet is.
    pub(super) fn applied(&self) -> Applied {
        let applied = if planted(Bug::HeardIsDurable) { self.heard.position } else { self.applied };
        Applied { heard: self.heard.position, applied }
    }

    /// Fences lower owners out (C7). Tablets that no owner has announced itself to are bound to no log: they are to be asked again.
    pub(super) fn admit_owner(&mut self, owner: Epoch) -> Result<(), TabletError> {
        let Some(binding) = &mut self.binding else {
            // Its owner announces itself to every tablet, so it only has to be asked again.
            return Err(TabletError::Indeterminate("its owner has not announced itself yet".into()));
        };
        if owner < binding.owner {
            return Err(TabletError::Fenced { held: binding.owner });
        }
        if owner > binding.owner {
            let raised = Binding { owner, ..binding.clone() };
            put_one(&self.store, Kind::Binding.only(), encode(&raised)?)?;
            *binding = raised;
        }
        Ok(())
    }

    /// Fences lower pullers of a stream out (C7), and hands out its mark.
    pub(super) fn admit_puller(&mut self, stream: SourceTabletId, puller: Epoch) -> Result<Mark, TabletError> {
        let mut mark = self.marks.get(&stream).copied().unwrap_or_default();
        if puller < mark.puller {
            return Err(TabletError::Fenced { held: mark.puller });
        }
        if puller > mark.puller {
            mark.puller = puller;
            put_one(&self.store, keys::mark(stream), encode(&mark)?)?;
            self.marks.insert(stream, mark);
        }
        Ok(mark)
    }

    /// See [`crate::tablet::TabletLeader::announce`].
    pub(super) fn announce(
        &mut self,
        log_id: String,
        tablet: ReplicaTabletId,
        owner: Epoch,
    ) -> Result<Announced, TabletError> {
        match &self.binding {
            None => {
                let binding = Binding { log_id, tablet, owner };
                put_one(&self.store, Kind::Binding.only(), encode(&binding)?)?;
                self.binding = Some(binding);
                let _ = self.shared.number.set(tablet);
            }
            Some(held) if held.log_id != log_id || held.tablet != tablet => {
                return Err(TabletError::Refused(format!(
                    "it is bound to log {} as {}, not to log {log_id} as {tablet}; \
                     start with the data folder of that log, or with an empty one",
                    held.log_id, held.tablet
                )));
            }
            Some(_) => self.admit_owner(owner)?,
        }
        let mark = |(&stream, mark): (&_, &Mark)| StreamMark { stream, stored: mark.stored, puller: mark.puller };
        let Applied { heard, applied } = self.applied();
        Ok(Announced { marks: self.marks.iter().map(mark).collect(), heard, applied })
    }

    /// See [`crate::tablet::TabletLeader::announce_puller`].
    pub(super) fn announce_puller(
        &mut self,
        stream: SourceTabletId,
        owner: Epoch,
        puller: Epoch,
    ) -> Result<StreamMark, TabletError> {
        self.admit_owner(owner)?;
        let Mark { stored, puller } = self.admit_puller(stream, puller)?;
        self.drop_staged(stream)?;
        self.check_one_writer(stream)?;
        Ok(StreamMark { stream, stored, puller })
    }

    /// Keeps shapes of tables that are new here.
    pub(super) fn learn(&mut self, schemas: &[TableSchema]) -> Result<(), TabletError> {
        for schema in schemas {
            let id = (schema.table, schema.version);
            if self.schemas.get(&id) != Some(schema) {
                put_one(&self.store, keys::schema(id.0, id.1), encode(schema)?)?;
                self.schemas.insert(id, schema.clone());
            }
        }
        Ok(())
    }

    /// See [`crate::tablet::TabletLeader::stats`].
    pub(super) fn stats(&self) -> TabletStats {
        TabletStats {
            provisional_branches: self.branches.len() as u64,
            provisional_records: self.held.writes + self.staging.held.writes,
            provisional_bytes: self.held.bytes + self.staging.held.bytes,
            disk_bytes: self.store.bytes(),
        }
    }
}

/// Writes one key of [`Space::Undecided`].
fn put_one<S: Store>(store: &S, key: Vec<u8>, value: Vec<u8>) -> Result<(), TabletError> {
    let mut batch = StoreBatch::default();
    batch.put(Space::Undecided, key, value);
    Ok(store.write(batch)?)
}

/// The branch in a key that begins with one.
fn branch_of(key: &[u8]) -> Option<BranchId> {
    let mut parts = Parts(key.get(1..)?);
    let stream = SourceTabletId(parts.u32()?);
    Some(BranchId { stream, opened: OpId::new(parts.u64()?, parts.u64()?) })
}
