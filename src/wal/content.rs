//! Keys of rows that have none of their own.
//!
//! A table without a primary key under identity FULL may hold one row several times, and an update or delete carries the
//! whole old row: it concerns exactly one of the identical ones, and any of them will do. So a row's key is made of its
//! **content** and the **place** that it came from:
//!
//! * the content part is a hash of the stream's name and of every value that is not NULL, by its column's name. Identical
//!   rows share it, so they live on one replica tablet and sort next to one another; a column that was added and is NULL
//!   changes nothing; rows of two servers never share it, so a key has one writer;
//! * the place is where the row stood in the stream's WAL, or its number in a copy: unique, and the same when it is sent
//!   again.
//!
//! A **delete of the content part alone** means: one of these rows is gone. Which one is settled by the replica tablet when
//! it applies the transaction, in commit order; from then on it is an ordinary delete of that row's key. Reads, checksums,
//! collection and read points know nothing of all this: `n` identical rows are `n` keys.

use super::{Cell, Column, Key};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// What a content part begins with: no column's text begins so in a key, where 0x00 is followed by 0xFF or 0x01.
const MARK: [u8; 2] = [0, 2];
/// Bytes of the hash that count. Half of SHA-256: who fills a table on purpose finds no two rows that collide.
const HASH_BYTES: usize = 16;
/// Bytes of a content part: the mark, the hash as hex, and what ends a column.
const CONTENT_BYTES: usize = MARK.len() + 2 * HASH_BYTES + 2;

impl Key {
    /// The content part of a row without a key.
    #[must_use]
    pub fn of_content(stream: &str, columns: &[Column], cells: &[Cell]) -> Self {
        let mut values: Vec<(&str, &[u8])> = columns
            .iter()
            .zip(cells)
            .filter_map(|(column, cell)| match cell {
                Cell::Null => None,
                Cell::Text(text) => Some((column.name.as_str(), &text[..])),
                // No value looks like this: text has no zero bytes.
                Cell::Unchanged => Some((column.name.as_str(), &[0][..])),
            })
            .collect();
        values.sort_unstable();
        let mut hash = Sha256::new();
        let parts = values.iter().flat_map(|(name, value)| [name.as_bytes(), value]);
        for part in std::iter::once(stream.as_bytes()).chain(parts) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut text = String::with_capacity(2 * HASH_BYTES);
        for byte in hash.finalize().iter().take(HASH_BYTES) {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self([&MARK[..], text.as_bytes(), &[0, 1]].concat().into())
    }

    /// The key of a row with this content: the `nth` from this place in the WAL. Rows of a copy, which come first, are
    /// numbered at place 0. Keys of one content sort by place.
    #[must_use]
    pub fn at_place(&self, place: u64, nth: u64) -> Self {
        Self([&self.0[..], format!("{place:016x}/{nth:016x}").as_bytes(), &[0, 1]].concat().into())
    }

    /// What decides where the row lives and what waits for what: the content part where there is one, else all of it.
    #[must_use]
    pub fn shared(key: &[u8]) -> &[u8] {
        if key.starts_with(&MARK) { key.get(..CONTENT_BYTES).unwrap_or(key) } else { key }
    }

    /// Whether this names a content and no row.
    #[must_use]
    pub fn is_content(key: &[u8]) -> bool {
        key.len() == CONTENT_BYTES && key.starts_with(&MARK)
    }

    /// What follows the mark of a content part; all of another key.
    #[must_use]
    pub fn unmarked(key: &[u8]) -> &[u8] {
        key.strip_prefix(&MARK).unwrap_or(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn columns(names: &[&str]) -> Vec<Column> {
        names.iter().map(|name| Column { name: (*name).into(), type_name: "text".into(), key: false }).collect()
    }

    fn text(text: &str) -> Cell {
        Cell::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_column_that_was_added_and_is_null_changes_nothing() {
        let of = |names: &[&str], cells: &[Cell]| Key::of_content("a", &columns(names), cells);
        let row = of(&["x", "y"], &[text("1"), text("2")]);
        assert_eq!(row, of(&["y", "new", "x"], &[text("2"), Cell::Null, text("1")]));
        assert_ne!(row, of(&["y", "x"], &[text("1"), text("2")]), "values that changed places");
        assert_ne!(row, of(&["x", "y", "new"], &[text("1"), text("2"), text("")]), "NULL is not the empty text");
        assert_ne!(row, Key::of_content("b", &columns(&["x", "y"]), &[text("1"), text("2")]), "another server's");
    }

    #[test]
    fn where_rows_live_never_changes() {
        let content = Key::of_content("shard-a", &columns(&["x", "y"]), &[text("1"), Cell::Null]);
        assert_eq!(&content.0[..], b"\0\x02c3397b68b83e37a44fe95407fa25242c\0\x01", "part of the persisted format");
        assert_eq!(&content.at_place(0x2a, 1).0[36..], b"000000000000002a/0000000000000001\0\x01");
    }

    proptest! {
        #[test]
        fn a_row_s_key_shares_its_content_and_ends_itself(cells in prop::collection::vec(".{0,9}", 0..4), at: u64, nth: u64) {
            let names: Vec<String> = (0..cells.len()).map(|n| n.to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let cells: Vec<Cell> = cells.iter().map(|cell| text(cell)).collect();
            let content = Key::of_content("a", &columns(&names), &cells);
            let row = content.at_place(at, nth);
            prop_assert!(Key::is_content(&content.0) && !Key::is_content(&row.0));
            prop_assert_eq!(Key::shared(&row.0), &content.0[..]);
            prop_assert_eq!(row.columns().map(|columns| columns.len()), Some(2));
            prop_assert!(content.at_place(at, nth) < content.at_place(at.saturating_add(1), 0) || at == u64::MAX);
        }

        #[test]
        fn no_key_of_columns_is_taken_for_a_content(columns in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..3)) {
            let key = Key::from_columns(columns.iter().map(Vec::as_slice));
            prop_assert_eq!(Key::shared(&key.0), &key.0[..]);
        }
    }
}
