//! One reading of a table on both sides.

use super::digest::{Columns, Digest, Secret, Side, whole_row};
use super::run::VerifyError;
use super::window::World;
use crate::coordinator::ReadPoint;
use crate::limits::PAGE_BYTES;
use crate::source::CopyReader;
use crate::tablet::{ReadRequest, TabletError, VersionedRow};
use crate::wal::{Cell, Column, Key, TableSchema};
use futures::future::try_join_all;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What is done with each row that is read.
pub(super) trait Take: Send {
    /// A row of one side.
    fn row(&mut self, side: Side, key: Key, digest: Digest);
    /// Some rows of one side have been given.
    fn page(&mut self, side: Side, rows: u64);
}

/// A table of both sides.
pub(super) struct Table {
    pub(super) world: World,
    pub(super) name: String,
    pub(super) secret: Secret,
    /// The replica's newest shape; `None` where it has never heard of the table.
    pub(super) replica: Option<TableSchema>,
    /// The servers' columns.
    pub(super) columns: Vec<Column>,
}

/// The replica's shapes of a table by version: rows follow the one under which they were written.
pub(super) struct Shapes {
    by_version: BTreeMap<u32, Columns>,
    pub(super) newest: TableSchema,
}

impl Table {
    /// Whether rows have no key of their own.
    pub(super) fn keyless(&self) -> bool {
        !self.columns.iter().any(|column| column.key)
    }

    /// The replica's shapes, if it has the table.
    pub(super) fn shapes(&self) -> Option<Shapes> {
        let newest = self.replica.clone()?;
        let schemas = self.world.reader.schemas();
        let of_table = schemas.iter().filter(|schema| schema.table == newest.table);
        let by_version = of_table.map(|schema| (schema.version, self.secret.columns(&schema.columns))).collect();
        Some(Shapes { by_version, newest })
    }

    /// Reads all of it: the servers each at one moment, the replica at a read point that shows all of that.
    pub(super) async fn read(&self, take: &Mutex<impl Take>) -> Result<ReadPoint, VerifyError> {
        let opened = self.world.sources.iter().map(|source| async move {
            // The statement runs from here on: this is the server's moment.
            Ok::<_, VerifyError>(source.rows(&self.name, None).await?)
        });
        let opened: Vec<_> = try_join_all(opened).await?.into_iter().flatten().collect();
        let at = self.world.caught_up().await?;
        let sources = try_join_all(opened.into_iter().map(|rows| self.source(rows, take)));
        tokio::try_join!(sources, self.replica(at, take))?;
        Ok(at)
    }

    async fn source(&self, mut rows: Box<dyn CopyReader>, take: &Mutex<impl Take>) -> Result<(), VerifyError> {
        let columns = self.secret.columns(&rows.schema().columns);
        while let Some((page, _)) = rows.next().await? {
            let count = page.len() as u64;
            let mut take = take.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, row) in page {
                let (key, digest) = self.digest(key, &columns, &row.cells);
                take.row(Side::Source, key, digest);
            }
            take.page(Side::Source, count);
        }
        Ok(())
    }

    /// Reads the replica's rows only, at a read point or a newer one.
    pub(super) async fn replica(&self, mut at: ReadPoint, take: &Mutex<impl Take>) -> Result<(), VerifyError> {
        let Some(shapes) = self.shapes() else { return Ok(()) };
        let given = |rows: Vec<VersionedRow>| {
            let count = rows.len() as u64;
            let mut take = take.lock().unwrap_or_else(PoisonError::into_inner);
            for row in rows {
                if let Some((key, digest)) = self.replicated(&shapes, row) {
                    take.row(Side::Replica, key, digest);
                }
            }
            take.page(Side::Replica, count);
        };
        if !self.world.reader.keeps_versions() {
            let mut scan = self.world.reader.scan(shapes.newest.table, at, false);
            while let Some(rows) = scan.next().await? {
                given(rows);
            }
            return Ok(());
        }
        for tablet in 0..self.world.reader.tablet_count() {
            let mut after: Option<Key> = None;
            loop {
                let (table, after_now) = (shapes.newest.table, after.clone());
                let request =
                    ReadRequest { table, at, key: None, after: after_now, history: false, max_bytes: PAGE_BYTES };
                let page = match self.world.reader.page(tablet, request).await {
                    // It took so long that older versions are gone: what comes now is only newer.
                    Err(TabletError::TooOld { .. }) => {
                        at = self.world.safe()?;
                        continue;
                    }
                    page => page?,
                };
                given(page.rows);
                after = page.more_after;
                if after.is_none() {
                    break;
                }
                // Reading an embedded tablet waits for nothing; others must get their turn.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// The digest of a replica's version; `None` of a delete.
    pub(super) fn replicated(&self, shapes: &Shapes, version: VersionedRow) -> Option<(Key, Digest)> {
        let row = version.row?;
        let columns = shapes.columns(row.schema_version)?;
        Some(self.digest(version.key, columns, &row.cells))
    }

    pub(super) fn digest(&self, key: Key, columns: &Columns, cells: &[Cell]) -> (Key, Digest) {
        let key = if self.keyless() { whole_row(&columns.ordered(&self.columns, cells)) } else { key };
        let digest = self.secret.digest(&key, columns, cells);
        (key, digest)
    }
}

impl Shapes {
    /// The columns of a version; of the newest where the version is not known.
    pub(super) fn columns(&self, version: u32) -> Option<&Columns> {
        self.by_version.get(&version).or_else(|| self.by_version.get(&self.newest.version))
    }
}
