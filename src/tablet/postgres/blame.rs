//! Finding the row that a server refuses: the refused decisions once more, one transaction and then one key at a time, each
//! under a savepoint, and nothing of it committed.

use super::apply::{Group, GroupError, Prepared, Step, is_refusal};
use super::changes::Changes;
use super::error::Lost;
use super::net::PutBy;
use super::sessions::Sessions;
use super::skip::Refused;
use super::statements::{Puts, Refusal};
use super::{PostgresTablet, Server};
use crate::coordinator::{Decided, Work};
use crate::postgres::Failure;
use crate::tablet::engine::Cursor;
use crate::tablet::store::Store;
use crate::tablet::{RefusedWrite, TabletError};
use std::sync::Arc;

/// Keys of one run that are tried one by one; of a larger one the statement alone is told.
const KEYS_TRIED: usize = 20_000;

impl<S: Store> PostgresTablet<S> {
    /// Finds what the server refuses among decisions that it has not applied. Those before the refused one's cut are
    /// applied on the way.
    pub(super) async fn blame(
        &self,
        server: &mut Server,
        session: &mut Sessions,
        work: &Arc<[Decided]>,
        refusal: &Refusal,
    ) -> TabletError {
        let unknown = Lost::of(&refusal.failure).at(session.label(), session.role());
        let from = work.partition_point(|decided| decided.position <= server.progress.position);
        let found = match self.find(!server.progress.started, session, work, from).await {
            Ok(found) => found,
            Err(GroupError::Tablet(error)) => return error,
            Err(GroupError::Server(refusal)) => {
                return Lost::of(&refusal.failure).at(session.label(), session.role());
            }
            Err(GroupError::Elsewhere) => return unknown,
        };
        let Some((number, refused)) = found else { return unknown };
        // Everything before its cut is not to wait for it.
        let before = work.partition_point(|decided| work.get(number).is_some_and(|at| decided.position < at.position));
        if before > from && server.progress.started {
            let to = work[before - 1].position;
            let group = Group { work, from, end: before, then: None };
            let rolled_back = session.roll_back().await.is_ok();
            if let (true, Ok(step)) = (rolled_back, Step::of(server, to, false, &[]))
                && self.group(session, group, None, step, Puts::Replace).await.is_ok()
            {
                server.progress.position = to;
                server.unwritten = !self.options.synchronous_commit;
                server.unforgotten.push(work.get(from..before).unwrap_or_default());
            }
        }
        server.refused = Some(Refused { number, work: Arc::clone(work) });
        TabletError::RefusedWrite(Box::new(refused))
    }

    async fn find(
        &self,
        load: bool,
        session: &mut Sessions,
        work: &Arc<[Decided]>,
        from: usize,
    ) -> Result<Option<(usize, RefusedWrite)>, GroupError> {
        session.text("BEGIN").await?;
        if load {
            self.load(session).await?;
        }
        for number in from..work.len() {
            let Some(Decided { position, work: Work::Commit { transaction, .. } }) = work.get(number) else {
                continue;
            };
            session.text("SAVEPOINT whole").await?;
            let Some((at, refusal)) = self.try_transaction(session, work, number).await? else {
                session.text("RELEASE whole").await?;
                continue;
            };
            session.text("ROLLBACK TO whole").await?;
            let (key, refusal) = match self.try_keys(session, work, number, at).await? {
                Some((key, refusal)) => (key, refusal),
                None => (String::new(), refusal),
            };
            let refused = RefusedWrite {
                server: session.label().to_owned(),
                transaction: *transaction,
                position: *position,
                key,
                statement: refusal.statement,
                message: told(&refusal.failure),
            };
            return Ok(Some((number, refused)));
        }
        Ok(None)
    }

    /// Carries one transaction to the server; where it is refused, the cursor of the run.
    async fn try_transaction(
        &self,
        session: &mut Sessions,
        work: &Arc<[Decided]>,
        number: usize,
    ) -> Result<Option<(Cursor, Refusal)>, GroupError> {
        let (mut at, mut put_by) = (Cursor::at(number), PutBy::default());
        while at.decision == number {
            let (changes, next, kept) = self.run_at(session, work, at, number, put_by, None).await?;
            let ran = session.change_and_check(changes, Puts::Replace).await;
            if let Err(refusal) = ran {
                return if is_refusal(&refusal.failure) { Ok(Some((at, refusal))) } else { Err(refusal.into()) };
            }
            (at, put_by) = (next, kept);
        }
        Ok(None)
    }

    /// Carries the keys of one run to the server one by one, until one is refused.
    async fn try_keys(
        &self,
        session: &mut Sessions,
        work: &Arc<[Decided]>,
        number: usize,
        at: Cursor,
    ) -> Result<Option<(String, Refusal)>, GroupError> {
        for key in 0..KEYS_TRIED {
            let (changes, ..) = self.run_at(session, work, at, number, PutBy::default(), Some(key)).await?;
            let Some(name) = changes.first_key() else { return Ok(None) };
            session.text("SAVEPOINT one").await?;
            if let Err(refusal) = session.change_and_check(changes, Puts::Merge).await {
                return if is_refusal(&refusal.failure) { Ok(Some((name, refusal))) } else { Err(refusal.into()) };
            }
            session.text("RELEASE one").await?;
        }
        Ok(None)
    }

    async fn run_at(
        &self,
        session: &mut Sessions,
        work: &Arc<[Decided]>,
        at: Cursor,
        number: usize,
        put_by: PutBy,
        only: Option<usize>,
    ) -> Result<(Changes, Cursor, PutBy), GroupError> {
        loop {
            match self.prepare(work, at, number + 1, put_by.clone(), only).await? {
                Prepared::Run(run) => return Ok((run.changes, run.next, run.put_by)),
                Prepared::Unknown(tables) => self.find_shapes(session, &tables).await?,
            }
        }
    }
}

impl Sessions {
    /// Carries a run to the server, and has it check what is deferred.
    async fn change_and_check(&mut self, changes: Changes, puts: Puts) -> Result<(), Refusal> {
        self.change(changes, puts).await?;
        let checked = self.text("SET CONSTRAINTS ALL IMMEDIATE").await;
        checked.map_err(|failure| Refusal { failure, statement: "COMMIT".into() })?;
        Ok(())
    }
}

fn told(failure: &Failure) -> String {
    format!("{} (SQLSTATE {})", failure.message, failure.code)
}
