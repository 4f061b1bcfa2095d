//! The keys that a tablet persists: one table of kinds. A kind's ordinal is its keys' first byte and never changes.
//!
//! Numbers are big-endian, so that they sort. A row's key inside a version's key ends itself (see [`crate::wal::Key`]).

use super::store::Space;
use crate::mvcc::Truncation;
use crate::wal::{BranchId, HybridTime, Key, LogPosition, SourceTabletId, TableId};

/// Kinds of persisted keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The log that the tablet is bound to, its own number, the highest owner's epoch. One key.
    Binding = 1,
    /// A stream's mark and puller epoch, by stream.
    Mark = 2,
    /// How far the log is applied. One key.
    Applied = 3,
    /// A table's shape, by table and version.
    Schema = 4,
    /// A truncation, by table, stream, time and position.
    Truncation = 5,
    /// The oldest read point that is kept apart. One key.
    Horizon = 6,
    /// A branch whose transaction was applied in part, by branch.
    PartlyApplied = 7,
    /// An undecided branch that the source has rolled back, by branch.
    RolledBack = 8,
    /// A stream that writes to a table, by both.
    Writer = 9,
    /// A key of which two streams hold a row, by table and key.
    Twice = 10,
    /// The newest decision that was applied elsewhere, where versions live elsewhere. One key.
    Elsewhere = 11,
    /// A turn, by table, stream and position.
    Turn = 12,
    /// A copy on its way, by table and stream.
    Copying = 13,
    /// A write with cells that wait for a copy, by table, stream, time and row.
    Unfilled = 14,
    /// A removal of one of several identical rows that found none, by table, stream, time, content and number.
    Owed = 15,
    /// A provisional record, by branch and number.
    Provisional = 16,
    /// A chunk, by stream, connection, xid and number.
    Chunk = 17,
    /// Another stream's delete under a key of which a copy on its way may bring a row, by table, copied stream, time and row.
    Beside = 18,
    /// A copy whose rows are all here before its beginning was heard, by table and stream.
    Arrived = 19,
    /// A version, by table, key, time descending, stream.
    Version = 32,
    /// An entry of the tablet's own WAL, by index.
    Wal = 48,
    /// How far a reader of the tablet's own WAL is, by name.
    WalReader = 49,
    /// The end of the last whole transaction in the tablet's own WAL. One key.
    WalEnd = 50,
}

impl Kind {
    /// Where keys of this kind live.
    #[must_use]
    pub const fn space(self) -> Space {
        match self {
            Self::Version => Space::Versions,
            Self::Wal | Self::WalReader | Self::WalEnd => Space::Wal,
            _ => Space::Undecided,
        }
    }

    /// The key of a kind that has one.
    #[must_use]
    pub fn only(self) -> Vec<u8> {
        vec![self as u8]
    }

    /// Bounds of all keys of this kind.
    #[must_use]
    pub fn all(self) -> (Vec<u8>, Vec<u8>) {
        (vec![self as u8], vec![self as u8 + 1])
    }
}

fn key(kind: Kind, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + capacity);
    out.push(kind as u8);
    out
}

/// See [`Kind::Mark`].
#[must_use]
pub fn mark(stream: SourceTabletId) -> Vec<u8> {
    let mut out = key(Kind::Mark, 4);
    out.extend(stream.0.to_be_bytes());
    out
}

/// See [`Kind::Schema`].
#[must_use]
pub fn schema(table: TableId, version: u32) -> Vec<u8> {
    let mut out = key(Kind::Schema, 8);
    out.extend(table.0.to_be_bytes());
    out.extend(version.to_be_bytes());
    out
}

/// See [`Kind::Truncation`].
#[must_use]
pub fn truncation(table: TableId, stream: SourceTabletId, truncation: Truncation) -> Vec<u8> {
    let mut out = key(Kind::Truncation, 24);
    out.extend(table.0.to_be_bytes());
    out.extend(stream.0.to_be_bytes());
    out.extend(truncation.time.to_u64().to_be_bytes());
    out.extend(truncation.position.0.to_be_bytes());
    out
}

/// The part that keys of one stream's part of a table share.
fn part(kind: Kind, table: TableId, stream: SourceTabletId, more: usize) -> Vec<u8> {
    let mut out = key(kind, 8 + more);
    out.extend(table.0.to_be_bytes());
    out.extend(stream.0.to_be_bytes());
    out
}

/// See [`Kind::Turn`].
#[must_use]
pub fn turn(table: TableId, stream: SourceTabletId, position: LogPosition) -> Vec<u8> {
    let mut out = part(Kind::Turn, table, stream, 8);
    out.extend(position.0.to_be_bytes());
    out
}

/// See [`Kind::Copying`].
#[must_use]
pub fn copying(table: TableId, stream: SourceTabletId) -> Vec<u8> {
    part(Kind::Copying, table, stream, 0)
}

/// See [`Kind::Arrived`].
#[must_use]
pub fn arrived(table: TableId, stream: SourceTabletId) -> Vec<u8> {
    part(Kind::Arrived, table, stream, 0)
}

/// See [`Kind::Unfilled`].
#[must_use]
pub fn unfilled(table: TableId, stream: SourceTabletId, time: HybridTime, row: &[u8]) -> Vec<u8> {
    let mut out = part(Kind::Unfilled, table, stream, 8 + row.len());
    out.extend(time.to_u64().to_be_bytes());
    out.extend(row);
    out
}

/// Bounds of what waits for copies of one stream's part of a table.
#[must_use]
pub fn all_unfilled(table: TableId, stream: SourceTabletId) -> (Vec<u8>, Vec<u8>) {
    let from = part(Kind::Unfilled, table, stream, 0);
    let mut below = from.clone();
    below.extend([0xFF; 9]);
    (from, below)
}

/// See [`Kind::Beside`].
#[must_use]
pub fn beside(table: TableId, copied: SourceTabletId, time: HybridTime, row: &[u8]) -> Vec<u8> {
    let mut out = part(Kind::Beside, table, copied, 8 + row.len());
    out.extend(time.to_u64().to_be_bytes());
    out.extend(row);
    out
}

/// Bounds of what other streams deleted while one stream's part of a table is copied.
#[must_use]
pub fn all_beside(table: TableId, copied: SourceTabletId) -> (Vec<u8>, Vec<u8>) {
    let from = part(Kind::Beside, table, copied, 0);
    let mut below = from.clone();
    below.extend([0xFF; 9]);
    (from, below)
}

/// See [`Kind::Owed`].
#[must_use]
pub fn owed(of: (TableId, SourceTabletId), time: HybridTime, content: &[u8], number: u32) -> Vec<u8> {
    let mut out = owed_of(of, time, content).0;
    out.extend(number.to_be_bytes());
    out
}

/// Bounds of what a transaction owes of one content.
#[must_use]
pub fn owed_of((table, stream): (TableId, SourceTabletId), time: HybridTime, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut from = part(Kind::Owed, table, stream, 12 + content.len());
    from.extend(time.to_u64().to_be_bytes());
    from.extend(content);
    let mut below = from.clone();
    below.extend([0xFF; 5]);
    (from, below)
}

/// Bounds of what is owed to one stream's part of a table, times rising.
#[must_use]
pub fn all_owed((table, stream): (TableId, SourceTabletId)) -> (Vec<u8>, Vec<u8>) {
    let from = part(Kind::Owed, table, stream, 0);
    let mut below = from.clone();
    below.extend([0xFF; 9]);
    (from, below)
}

/// The time and content of a key of [`owed`].
#[must_use]
pub fn parse_owed(key: &[u8]) -> Option<(HybridTime, &[u8])> {
    let (time, rest) = key.get(9..)?.split_first_chunk::<8>()?;
    let (content, _) = rest.split_last_chunk::<4>()?;
    Some((HybridTime::from_u64(u64::from_be_bytes(*time)), content))
}

/// Bounds of the versions of every row with this content.
#[must_use]
pub fn content_versions(table: TableId, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut from = key(Kind::Version, 5 + content.len());
    from.extend(table.0.to_be_bytes());
    from.extend(content);
    let mut below = from.clone();
    below.push(0xFF);
    (from, below)
}

fn branch(kind: Kind, branch: BranchId, more: usize) -> Vec<u8> {
    let mut out = key(kind, 20 + more);
    out.extend(branch.stream.0.to_be_bytes());
    out.extend(branch.opened.term.to_be_bytes());
    out.extend(branch.opened.index.to_be_bytes());
    out
}

/// See [`Kind::PartlyApplied`].
#[must_use]
pub fn partly_applied(of: BranchId) -> Vec<u8> {
    branch(Kind::PartlyApplied, of, 0)
}

/// See [`Kind::RolledBack`].
#[must_use]
pub fn rolled_back(of: BranchId) -> Vec<u8> {
    branch(Kind::RolledBack, of, 0)
}

/// See [`Kind::Writer`].
#[must_use]
pub fn writer(table: TableId, stream: SourceTabletId) -> Vec<u8> {
    let mut out = key(Kind::Writer, 8);
    out.extend(table.0.to_be_bytes());
    out.extend(stream.0.to_be_bytes());
    out
}

/// See [`Kind::Twice`].
#[must_use]
pub fn twice(table: TableId, row: &[u8]) -> Vec<u8> {
    let mut out = key(Kind::Twice, 4 + row.len());
    out.extend(table.0.to_be_bytes());
    out.extend(row);
    out
}

/// See [`Kind::Provisional`].
#[must_use]
pub fn provisional(of: BranchId, number: u32) -> Vec<u8> {
    let mut out = branch(Kind::Provisional, of, 4);
    out.extend(number.to_be_bytes());
    out
}

/// See [`Kind::Chunk`].
#[must_use]
pub fn chunk(stream: SourceTabletId, connection: u64, xid: u32, number: u64) -> Vec<u8> {
    let mut out = key(Kind::Chunk, 24);
    out.extend(stream.0.to_be_bytes());
    out.extend(connection.to_be_bytes());
    out.extend(xid.to_be_bytes());
    out.extend(number.to_be_bytes());
    out
}

/// See [`Kind::Version`].
#[must_use]
pub fn version(table: TableId, row: &[u8], time: HybridTime, stream: SourceTabletId) -> Vec<u8> {
    let mut out = key(Kind::Version, 16 + row.len());
    out.extend(table.0.to_be_bytes());
    out.extend(row);
    out.extend((!time.to_u64()).to_be_bytes());
    out.extend(stream.0.to_be_bytes());
    out
}

/// Bounds of a table's versions.
#[must_use]
pub fn table_versions(table: TableId) -> (Vec<u8>, Vec<u8>) {
    let mut from = key(Kind::Version, 4);
    from.extend(table.0.to_be_bytes());
    let below = match table.0.checked_add(1) {
        Some(next) => {
            let mut below = key(Kind::Version, 4);
            below.extend(next.to_be_bytes());
            below
        }
        None => Kind::Version.all().1,
    };
    (from, below)
}

/// Bounds of one key's versions at or below a time.
#[must_use]
pub fn row_versions(table: TableId, row: &[u8], time: HybridTime) -> (Vec<u8>, Vec<u8>) {
    (version(table, row, time, SourceTabletId(0)), past_row(table, row))
}

/// Above every version of a key, below those of the next.
#[must_use]
pub fn past_row(table: TableId, row: &[u8]) -> Vec<u8> {
    let mut out = version(table, row, HybridTime::MIN, SourceTabletId(u32::MAX));
    out.push(0);
    out
}

/// See [`Kind::Wal`].
#[must_use]
pub fn wal(index: u64) -> Vec<u8> {
    let mut out = key(Kind::Wal, 8);
    out.extend(index.to_be_bytes());
    out
}

/// See [`Kind::WalReader`].
#[must_use]
pub fn wal_reader(name: &str) -> Vec<u8> {
    let mut out = key(Kind::WalReader, name.len());
    out.extend(name.as_bytes());
    out
}

/// Takes keys apart from the front; `None` where they are too short.
pub struct Parts<'a>(pub &'a [u8]);

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    /// The next 32-bit number.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    /// The next 64-bit number.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

/// A version's key, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionKey<'a> {
    /// The table.
    pub table: TableId,
    /// The row's key.
    pub row: &'a [u8],
    /// The commit's hybrid time.
    pub time: HybridTime,
    /// The stream.
    pub stream: SourceTabletId,
}

impl<'a> VersionKey<'a> {
    /// Takes a key apart; `None` if it is not a version's.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (body, tail) = bytes.split_at_checked(bytes.len().checked_sub(12)?)?;
        let mut head = Parts(body);
        let (kind, table) = (head.byte()?, head.u32()?);
        let mut tail = Parts(tail);
        let (time, stream) = (HybridTime::from_u64(!tail.u64()?), SourceTabletId(tail.u32()?));
        (kind == Kind::Version as u8).then_some(Self { table: TableId(table), row: head.0, time, stream })
    }
}

/// Whether bytes are a [`crate::wal::Key`]: every column ends itself, so no key is the beginning of another.
#[must_use]
pub fn ends_itself(key: &[u8]) -> bool {
    let key = Key::unmarked(key);
    let mut at = 0;
    let mut column_open = false;
    while let Some(&byte) = key.get(at) {
        column_open = true;
        if byte == 0 {
            match key.get(at + 1) {
                Some(0xFF) => {}
                Some(1) => column_open = false,
                _ => return false,
            }
            at += 1;
        }
        at += 1;
    }
    !column_open && !key.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::OpId;

    #[test]
    fn golden_keys() {
        let of = BranchId { stream: SourceTabletId(2), opened: OpId::new(3, 4) };
        assert_eq!(Kind::Binding.only(), [1]);
        assert_eq!(mark(SourceTabletId(7)), [2, 0, 0, 0, 7]);
        assert_eq!(Kind::Applied.only(), [3]);
        assert_eq!(schema(TableId(1), 2), [4, 0, 0, 0, 1, 0, 0, 0, 2]);
        let cut = Truncation { time: HybridTime::from_u64(5), position: LogPosition(6) };
        let expected = [5, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6];
        assert_eq!(truncation(TableId(1), SourceTabletId(2), cut), expected);
        assert_eq!(Kind::Horizon.only(), [6]);
        let (table, stream) = (TableId(1), SourceTabletId(2));
        assert_eq!(turn(table, stream, LogPosition(6)), [12, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 6]);
        assert_eq!(copying(table, stream), [13, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(arrived(table, stream), [19, 0, 0, 0, 1, 0, 0, 0, 2]);
        let expected = [14, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5, b'k', 0, 1];
        assert_eq!(unfilled(table, stream, HybridTime::from_u64(5), b"k\0\x01"), expected);
        let beside_key = beside(table, stream, HybridTime::from_u64(5), b"k\0\x01");
        assert_eq!(beside_key, [&[18][..], &expected[1..]].concat());
        let (from, below) = all_beside(table, stream);
        assert!(from < beside_key && beside_key < below && below < part(Kind::Beside, table, SourceTabletId(3), 0));
        let (from, below) = all_unfilled(table, stream);
        assert!(
            from < expected.to_vec()
                && below > expected.to_vec()
                && below < part(Kind::Unfilled, table, SourceTabletId(3), 0)
        );
        let branch_key = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4];
        assert_eq!(partly_applied(of), [&[7][..], &branch_key].concat());
        assert_eq!(rolled_back(of), [&[8][..], &branch_key].concat());
        assert_eq!(writer(TableId(1), SourceTabletId(2)), [9, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(twice(TableId(1), b"k\0\x01"), [10, 0, 0, 0, 1, b'k', 0, 1]);
        assert_eq!(provisional(of, 9), [&[16][..], &branch_key, &[0, 0, 0, 9]].concat());
        let expected = [17, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(chunk(SourceTabletId(2), 8, 7, 1), expected);
        let expected = [32, 0, 0, 0, 1, b'k', 0, 1, 255, 255, 255, 255, 255, 255, 255, 250, 0, 0, 0, 2];
        assert_eq!(version(TableId(1), b"k\0\x01", HybridTime::from_u64(5), SourceTabletId(2)), expected);
        assert_eq!(wal(258), [48, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(wal_reader("a"), [49, b'a']);
        assert_eq!(Kind::WalEnd.only(), [50]);
        assert_eq!(Kind::Elsewhere.only(), [11]);
    }

    #[test]
    fn newer_versions_sort_first_within_their_key() {
        let (a, ab) = (Key::from_columns([&b"a"[..]]), Key::from_columns([&b"ab"[..]]));
        let at = |key: &Key, time| version(TableId(1), &key.0, HybridTime::from_u64(time), SourceTabletId(1));
        let keys = [at(&a, 2), at(&a, 1), at(&ab, 9), at(&ab, 3)];
        assert!(keys.is_sorted());
        assert!(past_row(TableId(1), &a.0) > keys[1] && past_row(TableId(1), &a.0) < keys[2]);
        let parsed = VersionKey::parse(&keys[2]).unwrap();
        assert_eq!((parsed.row, parsed.time, parsed.stream), (&ab.0[..], HybridTime::from_u64(9), SourceTabletId(1)));
    }

    #[test]
    fn only_whole_keys_end_themselves() {
        for columns in [vec![&b"a"[..]], vec![&b""[..], b"\0"], vec![&b"\0\0x"[..], b"b"]] {
            assert!(ends_itself(&Key::from_columns(columns).0));
        }
        for broken in [&b""[..], b"a", b"a\0", b"a\0\x02", b"a\0\x01b"] {
            assert!(!ends_itself(broken), "{broken:?}");
        }
    }
}
