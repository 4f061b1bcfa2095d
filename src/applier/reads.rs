//! Reading the replica: a read point first, then tablet by tablet (C3).

use super::shown::Shown;
use super::tablets::{Tablet, Tablets};
use crate::coordinator::{ReadPoint, TabletMap};
use crate::limits::{PAGE_BYTES, READ_PATIENCE_MS};
use crate::router::Router;
use crate::tablet::{Frozen, ReadPage, ReadRequest, TabletError, VersionedRow};
use crate::wal::{HybridTime, Key, TableId, TableSchema};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How soon a page is asked for again, if its tablet did not take time to answer.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Reads of a running applier's replica. Clones are cheap.
#[derive(Clone)]
pub struct Reader {
    pub(super) shown: watch::Receiver<Shown>,
    pub(super) tablets: Tablets,
}

/// Why there is no read point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Nothing may be shown before the start is over: every initial copy, and the start fence.
    #[error("nothing may be shown before every initial copy is done and the start fence is passed")]
    Start,
    /// There is no safe point yet: some stream has not said how far it is.
    #[error("there is no safe point yet: not every stream has said how far it is")]
    NoSafePoint,
    /// The replica's server has not been given the first cut yet.
    #[error("{tablet} shows nothing yet: the first cut is being written to it")]
    FirstCut {
        /// The replica tablet that shows nothing.
        tablet: String,
    },
    /// The replica keeps no versions.
    #[error("the replica keeps one moment of every row: it is read at safe or latest, and both are what it shows now")]
    OneMoment,
    /// The time lies above safe time.
    #[error("{asked} lies above safe time, which is {safe}")]
    AboveSafeTime {
        /// What was asked for.
        asked: HybridTime,
        /// Safe time.
        safe: HybridTime,
    },
}

impl Reader {
    /// Every transaction that is decided.
    ///
    /// # Errors
    /// See [`NotReady`].
    pub fn latest(&self) -> Result<ReadPoint, NotReady> {
        let latest = self.shown.borrow().latest.ok_or(NotReady::Start)?;
        self.first_cut()?;
        Ok(latest)
    }

    /// The replica at safe time.
    ///
    /// # Errors
    /// See [`NotReady`].
    pub fn safe(&self) -> Result<ReadPoint, NotReady> {
        let (latest, safe) = {
            let shown = self.shown.borrow();
            (shown.latest, shown.safe)
        };
        let safe = latest.and(safe).ok_or(if latest.is_none() { NotReady::Start } else { NotReady::NoSafePoint })?;
        self.first_cut()?;
        Ok(safe)
    }

    /// That every tablet serves its readers.
    fn first_cut(&self) -> Result<(), NotReady> {
        let silent = self.tablets.named().iter().find(|tablet| !tablet.leader.is_shown());
        silent.map_or(Ok(()), |tablet| Err(NotReady::FirstCut { tablet: tablet.name.clone() }))
    }

    /// The replica at a hybrid time at or below safe time.
    ///
    /// # Errors
    /// See [`NotReady`].
    pub fn at(&self, time: HybridTime) -> Result<ReadPoint, NotReady> {
        if !self.keeps_versions() {
            return Err(NotReady::OneMoment);
        }
        let safe = self.safe()?;
        if time > safe.time {
            return Err(NotReady::AboveSafeTime { asked: time, safe: safe.time });
        }
        Ok(ReadPoint { time, ..safe })
    }

    /// Whether the replica keeps versions, so that any read point can be read; else only what it shows now.
    #[must_use]
    pub fn keeps_versions(&self) -> bool {
        self.tablets.named().iter().all(|tablet| tablet.leader.keeps_versions())
    }

    /// How far readers may read, as it moves.
    #[must_use]
    pub fn shown(&self) -> watch::Receiver<Shown> {
        self.shown.clone()
    }

    /// Every version of every table's shape.
    #[must_use]
    pub fn schemas(&self) -> Arc<Vec<TableSchema>> {
        Arc::clone(&self.shown.borrow().tables)
    }

    /// A table's newest shape.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<TableSchema> {
        let schemas = self.schemas();
        schemas.iter().filter(|schema| schema.name == name).max_by_key(|schema| schema.version).cloned()
    }

    /// How many replica tablets the map has.
    #[must_use]
    pub fn tablet_count(&self) -> usize {
        self.shown.borrow().map.tablets.len()
    }

    /// Reads a page from one replica tablet of the map; one that is behind or away is asked again for a while.
    ///
    /// # Errors
    /// See [`TabletError`].
    pub async fn page(&self, tablet: usize, request: ReadRequest) -> Result<ReadPage, TabletError> {
        let tablet = self.mapped(tablet)?;
        let patience = Instant::now() + Duration::from_millis(READ_PATIENCE_MS);
        loop {
            match tablet.leader.read(request.clone()).await {
                Err(TabletError::Indeterminate(_)) if Instant::now() < patience => {
                    tokio::time::sleep(ASKED_AGAIN_AFTER).await;
                }
                answer => return answer,
            }
        }
    }

    /// A replica tablet of the map.
    fn mapped(&self, tablet: usize) -> Result<Tablet, TabletError> {
        let map = Arc::clone(&self.shown.borrow().map);
        let tablets = self.tablets.of(&map).map_err(TabletError::Refused)?;
        let none = || TabletError::Refused(format!("no replica tablet {tablet}"));
        tablets.into_iter().nth(tablet).ok_or_else(none)
    }

    /// The versions of one key at or below a read point, newest first, deletes included: as many as fit in a page, and
    /// whether that is all of them.
    ///
    /// # Errors
    /// See [`TabletError`].
    pub async fn history(
        &self,
        table: TableId,
        key: &Key,
        at: ReadPoint,
    ) -> Result<(Vec<VersionedRow>, bool), TabletError> {
        let map = Arc::clone(&self.shown.borrow().map);
        let holder = Router::new(TabletMap::clone(&map)).route(table, key);
        let place = map.tablets.iter().position(|tablet| Some(tablet.id) == holder);
        let place = place.ok_or_else(|| TabletError::Refused("the map names no replica tablets".into()))?;
        let key = Some(key.clone());
        let request = ReadRequest { table, at, key, after: None, history: true, max_bytes: PAGE_BYTES };
        let page = self.page(place, request).await?;
        Ok((page.rows, page.more_after.is_none()))
    }

    /// The rows of these keys at a moment at or after a read point, of a replica that keeps no versions.
    ///
    /// # Errors
    /// See [`TabletError`].
    pub async fn now(
        &self,
        table: &TableSchema,
        keys: &[Key],
        at: ReadPoint,
    ) -> Result<Vec<VersionedRow>, TabletError> {
        let mut rows = Vec::new();
        for tablet in 0..self.tablet_count() {
            let mut moment = self.mapped(tablet)?.leader.freeze(table.clone(), at.position, Some(keys)).await?;
            loop {
                match moment.next().await? {
                    page if page.is_empty() => break,
                    page => rows.extend(page),
                }
            }
        }
        Ok(rows)
    }

    /// All rows of a table at one read point, tablet by tablet, a page at a time.
    #[must_use]
    pub fn scan(&self, table: TableId, at: ReadPoint, history: bool) -> TableScan {
        TableScan { reader: self.clone(), table, at, history, tablet: 0, after: None, frozen: None }
    }
}

/// A running scan.
pub struct TableScan {
    reader: Reader,
    table: TableId,
    at: ReadPoint,
    history: bool,
    tablet: usize,
    after: Option<Key>,
    /// The moment of the tablet in work, where it keeps no versions.
    frozen: Option<Box<dyn Frozen>>,
}

impl TableScan {
    /// The next rows, in key order within each tablet; `None` once all of them were given.
    ///
    /// # Errors
    /// See [`TabletError`]. What was given before is then a part of the rows only.
    pub async fn next(&mut self) -> Result<Option<Vec<VersionedRow>>, TabletError> {
        while self.tablet < self.reader.tablet_count() {
            if let Some(rows) = self.next_frozen().await? {
                if rows.is_empty() {
                    (self.tablet, self.frozen) = (self.tablet + 1, None);
                    continue;
                }
                return Ok(Some(rows));
            }
            let request = ReadRequest {
                table: self.table,
                at: self.at,
                key: None,
                after: self.after.take(),
                history: self.history,
                max_bytes: PAGE_BYTES,
            };
            let page = self.reader.page(self.tablet, request).await?;
            self.after = page.more_after;
            if self.after.is_none() {
                self.tablet += 1;
            }
            if !page.rows.is_empty() {
                return Ok(Some(page.rows));
            }
        }
        Ok(None)
    }

    /// Rows of a tablet that keeps no versions; `None` for one that does.
    async fn next_frozen(&mut self) -> Result<Option<Vec<VersionedRow>>, TabletError> {
        let tablet = self.reader.mapped(self.tablet)?;
        if tablet.leader.keeps_versions() {
            return Ok(None);
        }
        let frozen = match &mut self.frozen {
            Some(frozen) => frozen,
            None => {
                let schemas = self.reader.schemas();
                let newest =
                    schemas.iter().filter(|schema| schema.table == self.table).max_by_key(|schema| schema.version);
                let unknown = || TabletError::Refused(format!("table {} is not known", self.table));
                let schema = newest.ok_or_else(unknown)?.clone();
                self.frozen.insert(tablet.leader.freeze(schema, self.at.position, None).await?)
            }
        };
        frozen.next().await.map(Some)
    }
}
