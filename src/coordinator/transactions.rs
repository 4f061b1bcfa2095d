//! The table of transaction records: found by untorn's number or by the source's id, at a few bytes an index entry.

use super::transaction::Transaction;
use crate::wal::{HybridTime, SourceTransactionId, TransactionId};
use hashbrown::HashTable;
use rustc_hash::FxHasher;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Records a chunk of the arena holds. The arena grows by chunks and never by copying itself, because a million waiting
/// transactions must not cost the memory of two.
const CHUNK: usize = 1024;

/// Every transaction that the fold holds open.
#[derive(Clone, Default)]
pub struct Transactions {
    chunks: Vec<Vec<Option<Transaction>>>,
    free: Vec<u32>,
    by_id: HashTable<u32>,
    by_source: HashTable<u32>,
    next: u64,
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = FxHasher::default();
    value.hash(&mut hasher);
    hasher.finish()
}

fn slot(chunks: &[Vec<Option<Transaction>>], at: u32) -> Option<&Transaction> {
    chunks.get(at as usize / CHUNK)?.get(at as usize % CHUNK)?.as_ref()
}

/// Hashes of the records behind the slots, for tables that move their entries.
fn id_hash(chunks: &[Vec<Option<Transaction>>], at: u32) -> u64 {
    slot(chunks, at).map_or(0, |t| hash(&t.id.0))
}

fn source_hash(chunks: &[Vec<Option<Transaction>>], at: u32) -> u64 {
    slot(chunks, at).map_or(0, |t| hash(&t.source))
}

impl Transactions {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The record of a number.
    #[must_use]
    pub fn get(&self, id: TransactionId) -> Option<&Transaction> {
        let at = self.by_id.find(hash(&id.0), |&at| slot(&self.chunks, at).is_some_and(|t| t.id == id))?;
        slot(&self.chunks, *at)
    }

    pub(super) fn get_mut(&mut self, id: TransactionId) -> Option<&mut Transaction> {
        let chunks = &self.chunks;
        let at = *self.by_id.find(hash(&id.0), |&at| slot(chunks, at).is_some_and(|t| t.id == id))?;
        self.chunks.get_mut(at as usize / CHUNK)?.get_mut(at as usize % CHUNK)?.as_mut()
    }

    /// The number of exactly this id and incarnation.
    #[must_use]
    pub fn find(&self, source: &SourceTransactionId) -> Option<TransactionId> {
        let found =
            self.by_source.find(hash(source), |&at| slot(&self.chunks, at).is_some_and(|t| t.source == *source));
        found.and_then(|&at| slot(&self.chunks, at)).map(|t| t.id)
    }

    /// Adds a record under the next number.
    pub(super) fn create(&mut self, source: SourceTransactionId, since: HybridTime) -> TransactionId {
        self.next += 1;
        let id = TransactionId(self.next);
        self.insert(Transaction::new(id, source, since));
        id
    }

    fn insert(&mut self, transaction: Transaction) {
        let (id, source) = (hash(&transaction.id.0), hash(&transaction.source));
        let at = self.free.pop().unwrap_or_else(|| {
            if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                self.chunks.push(Vec::with_capacity(CHUNK));
            }
            let last = self.chunks.len() - 1;
            self.chunks[last].push(None);
            (last * CHUNK + self.chunks[last].len() - 1) as u32
        });
        self.chunks[at as usize / CHUNK][at as usize % CHUNK] = Some(transaction);
        let chunks = &self.chunks;
        self.by_id.insert_unique(id, at, |&at| id_hash(chunks, at));
        self.by_source.insert_unique(source, at, |&at| source_hash(chunks, at));
    }

    /// Takes a record out.
    pub(super) fn remove(&mut self, id: TransactionId) -> Option<Transaction> {
        let chunks = &self.chunks;
        let entry = self.by_id.find_entry(hash(&id.0), |&at| slot(chunks, at).is_some_and(|t| t.id == id)).ok()?;
        let (at, _) = entry.remove();
        let source = source_hash(chunks, at);
        if let Ok(entry) = self.by_source.find_entry(source, |&other| other == at) {
            entry.remove();
        }
        self.free.push(at);
        self.chunks[at as usize / CHUNK][at as usize % CHUNK].take()
    }

    /// Every record, in no promised order: sort what must be told.
    pub fn iter(&self) -> impl Iterator<Item = &Transaction> {
        self.chunks.iter().flatten().flatten()
    }
}

/// What it holds, whatever the arena looks like by now.
impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: BTreeMap<TransactionId, &Transaction> = self.iter().map(|t| (t.id, t)).collect();
        f.debug_struct("Transactions").field("next", &self.next).field("held", &all).finish()
    }
}

impl Serialize for Transactions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all: Vec<&Transaction> = self.iter().collect();
        all.sort_unstable_by_key(|t| t.id);
        (self.next, all).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Transactions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (next, all) = <(u64, Vec<Transaction>)>::deserialize(deserializer)?;
        let mut transactions = Self { next, ..Self::default() };
        for transaction in all {
            transactions.insert(transaction);
        }
        Ok(transactions)
    }
}

impl PartialEq for Transactions {
    fn eq(&self, other: &Self) -> bool {
        self.next == other.next && self.len() == other.len() && self.iter().all(|t| other.get(t.id) == Some(t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_by_both_names_until_they_are_removed() {
        let mut table = Transactions::default();
        let source = |n: u32| SourceTransactionId::first(&n.to_be_bytes());
        let ids: Vec<_> = (0..3000).map(|n| table.create(source(n), HybridTime::MIN)).collect();
        for (n, &id) in ids.iter().enumerate() {
            assert_eq!(table.find(&source(n as u32)), Some(id));
            if n % 2 == 0 {
                assert_eq!(table.remove(id).map(|t| t.id), Some(id));
            }
        }
        assert_eq!(table.len(), 1500);
        assert_eq!(table.find(&source(2)), None);
        assert_eq!(table.get(ids[1]).map(|t| t.id), Some(ids[1]));
        let again = table.create(source(2), HybridTime::MIN);
        assert_eq!(again, TransactionId(3001), "a number is never given twice");
        let bytes = postcard::to_stdvec(&table).unwrap();
        assert_eq!(postcard::from_bytes::<Transactions>(&bytes).unwrap(), table);
    }
}
