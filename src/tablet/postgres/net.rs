//! What a run of writes comes to: the last write of each key, pure. An order is only lost where nobody can see it,
//! because the whole run becomes visible at one moment.

use super::shape::{Shape, Shapes};
use crate::tablet::TabletError;
use crate::tablet::engine::StagedWrites;
use crate::tablet::format::StoredOp;
use crate::wal::{Key, SourceTabletId, TableId};
use rustc_hash::FxHashMap;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A row as it is stored, borrowed; see [`crate::wal::Row`].
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct RowRef<'a> {
    /// The version of its shape.
    pub version: u32,
    /// Its cells.
    #[serde(borrow)]
    pub cells: Vec<CellRef<'a>>,
}

/// A cell; see [`crate::wal::Cell`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub enum CellRef<'a> {
    /// SQL NULL.
    Null,
    /// Its text.
    Text(#[serde(borrow)] &'a [u8]),
    /// Not sent.
    Unchanged,
}

/// What becomes of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect<'a> {
    /// The row is this: its stored bytes.
    Put(&'a [u8]),
    /// The row is this; some cells were taken from an earlier write of the run.
    Merged(RowRef<'a>),
    /// These cells of the row change, the unchanged ones stay.
    Patch(RowRef<'a>),
    /// The row is this; its unchanged cells are those that the server holds under another key, before the run.
    Moved {
        /// The row.
        row: RowRef<'a>,
        /// The other key.
        from: &'a [u8],
    },
    /// The row is gone.
    Delete,
}

/// What becomes of one table.
#[derive(Default)]
pub struct TableNet<'a> {
    /// All its rows are gone first.
    pub truncated: bool,
    /// The streams that wrote to it.
    pub streams: BTreeSet<SourceTabletId>,
    /// Its keys.
    pub keys: FxHashMap<&'a [u8], Effect<'a>>,
}

/// What a run of writes comes to, by table.
#[derive(Default)]
pub struct Net<'a> {
    /// The tables.
    pub tables: BTreeMap<TableId, TableNet<'a>>,
}

/// Which keys a transaction of several streams put, while it goes on: another stream's delete of one of them does not
/// count (a row that moved between servers).
#[derive(Clone, Default, Debug)]
pub struct PutBy {
    decision: usize,
    keys: FxHashMap<(TableId, Key), SourceTabletId>,
}

/// Why a run cannot be prepared.
#[derive(Debug)]
pub enum NetError {
    /// The shapes of these tables have to be found first.
    Unknown(Vec<(TableId, u32)>),
    /// The run is damaged, or asks for what cannot be.
    Tablet(TabletError),
}

fn damaged(what: impl std::fmt::Display) -> NetError {
    NetError::Tablet(TabletError::Poisoned(format!("a staged row is damaged: {what}")))
}

/// A stored row.
///
/// # Errors
/// Damage.
pub fn row(bytes: &[u8]) -> Result<RowRef<'_>, NetError> {
    postcard::from_bytes(bytes).map_err(damaged)
}

/// Takes the unchanged cells of a row from an earlier one. Cells that the earlier one did not have either stay unchanged.
fn fill<'a>(shapes: &Shapes, table: TableId, new: &mut RowRef<'a>, old: &RowRef<'a>) -> Result<(), NetError> {
    let shape = |version: u32| shapes.get(&(table, version)).ok_or(NetError::Unknown(vec![(table, version)]));
    let same = new.version == old.version;
    let (new_shape, old_shape) = (shape(new.version)?, shape(old.version)?);
    for (place, cell) in new.cells.iter_mut().enumerate().filter(|(_, cell)| **cell == CellRef::Unchanged) {
        let from = if same { Some(place) } else { same_column(new_shape, place, old_shape) };
        if let Some(found) = from.and_then(|from| old.cells.get(from)) {
            *cell = *found;
        }
    }
    Ok(())
}

fn same_column(new: &Shape, place: usize, old: &Shape) -> Option<usize> {
    let name = &new.schema.columns.get(place)?.name;
    old.schema.columns.iter().position(|column| column.name == *name)
}

impl<'a> Effect<'a> {
    /// The row that it leaves, where it is known whole or in part.
    fn leaves(&self) -> Result<Option<RowRef<'a>>, NetError> {
        Ok(match self {
            Self::Put(bytes) => Some(row(bytes)?),
            Self::Merged(row) | Self::Patch(row) | Self::Moved { row, .. } => Some(row.clone()),
            Self::Delete => None,
        })
    }

    fn with(self, row: RowRef<'a>) -> Self {
        let whole = !row.cells.contains(&CellRef::Unchanged);
        match self {
            Self::Moved { from, .. } if !whole => Self::Moved { row, from },
            _ if whole => Self::Merged(row),
            _ => Self::Patch(row),
        }
    }
}

impl<'a> Net<'a> {
    /// The net effect of staged writes, in order. `several` says of a decision whether its transaction has several
    /// streams. Writes to parts of tables that are hidden count for nothing.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn of(
        staged: &[StagedWrites<'a>],
        shapes: &Shapes,
        (several, hidden): (impl Fn(usize) -> bool, &BTreeSet<(TableId, SourceTabletId)>),
        put_by: &mut PutBy,
    ) -> Result<Self, NetError> {
        let mut net = Self::default();
        for StagedWrites { decision, stream, writes } in staged {
            let several = several(*decision);
            if several && put_by.decision != *decision {
                *put_by = PutBy { decision: *decision, keys: FxHashMap::default() };
            }
            for write in writes {
                if hidden.contains(&(write.table, *stream)) {
                    continue;
                }
                let table = net.tables.entry(write.table).or_default();
                let key = write.key.0;
                if !table.streams.contains(stream) {
                    table.streams.insert(*stream);
                }
                if several {
                    let place = (write.table, Key(bytes::Bytes::copy_from_slice(key)));
                    match write.op {
                        StoredOp::Delete if put_by.keys.get(&place).is_some_and(|by| by != stream) => continue,
                        StoredOp::Put(_) | StoredOp::Fill { .. } => {
                            put_by.keys.insert(place, *stream);
                        }
                        StoredOp::Delete | StoredOp::Truncate => {}
                    }
                }
                match write.op {
                    StoredOp::Put(row) => {
                        table.keys.insert(key, Effect::Put(row.0));
                    }
                    StoredOp::Delete => {
                        table.keys.insert(key, Effect::Delete);
                    }
                    StoredOp::Truncate => {
                        table.keys.clear();
                        table.truncated = true;
                    }
                    StoredOp::Fill { row: bytes, from } => {
                        let mut new = row(bytes.0)?;
                        let from = from.map_or(key, |from| from.0);
                        let base = table.keys.get(from);
                        let missing = base == Some(&Effect::Delete) || base.is_none() && table.truncated;
                        if missing {
                            return Err(NetError::Tablet(TabletError::Refused(format!(
                                "a write of stream {stream} to table {} leaves cells unchanged, and the row {:?} that \
                                 they are to be taken from is gone",
                                write.table,
                                Key(bytes::Bytes::copy_from_slice(from))
                            ))));
                        }
                        let effect = match base {
                            Some(base) => {
                                let base = base.clone();
                                if let Some(old) = base.leaves()? {
                                    fill(shapes, write.table, &mut new, &old)?;
                                }
                                if from != key && matches!(base, Effect::Patch(_)) {
                                    Effect::Moved { row: new.clone(), from }.with(new)
                                } else {
                                    base.with(new)
                                }
                            }
                            None if from == key => Effect::Patch(new),
                            None => Effect::Moved { row: new, from },
                        };
                        table.keys.insert(key, effect);
                    }
                }
            }
        }
        Ok(net)
    }

    /// The tables and versions whose shapes are not known.
    pub fn unknown(&self, shapes: &Shapes) -> Result<Vec<(TableId, u32)>, NetError> {
        let mut unknown = Vec::new();
        for (&table, net) in &self.tables {
            let mut known = None;
            for effect in net.keys.values() {
                let version = match effect {
                    Effect::Put(bytes) => version(bytes)?,
                    Effect::Merged(row) | Effect::Patch(row) | Effect::Moved { row, .. } => row.version,
                    Effect::Delete => continue,
                };
                if known != Some(version) {
                    known = Some(version);
                    if !shapes.contains_key(&(table, version)) {
                        unknown.push((table, version));
                    }
                }
            }
            // Deletes and truncations fit any version.
            if known.is_none() && !shapes.keys().any(|(known, _)| *known == table) {
                unknown.push((table, 0));
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        Ok(unknown)
    }
}

/// The version of a stored row, without the rest.
///
/// # Errors
/// Damage.
pub fn version(bytes: &[u8]) -> Result<u32, NetError> {
    postcard::take_from_bytes(bytes).map(|(version, _)| version).map_err(damaged)
}

/// The newest shape of a table.
pub fn newest(shapes: &Shapes, table: TableId) -> Option<&Arc<Shape>> {
    shapes.range((table, 0)..=(table, u32::MAX)).next_back().map(|(_, shape)| shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tablet::format::{Raw, StoredWrite, encode_row};
    use crate::tablet::postgres::changes::Changes;
    use crate::wal::{Cell, Column, Row, TableSchema};

    const TABLE: TableId = TableId(1);

    fn shapes() -> Shapes {
        let column = |name: &str, key| Column { name: name.into(), type_name: "int8".into(), key };
        let columns = vec![column("id", true), column("a", false), column("b", false)];
        let schema = TableSchema { table: TABLE, name: "public.t".into(), version: 1, columns };
        let columns = ["id", "a", "b"].map(|name| (name.to_owned(), "pg_catalog.int8".to_owned())).into();
        let quoted = "t".to_owned();
        let shape = Shape { schema, quoted, key: vec![0], columns, integer_key: true, other_unique: false };
        Arc::new(BTreeMap::from([((TABLE, 1), Arc::new(shape))]))
    }

    fn row_of(cells: &[&'static str]) -> Vec<u8> {
        let cell = |text: &&'static str| match *text {
            "-" => Cell::Unchanged,
            text => Cell::Text(bytes::Bytes::from_static(text.as_bytes())),
        };
        encode_row(&Row { schema_version: 1, cells: cells.iter().map(cell).collect() }).unwrap()
    }

    fn key(id: &str) -> Vec<u8> {
        Key::from_columns([id.as_bytes()]).0.to_vec()
    }

    /// What a run of `stream key row|delete|truncate [from]` comes to, one key a line.
    fn net(several: bool, writes: &[(u32, &str, &[&'static str], Option<&str>)]) -> Vec<String> {
        let stored: Vec<_> = writes
            .iter()
            .map(|(stream, id, cells, from)| (*stream, key(id), row_of(cells), from.map(key), cells.first().copied()))
            .collect();
        let staged: Vec<_> = stored
            .iter()
            .map(|(stream, key, row, from, first)| {
                let op = match *first {
                    Some("delete") => StoredOp::Delete,
                    Some("truncate") => StoredOp::Truncate,
                    _ if row_has_unchanged(row) => StoredOp::Fill { row: Raw(row), from: from.as_deref().map(Raw) },
                    _ => StoredOp::Put(Raw(row)),
                };
                let writes = vec![StoredWrite { table: TABLE, key: Raw(key), op }];
                StagedWrites { decision: 0, stream: SourceTabletId(*stream), writes }
            })
            .collect();
        let shapes = shapes();
        let net = Net::of(&staged, &shapes, (|_| several, &BTreeSet::new()), &mut PutBy::default()).unwrap();
        Changes::of(&net, &shapes, None).unwrap();
        let table = &net.tables[&TABLE];
        let mut told: Vec<String> = table
            .keys
            .iter()
            .map(|(key, effect)| {
                let key = Key(bytes::Bytes::copy_from_slice(key));
                let cells = effect.leaves().unwrap().map_or_else(String::new, |row| {
                    let text = |cell: &CellRef<'_>| match cell {
                        CellRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                        CellRef::Null => "null".into(),
                        CellRef::Unchanged => "-".into(),
                    };
                    row.cells.iter().map(text).collect::<Vec<_>>().join(" ")
                });
                let kind = match effect {
                    Effect::Put(_) | Effect::Merged(_) => "put".to_owned(),
                    Effect::Patch(_) => "patch".to_owned(),
                    Effect::Moved { from, .. } => format!("from {:?}", Key(bytes::Bytes::copy_from_slice(from))),
                    Effect::Delete => "delete".to_owned(),
                };
                format!("{key:?} {kind} {cells}").trim_end().to_owned()
            })
            .collect();
        told.sort();
        if table.truncated {
            told.insert(0, "truncated".into());
        }
        told
    }

    fn row_has_unchanged(bytes: &[u8]) -> bool {
        row(bytes).unwrap().cells.contains(&CellRef::Unchanged)
    }

    #[test]
    fn the_last_write_of_a_key_counts() {
        let writes: &[(u32, &str, &[&str], Option<&str>)] = &[
            (1, "1", &["1", "a", "b"], None),
            (1, "1", &["1", "c", "d"], None),
            (1, "2", &["2", "a", "b"], None),
            (1, "2", &["delete"], None),
            (1, "3", &["delete"], None),
            (1, "3", &["3", "x", "y"], None),
        ];
        assert_eq!(net(false, writes), ["(1) put 1 c d", "(2) delete", "(3) put 3 x y"]);
    }

    #[test]
    fn unchanged_cells_come_from_the_run_or_stay() {
        let writes: &[(u32, &str, &[&str], Option<&str>)] = &[
            (1, "1", &["1", "a", "b"], None),
            (1, "1", &["1", "c", "-"], None),
            (1, "2", &["2", "x", "-"], None),
            (1, "2", &["2", "-", "y"], None),
            // A key that changes: filled from the old one, in the run or at the server.
            (1, "4", &["4", "-", "n"], Some("1")),
            (1, "1", &["delete"], None),
            (1, "5", &["5", "-", "n"], Some("9")),
            (1, "9", &["delete"], None),
        ];
        let expected = ["(1) delete", "(2) put 2 x y", "(4) put 4 c n", "(5) from (9) 5 - n", "(9) delete"];
        assert_eq!(net(false, writes), expected);
    }

    #[test]
    fn a_truncation_empties_what_came_before_it() {
        let writes: &[(u32, &str, &[&str], Option<&str>)] =
            &[(1, "1", &["1", "a", "b"], None), (1, "", &["truncate"], None), (1, "2", &["2", "a", "b"], None)];
        assert_eq!(net(false, writes), ["truncated", "(2) put 2 a b"]);
    }

    #[test]
    fn a_row_that_moved_between_servers_is_not_deleted_by_the_one_it_left() {
        let writes: &[(u32, &str, &[&str], Option<&str>)] = &[
            (2, "1", &["1", "a", "b"], None),
            (1, "1", &["delete"], None),
            (2, "2", &["2", "a", "b"], None),
            (2, "2", &["delete"], None),
        ];
        assert_eq!(net(true, writes), ["(1) put 1 a b", "(2) delete"]);
        assert_eq!(net(false, writes), ["(1) delete", "(2) delete"]);
    }
}
