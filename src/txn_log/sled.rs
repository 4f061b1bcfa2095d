//! The sled engine: the embedded default, for one process at a time.
//!
//! **The barrier.** sled's `flush` waits for its writes with `sync_file_range`, which syncs neither the file's metadata
//! nor the disk's cache, and a power cut then takes acknowledged entries away. So one `fdatasync` of its `db` file
//! follows every flush, and at open every file and folder is synced once. sled puts large pages into files that it
//! never syncs, so every value is at most [`SLED_VALUE_BYTES`], and long ones are cut into parts.
//!
//! **What stands where.** All values carry a version byte and a checksum ([`codec`]).
//!
//! | key | value |
//! |---|---|
//! | `h` | the log's id and the highest epoch |
//! | `t` | the last position trimmed |
//! | `p` | the newest snapshot: its number, position, parts |
//! | `e`, position, part | one part of an entry |
//! | `s`, number, part | one part of a snapshot |
//!
//! sled recovers a prefix of what was written, in order. So parts are written first and what makes them count comes
//! last: part 0 of an entry, the `p` of a snapshot. sled's own batches are not used: a batch above its segment size
//! waits for itself for ever.

use super::handle::Handle;
use super::head::{Head, Page};
use super::owner::{Owner, create_durably};
use super::witness::Witness;
use super::{LogError, LogRecord, Opened, Snapshot, TransactionLog};
use crate::limits::{OWNER_WAIT_MS, SLED_CACHE_BYTES, SLED_UNSYNCED_BYTES, SLED_VALUE_BYTES};
use crate::wal::codec::{self, CodecError};
use crate::wal::{Epoch, LogPosition};
use ::sled::{Db, IVec};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The version byte of every value.
const FORMAT_VERSION: u8 = 1;
const HEAD: &[u8] = b"h";
const TRIMMED: &[u8] = b"t";
const SNAPSHOT: &[u8] = b"p";
const ENTRIES: u8 = b'e';
const STATES: u8 = b's';

#[derive(Serialize, Deserialize)]
struct HeadRecord {
    log_id: String,
    epoch: Epoch,
}

#[derive(Clone, Serialize, Deserialize)]
struct SnapshotRecord {
    number: u64,
    position: LogPosition,
    parts: u32,
}

/// One part of an entry: whose it is, how many parts the entry has, and its share of the bytes.
#[derive(Serialize, Deserialize)]
struct EntryRecord {
    epoch: Epoch,
    parts: u32,
    bytes: Bytes,
}

/// A log in a sled database.
pub struct SledLog {
    dir: PathBuf,
    handle: Handle<Store>,
}

impl SledLog {
    /// A log in this folder, which belongs to it alone. Nothing is touched before `open`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), handle: Handle::Closed }
    }
}

struct Store {
    dir: PathBuf,
    head: Head,
    snapshot: Option<SnapshotRecord>,
    /// Bytes written since the last barrier.
    unsynced: usize,
    witness: Witness,
    db: Db,
    /// sled's data file, for the barrier.
    file: File,
    /// Dropped last, when sled has let go of the folder.
    _owner: Owner,
}

impl Store {
    fn open(dir: &Path, owner: &str) -> Result<Self, LogError> {
        create_durably(dir).map_err(|e| poisoned(dir, &e))?;
        let owner = Owner::take(dir, owner)?;
        // sled takes an unfinished snapshot of its own for a whole one, and then cannot open.
        for entry in fs::read_dir(dir).map_err(|e| poisoned(dir, &e))? {
            let path = entry.map_err(|e| poisoned(dir, &e))?.path();
            if path.extension().is_some_and(|extension| extension == "generating") {
                fs::remove_file(&path).map_err(|e| poisoned(dir, &e))?;
            }
        }
        let witness = Witness::open(dir.join("witness"))?;
        let db = open_sled(dir)?;
        let file = File::open(dir.join("db")).map_err(|e| poisoned(dir, &e))?;
        Ok(Self {
            dir: dir.into(),
            head: Head::create(),
            snapshot: None,
            unsynced: 0,
            witness,
            db,
            file,
            _owner: owner,
        })
    }

    fn recover(&mut self) -> Result<(), LogError> {
        self.load()?;
        self.barrier()?;
        sync_tree(&self.dir).map_err(|e| poisoned(&self.dir, &e))
    }

    /// Reads what is held and checks every byte of it: a torn tail is cut, anything else that is not whole is refused.
    fn load(&mut self) -> Result<(), LogError> {
        match self.get::<HeadRecord>(HEAD)? {
            Some(held) => (self.head.log_id, self.head.epoch) = (held.log_id, held.epoch),
            // The very first value is missing: then there must be nothing at all.
            None if !self.db.is_empty() => return Err(self.damaged("its head is missing")),
            None => {}
        }
        self.head.trimmed = self.get(TRIMMED)?.unwrap_or(LogPosition(0));
        self.snapshot = self.get(SNAPSHOT)?;
        self.head.snapshot = self.snapshot.as_ref().map(|held| held.position);
        let torn = self.check_entries()?;
        if let Some(held) = self.head.snapshot.max(Some(self.head.trimmed)).filter(|held| *held > self.head.last) {
            return Err(self.damaged(&format!("its last entry is {}, but it has been at {held}", self.head.last)));
        }
        self.read_state()?;
        self.witness.check(&self.head)?;

        // All is well. What a stop left half done is done now.
        self.remove_entries(LogPosition(0), self.head.trimmed)?;
        if let Some(torn) = torn {
            self.remove_entries(torn, torn)?;
        }
        let number = self.snapshot.as_ref().map_or(0, |held| held.number);
        self.remove_states(|state| state != number)
    }

    /// Finds the last entry; answers the position of a torn one behind it.
    fn check_entries(&mut self) -> Result<Option<LogPosition>, LogError> {
        self.head.last = self.head.trimmed;
        let Some((last, _)) = self.db.scan_prefix([ENTRIES]).next_back().transpose().map_err(|e| self.failed(&e))?
        else {
            return Ok(None);
        };
        let last = entry_position(&last).ok_or_else(|| self.damaged("a key is not an entry's"))?;
        while self.head.last < last {
            let position = self.head.last.next();
            if self.get_entry(position)?.is_some() {
                self.head.last = position;
            } else if position == last {
                // Not all of its parts were written before the process or the machine stopped, so it was never
                // acknowledged.
                return Ok(Some(position));
            } else {
                return Err(self.damaged(&format!("entry {position} is missing, and there are entries up to {last}")));
            }
        }
        Ok(None)
    }

    fn take_over(&mut self) -> Result<Opened, LogError> {
        let epoch = Epoch(self.head.epoch.0 + 1);
        self.put(HEAD, &HeadRecord { log_id: self.head.log_id.clone(), epoch })?;
        self.barrier()?;
        self.head.epoch = epoch;
        self.witness.note(&self.head)?;
        Ok(Opened { epoch, log_id: self.head.log_id.clone(), last: self.head.last })
    }

    fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: &Bytes) -> Result<LogPosition, LogError> {
        self.head.admit_append(expected, epoch)?;
        let parts = parts_of(entry);
        for (part, bytes) in cut(entry).rev() {
            self.put(&key(ENTRIES, expected.0, part), &EntryRecord { epoch, parts, bytes })?;
        }
        self.barrier()?;
        self.head.last = expected;
        self.witness.note(&self.head)?;
        Ok(expected)
    }

    fn read(&self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        let mut position = self.head.admit_read(from)?;
        let mut page = Page::new(max_bytes);
        while position <= self.head.last {
            let record = self.get_entry(position)?;
            let record = record.ok_or_else(|| self.damaged(&format!("entry {position} is missing")))?;
            if !page.push(record) {
                break;
            }
            position = position.next();
        }
        Ok(page.into_records())
    }

    fn write_snapshot(&mut self, epoch: Epoch, snapshot: &Snapshot) -> Result<(), LogError> {
        self.head.admit_snapshot(epoch, snapshot.position)?;
        let number = self.snapshot.as_ref().map_or(1, |held| held.number + 1);
        for (part, bytes) in cut(&snapshot.state) {
            self.put(&key(STATES, number, part), &bytes)?;
        }
        // The parts before what makes them count, and that before the removal of the former: so at every moment one
        // whole snapshot is durable.
        self.barrier()?;
        let held = SnapshotRecord { number, position: snapshot.position, parts: parts_of(&snapshot.state) };
        self.put(SNAPSHOT, &held)?;
        self.barrier()?;
        self.snapshot = Some(held);
        self.head.snapshot = Some(snapshot.position);
        self.witness.note(&self.head)?;
        self.remove_states(|state| state != number)
    }

    fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        if self.head.admit_trim(epoch, up_to)? {
            self.put(TRIMMED, &up_to)?;
            self.barrier()?;
            let from = std::mem::replace(&mut self.head.trimmed, up_to);
            self.remove_entries(from.next(), up_to)?;
        }
        Ok(())
    }

    /// The newest snapshot's state, with its position.
    fn read_state(&self) -> Result<Option<Snapshot>, LogError> {
        let Some(held) = &self.snapshot else { return Ok(None) };
        let mut state = BytesMut::new();
        for part in 0..held.parts {
            let bytes: Option<Bytes> = self.get(&key(STATES, held.number, part))?;
            let bytes = bytes.ok_or_else(|| self.damaged(&format!("part {part} of its snapshot is missing")))?;
            state.extend_from_slice(&bytes);
        }
        Ok(Some(Snapshot { position: held.position, state: state.freeze() }))
    }

    /// One entry, or `None` when not all of it is there.
    fn get_entry(&self, position: LogPosition) -> Result<Option<LogRecord>, LogError> {
        let Some(first) = self.get::<EntryRecord>(&key(ENTRIES, position.0, 0))? else { return Ok(None) };
        if first.parts == 1 {
            return Ok(Some(LogRecord { position, epoch: first.epoch, entry: first.bytes }));
        }
        let mut entry = BytesMut::from(first.bytes);
        for part in 1..first.parts {
            let Some(next) = self.get::<EntryRecord>(&key(ENTRIES, position.0, part))? else { return Ok(None) };
            if (next.epoch, next.parts) != (first.epoch, first.parts) {
                return Err(self.damaged(&format!("the parts of entry {position} do not belong together")));
            }
            entry.extend_from_slice(&next.bytes);
        }
        Ok(Some(LogRecord { position, epoch: first.epoch, entry: entry.freeze() }))
    }

    fn remove_entries(&mut self, from: LogPosition, up_to: LogPosition) -> Result<(), LogError> {
        let range = key(ENTRIES, from.0, 0)..=key(ENTRIES, up_to.0, u32::MAX);
        for held in self.db.range(range).keys() {
            let held = held.map_err(|e| self.failed(&e))?;
            self.remove(&held)?;
        }
        Ok(())
    }

    fn remove_states(&mut self, number: impl Fn(u64) -> bool) -> Result<(), LogError> {
        for held in self.db.scan_prefix([STATES]).keys() {
            let held = held.map_err(|e| self.failed(&e))?;
            let state = entry_position(&held).ok_or_else(|| self.damaged("a key is not a snapshot's"))?;
            if number(state.0) {
                self.remove(&held)?;
            }
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, LogError> {
        let Some(value) = self.db.get(key).map_err(|e| self.failed(&e))? else { return Ok(None) };
        match codec::decode(FORMAT_VERSION, &value) {
            Ok(value) => Ok(Some(value)),
            Err(e) => Err(self.damaged(&format!("the value of key {}: {e}", key.escape_ascii()))),
        }
    }

    fn put<T: Serialize>(&mut self, key: &[u8], value: &T) -> Result<(), LogError> {
        let value = codec::encode(FORMAT_VERSION, value).map_err(|e: CodecError| self.damaged(&e.to_string()))?;
        self.written(value.len())?;
        self.db.insert(key, value).map(drop).map_err(|e| self.failed(&e))
    }

    fn remove(&mut self, key: &IVec) -> Result<(), LogError> {
        // The page is written again without it.
        self.written(SLED_VALUE_BYTES)?;
        self.db.remove(key).map(drop).map_err(|e| self.failed(&e))
    }

    fn written(&mut self, bytes: usize) -> Result<(), LogError> {
        self.unsynced += bytes;
        if self.unsynced > SLED_UNSYNCED_BYTES { self.barrier() } else { Ok(()) }
    }

    /// Everything written so far is durable when this returns.
    fn barrier(&mut self) -> Result<(), LogError> {
        self.db.flush().map_err(|e| self.failed(&e))?;
        self.file.sync_data().map_err(|e| poisoned(&self.dir, &e))?;
        self.unsynced = 0;
        Ok(())
    }

    fn damaged(&self, what: &str) -> LogError {
        LogError::Damaged(format!("{}: {what}", self.dir.display()))
    }

    fn failed(&self, error: &::sled::Error) -> LogError {
        sled_error(&self.dir, error)
    }
}

fn sled_error(dir: &Path, error: &::sled::Error) -> LogError {
    match error {
        ::sled::Error::Corruption { .. } | ::sled::Error::Unsupported(_) => {
            LogError::Damaged(format!("{}: {error}", dir.display()))
        }
        other => poisoned(dir, other),
    }
}

fn poisoned(dir: &Path, error: &dyn std::fmt::Display) -> LogError {
    LogError::Poisoned(format!("{}: {error}", dir.display()))
}

fn open_sled(dir: &Path) -> Result<Db, LogError> {
    let patience = Instant::now() + Duration::from_millis(OWNER_WAIT_MS);
    let config = ::sled::Config::new()
        .path(dir)
        .mode(::sled::Mode::LowSpace)
        .cache_capacity(SLED_CACHE_BYTES)
        // Nothing is written behind the engine's back: every write is followed by a barrier of its own.
        .flush_every_ms(None);
    loop {
        // sled gives up its own lock a moment after it was dropped, when its last thread has ended.
        match config.open() {
            Err(::sled::Error::Io(e)) if e.to_string().contains("acquire lock") => {
                if Instant::now() > patience {
                    return Err(LogError::Unavailable(format!("{}: {e}", dir.display())));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other.map_err(|e| sled_error(dir, &e)),
        }
    }
}

/// Syncs a folder and everything in it.
fn sync_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { sync_tree(&entry.path())? } else { File::open(entry.path())?.sync_all()? }
    }
    File::open(dir)?.sync_all()
}

fn key(kind: u8, number: u64, part: u32) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend(number.to_be_bytes());
    key.extend(part.to_be_bytes());
    key
}

fn entry_position(key: &[u8]) -> Option<LogPosition> {
    Some(LogPosition(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?)))
}

/// An empty entry has one part, too: it is that part which says that the entry is there.
fn parts_of(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len().div_ceil(SLED_VALUE_BYTES).max(1)).unwrap_or(u32::MAX)
}

fn cut(bytes: &Bytes) -> impl DoubleEndedIterator<Item = (u32, Bytes)> {
    (0..parts_of(bytes)).map(|part| {
        let from = part as usize * SLED_VALUE_BYTES;
        (part, bytes.slice(from..bytes.len().min(from + SLED_VALUE_BYTES)))
    })
}

/// Runs a call on sled, which panics where it cannot make sense of its own pages.
fn caught<T>(dir: &Path, call: impl FnOnce() -> Result<T, LogError>) -> Result<T, LogError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(LogError::Damaged(format!("{}: sled cannot read its own data", dir.display()))))
}

#[async_trait]
impl TransactionLog for SledLog {
    async fn open(&mut self, owner: &str) -> Result<Opened, LogError> {
        let dir = &self.dir;
        self.handle.open_with(
            || caught(dir, || Store::open(dir, owner)),
            |store| caught(dir, || store.recover()),
            Store::take_over,
        )
    }

    async fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError> {
        self.handle.call(|store| store.append(expected, epoch, &entry))
    }

    async fn read(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        self.handle.call(|store| store.read(from, max_bytes))
    }

    async fn write_snapshot(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(), LogError> {
        self.handle.call(|store| store.write_snapshot(epoch, &snapshot))
    }

    async fn read_snapshot(&mut self) -> Result<Option<Snapshot>, LogError> {
        self.handle.call(|store| store.read_state())
    }

    async fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        self.handle.call(|store| store.trim(epoch, up_to))
    }
}

#[cfg(test)]
mod tests;
