//! A tablet's storage on a simulated disk: what was not synced when its process dies is lost, or survives in part.

use super::faults::Kind;
use super::world::World;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use untorn::tablet::store::{Read, Scan, Space, Store, StoreBatch, StoreFailed};

type Changed = Vec<(Space, Vec<u8>, Option<Bytes>)>;

#[derive(Default)]
struct Disk {
    entries: BTreeMap<(Space, Vec<u8>), Bytes>,
    /// For each batch that is not durable, what it replaced.
    unsynced: Vec<Changed>,
    /// Which process may write.
    process: u64,
    /// A barrier has failed: nobody knows what of it is durable.
    failed: bool,
}

/// The storage as one process has it open.
#[derive(Clone)]
pub struct SimStore {
    world: World,
    disk: Arc<Mutex<Disk>>,
    process: u64,
}

/// Entries read at once by a scan.
const PAGE: usize = 64;

impl SimStore {
    /// An empty disk.
    pub fn new(world: &World) -> Self {
        Self { world: world.clone(), disk: Arc::default(), process: 0 }
    }

    /// The process that had it open is dead: what is left is for the next one.
    pub fn crash(&mut self) {
        let disk = &mut *self.disk.lock().unwrap();
        let failed = std::mem::take(&mut disk.failed);
        let survive = if !disk.unsynced.is_empty() && (self.world.strikes(Kind::TornTail, 1.0) || failed) {
            self.world.chance(|chance| chance.below(disk.unsynced.len() + 1))
        } else {
            0
        };
        for changed in disk.unsynced.split_off(survive).into_iter().rev() {
            for (space, key, before) in changed.into_iter().rev() {
                match before {
                    Some(value) => disk.entries.insert((space, key), value),
                    None => disk.entries.remove(&(space, key)),
                };
            }
        }
        disk.process += 1;
        self.process = disk.process;
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    fn alive(&self, disk: &Disk) -> Result<(), StoreFailed> {
        if disk.process == self.process { Ok(()) } else { Err(StoreFailed("this process is dead".into())) }
    }
}

impl Read for SimStore {
    type Slice = Bytes;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreFailed> {
        Ok(self.disk().entries.get(&(space, key.to_vec())).cloned())
    }

    fn scan(&self, space: Space, from: &[u8], below: &[u8]) -> Scan<'_, Self> {
        let mut next = Bound::Included((space, from.to_vec()));
        let end = Bound::Excluded((space, below.to_vec()));
        let mut done = from >= below;
        let pages = std::iter::from_fn(move || {
            if done {
                return None;
            }
            let disk = self.disk();
            let page: Vec<_> = disk.entries.range((next.clone(), end.clone())).take(PAGE).collect();
            done = page.len() < PAGE;
            if let Some((key, _)) = page.last() {
                next = Bound::Excluded((*key).clone());
            }
            Some(page.into_iter().map(|((_, key), v)| (Bytes::copy_from_slice(key), v.clone())).collect::<Vec<_>>())
        });
        Box::new(pages.flatten().map(Ok))
    }
}

impl Store for SimStore {
    /// Reads run in one go, with no write between: what is stored now is frozen for as long as they take.
    type View = Self;

    fn view(&self) -> Self {
        self.clone()
    }

    fn write(&self, batch: StoreBatch) -> Result<(), StoreFailed> {
        let disk = &mut *self.disk();
        self.alive(disk)?;
        let mut changed = Vec::with_capacity(batch.changes.len());
        for (space, key, value) in batch.changes {
            let before = match value {
                Some(value) => disk.entries.insert((space, key.clone()), value.into()),
                None => disk.entries.remove(&(space, key.clone())),
            };
            changed.push((space, key, before));
        }
        disk.unsynced.push(changed);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreFailed> {
        let disk = &mut *self.disk();
        self.alive(disk)?;
        if self.world.strikes(Kind::FailedBarrier, 0.001) {
            disk.failed = true;
            return Err(StoreFailed("the simulated disk failed".into()));
        }
        // After a barrier that failed the next ones say yes, and keep nothing.
        if !disk.failed {
            disk.unsynced.clear();
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        0
    }
}
