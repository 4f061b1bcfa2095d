//! The sessions of one owner, one a server, and the one moment at which all of them commit.

use super::apply::GroupError;
use super::changes::Changes;
use super::release::{Release, Step, gid};
use super::servers::Servers;
use super::session::{Leftovers, Owner, Progress, Session};
use super::statements::{Puts, Refusal};
use crate::coordinator::ReleaseId;
use crate::postgres::{Failure, literal};
use crate::tablet::{Releases, TabletError};
use crate::wal::LogPosition;
use std::sync::Arc;

/// Open sessions at every server.
pub struct Sessions {
    all: Vec<Session>,
    servers: Servers,
    /// The server that was spoken to last: what failed, failed there.
    spoke: usize,
    /// Where there are several servers: who decides on releases.
    releases: Option<Arc<dyn Releases>>,
    /// The release on its way.
    release: Option<(ReleaseId, Release)>,
}

impl Sessions {
    /// Opens all of them (see [`Session::open`]), and says how far the servers are: as far as each other.
    ///
    /// # Errors
    /// As one session's; servers that do not show the same position.
    pub async fn open(
        servers: &Servers,
        owner: &Owner,
        durable: bool,
        releases: Option<Arc<dyn Releases>>,
    ) -> Result<(Self, Progress), TabletError> {
        // Decided before the sessions of the owner before are ended, or never: that one's epoch is over in the log.
        let leftovers = match &releases {
            Some(releases) => Some(Leftovers { last: releases.last(owner.tablet).await? }),
            None => None,
        };
        let (mut all, mut shown): (Vec<Session>, Option<Progress>) = (Vec::new(), None);
        for target in servers.targets() {
            let (session, progress) = Session::open(target, owner, durable, leftovers).await?;
            if let Some(first) = shown.filter(|first| *first != progress) {
                return Err(TabletError::Refused(format!(
                    "{}: it shows the log up to {}, and {} up to {}: one of them lost what it had committed, perhaps by being \
                     restored; set up the replica again from a new copy",
                    session.label(),
                    progress.position,
                    all[0].label(),
                    first.position
                )));
            }
            shown = Some(progress);
            all.push(session);
        }
        let progress = shown.ok_or_else(|| TabletError::Refused("the replica has no server".into()))?;
        // Numbers that were decided are never given out again.
        let decided = leftovers.and_then(|leftovers| leftovers.last).filter(|last| last.epoch == owner.epoch);
        let release = decided.map(|last| (last, Release::over()));
        Ok((Self { all, servers: servers.clone(), spoke: 0, releases, release }, progress))
    }

    /// The server that was spoken to last, as messages name it.
    #[must_use]
    pub fn label(&self) -> &str {
        self.all[self.spoke].label()
    }

    /// Who logs in there.
    #[must_use]
    pub fn role(&self) -> &str {
        self.all[self.spoke].role()
    }

    /// The session at the server that has a table.
    ///
    /// # Errors
    /// None is to have it.
    pub fn at(&mut self, table: &str) -> Result<&mut Session, TabletError> {
        self.spoke = self.servers.place(table)?;
        Ok(&mut self.all[self.spoke])
    }

    /// The sessions at the servers that have not.
    ///
    /// # Errors
    /// None is to have it.
    pub fn but(&mut self, table: &str) -> Result<impl Iterator<Item = &mut Session>, TabletError> {
        let place = self.servers.place(table)?;
        Ok(self.all.iter_mut().enumerate().filter(move |(number, _)| *number != place).map(|(_, session)| session))
    }

    /// The session at the first server.
    pub fn first(&mut self) -> &mut Session {
        self.spoke = 0;
        &mut self.all[0]
    }

    /// Begins a transaction at every server; see [`Session::begin`].
    ///
    /// # Errors
    /// What a server said.
    pub async fn begin(&mut self, owner: &Owner, from: Progress, to: LogPosition) -> Result<bool, Failure> {
        for place in 0..self.all.len() {
            self.spoke = place;
            if !self.all[place].begin(owner, from, to).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs a statement at every server.
    ///
    /// # Errors
    /// What a server said.
    pub async fn text(&mut self, sql: &str) -> Result<(), Failure> {
        for (place, session) in self.all.iter_mut().enumerate() {
            let said = session.sql.text(sql).await;
            if let Err(failure) = said {
                self.spoke = place;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Carries a run to the servers, within the transactions that are open.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(super) async fn change(&mut self, changes: Changes, puts: Puts) -> Result<(), Refusal> {
        for table in changes.tables {
            let no_place = |error: TabletError| Refusal { failure: Failure::lost(error), statement: String::new() };
            let session = self.at(&table.shape.schema.name).map_err(no_place)?;
            session.change_table(table, puts).await?;
        }
        Ok(())
    }

    /// Commits at all servers, which then show `to`; of several none before all of them can.
    ///
    /// # Errors
    /// What a server said. Where the outcome is unknown, [`Sessions::roll_back`] fails too.
    pub(super) async fn commit(&mut self, owner: &Owner, to: LogPosition) -> Result<(), GroupError> {
        let Some(releases) = self.releases.clone() else {
            return Ok(self.first().commit().await?);
        };
        let number = self.release.map_or(1, |(before, _)| before.number + 1);
        let id = ReleaseId { epoch: owner.epoch, number };
        let mut release = Release::new(self.all.len());
        while let Some(step) = release.next() {
            release.begin();
            self.release = Some((id, release));
            match step {
                Step::Prepare(place) => {
                    self.spoke = place;
                    self.all[place].prepare_transaction(id).await?;
                }
                Step::Decide => releases.decide(owner.tablet, id, to).await?,
                Step::Commit(place) => {
                    self.spoke = place;
                    self.all[place].commit_prepared(id).await?;
                }
            }
            release.did();
            self.release = Some((id, release));
        }
        Ok(())
    }

    /// Rolls back what is open, if anything is.
    ///
    /// # Errors
    /// A session is lost, or the log has to say what became of the release: all of them are opened again then.
    pub async fn roll_back(&mut self) -> Result<(), Failure> {
        if let Some((id, release)) = self.release.filter(|(_, release)| release.next().is_some()) {
            let prepared = release.roll_back();
            let prepared = prepared.ok_or_else(|| Failure::lost("the log has to say what became of the release"))?;
            for place in prepared {
                self.all[place].roll_back_prepared(id).await?;
            }
            self.release = Some((id, Release::over()));
        }
        for session in &mut self.all {
            session.roll_back().await?;
        }
        Ok(())
    }

    /// Makes everything committed so far durable.
    ///
    /// # Errors
    /// What a server said.
    pub async fn barrier(&mut self) -> Result<(), Failure> {
        for place in 0..self.all.len() {
            self.spoke = place;
            self.all[place].barrier().await?;
        }
        Ok(())
    }

    /// Whether every progress row is still this owner's.
    ///
    /// # Errors
    /// What a server said.
    pub async fn is_owned(&mut self, owner: &Owner) -> Result<bool, Failure> {
        for place in 0..self.all.len() {
            self.spoke = place;
            if !self.all[place].is_owned(owner).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Who holds locks at the server that was spoken to last.
    ///
    /// # Errors
    /// What the server said.
    pub async fn lock_holders(&mut self) -> Result<String, Failure> {
        self.all[self.spoke].lock_holders().await
    }
}

impl Session {
    async fn prepare_transaction(&mut self, release: ReleaseId) -> Result<(), Failure> {
        self.sql.text("SET CONSTRAINTS ALL IMMEDIATE").await?;
        let prepare = format!("PREPARE TRANSACTION {}", literal(&gid(&self.gids, release)));
        self.sql.text(&prepare).await.map(|_| ())
    }

    async fn commit_prepared(&mut self, release: ReleaseId) -> Result<(), Failure> {
        self.sql.text(&format!("COMMIT PREPARED {}", literal(&gid(&self.gids, release)))).await.map(|_| ())
    }

    async fn roll_back_prepared(&mut self, release: ReleaseId) -> Result<(), Failure> {
        self.sql.text(&format!("ROLLBACK PREPARED {}", literal(&gid(&self.gids, release)))).await.map(|_| ())
    }
}
