//! Reading the replica: a read point first, then tablet by tablet (C3).

use super::shown::Shown;
use super::tablets::Tablets;
use crate::coordinator::{ReadPoint, TabletMap};
use crate::limits::{PAGE_BYTES, READ_PATIENCE_MS};
use crate::router::Router;
use crate::tablet::{ReadPage, ReadRequest, TabletError, VersionedRow};
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
        self.shown.borrow().latest.ok_or(NotReady::Start)
    }

    /// The replica at safe time.
    ///
    /// # Errors
    /// See [`NotReady`].
    pub fn safe(&self) -> Result<ReadPoint, NotReady> {
        let shown = self.shown.borrow();
        shown.latest.and(shown.safe).ok_or(if shown.latest.is_none() { NotReady::Start } else { NotReady::NoSafePoint })
    }

    /// The replica at a hybrid time at or below safe time.
    ///
    /// # Errors
    /// See [`NotReady`].
    pub fn at(&self, time: HybridTime) -> Result<ReadPoint, NotReady> {
        let safe = self.safe()?;
        if time > safe.time {
            return Err(NotReady::AboveSafeTime { asked: time, safe: safe.time });
        }
        Ok(ReadPoint { time, ..safe })
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
        let map = Arc::clone(&self.shown.borrow().map);
        let tablets = self.tablets.of(&map).map_err(TabletError::Refused)?;
        let tablet = tablets.get(tablet).ok_or_else(|| TabletError::Refused(format!("no replica tablet {tablet}")))?;
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

    /// All rows of a table at one read point, tablet by tablet, a page at a time.
    #[must_use]
    pub fn scan(&self, table: TableId, at: ReadPoint, history: bool) -> TableScan {
        TableScan { reader: self.clone(), table, at, history, tablet: 0, after: None }
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
}

impl TableScan {
    /// The next rows, in key order within each tablet; `None` once all of them were given.
    ///
    /// # Errors
    /// See [`TabletError`]. What was given before is then a part of the rows only.
    pub async fn next(&mut self) -> Result<Option<Vec<VersionedRow>>, TabletError> {
        while self.tablet < self.reader.tablet_count() {
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
}
