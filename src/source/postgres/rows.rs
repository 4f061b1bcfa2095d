//! A published table's rows as they are now, for whoever compares them with the replica's.

use super::copy::Reader;
use super::relation::{self, Published};
use super::{Failure, PostgresSource};
use crate::postgres::{Sql, one_of, quote};
use crate::source::{Catalog, CopyReader, SourceError};
use crate::wal::{Column, Key, TableId, TableSchema};
use async_trait::async_trait;
use std::sync::Arc;

/// Gives shapes without the log: rows that are only looked at change nothing there.
struct AsTheServerSays;

#[async_trait]
impl Catalog for AsTheServerSays {
    async fn table(&self, name: &str, columns: Vec<Column>, _: Option<u32>) -> Result<TableSchema, SourceError> {
        Ok(TableSchema { table: TableId::default(), name: name.to_owned(), version: 0, columns })
    }
}

impl PostgresSource {
    /// The names, at the replica, of the tables that are replicated.
    pub(super) async fn published_names(&self) -> Result<Vec<String>, SourceError> {
        let publication = self.options.publication.clone();
        let tables = self.ask(async |sql| relation::published(sql, &publication).await).await?;
        Ok(tables.iter().filter_map(|table| self.name_of(table)).collect())
    }

    /// The replicated tables as the replica is to have them.
    pub(super) async fn shapes(&self, sql: &mut Sql) -> Result<Vec<TableSchema>, SourceError> {
        let label = self.target.label();
        let catalog = self.renaming(Arc::new(AsTheServerSays));
        let tables = relation::published(sql, &self.options.publication).await.map_err(|failure| failure.at(&label))?;
        let mut shapes = Vec::new();
        for table in tables {
            if self.name_of(&table).is_some() {
                shapes.push(table.relation.shape(sql, &label, catalog.as_ref(), None).await?.schema);
            }
        }
        Ok(shapes)
    }

    fn name_of(&self, table: &Published) -> Option<String> {
        self.options.tables.name_of(&table.relation.namespace, &table.relation.name)
    }

    /// A table's rows in one statement, which sees one moment; with keys, only the rows of these.
    pub(super) async fn table_rows(
        &self,
        table: &str,
        keys: Option<&[Key]>,
    ) -> Result<Option<Box<dyn CopyReader>>, SourceError> {
        let at = |failure: Failure| failure.at(&self.target.label());
        let mut sql = self.target.session().await?;
        let tables = relation::published(&mut sql, &self.options.publication).await.map_err(at)?;
        let Some(mut found) = tables.into_iter().find(|published| self.name_of(published).as_deref() == Some(table))
        else {
            return Ok(None);
        };
        if let Some(keys) = keys {
            let columns = found.relation.columns.iter().filter(|column| column.key);
            let columns: Vec<String> = columns.map(|column| quote(&column.name)).collect();
            let only = one_of(&columns, keys);
            found.filter = Some(found.filter.map_or(only.clone(), |filter| format!("({filter}) AND {only}")));
        }
        let catalog = self.renaming(Arc::new(AsTheServerSays));
        Ok(Some(Box::new(Reader::begin(self.target.clone(), sql, found, catalog.as_ref()).await?)))
    }

    /// The number of the oldest transaction that is open in the cluster, prepared ones among them, and of the next one.
    pub(super) async fn open_numbers(&self) -> Result<(u64, u64), SourceError> {
        let question = "SELECT pg_catalog.pg_snapshot_xmin(s)::text || ' ' || pg_catalog.pg_snapshot_xmax(s)::text
             FROM pg_catalog.pg_current_snapshot() s";
        let text = self.ask(async |sql| sql.text(question).await).await?.unwrap_or_default();
        let numbers = text.split_once(' ').and_then(|(oldest, next)| oldest.parse().ok().zip(next.parse().ok()));
        numbers.ok_or_else(|| SourceError::Stop(format!("{}: {text:?} is no snapshot", self.target.label())))
    }
}
