//! The first cut: the rows of the initial copies, from where they were staged, become visible with the transactions that
//! were decided meanwhile, in one transaction of the server's.

use super::PostgresTablet;
use super::apply::GroupError;
use super::net::newest;
use super::session::Session;
use super::sessions::Sessions;
use super::shape::Shape;
use super::statements::Refusal;
use crate::coordinator::ReadPoint;
use crate::limits::PAGE_BYTES;
use crate::tablet::store::Store;
use crate::tablet::{ReadRequest, TabletError, TabletLeader, VersionedRow};
use crate::wal::{Cell, HybridTime, LogPosition, Row, TableId};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Copied rows and nothing else: they alone have no decision.
const COPIED: ReadPoint = ReadPoint { position: LogPosition(0), time: HybridTime::MAX };

impl<S: Store> PostgresTablet<S> {
    /// Loads every copied table.
    pub(super) async fn load(&self, session: &mut Sessions) -> Result<(), GroupError> {
        let tables: BTreeSet<TableId> = self.staging.learned().await?.iter().map(|schema| schema.table).collect();
        for table in tables {
            self.load_table(session, table).await?;
        }
        Ok(())
    }

    async fn load_table(&self, session: &mut Sessions, table: TableId) -> Result<(), GroupError> {
        let mut after = None;
        let mut begun = false;
        loop {
            let request = ReadRequest { table, at: COPIED, key: None, after, history: false, max_bytes: PAGE_BYTES };
            let page = self.staging.read(request).await?;
            let versions: BTreeSet<u32> =
                page.rows.iter().filter_map(|row| Some(row.row.as_ref()?.schema_version)).collect();
            for version in versions {
                self.load_rows(session, table, version, &page.rows, &mut begun).await?;
            }
            match page.more_after {
                None => return Ok(()),
                more => after = more,
            }
        }
    }

    async fn load_rows(
        &self,
        session: &mut Sessions,
        table: TableId,
        version: u32,
        rows: &[VersionedRow],
        begun: &mut bool,
    ) -> Result<(), GroupError> {
        if !self.shapes().contains_key(&(table, version)) {
            self.find_shapes(session, &[(table, version)]).await?;
        }
        let shapes = self.shapes();
        let Some(shape) = shapes.get(&(table, version)).or_else(|| newest(&shapes, table)) else { return Ok(()) };
        let session = session.at(&shape.schema.name)?;
        if !std::mem::replace(begun, true) {
            session.refuse_rows(shape).await?;
        }
        let streams = rows.iter().map(|row| row.stream).collect();
        session.write_by(shape, &streams, false).await?;
        let rows = rows.iter().filter_map(|row| row.row.as_ref()).filter(|row| row.schema_version == version);
        Ok(session.copy_rows(shape, rows).await?)
    }
}

impl Session {
    /// Refuses a copy into a table that holds rows which nobody copied.
    pub(super) async fn refuse_rows(&mut self, shape: &Shape) -> Result<(), GroupError> {
        let any = self.sql.query(&format!("SELECT FROM {} LIMIT 1", shape.quoted), &[]).await?;
        if any.is_empty() {
            return Ok(());
        }
        Err(GroupError::Tablet(TabletError::Refused(format!(
            "{}: table {} holds rows already, and the initial copy brings all of them; run there:\nTRUNCATE {};",
            self.label(),
            shape.quoted,
            shape.quoted
        ))))
    }

    /// Brings rows of one shape by COPY.
    pub(super) async fn copy_rows<'a>(
        &mut self,
        shape: &Shape,
        rows: impl Iterator<Item = &'a Row>,
    ) -> Result<(), Refusal> {
        let names: Vec<&str> = shape.columns.iter().map(|(name, _)| name.as_str()).collect();
        let statement = format!("COPY {} ({}) FROM STDIN", shape.quoted, names.join(", "));
        let refused = |failure| Refusal { failure, statement: statement.clone() };
        let mut copy = self.sql.copy_in(&statement).await.map_err(refused)?;
        let mut text = Vec::with_capacity(PAGE_BYTES);
        rows.for_each(|row| line(&row.cells, &mut text));
        self.sql.send_copied(&mut copy, Bytes::from(text)).await.map_err(refused)?;
        self.sql.finish_copy(&mut copy).await.map_err(refused)?;
        Ok(())
    }
}

/// A row in COPY's text form.
fn line(cells: &[Cell], out: &mut Vec<u8>) {
    copy_line(
        cells.iter().map(|cell| match cell {
            Cell::Text(text) => Some(&text[..]),
            Cell::Null | Cell::Unchanged => None,
        }),
        out,
    );
}

/// A line of texts and NULLs as COPY reads it.
pub(super) fn copy_line<'a>(cells: impl Iterator<Item = Option<&'a [u8]>>, out: &mut Vec<u8>) {
    for (place, cell) in cells.enumerate() {
        if place > 0 {
            out.push(b'\t');
        }
        match cell {
            Some(text) => {
                for &byte in text {
                    let escaped = match byte {
                        b'\\' => b'\\',
                        b'\n' => b'n',
                        b'\r' => b'r',
                        b'\t' => b't',
                        other => {
                            out.push(other);
                            continue;
                        }
                    };
                    out.extend([b'\\', escaped]);
                }
            }
            None => out.extend(b"\\N"),
        }
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_copy_reads() {
        let text = |text: &'static [u8]| Cell::Text(Bytes::from_static(text));
        let mut out = Vec::new();
        line(&[text(b"a\tb\\N\nc\r"), Cell::Null, text(b"")], &mut out);
        assert_eq!(out, b"a\\tb\\\\N\\nc\\r\t\\N\t\n");
    }
}
