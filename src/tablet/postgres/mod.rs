//! PostgreSQL as the replica: a server that people read with any client, and that is never torn.
//!
//! # What its readers see
//!
//! They read the target tables with psql and know nothing of untorn, so there is no read point to fix for them. They see
//! whole transactions at one moment because they are written so: **a run of decisions becomes one transaction of the
//! server's**, together with the row of `untorn.progress` that says how far the server is. At any moment the server shows
//! the source's transactions up to one position of the transaction log, which under `release = "ordered"` is a consistent
//! cut. A position is never divided: what one entry of the log decides becomes visible together.
//!
//! # The way of a write
//!
//! 1. **Staged** ([`crate::tablet::engine`]). Provisional records, chunks and the rows of initial copies are stored in the
//!    data folder by the rules, the formats and the barrier of an embedded tablet. So a write that was acknowledged to the
//!    source is durable here, and a server that is down costs disk, not memory.
//! 2. **Decided.** Decisions come in log order. Those before the first safe point are gathered: the first cut brings the
//!    copied rows and everything decided meanwhile in one transaction, so that nobody sees half a copy.
//! 3. **Netted** ([`net`]). A group of up to [`crate::limits::REPLICA_GROUP_DECISIONS`] transactions comes to the last
//!    write of each key; nobody can see the steps between. Large transactions go in runs of
//!    [`crate::limits::REPLICA_RUN_BYTES`] within one transaction of the server's, so that memory stays bounded.
//! 4. **Applied** ([`statements`]). One statement a table and kind, over arrays sorted by key: deletes, upserts, and
//!    updates of rows whose large values were not sent; a run of rows that are all new goes by COPY. `session_replication_role = replica` keeps triggers and foreign keys
//!    from acting twice. Where a unique index refuses a run, it is done again by deleting all of its keys first: values may
//!    have moved between rows. The next run is prepared while the server works, and the first one
//!    of the next group.
//! 5. **Copies** (`copies`) of tables that are added, or copied again, while people read: staged beside what they see, and put in
//!    their place with the group that ends at that moment.
//! 6. **Forgotten** (`forget`). Once the server's commit is durable, the staged records are deleted, beside its next work.
//!    Where commits do not wait for the disk, they are durable once the server has flushed its WAL beyond them, which it does
//!    by itself; only a server that has nothing else to do is asked to.
//!
//! # Recovery
//!
//! The UPDATE of the progress row compares log, epoch and position, and sets the position: it is the first statement of
//! every transaction, so a repetition changes no row and nothing is applied twice. After a crash of this process the staged
//! records and the decisions are still there; whatever the server's position covers is skipped, whole transactions at a
//! time. After an answer to COMMIT was lost, the position says whether it happened (C6). With
//! `synchronous_commit = false` a crash of the server takes back its last commits *and* its position with them, and the
//! staged records are kept until a barrier has passed.
//!
//! A new owner ends the backend of the one before, which the progress row names, and raises the epoch there; a transaction of
//! an older epoch finds no row to update and changes nothing (C7). A server that is bound to another log is refused by name.
//!
//! **A lost data folder means a new copy**, as with embedded tablets: it holds the transaction log too, and
//! what was acknowledged to the source would not come again.
//!
//! # Several servers
//!
//! Each table is on one server ([`servers`]). Staging, netting and recovery are as with one; only the last step differs: the
//! servers' transactions of a group are a **release** ([`release`]), prepared at all of them, decided by an entry of the
//! transaction log ([`super::Releases`]), and then committed at all. All progress rows move with it, so they agree whenever
//! no release is on its way. Whoever opens the sessions ends the old owner's backends and resolves what is prepared *before*
//! it takes the progress row, which a prepared transaction holds. A failure before the decision is asked for rolls the
//! release back everywhere; after it all sessions are given up, and opening them again does what the log says.
//!
//! # What is refused
//!
//! A row that the server refuses ([`blame`]) stops the replica there, with the transaction, the table, the key, the statement
//! and PostgreSQL's words. It is tried again when the cause is mended, and skipped only when somebody says so; then the
//! skip is kept in `untorn.skipped`, in the transaction that goes past it. A server that is away, read-only, full or locked
//! is waited for.
//!
//! Sequences are not moved: PostgreSQL sends nothing of them. TRUNCATE empties the whole table, whichever source server sent it, and is refused where
//! several servers write to the table.

pub mod blame;
pub mod changes;
pub mod error;
pub mod net;
pub mod release;
pub mod servers;
pub mod session;
pub mod shape;
pub mod statements;

mod apply;
mod check;
mod copies;
mod forget;
mod inserts;
mod load;
mod read;
mod sessions;
mod skip;

pub use check::check;
pub use shape::Missing;

use super::engine::Engine;
use super::store::Store;
use super::{
    Announced, Applied, ApplyBatch, ChunkBatch, CopyBatch, DropChunks, FillRequest, Frozen, ProvisionalBatch, ReadPage,
    ReadRequest, Releases, Stored, StreamMark, TabletError, TabletLeader, TabletStats,
};
use crate::coordinator::{Decided, Work};
use crate::limits::APPLY_BATCH_DECISIONS;
use crate::wal::{
    Epoch, Key, LogPosition, ReplicaTabletId, Row, SourceTabletId, TableSchema, TransactionId, Write, WriteOp,
};
use apply::{Batch, GroupError};
use async_trait::async_trait;
use copies::Parts;
use error::Lost;
use forget::{Durable, Unforgotten};
use servers::Servers;
use session::{Owner, Progress};
use sessions::Sessions;
use shape::{Shape, Shapes};
use skip::Refused;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Decisions whose records are deleted beside one call: more than a call brings, so that what waits becomes less.
const FORGOTTEN_AT_ONCE: usize = 2 * APPLY_BATCH_DECISIONS;

/// How a server is written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whether a commit waits until the server has it on disk.
    pub synchronous_commit: bool,
    /// What is done about tables and columns that the server lacks.
    pub missing: Missing,
}

impl Default for Options {
    fn default() -> Self {
        Self { synchronous_commit: true, missing: Missing::default() }
    }
}

/// A database of a PostgreSQL server as a replica tablet.
pub struct PostgresTablet<S: Store> {
    staging: Engine<S>,
    servers: Servers,
    releases: Mutex<Option<Arc<dyn Releases>>>,
    options: Options,
    shapes: Mutex<Shapes>,
    /// Parts of tables that the server does not show.
    hidden: Mutex<Arc<Parts>>,
    server: tokio::sync::Mutex<Server>,
    /// Set after every call that moved it: what readers of the server see at least.
    heard: watch::Sender<LogPosition>,
}

/// What is known of the server. One call at a time has it.
struct Server {
    owner: Option<Owner>,
    /// `None` before the first, and after one was lost.
    session: Option<Sessions>,
    progress: Progress,
    /// The log was heard up to here; the decisions up to here are applied, or gathered.
    heard: LogPosition,
    /// Decided before the first cut.
    gathered: Vec<Decided>,
    /// Applied at the server, and staged here until that is durable there.
    unforgotten: Unforgotten,
    /// How far the staging part said that it has forgotten durably.
    forgotten: LogPosition,
    /// Something was committed since the last barrier, and commits do not wait for the disk. The first cut may hold copied
    /// rows and no decision.
    unwritten: bool,
    /// A copy is on its way.
    copying: bool,
    /// Which parts of tables it shows is known.
    parts_known: bool,
    /// Where the search for staged rows of copies that the server has goes on; `None` once all are gone.
    copied: Option<Vec<u8>>,
    /// The transaction that the server refuses.
    refused: Option<Refused>,
    /// The refused transaction that somebody said to skip.
    skip: Option<TransactionId>,
    /// Skipped and not yet noted at the server: position, transaction, cause.
    skipped: Vec<(LogPosition, String, String)>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            owner: None,
            session: None,
            progress: Progress::default(),
            heard: LogPosition::default(),
            gathered: Vec::new(),
            unforgotten: Unforgotten::default(),
            forgotten: LogPosition::default(),
            unwritten: false,
            copying: false,
            parts_known: false,
            copied: Some(Vec::new()),
            refused: None,
            skip: None,
            skipped: Vec::new(),
        }
    }
}

impl Server {
    fn owner(&self) -> Result<Owner, TabletError> {
        let unknown = || TabletError::Indeterminate("its owner has not announced itself yet".into());
        self.owner.clone().ok_or_else(unknown)
    }

    /// What it has applied so far is durable there.
    fn is_durable(&mut self) {
        self.unforgotten.is_durable(Durable { through: self.heard, progress: self.progress.position });
    }

    fn admit(&self, owner: Epoch) -> Result<(), TabletError> {
        let held = self.owner()?.epoch;
        match owner {
            owner if owner < held => Err(TabletError::Fenced { held }),
            owner if owner > held => Err(TabletError::Indeterminate("its owner has not announced itself yet".into())),
            _ => Ok(()),
        }
    }
}

impl<S: Store> PostgresTablet<S> {
    /// A tablet that stages in `staging` and applies to the servers.
    #[must_use]
    pub fn new(staging: Engine<S>, servers: Servers, options: Options) -> Self {
        // A release is prepared, and that is always durable.
        let synchronous_commit = options.synchronous_commit || servers.targets().count() > 1;
        Self {
            staging,
            servers,
            releases: Mutex::default(),
            options: Options { synchronous_commit, ..options },
            shapes: Mutex::default(),
            hidden: Mutex::default(),
            server: tokio::sync::Mutex::default(),
            heard: watch::Sender::default(),
        }
    }

    fn shapes(&self) -> Shapes {
        Arc::clone(&self.shapes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn learn_shape(&self, shape: Shape) {
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (shape.schema.table, shape.schema.version);
        Arc::make_mut(&mut shapes).insert(id, Arc::new(shape));
    }

    /// What is known of the server's tables may have changed.
    fn forget_shapes(&self) {
        *self.shapes.lock().unwrap_or_else(PoisonError::into_inner) = Shapes::default();
    }

    /// Who decides on releases, where there are several servers.
    fn releases(&self) -> Result<Option<Arc<dyn Releases>>, TabletError> {
        if self.servers.targets().count() == 1 {
            return Ok(None);
        }
        let releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nobody = || TabletError::Indeterminate("its owner has not said where releases are decided".into());
        releases.map(Some).ok_or_else(nobody)
    }

    /// The session, opened when there is none, and out of its place: whoever is interrupted while it has work leaves none
    /// behind.
    async fn session(&self, server: &mut Server) -> Result<Sessions, TabletError> {
        if let Some(session) = server.session.take() {
            return Ok(session);
        }
        let (session, progress) =
            Sessions::open(&self.servers, &server.owner()?, self.options.synchronous_commit, self.releases()?).await?;
        // Tables that were made may be among what it lost.
        self.forget_shapes();
        if progress.position < server.progress.position {
            let lost = format!(
                "{}: it has applied the log up to {} only, but had up to {}: it lost what it had committed",
                session.label(),
                progress.position,
                server.progress.position
            );
            if self.options.synchronous_commit {
                return Err(TabletError::Refused(lost));
            }
            // Until it is announced to again, nothing counts as heard: all of that is told once more then.
            *server = Server::default();
            return Err(TabletError::Indeterminate(lost));
        }
        server.progress = progress;
        Ok(session)
    }

    /// Deletes some of what is staged of decisions that the server has durably.
    fn forget<'a>(
        &'a self,
        server: &mut Server,
    ) -> Result<impl Future<Output = Result<Applied, TabletError>> + use<'a, S>, TabletError> {
        let (work, Durable { through, progress }) = server.unforgotten.take(FORGOTTEN_AT_ONCE);
        Ok(self.staging.applied_elsewhere(server.owner()?.epoch, through, progress, work))
    }

    async fn apply_to(&self, server: &mut Server, batch: ApplyBatch) -> Result<(), TabletError> {
        let ApplyBatch { through, safe, mut work, .. } = batch;
        let first = !server.progress.started;
        let mut parts = Vec::new();
        if first {
            for Decided { work, .. } in &work {
                if let Work::Turn { stream, table, turn } = work {
                    // Nobody reads yet: what is shown by the first cut was always shown.
                    self.staging.turned(*table, *stream, *turn).await?;
                }
            }
        } else {
            self.overlay(server, &work).await?;
            parts = copies::parts_shown(&work);
        }
        work.retain(|decided| !matches!(decided.work, Work::Turn { .. }));
        if first {
            work.splice(0..0, std::mem::take(&mut server.gathered));
            if safe.is_none() {
                server.gathered = work;
                return Ok(());
            }
            server.copying = self.staging.is_copying().await?;
            self.overlay(server, &work).await?;
        }
        let known = work.partition_point(|decided| decided.position <= server.progress.position);
        let known: Vec<Decided> = work.drain(..known).collect();
        server.unforgotten.push(&known);
        parts.retain(|part| part.position > server.progress.position);
        if work.is_empty() && parts.is_empty() && !first {
            return Ok(());
        }
        self.pass_over(server, &mut work);
        let mut session = self.session(server).await?;
        // What was committed while an answer was lost.
        let known = work.partition_point(|decided| decided.position <= server.progress.position);
        let known: Vec<Decided> = work.drain(..known).collect();
        server.unforgotten.push(&known);
        let told = parts.len();
        parts.retain(|part| part.position > server.progress.position);
        if !std::mem::replace(&mut server.parts_known, true) || parts.len() < told {
            self.find_hidden(server.progress.position);
            server.copied = Some(Vec::new());
        }
        let work: Arc<[Decided]> = work.into();
        let forgotten = self.forget(server)?;
        let first = first && !server.progress.started;
        let (done, forgotten) = tokio::join!(
            self.groups(server, &mut session, Batch { work: &work, parts: &parts, through, first }),
            forgotten
        );
        server.forgotten = forgotten?.applied;
        match done {
            Ok(()) => {
                if !self.options.synchronous_commit {
                    let asked = session.first().wal().await;
                    let (flushed, written) =
                        asked.map_err(|failure| Lost::of(&failure).at(session.label(), session.role()))?;
                    server.unforgotten.durable_at(written, Durable { through, progress: server.progress.position });
                    server.unforgotten.flushed(flushed);
                }
                server.session = Some(session);
                Ok(())
            }
            Err(error) => {
                // What comes after a copy is looked at once that is shown.
                let next = parts.iter().find(|part| part.position > server.progress.position);
                let end = next.map_or(work.len(), |part| work.partition_point(|d| d.position <= part.position));
                let work = if end < work.len() { work[..end].into() } else { work };
                Err(self.failed(server, session, &work, error).await)
            }
        }
    }

    /// Takes the writes of the transaction that is to be skipped out.
    fn pass_over(&self, server: &mut Server, work: &mut [Decided]) {
        server.skipped.clear();
        let Some(skip) = server.skip else { return };
        for Decided { position, work } in work {
            if let Work::Commit { transaction, branches, .. } = work
                && *transaction == skip
            {
                let cause = "refused by the server, and skipped as somebody said".to_owned();
                server.skipped.push((*position, transaction.to_string(), cause));
                *work = Work::Discard { branches: std::mem::take(branches) };
            }
        }
    }

    /// What a failed group means. Whatever was open at the server is rolled back.
    async fn failed(
        &self,
        server: &mut Server,
        mut session: Sessions,
        work: &Arc<[Decided]>,
        error: GroupError,
    ) -> TabletError {
        let refusal = match error {
            GroupError::Tablet(error) => {
                if session.roll_back().await.is_ok() {
                    server.session = Some(session);
                }
                self.forget_shapes();
                return error;
            }
            // The next session finds out where it is, and whose.
            GroupError::Elsewhere => {
                return TabletError::Indeterminate(format!("{}: its progress is not where it was", session.label()));
            }
            GroupError::Server(refusal) => refusal,
        };
        let label = session.label().to_owned();
        self.forget_shapes();
        let rolled_back = session.roll_back().await.is_ok();
        if !rolled_back {
            return Lost::of(&refusal.failure).at(&label, session.role());
        }
        let answer = if apply::is_refusal(&refusal.failure) {
            self.blame(server, &mut session, work, &refusal).await
        } else {
            self.lost(&mut session, &refusal.failure).await
        };
        if session.roll_back().await.is_ok() {
            server.session = Some(session);
        }
        // With what was made meanwhile rolled back.
        self.forget_shapes();
        answer
    }

    /// What a failure that passes means; who holds the lock, if that is it.
    async fn lost(&self, session: &mut Sessions, failure: &crate::postgres::Failure) -> TabletError {
        let mut failure = failure.clone();
        if failure.code == "55P03"
            && let Ok(holders) = session.lock_holders().await
        {
            failure.message = format!("{}; {holders}", failure.message);
        }
        Lost::of(&failure).at(session.label(), session.role())
    }

    /// Which of several identical rows goes would have to be looked for among the server's, by values that a delete does not
    /// carry: refused before anything is decided.
    async fn refuse_contents(&self, schemas: &[TableSchema], writes: &[Write]) -> Result<(), TabletError> {
        let of_content = |write: &&Write| write.op == WriteOp::Delete && Key::is_content(&write.key.0);
        let Some(Write { table, .. }) = writes.iter().find(of_content) else { return Ok(()) };
        let learned = self.staging.learned().await?;
        let known = schemas.iter().chain(&learned).find(|schema| schema.table == *table);
        let name = known.map_or_else(|| table.to_string(), |schema| schema.name.clone());
        Err(TabletError::Refused(format!(
            "an update or delete of table {name}, which has no primary key, cannot be written to a PostgreSQL replica: leave \
             the table out (source.exclude) and start untorn again; to have it here, give it a primary key on its server \
             first (ALTER TABLE {name} ADD PRIMARY KEY …) and set the replica up again; an embedded replica takes it as it is"
        )))
    }
}

#[async_trait]
impl<S: Store> TabletLeader for PostgresTablet<S> {
    async fn announce(&self, log_id: &str, tablet: ReplicaTabletId, owner: Epoch) -> Result<Announced, TabletError> {
        let announced = self.staging.announce(log_id, tablet, owner).await?;
        let mut server = self.server.lock().await;
        let owner = Owner { log_id: log_id.to_owned(), tablet, epoch: owner };
        if server.owner.as_ref() != Some(&owner) {
            *server = Server { owner: Some(owner.clone()), ..Server::default() };
        }
        let mut session = self.session(&mut server).await?;
        let owned = session.is_owned(&owner).await;
        match owned {
            Ok(true) => server.session = Some(session),
            // The next session says who it is, or what is the matter.
            Ok(false) => server.session = Some(self.session(&mut server).await?),
            Err(failure) => return Err(Lost::of(&failure).at(session.label(), session.role())),
        }
        let told = self.staging.elsewhere().await?;
        if server.progress.position < told {
            return Err(TabletError::Refused(format!(
                "{}: the server has applied the log up to {} only, but was durably at {}: it lost what it had committed, \
                 perhaps by being restored; set up the replica again from a new copy",
                self.servers.label(),
                server.progress.position,
                told
            )));
        }
        server.gathered.clear();
        server.unforgotten.clear();
        server.forgotten = announced.applied;
        server.heard = announced.heard;
        server.copying = self.staging.is_copying().await?;
        self.heard.send_replace(server.shows());
        Ok(announced)
    }

    async fn announce_puller(
        &self,
        stream: SourceTabletId,
        owner: Epoch,
        puller: Epoch,
    ) -> Result<StreamMark, TabletError> {
        self.staging.announce_puller(stream, owner, puller).await
    }

    async fn write_provisional(&self, batch: ProvisionalBatch) -> Result<Stored, TabletError> {
        for branch in &batch.branches {
            self.refuse_contents(&batch.schemas, &branch.writes).await?;
        }
        self.staging.write_provisional(batch).await
    }

    async fn stage_chunk(&self, chunk: ChunkBatch) -> Result<(), TabletError> {
        self.refuse_contents(&chunk.schemas, &chunk.writes).await?;
        self.staging.stage_chunk(chunk).await
    }

    async fn drop_chunks(&self, drop: DropChunks) -> Result<(), TabletError> {
        self.staging.drop_chunks(drop).await
    }

    async fn fill(&self, request: FillRequest) -> Result<Row, TabletError> {
        // Asked only where a row moves to another tablet; within this one the server's row is what it is filled from.
        self.staging.fill(request).await
    }

    async fn copy_rows(&self, batch: CopyBatch) -> Result<(), TabletError> {
        self.staging.copy_rows(batch).await
    }

    async fn apply(&self, batch: ApplyBatch) -> Result<Applied, TabletError> {
        let mut server = self.server.lock().await;
        server.admit(batch.owner)?;
        if batch.follows != server.heard {
            return Err(TabletError::HeardOther { heard: server.heard, follows: batch.follows });
        }
        let through = batch.through;
        let applied = self.apply_to(&mut server, batch).await;
        // What was applied before a failure is told again after it, and known then.
        applied?;
        (server.heard, server.refused) = (through, None);
        self.heard.send_replace(server.shows());
        if server.progress.started && self.options.synchronous_commit {
            server.is_durable();
        }
        Ok(Applied { heard: through, applied: server.forgotten })
    }

    async fn read(&self, _request: ReadRequest) -> Result<ReadPage, TabletError> {
        Err(TabletError::Refused("a PostgreSQL replica is read at one moment, not page by page".into()))
    }

    async fn sync(&self) -> Result<Applied, TabletError> {
        let mut server = self.server.lock().await;
        let heard = server.heard;
        if server.progress.started {
            if server.unwritten {
                let mut session = self.session(&mut server).await?;
                let passed = session.barrier().await;
                passed.map_err(|failure| Lost::of(&failure).at(session.label(), session.role()))?;
                (server.session, server.unwritten) = (Some(session), false);
            }
            server.is_durable();
            self.forget(&mut server)?.await?;
            if let Some(from) = server.copied.take() {
                server.copied = self.staging.drop_copied(server.progress.position, from).await?;
            }
        }
        server.forgotten = self.staging.sync().await?.applied;
        Ok(Applied { heard, applied: server.forgotten })
    }

    async fn stats(&self) -> Result<TabletStats, TabletError> {
        self.staging.stats().await
    }

    async fn skip(&self, transaction: TransactionId) -> Result<Vec<TransactionId>, TabletError> {
        let mut server = self.server.lock().await;
        self.give_up(&mut server, transaction).await
    }

    fn release_through(&self, releases: Arc<dyn Releases>) {
        *self.releases.lock().unwrap_or_else(PoisonError::into_inner) = Some(releases);
    }

    fn keeps_versions(&self) -> bool {
        false
    }

    fn is_shown(&self) -> bool {
        *self.heard.borrow() > LogPosition::default()
    }

    async fn freeze(
        &self,
        table: TableSchema,
        at: LogPosition,
        keys: Option<&[Key]>,
    ) -> Result<Box<dyn Frozen>, TabletError> {
        self.frozen(table, at, keys).await
    }
}
