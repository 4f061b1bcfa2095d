//! Rows of the replica in the shape of a table's newest columns.

use crate::admin::scan::{Scan, ScanError, ScanRow};
use crate::applier::Reader;
use crate::coordinator::ReadPoint;
use crate::tablet::{TabletError, VersionedRow};
use crate::wal::{Cell, TableSchema};
use futures::stream::{StreamExt, try_unfold};
use std::sync::Arc;

/// A table's rows as a stream of pages, each row in the shape of the newest columns.
pub(super) fn rows(reader: Reader, schema: TableSchema, at: ReadPoint) -> Scan {
    let columns = schema.columns.clone();
    let shapes = Shapes { versions: reader.schemas(), newest: schema };
    let scan = reader.scan(shapes.newest.table, at, false);
    let pages = try_unfold((scan, shapes), |(mut scan, shapes)| async move {
        let page = scan.next().await.map_err(|error| match error {
            TabletError::TooOld { .. } => ScanError::NotServed(error.to_string()),
            error => ScanError::Failed(error.to_string()),
        })?;
        let Some(page) = page else { return Ok(None) };
        let rows: Vec<_> = page.into_iter().filter_map(|row| shapes.row(row)).collect();
        Ok(Some((rows, (scan, shapes))))
    });
    Scan { columns, rows: pages.boxed() }
}

/// A table's shapes: rows follow the one under which they were written.
struct Shapes {
    versions: Arc<Vec<TableSchema>>,
    newest: TableSchema,
}

impl Shapes {
    /// A row in the newest shape: a column that it was written without is NULL, one that is gone is left out.
    fn row(&self, versioned: VersionedRow) -> Option<ScanRow> {
        let row = versioned.row?;
        let text = |cell: Option<&Cell>| match cell {
            Some(Cell::Text(text)) => Some(text.clone()),
            Some(Cell::Null | Cell::Unchanged) | None => None,
        };
        let written = |shape: &&TableSchema| shape.table == self.newest.table && shape.version == row.schema_version;
        let cells = match self.versions.iter().find(written).filter(|shape| shape.version != self.newest.version) {
            None => (0..self.newest.columns.len()).map(|place| text(row.cells.get(place))).collect(),
            Some(shape) => {
                let place = |name: &str| shape.columns.iter().position(|column| column.name == name);
                let columns = self.newest.columns.iter();
                columns.map(|column| text(place(&column.name).and_then(|place| row.cells.get(place)))).collect()
            }
        };
        Some(ScanRow { cells, time: versioned.time })
    }
}
