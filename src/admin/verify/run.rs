//! The verification of one table: checksums, narrowing, settling.

use super::digest::{Digest, Secret, Side, Sums};
use super::pass::{Shapes, Table, Take};
use super::settle::{Judgement, Kind, Observed, Version, judge};
use super::window::World;
use super::{Difference, Event, Progress, Verdict, keyless};
use crate::applier::Inspector;
use crate::coordinator::ReadPoint;
use crate::limits::{VERIFY_DIFFERENCES_MAX, VERIFY_KEYS, VERIFY_SLICE_ROWS};
use crate::source::SourceError;
use crate::tablet::{TabletError, VersionedRow};
use crate::wal::{HybridTime, Key, LogPosition, SourceTabletId};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

/// Events on their way to whoever asked.
const EVENTS: usize = 64;
/// How often progress is said.
const SAID_EVERY: Duration = Duration::from_millis(500);
/// Times that a row is looked at before it counts as unsettled.
const ROUNDS: usize = 5;
/// A difference counts when it is seen so often in a row.
const SEEN: usize = 2;
/// As [`SEEN`], where the replica keeps no history: a row that was written to and fro between two looks seems to stand still.
const SEEN_WITHOUT_HISTORY: usize = 4;
/// Histories that are read at once.
const HISTORIES: usize = 16;

/// Why a verification came to no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The replica serves no readers yet, or its streams stand still.
    #[error("not ready: {0}")]
    NotReady(String),
    /// No server publishes the table.
    #[error("no server publishes table {0}")]
    UnknownTable(String),
    /// The source is of a kind whose rows cannot be read.
    #[error("verify compares with PostgreSQL servers; the rows of a CDC service cannot be read but as a stream")]
    NotReadable,
    /// A server does not answer, or refuses.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// A replica tablet does not answer, or refuses.
    #[error("a replica tablet: {0}")]
    Tablet(#[from] TabletError),
}

/// Compares a running applier's replica with its sources.
#[derive(Clone)]
pub struct Verifier {
    inspector: Inspector,
}

impl Verifier {
    /// Of this applier.
    #[must_use]
    pub fn new(inspector: Inspector) -> Self {
        Self { inspector }
    }

    fn world(&self) -> Result<World, VerifyError> {
        let reader = self.inspector.reader();
        let reader = reader.ok_or_else(|| VerifyError::NotReady("another process leads; ask that one".into()))?;
        let sources = self.inspector.sources();
        if sources.is_empty() {
            return Err(VerifyError::NotReady("this process' configuration names no source".into()));
        }
        let world = World { inspector: self.inspector.clone(), reader, sources };
        world.safe()?;
        Ok(world)
    }

    /// The tables that the servers publish, by name.
    ///
    /// # Errors
    /// See [`VerifyError`].
    pub async fn tables(&self) -> Result<Vec<String>, VerifyError> {
        let mut tables = BTreeSet::new();
        for source in &self.world()?.sources {
            tables.extend(source.published().await?.ok_or(VerifyError::NotReadable)?);
        }
        Ok(tables.into_iter().collect())
    }

    /// Compares one table. The last event is the verdict; dropping the stream ends it.
    #[must_use]
    pub fn verify(&self, table: String) -> BoxStream<'static, Result<Event, VerifyError>> {
        let (events, receiver) = mpsc::channel(EVENTS);
        let this = self.clone();
        let work = async move {
            let verdict = this.run(table, &events).await;
            // Nobody listens any more: then nobody misses it.
            let _ = events.send(verdict.map(Event::Verdict)).await;
        };
        stream::select(stream::once(work).filter_map(async |()| None), ReceiverStream::new(receiver)).boxed()
    }

    async fn run(&self, name: String, events: &Events) -> Result<Verdict, VerifyError> {
        if !self.tables().await?.contains(&name) {
            return Err(VerifyError::UnknownTable(name));
        }
        let world = self.world()?;
        if let Some(stream) = world.copied_by(&name).await? {
            return Err(VerifyError::NotReady(format!("{stream} is copying {name}; verify it when that is done")));
        }
        let mut random = StdRng::from_os_rng();
        let secret = Secret(random.next_u64(), random.next_u64());
        let replica = world.reader.table(&name);
        let mut table = Table { world, name, secret, replica, columns: Vec::new() };
        let total = table.describe().await?;
        let checksums =
            Mutex::new(Checksums { sums: Sums::new(total), told: Told::new(events, "comparing checksums", total) });
        let at = table.read(&checksums).await?;
        let Checksums { sums, told } = checksums.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut verdict = Verdict {
            source_rows: told.progress.source_rows,
            replica_rows: told.progress.replica_rows,
            at: at.time,
            ..Verdict::default()
        };
        let (mut from, total) = (Some(0), Some(verdict.source_rows));
        while let Some(start) = from {
            let (ranges, next) = sums.differing(start, VERIFY_SLICE_ROWS);
            if ranges.is_empty() {
                break;
            }
            if verdict.differing >= VERIFY_DIFFERENCES_MAX as u64 {
                verdict.more = true;
                break;
            }
            let ranges: BTreeSet<usize> = ranges.into_iter().collect();
            if table.keyless() {
                keyless::narrow(&table, &sums, &ranges, events, total, &mut verdict).await?;
            } else {
                let candidates = narrow(&table, &sums, &ranges, Told::new(events, "narrowing", total)).await?;
                table.settle(candidates, events, &mut verdict).await?;
            }
            from = next;
        }
        Ok(verdict)
    }
}

pub(super) type Events = mpsc::Sender<Result<Event, VerifyError>>;

/// Progress as it is said.
pub(super) struct Told<'a> {
    progress: Progress,
    events: &'a Events,
    said: Instant,
}

impl<'a> Told<'a> {
    pub(super) fn new(events: &'a Events, phase: &str, total: Option<u64>) -> Self {
        let progress = Progress { phase: phase.to_owned(), total, ..Progress::default() };
        Self { progress, events, said: Instant::now() }
    }

    pub(super) fn rows(&mut self, side: Side, rows: u64) {
        match side {
            Side::Source => self.progress.source_rows += rows,
            Side::Replica => self.progress.replica_rows += rows,
        }
        if self.said.elapsed() >= SAID_EVERY {
            self.said = Instant::now();
            // Whoever reads slowly misses some of it.
            let _ = self.events.try_send(Ok(Event::Progress(self.progress.clone())));
        }
    }
}

/// The first reading: checksums of every range.
struct Checksums<'a> {
    sums: Sums,
    told: Told<'a>,
}

impl Take for Checksums<'_> {
    fn row(&mut self, side: Side, _: Key, digest: Digest) {
        self.sums.count(side, digest);
    }

    fn page(&mut self, side: Side, rows: u64) {
        self.told.rows(side, rows);
    }
}

/// The second reading: rows of the ranges that differ, by key; equal ones cancel each other.
pub(super) struct Narrow<'a> {
    pub(super) sums: &'a Sums,
    pub(super) ranges: &'a BTreeSet<usize>,
    /// What the source has more of a key than the replica: digests, and rows.
    pub(super) rows: HashMap<Key, (u128, i64)>,
    pub(super) told: Told<'a>,
}

impl Take for Narrow<'_> {
    fn row(&mut self, side: Side, key: Key, digest: Digest) {
        if !self.ranges.contains(&self.sums.range(digest.part)) {
            return;
        }
        let entry = self.rows.entry(key);
        let held = entry.or_default();
        match side {
            Side::Source => *held = (held.0.wrapping_add(digest.row), held.1 + 1),
            Side::Replica => *held = (held.0.wrapping_sub(digest.row), held.1 - 1),
        }
    }

    fn page(&mut self, side: Side, rows: u64) {
        self.told.rows(side, rows);
    }
}

/// The keys of these ranges whose rows differ.
async fn narrow(table: &Table, sums: &Sums, ranges: &BTreeSet<usize>, told: Told<'_>) -> Result<Vec<Key>, VerifyError> {
    let take = Mutex::new(Narrow { sums, ranges, rows: HashMap::new(), told });
    table.read(&take).await?;
    let rows = take.into_inner().unwrap_or_else(PoisonError::into_inner).rows;
    Ok(rows.into_iter().filter(|(_, difference)| *difference != (0, 0)).map(|(key, _)| key).collect())
}

/// The read points around one reading of the servers.
struct Window {
    before: ReadPoint,
    after: ReadPoint,
    quiet: bool,
    shapes: Option<Shapes>,
    /// The rows at both, where the replica keeps no history between.
    moments: Option<[HashMap<Key, VersionedRow>; 2]>,
}

/// What a row's history comes to of which two moments are known, newest first: what it was at the first stands for all that
/// *before* shows.
fn between(key: &Key, [first, last]: &[HashMap<Key, VersionedRow>; 2], before: ReadPoint) -> Vec<VersionedRow> {
    let at = |moment: &HashMap<Key, VersionedRow>, position: LogPosition| {
        let gone = || VersionedRow {
            key: key.clone(),
            row: None,
            time: HybridTime::MIN,
            position,
            stream: SourceTabletId::default(),
        };
        VersionedRow { position, ..moment.get(key).cloned().unwrap_or_else(gone) }
    };
    let (first, last) = (at(first, before.position), at(last, before.position.next()));
    if first.row == last.row { vec![first] } else { vec![last, first] }
}

/// A row as its server shows it.
#[derive(Default)]
struct Shown {
    values: Vec<u128>,
    servers: Vec<String>,
    columns: BTreeMap<String, u64>,
}

impl Table {
    /// Notes the servers' columns, and answers about how many rows they have.
    async fn describe(&mut self) -> Result<Option<u64>, VerifyError> {
        let mut total = Some(0);
        for source in &self.world.sources {
            let Some(rows) = source.rows(&self.name, Some(&[])).await? else { continue };
            total = total.zip(rows.estimate()).map(|(total, more)| total + more);
            self.columns.clone_from(&rows.schema().columns);
        }
        Ok(total)
    }

    /// Looks at each of these rows until it is the same or surely differs, and tells which do.
    async fn settle(
        &self,
        mut candidates: Vec<Key>,
        events: &Events,
        verdict: &mut Verdict,
    ) -> Result<(), VerifyError> {
        candidates.sort_unstable();
        for keys in candidates.chunks(VERIFY_KEYS) {
            let needed = if self.world.reader.keeps_versions() { SEEN } else { SEEN_WITHOUT_HISTORY };
            let mut open: Vec<(Key, usize)> = keys.iter().map(|key| (key.clone(), 0)).collect();
            for round in 1..=ROUNDS {
                if open.is_empty() {
                    break;
                }
                let phase = format!("settling {} rows that may differ", open.len());
                let _ = events.try_send(Ok(Event::Progress(Progress { phase, ..Progress::default() })));
                let keys: Vec<Key> = open.iter().map(|(key, _)| key.clone()).collect();
                let judged = self.look(&keys).await?;
                let mut next = Vec::new();
                for ((key, seen), (judgement, difference)) in open.into_iter().zip(judged) {
                    match judgement {
                        Judgement::Same => {}
                        Judgement::Different(_) if seen + 1 >= needed => {
                            verdict.differing += 1;
                            if verdict.differing > VERIFY_DIFFERENCES_MAX as u64 {
                                verdict.more = true;
                                return Ok(());
                            }
                            let _ = events.send(Ok(Event::Difference(difference))).await;
                        }
                        // A row that kept moving was among the replica's values every time.
                        Judgement::Moving if round == ROUNDS => {}
                        Judgement::Unsettled | Judgement::Different(_) if round == ROUNDS => {
                            verdict.unsettled.push(self.why_unsettled(&difference).await?);
                        }
                        Judgement::Different(_) => next.push((key, seen + 1)),
                        Judgement::Moving | Judgement::Unsettled => next.push((key, 0)),
                    }
                }
                open = next;
            }
            if verdict.unsettled.len() > VERIFY_DIFFERENCES_MAX {
                verdict.more = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Judges these rows, each as its server shows it now; with what would be told of it.
    async fn look(&self, keys: &[Key]) -> Result<Vec<(Judgement, Difference)>, VerifyError> {
        let before = self.world.safe()?;
        let first = self.moment(keys, before).await?;
        let quiet = self.world.quiet().await?;
        let mut shown = self.shown(keys).await?;
        let after = self.world.caught_up().await?;
        let moments = first.zip(self.moment(keys, after).await?).map(|(first, last)| [first, last]);
        let window = Window { before, after, quiet, shapes: self.shapes(), moments };
        let of = |key: &Key| (key.clone(), shown.remove(key).unwrap_or_default());
        let rows: Vec<_> = keys.iter().map(of).collect();
        let judged: Vec<_> = rows.into_iter().map(|(key, shown)| self.judge(&window, key, shown)).collect();
        stream::iter(judged).buffered(HISTORIES).try_collect().await
    }

    /// These rows as the replica shows them now, where it keeps no versions.
    async fn moment(&self, keys: &[Key], at: ReadPoint) -> Result<Option<HashMap<Key, VersionedRow>>, VerifyError> {
        if self.world.reader.keeps_versions() {
            return Ok(None);
        }
        let Some(shapes) = self.shapes() else { return Ok(Some(HashMap::new())) };
        let rows = self.world.reader.now(&shapes.newest, keys, at).await?;
        Ok(Some(rows.into_iter().map(|row| (row.key.clone(), row)).collect()))
    }

    async fn judge(&self, window: &Window, key: Key, shown: Shown) -> Result<(Judgement, Difference), VerifyError> {
        let Window { before, after, quiet, shapes, moments } = window;
        let (history, complete) = match (shapes, moments) {
            (_, Some(moments)) => (between(&key, moments, *before), true),
            (Some(shapes), None) => self.world.reader.history(shapes.newest.table, &key, *after).await?,
            (None, None) => (Vec::new(), true),
        };
        let newest = history.first().and_then(|version| version.row.as_ref()).zip(shapes.as_ref());
        let newest = newest
            .and_then(|(row, shapes)| Some(self.secret.by_column(shapes.columns(row.schema_version)?, &row.cells)));
        let version = |version: VersionedRow| {
            let before = version.position <= before.position && version.time <= before.time;
            let stream = version.stream;
            let value = shapes.as_ref().and_then(|shapes| self.replicated(shapes, version));
            Version { value: value.map(|(_, digest)| digest.row), stream, before }
        };
        let versions: Vec<Version> = history.into_iter().map(version).collect();
        // Of a history that does not reach down to the window's end, only the newest value says something.
        let reaches = complete || versions.iter().any(|version| version.before);
        let judgement = match judge(&versions, &Observed { values: shown.values.clone(), quiet: *quiet }) {
            Judgement::Different(_) if !reaches => Judgement::Unsettled,
            judgement => judgement,
        };
        Ok((judgement, self.difference(&key, judgement, shown, &newest.unwrap_or_default())))
    }

    /// These rows as the servers show them.
    async fn shown(&self, keys: &[Key]) -> Result<HashMap<Key, Shown>, VerifyError> {
        let mut shown: HashMap<Key, Shown> = HashMap::new();
        for source in &self.world.sources {
            let Some(mut rows) = source.rows(&self.name, Some(keys)).await? else { continue };
            let columns = self.secret.columns(&rows.schema().columns);
            while let Some((page, _)) = rows.next().await? {
                for (key, row) in page {
                    let (key, digest) = self.digest(key, &columns, &row.cells);
                    let of = shown.entry(key).or_default();
                    of.values.push(digest.row);
                    of.servers.push(source.name().to_owned());
                    of.columns = self.secret.by_column(&columns, &row.cells);
                }
            }
        }
        Ok(shown)
    }

    fn difference(&self, key: &Key, judgement: Judgement, shown: Shown, newest: &BTreeMap<String, u64>) -> Difference {
        let kind = if let Judgement::Different(kind) = judgement { kind } else { Kind::Changed };
        let names = shown.columns.keys().chain(newest.keys()).collect::<BTreeSet<_>>();
        let differing = names.into_iter().filter(|name| shown.columns.get(*name) != newest.get(*name));
        let columns = if kind == Kind::Changed { differing.cloned().collect() } else { Vec::new() };
        Difference { kind, key: self.named(key), servers: shown.servers, columns }
    }

    /// A key as people read it, by column.
    pub(super) fn named(&self, key: &Key) -> Vec<(String, String)> {
        let keyless = self.keyless();
        let columns = self.columns.iter().filter(|column| keyless || column.key);
        let mut names = columns.map(|column| column.name.clone());
        let texts = key.columns().unwrap_or_else(|| vec![key.0.to_vec()]);
        let text =
            |bytes: Vec<u8>| String::from_utf8_lossy(&bytes[usize::from(keyless && !bytes.is_empty())..]).into_owned();
        texts.into_iter().map(|bytes| (names.next().unwrap_or_default(), text(bytes))).collect()
    }

    async fn why_unsettled(&self, difference: &Difference) -> Result<String, VerifyError> {
        let mut prepared = Vec::new();
        for source in &self.world.sources {
            let gids = source.prepared().await?;
            prepared.extend(gids.into_iter().take(5).map(|one| format!("{:?} on {}", one.gid, source.name())));
        }
        let key: Vec<String> = difference.key.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let waits = if prepared.is_empty() {
            "it was written all the while".to_owned()
        } else {
            format!("prepared transactions have not ended: {}", prepared.join(", "))
        };
        Ok(format!("{}: {waits}", key.join(", ")))
    }
}
