//! Copies of the publication's tables, from a snapshot that a slot's creation left.

use super::relation::{self, Published};
use super::rules::{Renaming, TableRules};
use super::tuple::Shape;
use crate::limits::PAGE_BYTES;
use crate::postgres::{Failure, Sql, Target, literal, quote};
use crate::source::{Catalog, CopyReader, Snapshot, SnapshotTable, SourceError};
use crate::wal::{Cell, Key, OpId, Row, TableSchema};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio_postgres::CopyOutStream;

/// What a slot's creation left: a transaction that sees exactly what had committed at its position. Readers take the
/// same snapshot over, each in a session of its own.
pub struct PostgresSnapshot {
    target: Target,
    position: u64,
    /// It was taken with the slot that the stream is read from, so nothing that is in it comes by the stream too.
    own_slot: bool,
    /// The snapshot's name, by which other sessions take it over while the holder's transaction lasts.
    name: String,
    rules: Arc<TableRules>,
    published: Vec<Published>,
    tables: Vec<SnapshotTable>,
    _holder: Mutex<Sql>,
}

impl PostgresSnapshot {
    /// From a session in a transaction that sees the snapshot.
    ///
    /// # Errors
    /// What the server said.
    pub async fn new(
        target: Target,
        mut holder: Sql,
        publication: &str,
        rules: Arc<TableRules>,
        position: u64,
        own_slot: bool,
    ) -> Result<Self, SourceError> {
        let label = target.label();
        let at = |failure: Failure| failure.at(&label);
        let mut published = relation::published(&mut holder, publication).await.map_err(at)?;
        relation::keep(&mut published, &rules).map_err(|clash| SourceError::Stop(format!("{label}: {clash}")))?;
        holder.text("SET idle_in_transaction_session_timeout = 0").await.map_err(at)?;
        let name = holder.text("SELECT pg_catalog.pg_export_snapshot()").await.map_err(at)?.unwrap_or_default();
        let tables =
            published.iter().map(|table| SnapshotTable { published: table.described(), estimate: table.estimate });
        let tables = tables.collect();
        Ok(Self { target, position, own_slot, name, rules, published, tables, _holder: Mutex::new(holder) })
    }
}

#[async_trait]
impl Snapshot for PostgresSnapshot {
    fn position(&self) -> OpId {
        OpId::end_of_term(self.position)
    }

    fn tables(&self) -> &[SnapshotTable] {
        &self.tables
    }

    async fn read(&self, table: &str, catalog: Arc<dyn Catalog>) -> Result<Box<dyn CopyReader>, SourceError> {
        let label = self.target.label();
        let found = self.published.iter().find(|published| published.name == table);
        let Some(published) = found else {
            return Err(SourceError::Retry(format!("{label}: table {table} has left the publication")));
        };
        let mut sql = self.target.session().await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            literal(&self.name)
        );
        sql.text(&begin).await.map_err(|failure| failure.at(&label))?;
        let catalog = Renaming { catalog, rules: Arc::clone(&self.rules) };
        let reader = Reader::begin(self.target.clone(), sql, published.clone(), &catalog).await?;
        if reader.shape.keyless() && !self.own_slot {
            return Err(SourceError::Stop(format!("{label}: {}", published.relation.uncopied())));
        }
        Ok(Box::new(reader))
    }
}

/// A table that is being read, in one statement.
pub struct Reader {
    target: Target,
    sql: Sql,
    shape: Shape,
    /// `None` once the last row came.
    rows: Option<Pin<Box<CopyOutStream>>>,
    /// The beginning of a line whose end has not come.
    partial: BytesMut,
    count: u64,
    estimate: Option<u64>,
}

impl Reader {
    /// Begins the statement: what it reads is what the session's transaction sees now.
    ///
    /// # Errors
    /// What the server or the catalog said.
    pub async fn begin(
        target: Target,
        mut sql: Sql,
        table: Published,
        catalog: &dyn Catalog,
    ) -> Result<Self, SourceError> {
        let label = target.label();
        let columns: Vec<String> = table.relation.columns.iter().map(|column| quote(&column.name)).collect();
        // ONLY: a table that inherits is published by itself.
        let only = if table.partitioned { "" } else { "ONLY " };
        let filter = table.filter.map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
        let source = format!("SELECT {} FROM {only}{}{filter}", columns.join(", "), table.relation.quoted());
        let shape = table.relation.shape(&mut sql, &label, catalog, None).await?;
        let rows = sql.copy_out(&format!("COPY ({source}) TO STDOUT")).await.map_err(|failure| failure.at(&label))?;
        Ok(Self { target, sql, shape, rows: Some(rows), partial: BytesMut::new(), count: 0, estimate: table.estimate })
    }
}

#[async_trait]
impl CopyReader for Reader {
    fn estimate(&self) -> Option<u64> {
        self.estimate
    }

    fn schema(&self) -> &TableSchema {
        &self.shape.schema
    }

    async fn next(&mut self) -> Result<Option<(Vec<(Key, Row)>, usize)>, SourceError> {
        let label = self.target.label();
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some(rows) = self.rows.as_mut().filter(|_| bytes < PAGE_BYTES || page.is_empty()) {
            let Some(piece) = self.sql.next_copied(rows).await.map_err(|failure| failure.at(&label))? else {
                self.rows = None;
                break;
            };
            bytes += piece.len();
            for line in lines(&mut self.partial, piece) {
                let number = self.count;
                // A table without columns has empty lines, as one empty text has.
                let none = self.shape.schema.columns.is_empty();
                let row = if none { Ok(Vec::new()) } else { cells(&line) };
                let row = row.and_then(|cells| self.shape.copied(cells, self.target.name(), number));
                let damage = |e| SourceError::Stop(format!("{label}: copying {}: {e}", self.shape.schema.name));
                page.push(row.map_err(damage)?);
                self.count += 1;
            }
        }
        Ok((!page.is_empty()).then_some((page, bytes)))
    }
}

/// The whole lines of a copy's text form, without their ends: newlines within values are escaped there.
fn lines(partial: &mut BytesMut, mut piece: Bytes) -> Vec<Bytes> {
    let mut lines = Vec::with_capacity(1);
    while let Some(end) = memchr::memchr(b'\n', &piece) {
        let line = piece.split_to(end + 1);
        if partial.is_empty() {
            lines.push(line.slice(..end));
        } else {
            partial.extend_from_slice(&line[..end]);
            lines.push(partial.split().freeze());
        }
    }
    partial.extend_from_slice(&piece);
    lines
}

/// The cells of a line of a copy's text form.
fn cells(line: &Bytes) -> Result<Vec<Cell>, String> {
    let mut cells = Vec::new();
    let mut from = 0;
    for end in memchr::memchr_iter(b'\t', line).chain([line.len()]) {
        let field = line.slice(from..end);
        from = end + 1;
        cells.push(match &field[..] {
            b"\\N" => Cell::Null,
            text if memchr::memchr(b'\\', text).is_some() => Cell::Text(unescape(text)?),
            _ => Cell::Text(field),
        });
    }
    Ok(cells)
}

fn unescape(text: &[u8]) -> Result<Bytes, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 11,
            Some(&other) => other,
            None => return Err("a line ends within an escape".into()),
        });
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<Option<String>> {
        let text = |cell: Cell| match cell {
            Cell::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
            _ => None,
        };
        cells(&Bytes::copy_from_slice(line.as_bytes())).unwrap().into_iter().map(text).collect()
    }

    #[test]
    fn null_and_empty_and_escapes_are_told_apart() {
        assert_eq!(texts("1\t\\N\t\t\\\\N"), [Some("1".into()), None, Some(String::new()), Some("\\N".into())]);
        assert_eq!(texts("a\\tb\\nc\\\\d\\b\\f\\r\\v"), [Some("a\tb\nc\\d\u{8}\u{c}\r\u{b}".into())]);
        assert_eq!(texts(""), [Some(String::new())]);
        assert!(cells(&Bytes::from_static(b"a\\")).unwrap_err().contains("escape"));
    }

    #[test]
    fn lines_may_be_cut_anywhere() {
        let mut partial = BytesMut::new();
        let mut all = Vec::new();
        for piece in ["on", "e\ntw", "o\n\nthree\nfo", "ur\n"] {
            all.extend(lines(&mut partial, Bytes::from_static(piece.as_bytes())));
        }
        assert_eq!(all, ["one", "two", "", "three", "four"]);
        assert!(partial.is_empty());
    }
}
