//! The initial copy: the publication's tables, one after the other, from the slot's snapshot.

use super::relation::{self, Published};
use super::rules::TableRules;
use super::tuple::Shape;
use crate::limits::PAGE_BYTES;
use crate::postgres::{Sql, Target, quote};
use crate::source::{Catalog, CopyEvent, CopyReader, SourceError};
use crate::wal::{Cell, Key, Row};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use tokio_postgres::CopyOutStream;

/// A running copy. It reads in one transaction, which sees the slot's snapshot for as long as it lasts.
pub struct Copy {
    target: Target,
    sql: Sql,
    publication: String,
    rules: Arc<TableRules>,
    catalog: Arc<dyn Catalog>,
    /// The tables to come; `None` before they were asked for.
    tables: Option<VecDeque<Published>>,
    current: Option<Table>,
}

/// A table that is being read.
struct Table {
    shape: Shape,
    /// `None` once the last row came.
    rows: Option<Pin<Box<CopyOutStream>>>,
    /// The beginning of a line whose end has not come.
    partial: BytesMut,
    count: u64,
}

impl Copy {
    /// From a session in a transaction that sees the snapshot.
    #[must_use]
    pub fn new(
        target: Target,
        sql: Sql,
        publication: String,
        rules: Arc<TableRules>,
        catalog: Arc<dyn Catalog>,
    ) -> Self {
        Self { target, sql, publication, rules, catalog, tables: None, current: None }
    }

    /// Of these tables only, each in a statement of its own.
    #[must_use]
    pub fn of(
        target: Target,
        sql: Sql,
        publication: String,
        catalog: Arc<dyn Catalog>,
        tables: impl Into<VecDeque<Published>>,
    ) -> Self {
        Self { tables: Some(tables.into()), ..Self::new(target, sql, publication, Arc::default(), catalog) }
    }

    async fn begin(&mut self, table: Published) -> Result<CopyEvent, SourceError> {
        let label = self.target.label();
        let columns: Vec<String> = table.relation.columns.iter().map(|column| quote(&column.name)).collect();
        // ONLY: a table that inherits is published by itself.
        let only = if table.partitioned { "" } else { "ONLY " };
        let filter = table.filter.map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
        let source = format!("SELECT {} FROM {only}{}{filter}", columns.join(", "), table.relation.quoted());
        let shape = table.relation.shape(&mut self.sql, &label, self.catalog.as_ref()).await?;
        let rows =
            self.sql.copy_out(&format!("COPY ({source}) TO STDOUT")).await.map_err(|failure| failure.at(&label))?;
        let schema = shape.schema.clone();
        self.current = Some(Table { shape, rows: Some(rows), partial: BytesMut::new(), count: 0 });
        Ok(CopyEvent::Table { schema, estimate: table.estimate })
    }

    /// The next page of the current table; empty at its end.
    async fn page(&mut self) -> Result<Vec<(Key, Row)>, SourceError> {
        let label = self.target.label();
        let (mut page, mut bytes) = (Vec::new(), 0);
        let Some(table) = &mut self.current else { return Ok(page) };
        while let Some(rows) = table.rows.as_mut().filter(|_| bytes < PAGE_BYTES || page.is_empty()) {
            let Some(piece) = self.sql.next_copied(rows).await.map_err(|failure| failure.at(&label))? else {
                table.rows = None;
                break;
            };
            bytes += piece.len();
            for line in lines(&mut table.partial, piece) {
                let number = table.count;
                let invented = || invented_key(self.target.name(), number);
                // A table without columns has empty lines, as one empty text has.
                let none = table.shape.schema.columns.is_empty();
                let row = if none { Ok(Vec::new()) } else { cells(&line) };
                let row = row.and_then(|cells| table.shape.copied(cells, invented));
                let damage = |e| SourceError::Stop(format!("{label}: copying {}: {e}", table.shape.schema.name));
                page.push(row.map_err(damage)?);
                table.count += 1;
            }
        }
        Ok(page)
    }
}

#[async_trait]
impl CopyReader for Copy {
    async fn next(&mut self) -> Result<Option<CopyEvent>, SourceError> {
        if self.current.is_some() {
            let page = self.page().await?;
            if page.is_empty() {
                self.current = None;
                return Ok(Some(CopyEvent::End));
            }
            return Ok(Some(CopyEvent::Rows(page)));
        }
        let tables = match &mut self.tables {
            Some(tables) => tables,
            None => {
                let label = self.target.label();
                let asked = relation::published(&mut self.sql, &self.publication).await;
                let mut found = asked.map_err(|failure| failure.at(&label))?;
                relation::keep(&mut found, &self.rules).map_err(|e| SourceError::Stop(format!("{label}: {e}")))?;
                self.tables.insert(found.into())
            }
        };
        match tables.pop_front() {
            Some(table) => self.begin(table).await.map(Some),
            None => Ok(None),
        }
    }
}

/// A key for a row of a table that has none. Another attempt's rows replace this one's, so its number is enough.
fn invented_key(stream: &str, number: u64) -> Key {
    Key::from_columns([stream.as_bytes(), b"copy", number.to_string().as_bytes()])
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
