//! What must hold, one property a file. The oracle ([`model`]) is exact; the others are cheap, and know nothing of it.

pub mod acknowledged;
pub mod bank;
pub mod bounded;
pub mod counters;
pub mod dense;
pub mod idle;
pub mod lists;
pub mod model;
pub mod monotone;
pub mod shown;
pub mod whole;

use super::history::{MARKERS, Number, RowKey, TABLES, Value};
use std::collections::{BTreeMap, BTreeSet};
use untorn::tablet::VersionedRow;
use untorn::wal::Cell;

/// Everything that a reader saw at one read point.
#[derive(Default)]
pub struct Snapshot {
    /// The rows.
    pub rows: BTreeMap<RowKey, Value>,
    /// The transactions whose markers are among them, with how many markers.
    pub markers: BTreeMap<Number, u32>,
}

impl Snapshot {
    /// Adds a row of a table.
    ///
    /// # Errors
    /// A row that no source ever wrote: of another shape, or twice.
    pub fn add(&mut self, table: usize, row: VersionedRow) -> Result<(), String> {
        let name = TABLES[table];
        let Some(cells) = row.row.map(|row| row.cells) else {
            return Err(format!("a delete among the rows of {name}"));
        };
        let texts: Option<Vec<String>> = cells
            .iter()
            .map(|cell| match cell {
                Cell::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
                Cell::Null | Cell::Unchanged => None,
            })
            .collect();
        let Some([id, a, b]) = texts.and_then(|texts| <[String; 3]>::try_from(texts).ok()) else {
            return Err(format!("a row of {name} reads {cells:?}"));
        };
        if row.key.columns() != Some(vec![id.as_bytes().to_vec()]) {
            return Err(format!("the row {id} of {name} stands under the key {:?}", row.key));
        }
        if table == MARKERS {
            let number = a.parse().map_err(|_| format!("a marker of {a:?}"))?;
            *self.markers.entry(number).or_default() += 1;
        }
        match self.rows.insert((table, id), [a, b]) {
            None => Ok(()),
            Some(_) => Err(format!("the row {:?} of {name} was read twice", row.key)),
        }
    }

    /// The transactions seen.
    pub fn visible(&self) -> BTreeSet<Number> {
        self.markers.keys().copied().collect()
    }

    /// The rows of one table.
    pub fn table(&self, table: usize) -> impl Iterator<Item = (&str, &Value)> {
        self.rows.range((table, String::new())..(table + 1, String::new())).map(|((_, id), value)| (&id[..], value))
    }
}
