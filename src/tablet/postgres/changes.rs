//! A run's net effect as statements take it: for each table and kind one array a column, sorted by key. Made on the
//! storage's thread, so that the next run is prepared while the server works on this one.

use super::net::{CellRef, Effect, Net, NetError, RowRef, newest, row};
use super::shape::{Shape, Shapes};
use crate::tablet::TabletError;
use crate::wal::{Key, SourceTabletId, TableId};
use bytes::{BufMut, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

/// `text[]` in the protocol's binary form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextArray {
    bytes: Vec<u8>,
    length: u32,
}

/// Where the array's header ends: dimensions, NULLs, element type, length, lower bound.
const HEADER: usize = 20;

impl Default for TextArray {
    fn default() -> Self {
        Self { bytes: vec![0; HEADER], length: 0 }
    }
}

impl TextArray {
    fn push(&mut self, text: Option<&[u8]>) -> Result<(), NetError> {
        match text {
            None => {
                self.bytes.put_i32(-1);
                self.bytes[7] = 1;
            }
            Some(text) => {
                let length = i32::try_from(text.len()).map_err(|_| {
                    NetError::Tablet(TabletError::Refused(format!("a value of {} bytes is too long", text.len())))
                })?;
                self.bytes.put_i32(length);
                self.bytes.put_slice(text);
            }
        }
        self.length += 1;
        Ok(())
    }
}

impl TextArray {
    /// Its texts, in order.
    pub fn texts(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest = &self.bytes[HEADER..];
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            let length = i32::from_be_bytes(*length);
            let (text, tail) = tail.split_at_checked(usize::try_from(length).unwrap_or(0))?;
            rest = tail;
            Some((length >= 0).then_some(text))
        })
    }

    /// One of its texts; for the rare row that is looked at again.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<&[u8]> {
        self.texts().nth(number).flatten()
    }
}

impl ToSql for TextArray {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let dimensions = u32::from(self.length > 0);
        out.reserve(self.bytes.len());
        out.put_u32(dimensions);
        out.put_slice(&self.bytes[4..8]);
        out.put_u32(Type::TEXT.oid());
        if dimensions > 0 {
            out.put_u32(self.length);
            out.put_u32(1);
            out.put_slice(&self.bytes[HEADER..]);
        }
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TEXT_ARRAY
    }

    to_sql_checked!();
}

/// Rows of one table under one version of its shape.
#[derive(Debug)]
pub struct Rows {
    /// The shape.
    pub shape: Arc<Shape>,
    /// Which columns are given, the key's among them.
    pub given: Vec<bool>,
    /// One array a given column.
    pub columns: Vec<TextArray>,
    /// How many rows.
    pub count: u64,
    /// Their keys, for people.
    pub keys: Vec<Key>,
}

/// A row whose unchanged cells the server holds under another key.
#[derive(Debug)]
pub struct MovedRow {
    /// The shape.
    pub shape: Arc<Shape>,
    /// Its cells; the outer `None` is one that is not known here.
    pub cells: Vec<Option<Option<Vec<u8>>>>,
    /// The other key's columns.
    pub from: Vec<Vec<u8>>,
}

/// What is done to one table, in this order: the moved rows are completed, then it is emptied, then deletes, then puts,
/// then patches.
#[derive(Debug)]
pub struct TableChanges {
    /// A shape of the table: for its name and key.
    pub shape: Arc<Shape>,
    /// The streams that wrote to it.
    pub streams: BTreeSet<SourceTabletId>,
    /// It is emptied.
    pub truncated: bool,
    /// Rows that move.
    pub moved: Vec<MovedRow>,
    /// The key columns of rows to delete.
    pub deletes: Option<Rows>,
    /// Whole rows.
    pub puts: Vec<Rows>,
    /// Rows of which some columns change.
    pub patches: Vec<Rows>,
}

/// What is done by one run.
#[derive(Debug, Default)]
pub struct Changes {
    /// By table.
    pub tables: Vec<TableChanges>,
}

impl Rows {
    fn new(shape: &Arc<Shape>, given: Vec<bool>) -> Self {
        let columns = given.iter().filter(|given| **given).map(|_| TextArray::default()).collect();
        Self { shape: Arc::clone(shape), given, columns, count: 0, keys: Vec::new() }
    }

    /// Adds the given ones of a row's cells.
    fn push(&mut self, cells: &[CellRef<'_>], key: &[u8]) -> Result<(), NetError> {
        let given = self.given.iter().zip(cells).filter(|(given, _)| **given);
        for ((_, cell), column) in given.zip(&mut self.columns) {
            match cell {
                CellRef::Text(text) => column.push(Some(text))?,
                CellRef::Null | CellRef::Unchanged => column.push(None)?,
            }
        }
        self.count += 1;
        self.keys.push(Key(bytes::Bytes::copy_from_slice(key)));
        Ok(())
    }

    /// The moved rows, once they are complete.
    #[must_use]
    pub fn of_moved(shape: &Arc<Shape>, rows: &[MovedRow]) -> Option<Self> {
        let mut all = Self::new(shape, vec![true; shape.columns.len()]);
        for moved in rows {
            let cell = |cell: &'_ Option<Option<Vec<u8>>>| cell.clone().flatten();
            let owned: Vec<Option<Vec<u8>>> = moved.cells.iter().map(cell).collect();
            let cells: Vec<CellRef<'_>> =
                owned.iter().map(|cell| cell.as_deref().map_or(CellRef::Null, CellRef::Text)).collect();
            all.push(&cells, &key_of(shape, &cells).0).ok()?;
        }
        Some(all)
    }
}

impl Changes {
    /// Table and key of the first row, for people.
    #[must_use]
    pub fn first_key(&self) -> Option<String> {
        self.tables.iter().find_map(|table| {
            let rows = table.deletes.iter().chain(&table.puts).chain(&table.patches);
            let key = rows.flat_map(|rows| &rows.keys).next().map(|key| format!("{key:?}"));
            let moved = table.moved.first().map(|moved| {
                let texts: Vec<_> = moved.from.iter().map(|text| String::from_utf8_lossy(text)).collect();
                format!("({})", texts.join(","))
            });
            Some(format!("{} {}", table.shape.quoted, key.or(moved)?))
        })
    }
}

/// The key of a row's cells.
fn key_of(shape: &Shape, cells: &[CellRef<'_>]) -> Key {
    Key::from_columns(shape.key.iter().map(|&place| match cells.get(place) {
        Some(CellRef::Text(text)) => *text,
        _ => b"",
    }))
}

impl Changes {
    /// Encodes a net effect; `only` takes a single key of it by its number in order, to find the one that is refused.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn of(net: &Net<'_>, shapes: &Shapes, only: Option<usize>) -> Result<Self, NetError> {
        let mut changes = Self::default();
        let mut number = 0;
        for (&id, table) in &net.tables {
            let shape = newest(shapes, id).ok_or_else(|| NetError::Unknown(vec![(id, 0)]))?;
            let mut keys: Vec<(&[u8], &Effect<'_>)> = table.keys.iter().map(|(key, effect)| (*key, effect)).collect();
            if shape.integer_key {
                // As the server's index is sorted, but for negative ones, which are together at least.
                keys.sort_unstable_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
            } else {
                keys.sort_unstable_by_key(|(key, _)| *key);
            }
            let mut building = Building { shapes, id, shape, puts: BTreeMap::new(), patches: BTreeMap::new() };
            let mut deletes = None;
            let mut moved = Vec::new();
            for (key, effect) in keys {
                number += 1;
                if only.is_some_and(|only| only + 1 != number) {
                    continue;
                }
                match effect {
                    Effect::Put(bytes) => building.put(key, &row(bytes)?)?,
                    Effect::Merged(row) => building.put(key, row)?,
                    Effect::Patch(row) => building.patch(key, row)?,
                    Effect::Moved { row, from } => moved.push(building.moved(row, from)?),
                    Effect::Delete => building.delete(key, &mut deletes)?,
                }
            }
            let (streams, truncated) = (table.streams.clone(), table.truncated && only.is_none());
            let Building { puts, patches, .. } = building;
            let (puts, patches) = (puts.into_values().collect(), patches.into_values().collect());
            changes.tables.push(TableChanges {
                shape: Arc::clone(shape),
                streams,
                truncated,
                moved,
                deletes,
                puts,
                patches,
            });
        }
        Ok(changes)
    }
}

/// One table's rows, while they are gathered.
struct Building<'a> {
    shapes: &'a Shapes,
    id: TableId,
    shape: &'a Arc<Shape>,
    puts: BTreeMap<u32, Rows>,
    patches: BTreeMap<(u32, Vec<bool>), Rows>,
}

impl Building<'_> {
    fn shape(&self, version: u32, cells: usize) -> Result<Arc<Shape>, NetError> {
        let shape = self.shapes.get(&(self.id, version)).ok_or(NetError::Unknown(vec![(self.id, version)]))?;
        if shape.columns.len() != cells {
            let what = format!("a staged row of {} has {cells} cells", shape.quoted);
            return Err(NetError::Tablet(TabletError::Poisoned(what)));
        }
        Ok(Arc::clone(shape))
    }

    fn put(&mut self, key: &[u8], row: &RowRef<'_>) -> Result<(), NetError> {
        if let Some(rows) = self.puts.get_mut(&row.version)
            && rows.given.len() == row.cells.len()
        {
            return rows.push(&row.cells, key);
        }
        let shape = self.shape(row.version, row.cells.len())?;
        let mut rows = Rows::new(&shape, vec![true; row.cells.len()]);
        rows.push(&row.cells, key)?;
        self.puts.insert(row.version, rows);
        Ok(())
    }

    fn patch(&mut self, key: &[u8], row: &RowRef<'_>) -> Result<(), NetError> {
        let shape = self.shape(row.version, row.cells.len())?;
        let given: Vec<bool> = row.cells.iter().map(|cell| *cell != CellRef::Unchanged).collect();
        let rows = self.patches.entry((row.version, given.clone())).or_insert_with(|| Rows::new(&shape, given));
        rows.push(&row.cells, key)
    }

    fn moved(&self, row: &RowRef<'_>, from: &[u8]) -> Result<MovedRow, NetError> {
        let shape = self.shape(row.version, row.cells.len())?;
        let cell = |cell: &CellRef<'_>| match cell {
            CellRef::Null => Some(None),
            CellRef::Text(text) => Some(Some(text.to_vec())),
            CellRef::Unchanged => None,
        };
        Ok(MovedRow { shape, cells: row.cells.iter().map(cell).collect(), from: columns(from)? })
    }

    fn delete(&self, key: &[u8], deletes: &mut Option<Rows>) -> Result<(), NetError> {
        let shape = self.shape;
        let given: Vec<bool> = (0..shape.columns.len()).map(|place| shape.key.contains(&place)).collect();
        let rows = deletes.get_or_insert_with(|| Rows::new(shape, given));
        let texts = columns(key)?;
        if texts.len() != shape.key.len() {
            let what = format!("a key of {} has {} columns", shape.quoted, texts.len());
            return Err(NetError::Tablet(TabletError::Refused(what)));
        }
        let mut cells = vec![CellRef::Null; shape.columns.len()];
        for (&place, text) in shape.key.iter().zip(&texts) {
            cells[place] = CellRef::Text(text);
        }
        rows.push(&cells, key)
    }
}

fn columns(key: &[u8]) -> Result<Vec<Vec<u8>>, NetError> {
    let key = Key(bytes::Bytes::copy_from_slice(key));
    key.columns().ok_or_else(|| NetError::Tablet(TabletError::Poisoned(format!("{key:?} is no encoded key"))))
}
