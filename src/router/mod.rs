//! Which replica tablet holds a key: the versioned map, and nothing else. Pure.

use crate::coordinator::TabletMap;
use crate::wal::{Key, ReplicaTabletId, TableId};

/// Routes keys by one version of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router {
    map: TabletMap,
    by_range: bool,
}

impl Router {
    /// A router of this map.
    #[must_use]
    pub fn new(map: TabletMap) -> Self {
        let by_range = map.tablets.iter().any(|tablet| tablet.from_key.is_some());
        Self { map, by_range }
    }

    /// The tablet that holds a key of a table; `None` only under an empty map.
    ///
    /// Rows without a key live where their content does ([`Key::shared`]).
    ///
    /// By hash: tablet `i` of `n` holds the `i`th of `n` equal parts of the 64-bit hash space. By range: the last tablet
    /// whose first key is at or below the key.
    #[must_use]
    pub fn route(&self, table: TableId, key: &Key) -> Option<ReplicaTabletId> {
        let tablets = &self.map.tablets;
        if self.by_range {
            let holder =
                tablets.iter().rev().find(|t| t.from_key.as_deref().unwrap_or_default() <= Key::shared(&key.0));
            return holder.or(tablets.first()).map(|t| t.id);
        }
        let part = (u128::from(hash(table, key)) * tablets.len() as u128) >> 64;
        tablets.get(part as usize).map(|t| t.id)
    }

    /// Every tablet, for writes that go to all (TRUNCATE).
    pub fn all(&self) -> impl Iterator<Item = ReplicaTabletId> + '_ {
        self.map.tablets.iter().map(|tablet| tablet.id)
    }

    /// The map's version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.map.version
    }
}

/// FNV-1a over the table's number and the key, finished by a mix of its bits. It decides where rows live, so it is part
/// of the persisted format and must never change.
fn hash(table: TableId, key: &Key) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for &byte in table.0.to_le_bytes().iter().chain(Key::shared(&key.0)) {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::MappedTablet;

    fn map(n: u32) -> TabletMap {
        let tablets = (0..n).map(|i| MappedTablet { id: ReplicaTabletId(i), name: format!("r{i}"), from_key: None });
        TabletMap { version: 1, tablets: tablets.collect() }
    }

    #[test]
    fn where_rows_live_never_changes() {
        let key = |n: u32| Key::from_columns([n.to_string().as_bytes()]);
        let router = Router::new(map(3));
        let routed: Vec<_> = (0..12).map(|n| router.route(TableId(1), &key(n)).unwrap().0).collect();
        assert_eq!(routed, GOLDEN, "the hash is part of the persisted format");
        assert_eq!(Router::new(map(0)).route(TableId(1), &key(1)), None);
    }

    const GOLDEN: [u32; 12] = [2, 1, 2, 2, 1, 1, 1, 2, 2, 0, 2, 0];

    #[test]
    fn keys_spread_evenly() {
        let router = Router::new(map(16));
        let mut counts = [0_u32; 16];
        for n in 0..16_000_u32 {
            counts[router.route(TableId(7), &Key::from_columns([n.to_string().as_bytes()])).unwrap().0 as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (800..1200).contains(&c)), "{counts:?}");
    }

    #[test]
    fn ranges_cover_every_key() {
        let mut ranges = map(3);
        for (tablet, from) in ranges.tablets.iter_mut().zip([&b"b"[..], b"m", b"t"]) {
            tablet.from_key = Some(from.to_vec());
        }
        let router = Router::new(ranges);
        let at = |text: &[u8]| router.route(TableId(1), &Key::from_columns([text])).unwrap().0;
        assert_eq!([at(b"a"), at(b"c"), at(b"m"), at(b"s"), at(b"zz")], [0, 0, 1, 1, 2]);
    }
}
