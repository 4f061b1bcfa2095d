//! Carrying decisions to the server: a group of whole transactions is one transaction of the server's.
//!
//! A group goes there in runs of bounded size. While the server works on one run, the next is read and prepared on the
//! storage's thread.

use super::changes::Changes;
use super::copies::PartShown;
use super::error::Lost;
use super::net::{Net, NetError, PutBy};
use super::session::{Owner, Progress};
use super::sessions::Sessions;
use super::shape::{self, ShapeError};
use super::statements::{Puts, Refusal};
use super::{PostgresTablet, Server};
use crate::coordinator::{Decided, Work};
use crate::limits::{REPLICA_GROUP_DECISIONS, REPLICA_RUN_BYTES};
use crate::postgres::Failure;
use crate::tablet::TabletError;
use crate::tablet::engine::Cursor;
use crate::tablet::store::Store;
use crate::wal::{LogPosition, TableId};
use futures::future::OptionFuture;
use std::sync::Arc;

/// A run that is prepared, and where the next one begins.
pub(super) struct Run {
    pub(super) changes: Changes,
    pub(super) next: Cursor,
    pub(super) put_by: PutBy,
}

/// What preparing a run came to.
pub(super) enum Prepared {
    Run(Run),
    /// The shapes of these tables have to be found first; the same run again then.
    Unknown(Vec<(TableId, u32)>),
}

/// Why a group was not applied. The server's transaction is rolled back then, or its outcome is unknown and the session
/// of no further use.
#[derive(Debug)]
pub(super) enum GroupError {
    Tablet(TabletError),
    /// The server said so, to a statement.
    Server(Refusal),
    /// The progress row is not where it was, or somebody else's.
    Elsewhere,
}

impl From<TabletError> for GroupError {
    fn from(error: TabletError) -> Self {
        Self::Tablet(error)
    }
}

impl From<Failure> for GroupError {
    fn from(failure: Failure) -> Self {
        Self::Server(Refusal { failure, statement: String::new() })
    }
}

impl From<Refusal> for GroupError {
    fn from(refusal: Refusal) -> Self {
        Self::Server(refusal)
    }
}

/// Where about `most` of the decisions from `from` on end: all of one position stay together, for they are one cut.
pub(super) fn group_end(work: &[Decided], from: usize, most: usize) -> usize {
    match work.get(from + most) {
        None => work.len(),
        Some(first_left_out) => {
            let whole = work.partition_point(|decided| decided.position < first_left_out.position);
            if whole > from {
                whole
            } else {
                work.partition_point(|decided| decided.position <= first_left_out.position)
            }
        }
    }
}

/// Whether a decision's transaction wrote here through several streams.
fn several_streams(decided: &Decided) -> bool {
    match &decided.work {
        Work::Commit { branches, .. } => {
            branches.iter().any(|branch| Some(branch.stream) != branches.first().map(|first| first.stream))
        }
        Work::Discard { .. } | Work::Turn { .. } => false,
    }
}

impl<S: Store> PostgresTablet<S> {
    /// Reads and prepares the run at a cursor.
    pub(super) async fn prepare(
        &self,
        work: &Arc<[Decided]>,
        at: Cursor,
        end: usize,
        put_by: PutBy,
        only: Option<usize>,
    ) -> Result<Prepared, TabletError> {
        let shapes = Arc::clone(&self.shapes());
        let of = Arc::clone(work);
        let hidden = self.hidden();
        let prepare = move |staged: &[crate::tablet::engine::StagedWrites<'_>]| {
            let mut put_by = put_by;
            let several = |decision: usize| of.get(decision).is_some_and(several_streams);
            let changes = Net::of(staged, &shapes, (several, &hidden), &mut put_by).and_then(|net| {
                let unknown = net.unknown(&shapes)?;
                if unknown.is_empty() { Changes::of(&net, &shapes, only) } else { Err(NetError::Unknown(unknown)) }
            });
            match changes {
                Ok(changes) => Ok(Ok((changes, put_by))),
                Err(NetError::Unknown(tables)) => Ok(Err(tables)),
                Err(NetError::Tablet(error)) => Err(error),
            }
        };
        let (prepared, next) = self.staging.staged(Arc::clone(work), at, end, REPLICA_RUN_BYTES, prepare).await?;
        Ok(match prepared {
            Ok((changes, put_by)) => Prepared::Run(Run { changes, next, put_by }),
            Err(unknown) => Prepared::Unknown(unknown),
        })
    }

    /// Prepares a run, finding the shapes that it needs.
    async fn prepared(
        &self,
        session: &mut Sessions,
        work: &Arc<[Decided]>,
        at: Cursor,
        end: usize,
        put_by: PutBy,
    ) -> Result<Run, GroupError> {
        loop {
            match self.prepare(work, at, end, put_by.clone(), None).await? {
                Prepared::Run(run) => return Ok(run),
                Prepared::Unknown(tables) => self.find_shapes(session, &tables).await?,
            }
        }
    }

    /// Finds tables at the server. Version 0 is the newest that is known here.
    pub(super) async fn find_shapes(
        &self,
        session: &mut Sessions,
        tables: &[(TableId, u32)],
    ) -> Result<(), GroupError> {
        let learned = self.staging.learned().await?;
        for &(table, version) in tables {
            let wanted = |schema: &&crate::wal::TableSchema| {
                schema.table == table && (version == 0 || schema.version == version)
            };
            let Some(schema) = learned.iter().filter(wanted).max_by_key(|schema| schema.version) else {
                let what = format!("a staged row is of table {table} version {version}, whose shape is not known");
                return Err(TabletError::Poisoned(what).into());
            };
            for other in session.but(&schema.name)? {
                if other.writers_of_table(schema.table).await? {
                    return Err(TabletError::Refused(format!(
                        "{}: table {} is kept there already, and the configuration places it elsewhere now; place it there \
                         again",
                        other.label(),
                        schema.name
                    ))
                    .into());
                }
            }
            let at = session.at(&schema.name)?;
            let found = shape::find(&mut at.sql, schema, self.options.missing).await.map_err(|error| match error {
                ShapeError::Server(failure) => GroupError::from(failure),
                ShapeError::Lacks(what) => GroupError::Tablet(TabletError::Refused(format!("{}: {what}", at.label()))),
            })?;
            self.learn_shape(found);
        }
        Ok(())
    }

    /// Applies a group as one transaction of the server's, which moves it on to `to`. `ready` is its first run, if that is
    /// prepared already. Answers the first run of the group after it, which was prepared while the server worked.
    pub(super) async fn group(
        &self,
        session: &mut Sessions,
        Group { work, from, end, then }: Group<'_>,
        ready: Option<Run>,
        step: Step,
        puts: Puts,
    ) -> Result<Option<Run>, GroupError> {
        let mut run = match ready {
            Some(run) => run,
            None => self.prepared(session, work, Cursor::at(from), end, PutBy::default()).await?,
        };
        let Step { owner, from: progress, to, load, parts, skipped } = step;
        if !session.begin(&owner, progress, to).await? {
            session.roll_back().await?;
            return Err(GroupError::Elsewhere);
        }
        if load {
            self.load(session).await?;
        }
        let ahead = loop {
            let Run { changes, next, put_by } = run;
            if next.decision >= end {
                let then = then.map(|then| self.prepare(work, Cursor::at(end), then, PutBy::default(), None));
                let (changed, ahead) = tokio::join!(session.change(changes, puts), OptionFuture::from(then));
                changed?;
                break match ahead {
                    Some(Ok(Prepared::Run(run))) => Some(run),
                    // What it needs, or what is wrong with it, is found when its turn comes.
                    Some(Ok(Prepared::Unknown(_)) | Err(_)) | None => None,
                };
            }
            let again = put_by.clone();
            let (changed, prepared) =
                tokio::join!(session.change(changes, puts), self.prepare(work, next, end, put_by, None));
            changed?;
            run = match prepared? {
                Prepared::Run(run) => run,
                Prepared::Unknown(tables) => {
                    self.find_shapes(session, &tables).await?;
                    self.prepared(session, work, next, end, again).await?
                }
            };
        };
        for part in parts {
            self.show(session, part).await?;
        }
        for (position, transaction, cause) in skipped {
            let position = i64::try_from(position.0).unwrap_or(i64::MAX);
            let note = "INSERT INTO untorn.skipped (position, transaction, cause) VALUES ($1, $2, $3)";
            session.first().execute(note, &[&position, &transaction, &cause]).await?;
        }
        session.commit(&owner, to).await?;
        Ok(ahead)
    }

    /// Applies decisions in groups; what was applied before a failure stays so.
    pub(super) async fn groups(
        &self,
        server: &mut Server,
        session: &mut Sessions,
        batch: Batch<'_>,
    ) -> Result<(), GroupError> {
        let Batch { work, mut parts, through, first } = batch;
        let (mut from, mut ready) = (0, None);
        loop {
            let end = batch.group_end(from, parts);
            // What is seen of a part changes with the last group before it.
            let at = parts.first().map(|part| part.position);
            let at = at.filter(|at| work.get(end).is_none_or(|next| next.position > *at));
            let shown = at.map_or(0, |at| parts.partition_point(|part| part.position <= at));
            let (now, later) = parts.split_at(shown);
            let to = match at {
                _ if end == work.len() && later.is_empty() => through,
                Some(at) => at,
                None => work.get(end.saturating_sub(1)).map_or(through, |decided| decided.position),
            };
            // What is hidden after a part is not known before.
            let then = (end < work.len() && now.is_empty()).then(|| batch.group_end(end, later));
            let group = Group { work, from, end, then };
            let mut done = self.group(session, group, ready, Step::of(server, to, first, now)?, Puts::Merge).await;
            if let Err(GroupError::Server(refusal)) = &done
                && is_unique(&refusal.failure)
            {
                session.roll_back().await?;
                self.forget_shapes();
                done = self.group(session, group, None, Step::of(server, to, first, now)?, Puts::Replace).await;
            }
            ready = done?;
            server.progress = Progress { started: true, position: to };
            server.unwritten = !self.options.synchronous_commit;
            if !now.is_empty() {
                self.find_hidden(to);
                // The rows that went there are not needed here any more.
                server.copied = Some(Vec::new());
            }
            if server.skipped.iter().any(|(position, ..)| *position <= to) {
                (server.skip, server.skipped) = (None, Vec::new());
            }
            server.unforgotten.push(work.get(from..end).unwrap_or_default());
            (from, parts) = (end, later);
            if from >= work.len() && parts.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Decisions that are to be applied.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) work: &'a Arc<[Decided]>,
    /// What is seen otherwise from a place among them on.
    pub(super) parts: &'a [PartShown],
    /// How far it brings the server.
    pub(super) through: LogPosition,
    /// The first cut: one group, with the copied rows.
    pub(super) first: bool,
}

impl Batch<'_> {
    /// Where the group from here on ends: not beyond the next of these parts.
    fn group_end(&self, from: usize, parts: &[PartShown]) -> usize {
        if self.first {
            return self.work.len();
        }
        let end = group_end(self.work, from, REPLICA_GROUP_DECISIONS);
        let before = |part: &PartShown| self.work.partition_point(|decided| decided.position <= part.position);
        parts.first().map_or(end, |part| end.min(before(part)))
    }
}

/// Decisions that become one transaction of the server's.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) work: &'a Arc<[Decided]>,
    pub(super) from: usize,
    /// The first that is not of it.
    pub(super) end: usize,
    /// Where the group after it ends, if there is one.
    pub(super) then: Option<usize>,
}

/// What a group is part of.
pub(super) struct Step {
    pub(super) owner: Owner,
    /// Where the server is.
    pub(super) from: Progress,
    /// Where the group moves it to.
    pub(super) to: LogPosition,
    /// Whether the copied rows go with it.
    pub(super) load: bool,
    /// What is seen otherwise with it.
    pub(super) parts: Vec<PartShown>,
    /// Skips to be noted, as in [`Server`].
    pub(super) skipped: Vec<(LogPosition, String, String)>,
}

impl Step {
    pub(super) fn of(server: &Server, to: LogPosition, load: bool, parts: &[PartShown]) -> Result<Self, TabletError> {
        let skipped = server.skipped.iter().filter(|(position, ..)| *position <= to).cloned().collect();
        Ok(Self { owner: server.owner()?, from: server.progress, to, load, parts: parts.to_vec(), skipped })
    }
}

/// Two rows that hold the same where only one may: perhaps only because one of them has not been moved out of the way.
fn is_unique(failure: &Failure) -> bool {
    matches!(failure.code.as_str(), "23505" | "23P01")
}

/// Whether the server refused rows, so that the one is to be found.
pub(super) fn is_refusal(failure: &Failure) -> bool {
    matches!(Lost::of(failure), Lost::Refused(_))
}
