//! The SQLite engine: one file, which several processes of one machine may open; the newest fences the others.
//!
//! WAL mode with `synchronous=FULL`: a commit returns once its frames are synced, and readers see only what is synced.
//! Every call that writes takes the write lock first (`BEGIN IMMEDIATE`) and reads the epoch inside it. All values carry a
//! version byte and a checksum ([`codec`]), which SQLite's pages lack.

use super::handle::Handle;
use super::head::{Head, Page};
use super::owner::create_durably;
use super::witness::Witness;
use super::{LogError, LogRecord, Opened, Snapshot, TransactionLog};
use crate::limits::{OWNER_WAIT_MS, SQLITE_ROW_BYTES, SQLITE_WAL_BYTES};
use crate::wal::codec;
use crate::wal::{Epoch, LogPosition};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `unto`: what SQLite's header says of a transaction log.
const APPLICATION_ID: i32 = 0x756e_746f;
/// The version byte of every value, and SQLite's `user_version`.
const FORMAT_VERSION: u8 = 1;

const SCHEMA: &str = "
    CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL) STRICT;
    CREATE TABLE entry (position INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT;
    CREATE TABLE state (part INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT;
";

/// Everything but the last position, which is that of the last row.
#[derive(Serialize, Deserialize)]
struct HeadRecord {
    log_id: String,
    epoch: Epoch,
    trimmed: LogPosition,
    snapshot: Option<LogPosition>,
}

#[derive(Serialize, Deserialize)]
struct EntryRecord {
    epoch: Epoch,
    bytes: Bytes,
}

/// One part of a snapshot, and how many there are.
#[derive(Serialize, Deserialize)]
struct StateRecord {
    parts: u32,
    bytes: Bytes,
}

/// A log in a SQLite database.
pub struct SqliteLog {
    file: PathBuf,
    handle: Handle<Store>,
}

impl SqliteLog {
    /// A log in this file. Nothing is touched before `open`.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), handle: Handle::Closed }
    }
}

struct Store {
    file: PathBuf,
    witness: Witness,
    connection: Connection,
}

impl Store {
    fn open(file: &Path) -> Result<Self, LogError> {
        if let Some(dir) = file.parent() {
            create_durably(dir).map_err(|e| LogError::Poisoned(format!("{}: {e}", dir.display())))?;
        }
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(file)?;
            connection.busy_timeout(Duration::from_millis(OWNER_WAIT_MS))?;
            Ok(connection)
        };
        let witness = Witness::open(file.with_added_extension("witness"))?;
        Ok(Self { file: file.into(), witness, connection: open().map_err(|e| failed(file, &e))? })
    }

    fn recover(&mut self) -> Result<(), LogError> {
        self.prepare()?;
        self.check()
    }

    /// Checks that the file is a log before anything is changed in it, or makes it one.
    fn prepare(&mut self) -> Result<(), LogError> {
        let file = self.file.clone();
        let failed = |e: rusqlite::Error| failed(&file, &e);
        let c = &mut self.connection;
        let known = |c: &Connection| -> rusqlite::Result<(i32, i32, i64)> {
            Ok((
                c.pragma_query_value(None, "application_id", |row| row.get(0))?,
                c.pragma_query_value(None, "user_version", |row| row.get(0))?,
                c.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
            ))
        };
        if known(c).map_err(failed)? == (0, 0, 0) {
            // Only a database without tables takes this setting.
            c.pragma_update(None, "auto_vacuum", "FULL").map_err(failed)?;
        }
        let t = c.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        match known(&t).map_err(failed)? {
            (0, 0, 0) => {
                t.execute_batch(SCHEMA).map_err(failed)?;
                t.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
                t.pragma_update(None, "user_version", FORMAT_VERSION).map_err(failed)?;
                put_head(&t, &Head::create()).map_err(|e| e.at(&file))?;
            }
            (APPLICATION_ID, version, _) if version == i32::from(FORMAT_VERSION) => {}
            (APPLICATION_ID, version, _) => {
                return Err(LogError::Damaged(format!(
                    "{}: format version {version} is not {FORMAT_VERSION}, which this untorn reads; run the other one",
                    file.display()
                )));
            }
            _ => {
                return Err(LogError::Damaged(format!(
                    "{} is a SQLite database, but not a transaction log; name another file",
                    file.display()
                )));
            }
        }
        t.commit().map_err(failed)?;
        c.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        c.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        c.pragma_update(None, "journal_size_limit", SQLITE_WAL_BYTES).map_err(failed)
    }

    /// Runs one call under the write lock, and commits what it did, and the head that it leaves, unless it failed.
    fn write<T>(
        &mut self,
        call: impl FnOnce(&Transaction<'_>, &mut Head) -> Result<T, Failure>,
    ) -> Result<T, LogError> {
        let connection = &mut self.connection;
        let run = || -> Result<(T, Head), Failure> {
            let t = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut head = get_head(&t)?;
            let answer = call(&t, &mut head)?;
            t.commit()?;
            Ok((answer, head))
        };
        let (answer, head) = run().map_err(|e| e.at(&self.file))?;
        self.witness.note(&head)?;
        Ok(answer)
    }

    /// Runs one call over one state of the log.
    fn read<T>(&mut self, call: impl FnOnce(&Transaction<'_>, Head) -> Result<T, Failure>) -> Result<T, LogError> {
        let file = self.file.clone();
        let run = || -> Result<T, Failure> {
            let t = self.connection.transaction()?;
            let head = get_head(&t)?;
            call(&t, head)
        };
        run().map_err(|e| e.at(&file))
    }

    /// Every position, every checksum, and that nothing is missing, once for each time the log is opened.
    fn check(&mut self) -> Result<(), LogError> {
        let head = self.read(|t, head| {
            let mut next = head.trimmed.next();
            let mut entries = t.prepare("SELECT position, value FROM entry ORDER BY position")?;
            let mut rows = entries.query([])?;
            while let Some(row) = rows.next()? {
                let position = position_of(row.get(0)?)?;
                if position != next {
                    return Err(Failure::Damaged(format!("entry {next} is missing, and there is entry {position}")));
                }
                decode::<EntryRecord>(row.get_ref(1)?.as_blob()?, &|| format!("entry {position}"))?;
                next = position.next();
            }
            if head.snapshot.is_some_and(|held| held > head.last) {
                return Err(Failure::Damaged(format!("its last entry {} is below its snapshot", head.last)));
            }
            get_state(t, &head)?;
            Ok(head)
        })?;
        self.witness.check(&head)
    }

    fn append(&mut self, expected: LogPosition, epoch: Epoch, bytes: Bytes) -> Result<LogPosition, LogError> {
        self.write(|t, head| {
            head.admit_append(expected, epoch)?;
            let value = encode(&EntryRecord { epoch, bytes })?;
            t.prepare_cached("INSERT INTO entry (position, value) VALUES (?1, ?2)")?
                .execute(params![row_id(expected)?, value])?;
            head.last = expected;
            Ok(expected)
        })
    }

    fn read_page(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        self.read(|t, head| {
            let from = head.admit_read(from)?;
            let mut page = Page::new(max_bytes);
            let mut entries =
                t.prepare_cached("SELECT position, value FROM entry WHERE position >= ?1 ORDER BY position")?;
            let mut rows = entries.query([row_id(from)?])?;
            while let Some(row) = rows.next()? {
                let position = position_of(row.get(0)?)?;
                let held: EntryRecord = decode(row.get_ref(1)?.as_blob()?, &|| format!("entry {position}"))?;
                if !page.push(LogRecord { position, epoch: held.epoch, entry: held.bytes }) {
                    break;
                }
            }
            Ok(page.into_records())
        })
    }

    fn write_snapshot(&mut self, epoch: Epoch, snapshot: &Snapshot) -> Result<(), LogError> {
        self.write(|t, head| {
            head.admit_snapshot(epoch, snapshot.position)?;
            t.execute("DELETE FROM state", [])?;
            let mut insert = t.prepare_cached("INSERT INTO state (part, value) VALUES (?1, ?2)")?;
            // An empty state has one part, too.
            let parts = u32::try_from(snapshot.state.len().div_ceil(SQLITE_ROW_BYTES).max(1)).unwrap_or(u32::MAX);
            for part in 0..parts {
                let from = part as usize * SQLITE_ROW_BYTES;
                let bytes = snapshot.state.slice(from..snapshot.state.len().min(from + SQLITE_ROW_BYTES));
                insert.execute(params![part, encode(&StateRecord { parts, bytes })?])?;
            }
            head.snapshot = Some(snapshot.position);
            put_head(t, head)
        })?;
        self.checkpoint()
    }

    fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        let trimmed = self.write(|t, head| {
            let trims = head.admit_trim(epoch, up_to)?;
            if trims {
                head.trimmed = up_to;
                put_head(t, head)?;
                t.execute("DELETE FROM entry WHERE position <= ?1", [row_id(up_to)?])?;
            }
            Ok(trims)
        })?;
        if trimmed { self.checkpoint() } else { Ok(()) }
    }

    /// Moves what was written into the database file, so that both files stay as small as what they hold. Another
    /// process that reads at this moment only puts it off.
    fn checkpoint(&mut self) -> Result<(), LogError> {
        let busy: i64 = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .map_err(|e| failed(&self.file, &e))?;
        tracing::debug!(busy, "checkpoint");
        Ok(())
    }
}

/// How a call inside a transaction failed; the file's name is added outside.
enum Failure {
    Refused(LogError),
    Damaged(String),
    Sqlite(rusqlite::Error),
}

impl Failure {
    fn at(self, file: &Path) -> LogError {
        match self {
            Self::Refused(error) => error,
            Self::Damaged(what) => LogError::Damaged(format!("{}: {what}", file.display())),
            Self::Sqlite(error) => failed(file, &error),
        }
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<rusqlite::types::FromSqlError> for Failure {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// SQLite never leaves a commit open to doubt but by an I/O error, and that is final.
fn failed(file: &Path, error: &rusqlite::Error) -> LogError {
    let what = format!("{}: {error}", file.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            LogError::Unavailable(format!("{what}; another process holds the file's write lock"))
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => LogError::Damaged(what),
        _ => LogError::Poisoned(what),
    }
}

fn get_head(t: &Transaction<'_>) -> Result<Head, Failure> {
    let value: Option<Vec<u8>> =
        t.prepare_cached("SELECT value FROM head")?.query_row([], |row| row.get(0)).optional()?;
    let value = value.ok_or_else(|| Failure::Damaged("its head is missing".into()))?;
    let held: HeadRecord = decode(&value, &|| "its head".into())?;
    let last: Option<i64> = t.prepare_cached("SELECT max(position) FROM entry")?.query_row([], |row| row.get(0))?;
    let last = last.map_or(Ok(held.trimmed), position_of)?;
    Ok(Head { log_id: held.log_id, epoch: held.epoch, last, trimmed: held.trimmed, snapshot: held.snapshot })
}

fn put_head(t: &Transaction<'_>, head: &Head) -> Result<(), Failure> {
    let record =
        HeadRecord { log_id: head.log_id.clone(), epoch: head.epoch, trimmed: head.trimmed, snapshot: head.snapshot };
    t.execute("INSERT OR REPLACE INTO head (id, value) VALUES (1, ?1)", [encode(&record)?])?;
    Ok(())
}

fn get_state(t: &Transaction<'_>, head: &Head) -> Result<Option<Snapshot>, Failure> {
    let Some(position) = head.snapshot else { return Ok(None) };
    let mut state = BytesMut::new();
    let mut parts = t.prepare_cached("SELECT part, value FROM state ORDER BY part")?;
    let mut rows = parts.query([])?;
    let (mut next, mut parts_said) = (0, 1);
    while let Some(row) = rows.next()? {
        let part: u32 = row.get(0)?;
        let held: StateRecord = decode(row.get_ref(1)?.as_blob()?, &|| format!("part {part} of its snapshot"))?;
        if part != next {
            break;
        }
        (next, parts_said) = (part + 1, held.parts);
        state.extend_from_slice(&held.bytes);
    }
    if next != parts_said {
        return Err(Failure::Damaged(format!("part {next} of its snapshot is missing")));
    }
    Ok(Some(Snapshot { position, state: state.freeze() }))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    codec::encode(FORMAT_VERSION, value).map_err(|e| Failure::Damaged(e.to_string()))
}

fn decode<T: DeserializeOwned>(bytes: &[u8], what: &dyn Fn() -> String) -> Result<T, Failure> {
    codec::decode(FORMAT_VERSION, bytes).map_err(|e| Failure::Damaged(format!("{}: {e}", what())))
}

/// SQLite counts to 2^63; a log does not get there.
fn row_id(position: LogPosition) -> Result<i64, Failure> {
    i64::try_from(position.0)
        .map_err(|_| Failure::Refused(LogError::Damaged(format!("no entry can stand at {position}"))))
}

fn position_of(row_id: i64) -> Result<LogPosition, Failure> {
    u64::try_from(row_id).map(LogPosition).map_err(|_| Failure::Damaged(format!("an entry stands at {row_id}")))
}

#[async_trait]
impl TransactionLog for SqliteLog {
    async fn open(&mut self, _owner: &str) -> Result<Opened, LogError> {
        let file = &self.file;
        self.handle.open_with(
            || Store::open(file),
            Store::recover,
            |store| {
                store.write(|t, head| {
                    head.epoch.0 += 1;
                    put_head(t, head)?;
                    Ok(Opened { epoch: head.epoch, log_id: head.log_id.clone(), last: head.last })
                })
            },
        )
    }

    async fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError> {
        self.handle.call(|store| store.append(expected, epoch, entry))
    }

    async fn read(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        self.handle.call(|store| store.read_page(from, max_bytes))
    }

    async fn write_snapshot(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(), LogError> {
        self.handle.call(|store| store.write_snapshot(epoch, &snapshot))
    }

    async fn read_snapshot(&mut self) -> Result<Option<Snapshot>, LogError> {
        self.handle.call(|store| store.read(|t, head| get_state(t, &head)))
    }

    async fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        self.handle.call(|store| store.trim(epoch, up_to))
    }
}

#[cfg(test)]
mod tests;
