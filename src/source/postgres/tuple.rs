//! Columns of pgoutput as rows, keys and writes.

use crate::wal::{Cell, Key, Row, TableSchema, WriteOp};
use bytes::Bytes;
use pg_walstream::protocol::{ColumnData, TupleData};

/// What identifies a row of a published table in its updates and deletes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// The key columns: the primary key, or a unique index that was named for it.
    Key,
    /// The whole old row is sent.
    Full,
    /// Nothing: the publisher refuses updates and deletes.
    Nothing,
}

/// A table as its stream sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The log's numbers and the columns.
    pub schema: TableSchema,
    /// What identifies a row.
    pub identity: Identity,
}

impl Shape {
    /// Whether rows have no key of their own and are given one.
    #[must_use]
    pub fn keyless(&self) -> bool {
        !self.schema.columns.iter().any(|column| column.key)
    }

    /// The writes of an INSERT. `place` tells identical rows apart, where a row has no key: see [`Key::at_place`].
    ///
    /// # Errors
    /// What does not fit the table's columns.
    pub fn insert(&self, tuple: TupleData, stream: &str, place: (u64, u64)) -> Result<(Key, WriteOp), String> {
        let cells = self.cells(tuple, None)?;
        let key = self.row_key(&cells, stream, place)?;
        Ok((key, self.put(cells, None)))
    }

    /// The key of a row, its own or an invented one.
    fn row_key(&self, cells: &[Cell], stream: &str, (place, nth): (u64, u64)) -> Result<Key, String> {
        if self.keyless() { Ok(self.content(cells, stream).at_place(place, nth)) } else { self.key(cells) }
    }

    fn content(&self, cells: &[Cell], stream: &str) -> Key {
        Key::of_content(stream, &self.schema.columns, cells)
    }

    /// What an old row without a key is known by.
    fn old_content(&self, old: &[Cell], stream: &str) -> Result<Key, String> {
        if self.identity != Identity::Full {
            return Err("an UPDATE or DELETE of a table without a key, which does not carry the old row".into());
        }
        Ok(self.content(old, stream))
    }

    /// The writes of an UPDATE: the old key, to be deleted, when the key has changed; the new key and its Put. A row without
    /// a key is another afterwards: its old content is what is to be deleted.
    ///
    /// # Errors
    /// What does not fit the table's columns.
    pub fn update(
        &self,
        old: Option<TupleData>,
        new: TupleData,
        stream: &str,
        place: (u64, u64),
    ) -> Result<(Option<Key>, Key, WriteOp), String> {
        if self.keyless() {
            let old =
                self.cells(old.ok_or("an UPDATE of a table without a key, which does not carry the old row")?, None)?;
            let cells = self.cells(new, Some(&old))?;
            let key = self.row_key(&cells, stream, place)?;
            return Ok((Some(self.old_content(&old, stream)?), key, self.put(cells, None)));
        }
        let old = old.map(|tuple| self.cells(tuple, None)).transpose()?;
        let old_key = old.as_deref().map(|cells| self.key(cells)).transpose()?;
        let cells = self.cells(new, old.as_deref())?;
        let key = self.key(&cells)?;
        let old_key = old_key.filter(|old_key| *old_key != key);
        let fill_from = old_key.clone().filter(|_| cells.contains(&Cell::Unchanged));
        let op = self.put(cells, fill_from);
        Ok((old_key, key, op))
    }

    /// The key of a DELETE; the content of a row without one.
    ///
    /// # Errors
    /// What does not fit the table's columns.
    pub fn delete(&self, old: TupleData, stream: &str) -> Result<Key, String> {
        let cells = self.cells(old, None)?;
        if self.keyless() { self.old_content(&cells, stream) } else { self.key(&cells) }
    }

    /// The key and row of a line of a copy, by its number. Another attempt's rows replace this one's, so the number is
    /// enough to tell rows without a key apart.
    ///
    /// # Errors
    /// What does not fit the table's columns.
    pub fn copied(&self, cells: Vec<Cell>, stream: &str, number: u64) -> Result<(Key, Row), String> {
        if cells.len() != self.schema.columns.len() {
            return Err(format!("{} columns where the table has {}", cells.len(), self.schema.columns.len()));
        }
        let key = self.row_key(&cells, stream, (0, number))?;
        Ok((key, Row { schema_version: self.schema.version, cells }))
    }

    fn put(&self, cells: Vec<Cell>, fill_from: Option<Key>) -> WriteOp {
        WriteOp::Put { row: Row { schema_version: self.schema.version, cells }, fill_from }
    }

    /// The cells of a tuple. What was not sent is taken from the old row where that has it: all of it under identity
    /// FULL, else the key columns (which are sent whenever the key is too long to stay in its row).
    fn cells(&self, tuple: TupleData, old: Option<&[Cell]>) -> Result<Vec<Cell>, String> {
        let columns = &self.schema.columns;
        if tuple.columns.len() != columns.len() {
            return Err(format!("{} columns where the table has {}", tuple.columns.len(), columns.len()));
        }
        let cell = |(index, data): (usize, ColumnData)| match data.data_type {
            b'n' => Ok(Cell::Null),
            b't' => Ok(Cell::Text(data.into_bytes())),
            b'u' => {
                let known = self.identity == Identity::Full || columns[index].key;
                Ok(old.filter(|_| known).map_or(Cell::Unchanged, |old| old[index].clone()))
            }
            other => Err(format!("column {:?} came in the unknown form {other}", columns[index].name)),
        };
        tuple.columns.into_iter().enumerate().map(cell).collect()
    }

    fn key(&self, cells: &[Cell]) -> Result<Key, String> {
        let columns = self.schema.columns.iter().zip(cells).filter(|(column, _)| column.key);
        let texts = columns.map(|(column, cell)| match cell {
            Cell::Text(text) => Ok(text),
            Cell::Null => Err(format!("the key column {:?} is NULL", column.name)),
            Cell::Unchanged => Err(format!("the key column {:?} was not sent", column.name)),
        });
        let texts: Vec<&Bytes> = texts.collect::<Result<_, _>>()?;
        Ok(Key::from_columns(texts.into_iter().map(|text| &text[..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Column, TableId};

    fn shape(identity: Identity) -> Shape {
        let column = |name: &str, key| Column { name: name.into(), type_name: "text".into(), key };
        let columns = vec![column("id", true), column("body", false), column("note", false)];
        Shape { schema: TableSchema { table: TableId(1), name: "public.t".into(), version: 4, columns }, identity }
    }

    /// `-` is NULL, `~` unchanged, everything else its text.
    fn tuple(cells: [&str; 3]) -> TupleData {
        let column = |cell: &&str| match *cell {
            "-" => ColumnData::null(),
            "~" => ColumnData::unchanged(),
            text => ColumnData::text(text.as_bytes().to_vec()),
        };
        TupleData::new(cells.iter().map(column).collect())
    }

    fn key(text: &str) -> Key {
        Key::from_columns([text.as_bytes()])
    }

    fn cells(op: &WriteOp) -> String {
        let WriteOp::Put { row, .. } = op else { panic!("{op:?}") };
        assert_eq!(row.schema_version, 4);
        let cell = |cell: &Cell| match cell {
            Cell::Null => "-".to_owned(),
            Cell::Unchanged => "~".to_owned(),
            Cell::Text(text) => String::from_utf8_lossy(text).into_owned(),
        };
        row.cells.iter().map(cell).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_update_that_keeps_its_key_is_one_put() {
        let (old, at, op) = shape(Identity::Key).update(None, tuple(["1", "~", "-"]), "a", (7, 0)).unwrap();
        assert_eq!((old, at, cells(&op)), (None, key("1"), "1 ~ -".into()));
    }

    #[test]
    fn a_changed_key_deletes_the_old_one_and_fills_from_it() {
        let (old, at, op) =
            shape(Identity::Key).update(Some(tuple(["1", "-", "-"])), tuple(["2", "~", "n"]), "a", (7, 0)).unwrap();
        assert_eq!((old, at, cells(&op)), (Some(key("1")), key("2"), "2 ~ n".into()));
        assert!(matches!(op, WriteOp::Put { fill_from: Some(from), .. } if from == key("1")));
    }

    #[test]
    fn a_changed_key_without_unchanged_cells_fills_from_nowhere() {
        let (old, _, op) =
            shape(Identity::Key).update(Some(tuple(["1", "-", "-"])), tuple(["2", "b", "n"]), "a", (7, 0)).unwrap();
        assert_eq!(old, Some(key("1")));
        assert!(matches!(op, WriteOp::Put { fill_from: None, .. }));
    }

    #[test]
    fn a_long_key_that_did_not_change_is_taken_from_the_old_one() {
        let (old, at, op) =
            shape(Identity::Key).update(Some(tuple(["1", "-", "-"])), tuple(["~", "b", "~"]), "a", (7, 0)).unwrap();
        assert_eq!((old, at, cells(&op)), (None, key("1"), "1 b ~".into()), "NULLs of the old key are no values");
    }

    #[test]
    fn identity_full_fills_everything_from_the_old_row() {
        let shape = shape(Identity::Full);
        let (old, at, op) = shape.update(Some(tuple(["1", "b", "-"])), tuple(["1", "~", "~"]), "a", (7, 0)).unwrap();
        assert_eq!((old, at, cells(&op)), (None, key("1"), "1 b -".into()));
        assert_eq!(shape.delete(tuple(["1", "b", "-"]), "a").unwrap(), key("1"));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let shape = shape(Identity::Key);
        assert!(shape.delete(TupleData::new(vec![]), "a").unwrap_err().contains("0 columns"));
        assert!(shape.delete(tuple(["-", "b", "c"]), "a").unwrap_err().contains("NULL"));
        assert!(shape.update(None, tuple(["~", "b", "c"]), "a", (7, 0)).unwrap_err().contains("not sent"));
        let binary = TupleData::new(vec![ColumnData::binary(vec![1]), ColumnData::null(), ColumnData::null()]);
        assert!(shape.delete(binary, "a").unwrap_err().contains("unknown form"));
    }
}
