//! The engine that forgets: the same rules over a map in memory, for tests and as what the embedded one is held against.

use super::TabletError;
use super::engine::{Engine, TabletOptions, Worker, start};
use super::store::{Read, Scan, Space, Store, StoreBatch, StoreFailed};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

type Map = BTreeMap<(Space, Vec<u8>), Bytes>;

/// A map in memory.
#[derive(Clone, Default, Debug)]
pub struct MemoryStore {
    map: Arc<RwLock<Arc<Map>>>,
}

impl MemoryStore {
    fn now(&self) -> Arc<Map> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A frozen map.
#[derive(Debug)]
pub struct MemoryView(Arc<Map>);

impl Read for MemoryView {
    type Slice = Bytes;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreFailed> {
        Ok(self.0.get(&(space, key.to_vec())).cloned())
    }

    fn scan(&self, space: Space, from: &[u8], below: &[u8]) -> Scan<'_, Self> {
        if from >= below {
            return Box::new(std::iter::empty());
        }
        let range = (Bound::Included((space, from.to_vec())), Bound::Excluded((space, below.to_vec())));
        Box::new(self.0.range(range).map(|((_, key), value)| Ok((Bytes::copy_from_slice(key), value.clone()))))
    }
}

impl Read for MemoryStore {
    type Slice = Bytes;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreFailed> {
        MemoryView(self.now()).get(space, key)
    }

    fn scan(&self, space: Space, from: &[u8], below: &[u8]) -> Scan<'_, Self> {
        let entries: Vec<_> = MemoryView(self.now()).scan(space, from, below).collect();
        Box::new(entries.into_iter())
    }
}

impl Store for MemoryStore {
    type View = MemoryView;

    fn view(&self) -> MemoryView {
        MemoryView(self.now())
    }

    fn write(&self, batch: StoreBatch) -> Result<(), StoreFailed> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let map = Arc::make_mut(&mut map);
        for (space, key, value) in batch.changes {
            match value {
                Some(value) => map.insert((space, key), value.into()),
                None => map.remove(&(space, key)),
            };
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreFailed> {
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.now().iter().map(|((_, key), value)| (key.len() + value.len()) as u64).sum()
    }
}

/// A tablet over a store in memory, and the workers that the caller runs on threads of their own. A tablet made from a
/// clone of the store goes on where another stopped, as if its process had started again.
///
/// # Errors
/// [`TabletError::Poisoned`] when the store holds what cannot be read.
pub fn open(store: MemoryStore, options: TabletOptions) -> Result<(Engine<MemoryStore>, Vec<Worker>), TabletError> {
    let (engines, workers) = start(vec![("memory".to_owned(), store)], options)?;
    let engine = engines.into_iter().next().ok_or_else(|| TabletError::Refused("no tablet was asked for".into()))?;
    Ok((engine, workers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tablet::conformance::{Rig, tablet_conformance};

    fn rig() -> Rig {
        let store = MemoryStore::default();
        Rig::new(move || {
            let (engine, workers) = open(store.clone(), TabletOptions::default()).unwrap();
            (Arc::new(engine), workers.into_iter().map(|worker| std::thread::spawn(|| worker.run())).collect())
        })
    }

    tablet_conformance!(rig);
}
