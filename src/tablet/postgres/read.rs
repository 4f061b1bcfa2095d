//! Reading a table at the moment that the server shows: one transaction that sees one snapshot, a page at a time.

use super::error::Lost;
use super::shape::quoted;
use super::{PostgresTablet, Server};
use crate::limits::READ_WAIT_MS;
use crate::postgres::{Failure, Sql, one_of, quote};
use crate::tablet::store::Store;
use crate::tablet::{Frozen, TabletError, VersionedRow};
use crate::wal::{Cell, HybridTime, Key, LogPosition, Row, SourceTabletId, TableSchema};
use async_trait::async_trait;
use std::time::Duration;

/// Rows of one page.
const PAGE_ROWS: usize = 500;

/// A moment of one table.
struct Moment {
    sql: Sql,
    label: String,
    role: String,
    schema: TableSchema,
    position: LogPosition,
}

impl<S: Store> PostgresTablet<S> {
    /// Freezes a table once the server is at a log position.
    pub(super) async fn frozen(
        &self,
        schema: TableSchema,
        at: LogPosition,
        keys: Option<&[Key]>,
    ) -> Result<Box<dyn Frozen>, TabletError> {
        let mut heard = self.heard.subscribe();
        let waited = tokio::time::timeout(Duration::from_millis(READ_WAIT_MS), heard.wait_for(|heard| *heard >= at));
        let position = match waited.await {
            Ok(Ok(position)) => *position,
            _ => {
                return Err(TabletError::Indeterminate(format!(
                    "{}: it has applied the log up to {} and {at} was waited for; status says why",
                    self.servers.label(),
                    *self.heard.borrow()
                )));
            }
        };
        let target = self.servers.target(&schema.name)?;
        let (label, role) = (target.label(), target.user().to_owned());
        let begun = async {
            let mut sql = target.sql().await?;
            let columns: Vec<String> = schema.columns.iter().map(|column| quote(&column.name)).collect();
            let key = schema.columns.iter().zip(&columns).filter(|(column, _)| column.key);
            let key: Vec<String> = key.map(|(_, quoted)| quoted.clone()).collect();
            let order = if key.is_empty() { String::new() } else { format!(" ORDER BY {}", key.join(", ")) };
            let only = keys.map_or_else(String::new, |keys| format!(" WHERE {}", one_of(&key, keys)));
            let select = format!("SELECT {} FROM {}{only}{order}", columns.join(", "), quoted(&schema.name));
            sql.text(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; DECLARE rows NO SCROLL CURSOR FOR {select}"
            ))
            .await?;
            Ok::<_, Failure>(sql)
        };
        let sql = begun.await.map_err(|failure| Lost::of(&failure).at(&label, &role))?;
        Ok(Box::new(Moment { sql, label, role, schema, position }))
    }
}

impl Server {
    /// Readers of the server see everything up to here.
    pub(super) fn shows(&self) -> LogPosition {
        if self.progress.started { self.heard } else { LogPosition::default() }
    }
}

#[async_trait]
impl Frozen for Moment {
    async fn next(&mut self) -> Result<Vec<VersionedRow>, TabletError> {
        let fetched = self.sql.rows(&format!("FETCH {PAGE_ROWS} FROM rows")).await;
        let fetched = fetched.map_err(|failure| Lost::of(&failure).at(&self.label, &self.role))?;
        let rows = fetched.into_iter().map(|cells| {
            let key = self.schema.columns.iter().zip(&cells).filter(|(column, _)| column.key);
            let key = Key::from_columns(key.map(|(_, cell)| cell.as_deref().unwrap_or_default().as_bytes()));
            let cell = |cell: Option<String>| cell.map_or(Cell::Null, |text| Cell::Text(text.into_bytes().into()));
            let row = Row { schema_version: self.schema.version, cells: cells.into_iter().map(cell).collect() };
            // The server keeps no commit times and no streams.
            let (time, stream) = (HybridTime::MIN, SourceTabletId::default());
            VersionedRow { key, row: Some(row), time, position: self.position, stream }
        });
        Ok(rows.collect())
    }
}
