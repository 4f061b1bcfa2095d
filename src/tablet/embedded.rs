//! The durable engine: tablets over one LSM store (fjall 3), in one folder.
//!
//! All tablets of a folder share one journal, so one durability barrier covers a group of calls on all of them.

use super::TabletError;
use super::engine::{Engine, TabletOptions, Worker, start};
use super::store::{Read, Scan, Space, Store, StoreBatch, StoreFailed};
use crate::limits::{
    OWNER_WAIT_MS, STORE_CACHE_BYTES, STORE_JOURNAL_BYTES, STORE_MEMTABLE_BYTES_MAX, STORE_MEMTABLE_BYTES_MIN,
    STORE_MEMTABLES_BYTES, STORE_UNWRITTEN_BYTES_MAX,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Slice};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a write that waits for table files looks again: short beside the writing of one.
const UNWRITTEN_CHECKED_EVERY: Duration = Duration::from_millis(2);

/// How often a folder that somebody holds is asked for again.
const LOCK_ASKED_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// A key of no [`super::keys::Kind`].
const NEVER_WRITTEN: [u8; 1] = [0];

/// Bytes by which a folder is asked whether it takes anything: more than the last free blocks of a full disk.
const PROBE_BYTES: usize = 1 << 20;

/// One tablet's part of the folder.
#[derive(Clone)]
pub struct LsmStore {
    folder: Arc<Path>,
    database: Database,
    undecided: Keyspace,
    versions: Keyspace,
    wal: Keyspace,
    /// Bytes of all tablets of the folder in memory above which a write waits.
    unwritten_bytes_max: u64,
}

/// A frozen state of one tablet's part.
pub struct LsmView {
    snapshot: fjall::Snapshot,
    store: LsmStore,
}

fn failed(what: &str) -> impl FnOnce(fjall::Error) -> StoreFailed + '_ {
    move |error| StoreFailed(format!("{what}: {error}"))
}

impl LsmStore {
    fn open(
        folder: &Arc<Path>,
        database: &Database,
        name: &str,
        memtable_bytes: u64,
        unwritten_bytes_max: u64,
    ) -> Result<Self, StoreFailed> {
        let name_of = |space: &str| format!("{name}.{space}");
        let space = |space: &str| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes);
            database.keyspace(&name_of(space), options).map_err(failed("cannot open a keyspace"))
        };
        // The store takes a keyspace whose marker file is gone for one that was never finished, and removes it: then the
        // others hold what a tablet without it cannot. Where a crash cut their creation off, they hold nothing.
        let (there, missing): (Vec<_>, Vec<_>) =
            SPACE_NAMES.iter().partition(|space| database.keyspace_exists(&name_of(space)));
        for held in there {
            if !missing.is_empty() && !space(held)?.is_empty().map_err(failed("cannot read"))? {
                return Err(StoreFailed(format!(
                    "tablet {name} has lost its keyspaces {missing:?}: the folder is damaged; bring it back, or set up the \
                     replica again from a new copy"
                )));
            }
        }
        let [undecided, versions, wal] = SPACE_NAMES.map(space);
        let (folder, database) = (Arc::clone(folder), database.clone());
        Ok(Self { folder, database, undecided: undecided?, versions: versions?, wal: wal?, unwritten_bytes_max })
    }

    /// A start finds in memory again what no table file held. The store looks whether a part is full when something is
    /// written to it, and only then; a write of another part would wait for that one for ever. So something is.
    fn seal_what_is_full(&self) -> Result<(), StoreFailed> {
        for space in [&self.undecided, &self.versions, &self.wal] {
            space.remove(NEVER_WRITTEN).map_err(self.broken("cannot write"))?;
        }
        Ok(())
    }

    /// The store's one worker seals what is full, writes it to table files and merges these, one after another; a write
    /// does not wait for it, so whoever writes for long must. The tablets' worker is a thread of its own and may sleep.
    fn wait_for_table_files(&self) -> Result<(), StoreFailed> {
        while self.database.write_buffer_size() > self.unwritten_bytes_max {
            std::thread::sleep(UNWRITTEN_CHECKED_EVERY);
            // Says so when that worker has failed, and will write nothing any more.
            self.database.persist(PersistMode::Buffer).map_err(self.broken("cannot write table files"))?;
        }
        Ok(())
    }

    /// Says which folder, and why. After its own worker has failed the store only says that it did: then the folder itself
    /// is asked whether it takes anything, because a full disk is the likeliest reason.
    fn broken<'a>(&'a self, what: &'a str) -> impl FnOnce(fjall::Error) -> StoreFailed + 'a {
        move |error| {
            let folder = self.folder.display();
            let reason = match &error {
                fjall::Error::Poisoned => probe(&self.folder).err().map_or_else(
                    || "the store's worker failed, and said why in the log".to_owned(),
                    |reason| reason.to_string(),
                ),
                _ => error.to_string(),
            };
            StoreFailed(format!("{folder}: {what}: {reason}"))
        }
    }

    fn space(&self, space: Space) -> &Keyspace {
        match space {
            Space::Undecided => &self.undecided,
            Space::Versions => &self.versions,
            Space::Wal => &self.wal,
        }
    }
}

/// Whether a folder takes a file.
fn probe(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join("probe");
    let written = std::fs::write(&probe, [0; PROBE_BYTES]);
    // What is left of it is empty, and written over by the next.
    let _ = std::fs::remove_file(&probe);
    written
}

fn entries(iter: fjall::Iter) -> impl Iterator<Item = Result<(Slice, Slice), StoreFailed>> {
    iter.map(|entry| entry.into_inner().map_err(failed("cannot read")))
}

impl Read for LsmView {
    type Slice = Slice;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreFailed> {
        self.snapshot.get(self.store.space(space), key).map_err(failed("cannot read"))
    }

    fn scan(&self, space: Space, from: &[u8], below: &[u8]) -> Scan<'_, Self> {
        if from >= below {
            return Box::new(std::iter::empty());
        }
        Box::new(entries(self.snapshot.range(self.store.space(space), from..below)))
    }
}

impl Read for LsmStore {
    type Slice = Slice;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreFailed> {
        self.space(space).get(key).map_err(failed("cannot read"))
    }

    fn scan(&self, space: Space, from: &[u8], below: &[u8]) -> Scan<'_, Self> {
        if from >= below {
            return Box::new(std::iter::empty());
        }
        Box::new(entries(self.space(space).range(from..below)))
    }
}

impl Store for LsmStore {
    type View = LsmView;

    fn view(&self) -> LsmView {
        LsmView { snapshot: self.database.snapshot(), store: self.clone() }
    }

    fn write(&self, batch: StoreBatch) -> Result<(), StoreFailed> {
        let mut writes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.changes.len());
        for (space, key, value) in batch.changes {
            match value {
                Some(value) => writes.insert(self.space(space), key, value),
                None => writes.remove(self.space(space), key),
            }
        }
        writes.commit().map_err(self.broken("cannot write"))?;
        self.wait_for_table_files()
    }

    fn sync(&self) -> Result<(), StoreFailed> {
        self.database.persist(PersistMode::SyncData).map_err(self.broken("the durability barrier failed"))
    }

    /// Of its table files; what only the shared journal holds is not any one tablet's.
    fn bytes(&self) -> u64 {
        [&self.undecided, &self.versions, &self.wal].iter().map(|space| space.disk_space()).sum()
    }
}

/// Opens the tablets of these names in a folder, creating what is missing, and hands out the workers that the caller
/// runs on threads of their own. The folder is free again once the engines are dropped and the workers have ended.
///
/// # Errors
/// [`TabletError::Poisoned`] when the folder cannot be opened or holds what cannot be read.
pub fn open(
    folder: &Path,
    names: &[&str],
    options: TabletOptions,
) -> Result<(Vec<Engine<LsmStore>>, Vec<Worker>), TabletError> {
    let at = |error: StoreFailed| TabletError::Poisoned(format!("{}: {error}", folder.display()));
    let database = open_database(folder).map_err(at)?;
    let memtable_bytes = memtable_bytes(names.len());
    // Above what all may gather before any of them is full, or a write could wait for ever.
    let gathered = SPACE_NAMES.len() as u64 * names.len() as u64 * memtable_bytes;
    let unwritten_bytes_max = STORE_UNWRITTEN_BYTES_MAX.max(gathered);
    let shared: Arc<Path> = folder.into();
    let store = |name: &&str| {
        let store = LsmStore::open(&shared, &database, name, memtable_bytes, unwritten_bytes_max)?;
        Ok(((*name).to_owned(), store))
    };
    let stores = names.iter().map(store).collect::<Result<Vec<_>, _>>().map_err(at)?;
    if database.write_buffer_size() > unwritten_bytes_max {
        stores.iter().try_for_each(|(_, store)| store.seal_what_is_full()).map_err(at)?;
    }
    start(stores, options)
}

/// Kinds of data of a tablet, each with newest writes of its own.
const SPACE_NAMES: [&str; 3] = ["undecided", "versions", "wal"];

/// Each tablet's share of the memory for newest writes. A write stands in two of its kinds: undecided, then a version.
fn memtable_bytes(tablets: usize) -> u64 {
    (STORE_MEMTABLES_BYTES / (2 * tablets.max(1) as u64)).clamp(STORE_MEMTABLE_BYTES_MIN, STORE_MEMTABLE_BYTES_MAX)
}

fn open_database(folder: &Path) -> Result<Database, StoreFailed> {
    let open = || {
        Database::builder(folder)
            // Every barrier is asked for by name, so a batch need not be handed to the kernel by itself.
            .manual_journal_persist(true)
            .worker_threads(1)
            .cache_size(STORE_CACHE_BYTES)
            .max_journaling_size(STORE_JOURNAL_BYTES)
            .open()
    };
    // The store takes some damage of its journal for a mistake of its own, and panics.
    let open = || {
        std::panic::catch_unwind(AssertUnwindSafe(open)).map_err(|_| {
            let what = "the store cannot read its journal: the folder is damaged; bring it back, or set up the replica again \
                        from a new copy";
            StoreFailed(what.to_owned())
        })
    };
    let patience = Instant::now() + Duration::from_millis(OWNER_WAIT_MS);
    let database = loop {
        match open()? {
            // Perhaps by an owner that is going away.
            Err(fjall::Error::Locked) if Instant::now() < patience => std::thread::sleep(LOCK_ASKED_AGAIN_AFTER),
            Err(fjall::Error::Locked) => {
                return Err(StoreFailed("is in use by another process; stop it, or use another folder".into()));
            }
            opened => break opened.map_err(failed("cannot open the tablets' storage"))?,
        }
    };
    // The store makes its own folders durable, but not its own folder's name in the one above it.
    if let Some(above) = folder.parent().filter(|above| !above.as_os_str().is_empty()) {
        let synced = std::fs::File::open(above).and_then(|folder| folder.sync_all());
        synced.map_err(|error| StoreFailed(format!("{}: {error}", above.display())))?;
    }
    Ok(database)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tablet::conformance::{Rig, tablet_conformance};
    use std::sync::Arc;

    fn rig() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        Rig::new(move || {
            let (engines, workers) = open(folder.path(), &["r1"], TabletOptions::default()).unwrap();
            let engine = engines.into_iter().next().unwrap();
            (Arc::new(engine), workers.into_iter().map(|worker| std::thread::spawn(|| worker.run())).collect())
        })
    }

    tablet_conformance!(rig);

    #[test]
    fn what_a_crash_left_in_memory_does_not_hold_up_the_next_start() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("tablets");
        let (names, above) = (["r1", "r2"], 2 * usize::try_from(STORE_UNWRITTEN_BYTES_MAX).unwrap());
        drop(open(&folder, &names, TabletOptions::default()).unwrap());
        // The store is stopped before its worker has looked at a part that is too full.
        let database = Database::builder(&folder).worker_threads_unchecked(0).open().unwrap();
        let space = database.keyspace("r2.undecided", KeyspaceCreateOptions::default).unwrap();
        space.insert("chunk", vec![1; above]).unwrap();
        database.persist(PersistMode::SyncData).unwrap();
        drop((space, database));
        let (opened, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || opened.send(open(&folder, &names, TabletOptions::default()).map(drop)));
        answer.recv_timeout(Duration::from_secs(60)).expect("it starts").unwrap();
    }

    #[test]
    fn a_journal_that_the_store_cannot_read_is_refused_by_name() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("tablets");
        drop(open(&folder, &["r1"], TabletOptions::default()).unwrap());
        let database = Database::builder(&folder).open().unwrap();
        let space = database.keyspace("r1.undecided", KeyspaceCreateOptions::default).unwrap();
        space.insert("needle", "haystack").unwrap();
        database.persist(PersistMode::SyncData).unwrap();
        drop((space, database));
        // Its length stands before it twice: as it is, and as it is on disk.
        let journal = folder.join("0.jnl");
        let mut bytes = std::fs::read(&journal).unwrap();
        let found = bytes.windows(14).position(|found| found == b"needlehaystack").unwrap();
        bytes[found - 4] ^= 1;
        std::fs::write(&journal, bytes).unwrap();
        let refused = open(&folder, &["r1"], TabletOptions::default()).err().unwrap().to_string();
        assert!(refused.contains(&folder.display().to_string()) && refused.contains("damaged"), "{refused}");
    }

    #[test]
    fn a_tablet_that_lost_a_part_is_refused_by_name() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("tablets");
        let made = || {
            let database = open_database(&folder)?;
            let path: Arc<Path> = folder.as_path().into();
            LsmStore::open(&path, &database, "r1", STORE_MEMTABLE_BYTES_MIN, STORE_UNWRITTEN_BYTES_MAX)
        };
        let store = made().unwrap();
        for space in [&store.undecided, &store.versions, &store.wal] {
            space.insert("key", "value").unwrap();
        }
        store.sync().unwrap();
        drop(store);
        std::fs::remove_file(folder.join("keyspaces/2/current")).unwrap();
        for _ in 0..2 {
            let refused = made().err().unwrap().to_string();
            assert!(refused.contains("tablet r1 has lost its keyspaces [\"versions\"]"), "{refused}");
        }
    }
}
