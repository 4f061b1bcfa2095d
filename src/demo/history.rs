//! Every version that the source ever committed, in a few bytes each, for the count at the end.

use crate::wal::HybridTime;

/// The versions of one account in commit order: for each, the distance in hybrid time and in balance to the one before,
/// as variable-length integers. About six bytes a version, so that minutes of history fit in memory.
#[derive(Clone, Debug, Default)]
pub struct History {
    bytes: Vec<u8>,
    last: (u64, i64),
    versions: u64,
}

impl History {
    /// Adds a version. Times rise.
    pub fn push(&mut self, time: HybridTime, balance: i64) {
        debug_assert!(self.versions == 0 || time.to_u64() > self.last.0, "an account's commit times rise");
        put(&mut self.bytes, time.to_u64().wrapping_sub(self.last.0));
        let change = balance.wrapping_sub(self.last.1);
        put(&mut self.bytes, ((change << 1) ^ (change >> 63)) as u64);
        self.last = (time.to_u64(), balance);
        self.versions += 1;
    }

    /// How many versions there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.versions
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.versions == 0
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The versions, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (HybridTime, i64)> + '_ {
        let (mut rest, mut last) = (&self.bytes[..], (0_u64, 0_i64));
        std::iter::from_fn(move || {
            let time = take(&mut rest)?;
            let change = take(&mut rest)?;
            let change = (change >> 1) as i64 ^ -((change & 1) as i64);
            last = (last.0.wrapping_add(time), last.1.wrapping_add(change));
            Some((HybridTime::from_u64(last.0), last.1))
        })
    }
}

/// Appends a number, seven bits a byte, low ones first.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes what [`put`] appended; `None` at the end.
fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(number)
}

/// What a comparison of version histories found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Versions (key, hybrid time) that the source has and the replica lacks.
    pub lost: u64,
    /// Versions that the replica has and the source lacks, or that it holds more than once.
    pub duplicated: u64,
    /// Versions that both have, with different rows.
    pub differing: u64,
}

impl Difference {
    /// Whether the two are equal.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Compares one key's versions; `replica` in any order, `None` for a deleted or unreadable row.
    pub fn compare(&mut self, source: &History, mut replica: Vec<(HybridTime, Option<i64>)>) {
        replica.sort_unstable_by_key(|version| version.0);
        let mut held = replica.into_iter().peekable();
        for (time, balance) in source.iter() {
            while held.next_if(|version| version.0 < time).is_some() {
                self.duplicated += 1;
            }
            match held.next_if(|version| version.0 == time) {
                Some((_, row)) => self.differing += u64::from(row != Some(balance)),
                None => self.lost += 1,
            }
        }
        self.duplicated += held.count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn history(versions: &[(u64, i64)]) -> History {
        let mut history = History::default();
        for &(time, balance) in versions {
            history.push(HybridTime::from_u64(time), balance);
        }
        history
    }

    proptest! {
        #[test]
        fn versions_come_back(mut versions in proptest::collection::btree_map(any::<u64>(), any::<i64>(), 0..50)) {
            versions.remove(&0);
            let versions: Vec<_> = versions.into_iter().collect();
            let history = history(&versions);
            prop_assert_eq!(history.len(), versions.len() as u64);
            let back: Vec<_> = history.iter().map(|(time, balance)| (time.to_u64(), balance)).collect();
            prop_assert_eq!(back, versions);
        }
    }

    #[test]
    fn lost_duplicated_and_differing_versions_are_told_apart() {
        let source = history(&[(10, 1), (20, 2), (30, 3)]);
        let compare = |held: &[(u64, Option<i64>)]| {
            let mut difference = Difference::default();
            difference.compare(&source, held.iter().map(|&(t, row)| (HybridTime::from_u64(t), row)).collect());
            (difference.lost, difference.duplicated, difference.differing)
        };
        assert_eq!(compare(&[(30, Some(3)), (20, Some(2)), (10, Some(1))]), (0, 0, 0));
        assert_eq!(compare(&[(10, Some(1)), (30, Some(3))]), (1, 0, 0));
        assert_eq!(compare(&[(5, None), (10, Some(1)), (20, Some(2)), (20, Some(2)), (30, Some(3))]), (0, 2, 0));
        assert_eq!(compare(&[(10, Some(1)), (20, Some(7)), (30, Some(3)), (40, Some(4))]), (0, 1, 1));
        assert_eq!(compare(&[]), (3, 0, 0));
    }
}
