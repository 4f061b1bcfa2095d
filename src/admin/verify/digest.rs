//! What two sides are compared by: a keyed 128-bit hash of each row, summed by ranges of the hash of its key. Pure.
//!
//! **Why sums cannot cancel.** A range's checksum is the sum, modulo 2^128, of SipHash-1-3 (128 bits) over a row's key
//! and its cells, under a random key that nobody knows before the run. Equal sums of different sets of rows therefore
//! take luck of 2^-128. XOR would not do: two equal rows cancel each other, and so do two rows that were changed alike.
//! The key is part of what is hashed, so values that changed places between two rows show; a row that is there twice
//! counts twice. A sum does not care about order, and that matters: the servers sort by type and collation and replica
//! tablets by bytes, so neither side has to sort or to hold what the other has not sent yet.
//!
//! **Why ranges of the hash.** They are equally full whatever the keys look like, also where one table lives on several
//! servers and tablets, so a few rows that differ spoil a few ranges of about ten rows each.

use crate::limits::VERIFY_RANGES_MAX;
use crate::wal::{Cell, Column, Key};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::BTreeMap;
use std::hash::Hasher;

/// Rows that a range is meant to hold, when the number of rows is known.
const ROWS_OF_A_RANGE: u64 = 8;

/// The secret key of one run's hashes.
#[derive(Clone, Copy, Debug)]
pub struct Secret(pub u64, pub u64);

/// Where each column's value stands in a row, by what its name hashes to: rows of different shapes are compared by
/// name, and a column that a row was written without is NULL.
#[derive(Clone, Debug)]
pub struct Columns {
    /// The hash of the name, and the place.
    places: Vec<(u64, usize)>,
    names: Vec<String>,
}

/// What a row is compared by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Which of 2^64 parts of the hash space the key belongs to.
    pub part: u64,
    /// The row, its key included.
    pub row: u128,
}

impl Secret {
    fn hasher(self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }

    /// The places of these columns.
    #[must_use]
    pub fn columns(self, columns: &[Column]) -> Columns {
        let hash = |column: &Column| {
            let mut hasher = self.hasher();
            hasher.write(column.name.as_bytes());
            hasher.finish128().h1
        };
        let mut places: Vec<_> = columns.iter().enumerate().map(|(place, column)| (hash(column), place)).collect();
        places.sort_unstable();
        Columns { places, names: columns.iter().map(|column| column.name.clone()).collect() }
    }

    /// The digest of a row.
    #[must_use]
    pub fn digest(self, key: &Key, columns: &Columns, cells: &[Cell]) -> Digest {
        let mut hasher = self.hasher();
        hasher.write_usize(key.0.len());
        hasher.write(&key.0);
        let part = hasher.finish128().h1;
        for (name, place) in &columns.places {
            if let Some(value) = cells.get(*place).and_then(value) {
                hasher.write_u64(*name);
                hasher.write_usize(value.len());
                hasher.write(value);
            }
        }
        Digest { part, row: hasher.finish128().as_u128() }
    }

    /// The hash of each column that is not NULL, by name: which ones differ?
    #[must_use]
    pub fn by_column(self, columns: &Columns, cells: &[Cell]) -> BTreeMap<String, u64> {
        let hash = |(name, cell): (&String, &Cell)| {
            let mut hasher = self.hasher();
            hasher.write(value(cell)?);
            Some((name.clone(), hasher.finish128().h1))
        };
        columns.names.iter().zip(cells).filter_map(hash).collect()
    }
}

impl Columns {
    /// A row's cells in the order of these columns; one that the row was written without is NULL.
    #[must_use]
    pub fn ordered(&self, wanted: &[Column], cells: &[Cell]) -> Vec<Cell> {
        let cell = |column: &Column| {
            let place = self.names.iter().position(|name| *name == column.name)?;
            cells.get(place).cloned()
        };
        wanted.iter().map(|column| cell(column).unwrap_or(Cell::Null)).collect()
    }
}

/// A value's bytes; `None` is NULL. A value that was never filled equals no other.
fn value(cell: &Cell) -> Option<&[u8]> {
    match cell {
        Cell::Null => None,
        Cell::Text(text) => Some(text),
        Cell::Unchanged => Some(b"\0unchanged"),
    }
}

/// The key of a row that has none: all of its values, so that equal rows are one key that is there several times.
#[must_use]
pub fn whole_row(cells: &[Cell]) -> Key {
    let mut parts: Vec<Vec<u8>> = Vec::with_capacity(cells.len());
    for cell in cells {
        // NULL and the empty text are told apart by a letter in front.
        let mut part = vec![if value(cell).is_some() { b'=' } else { b'-' }];
        part.extend_from_slice(value(cell).unwrap_or_default());
        parts.push(part);
    }
    Key::from_columns(parts.iter().map(Vec::as_slice))
}

/// The two sides of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The servers.
    Source,
    /// The replica tablets.
    Replica,
}

/// Checksums of all ranges of a table: what the source has is added, what the replica has is taken away, so that equal
/// ranges end at zero.
#[derive(Debug)]
pub struct Sums {
    sums: Vec<u128>,
    /// Rows of both sides, which bounds the work of looking into a range.
    rows: Vec<u32>,
}

impl Sums {
    /// For about so many rows.
    #[must_use]
    pub fn new(rows: Option<u64>) -> Self {
        let ranges = rows.map_or(VERIFY_RANGES_MAX, |rows| {
            let wanted = usize::try_from(rows / ROWS_OF_A_RANGE).unwrap_or(VERIFY_RANGES_MAX);
            wanted.next_power_of_two().min(VERIFY_RANGES_MAX)
        });
        Self { sums: vec![0; ranges], rows: vec![0; ranges] }
    }

    /// Counts a row.
    pub fn count(&mut self, side: Side, digest: Digest) {
        let range = self.range(digest.part);
        self.sums[range] = match side {
            Side::Source => self.sums[range].wrapping_add(digest.row),
            Side::Replica => self.sums[range].wrapping_sub(digest.row),
        };
        self.rows[range] = self.rows[range].saturating_add(1);
    }

    /// The range of a part of the hash space. There are at most [`VERIFY_RANGES_MAX`] ranges, a power of two.
    #[must_use]
    pub fn range(&self, part: u64) -> usize {
        ((u128::from(part) * self.sums.len() as u128) >> 64) as usize
    }

    /// The first ranges from `from` on that differ, as many as hold about `rows` rows, at least one; and where to go on.
    #[must_use]
    pub fn differing(&self, from: usize, rows: u64) -> (Vec<usize>, Option<usize>) {
        let (mut found, mut held) = (Vec::new(), 0);
        for (range, _) in self.sums.iter().enumerate().skip(from).filter(|(_, sum)| **sum != 0) {
            if held >= rows && !found.is_empty() {
                return (found, Some(range));
            }
            held += u64::from(self.rows[range]);
            found.push(range);
        }
        (found, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    const SECRET: Secret = Secret(1, 2);

    fn columns(names: &[&str]) -> Columns {
        let column = |name: &&str| Column { name: (*name).into(), type_name: "text".into(), key: false };
        SECRET.columns(&names.iter().map(column).collect::<Vec<_>>())
    }

    fn text(text: &str) -> Cell {
        Cell::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn key(name: &str) -> Key {
        Key::from_columns([name.as_bytes()])
    }

    #[test]
    fn rows_of_different_shapes_are_compared_by_name() {
        let (old, new) = (columns(&["a", "b"]), columns(&["b", "c", "a"]));
        let of = |columns: &Columns, cells: &[Cell]| SECRET.digest(&key("k"), columns, cells);
        let row = of(&old, &[text("1"), text("2")]);
        assert_eq!(row, of(&new, &[text("2"), Cell::Null, text("1")]), "a column that is not there is NULL");
        assert_ne!(row, of(&new, &[text("1"), Cell::Null, text("2")]), "values that changed places");
        assert_ne!(row, of(&new, &[text("2"), text(""), text("1")]), "NULL is not the empty text");
        assert_ne!(row, SECRET.digest(&key("l"), &old, &[text("1"), text("2")]), "the key counts");
        assert_ne!(row, Secret(1, 3).digest(&key("k"), &old, &[text("1"), text("2")]), "so does the secret");
        let names = SECRET.by_column(&new, &[text("2"), Cell::Null, text("1")]);
        assert_eq!(names.keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn rows_without_a_key_are_their_own() {
        let rows =
            [vec![text("a"), Cell::Null], vec![text("a"), text("")], vec![Cell::Null, text("a")], vec![text("-")]];
        for (i, one) in rows.iter().enumerate() {
            assert!(rows[..i].iter().all(|other| whole_row(one) != whole_row(other)));
        }
    }

    proptest! {
        #[test]
        fn equal_sets_sum_to_nothing_and_others_show_where_they_differ(
            rows in prop::collection::vec(("[a-z]{1,3}", "[a-z]{0,3}"), 1..60),
            damaged in any::<prop::sample::Index>(),
            how in 0..3_u8,
        ) {
            let shape = columns(&["v"]);
            let digest = |(k, v): &(String, String)| SECRET.digest(&key(k), &shape, &[text(v)]);
            let mut sums = Sums::new(Some(1000));
            rows.iter().for_each(|row| sums.count(Side::Source, digest(row)));
            rows.iter().rev().for_each(|row| sums.count(Side::Replica, digest(row)));
            prop_assert_eq!(sums.differing(0, u64::MAX), (vec![], None));
            let row = damaged.get(&rows).clone();
            match how {
                0 => sums.count(Side::Source, digest(&row)),
                1 => sums.count(Side::Replica, digest(&row)),
                _ => {
                    sums.count(Side::Source, digest(&row));
                    sums.count(Side::Replica, digest(&(row.0.clone(), row.1.clone() + "!")));
                }
            }
            let range = sums.range(digest(&row).part);
            prop_assert_eq!(sums.differing(0, 0), (vec![range], None));
        }
    }

    #[test]
    fn differing_ranges_come_in_slices_of_bounded_work() {
        let mut sums = Sums::new(Some(8 * 16));
        for part in [0_u64, 1, 2, 3, 4] {
            sums.count(Side::Source, Digest { part: part << 60, row: 7 });
        }
        assert_eq!(sums.differing(0, 2), (vec![0, 1], Some(2)));
        assert_eq!(sums.differing(2, 2), (vec![2, 3], Some(4)));
        assert_eq!(sums.differing(4, 2), (vec![4], None));
    }
}
