//! The rules that every engine keeps, over the few numbers that they need. An engine loads its [`Head`], asks it, and
//! stores what it allowed: so the engines cannot differ in what they refuse.

use super::{LogError, LogRecord};
use crate::planted::{Bug, planted};
use crate::wal::{Epoch, LogPosition};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Where a log stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    /// The log's own id.
    pub(super) log_id: String,
    /// The highest epoch given out; 0 before the first open.
    pub(super) epoch: Epoch,
    /// The last entry's position.
    pub(super) last: LogPosition,
    /// Entries at or below it are gone.
    pub(super) trimmed: LogPosition,
    /// The newest snapshot's position.
    pub(super) snapshot: Option<LogPosition>,
}

impl Head {
    /// A new log, with an id that no other log has.
    pub(super) fn create() -> Self {
        Self {
            log_id: format!("{:032x}", SmallRng::from_os_rng().random::<u128>()),
            epoch: Epoch(0),
            last: LogPosition(0),
            trimmed: LogPosition(0),
            snapshot: None,
        }
    }

    /// An epoch is good only if it is the highest that was given out (C7).
    pub(super) fn admit(&self, epoch: Epoch) -> Result<(), LogError> {
        if epoch == self.epoch { Ok(()) } else { Err(LogError::Fenced { held: self.epoch }) }
    }

    pub(super) fn admit_append(&self, expected: LogPosition, epoch: Epoch) -> Result<(), LogError> {
        if planted(Bug::LogTakesAnyAppend) {
            return Ok(());
        }
        self.admit(epoch)?;
        if expected == self.last.next() { Ok(()) } else { Err(self.conflict(expected)) }
    }

    /// The first position to read. 0 stands before the first entry, so it reads like 1.
    pub(super) fn admit_read(&self, from: LogPosition) -> Result<LogPosition, LogError> {
        let from = from.max(LogPosition(1));
        if from > self.trimmed { Ok(from) } else { Err(self.conflict(from)) }
    }

    /// A snapshot never goes back: entries below the one before may be trimmed, and their state would be lost.
    pub(super) fn admit_snapshot(&self, epoch: Epoch, position: LogPosition) -> Result<(), LogError> {
        self.admit(epoch)?;
        let held = self.snapshot.unwrap_or(LogPosition(0));
        if position >= held && position <= self.last { Ok(()) } else { Err(self.conflict(position)) }
    }

    /// Whether a trim has anything to do.
    pub(super) fn admit_trim(&self, epoch: Epoch, up_to: LogPosition) -> Result<bool, LogError> {
        self.admit(epoch)?;
        if up_to <= self.trimmed {
            return Ok(false);
        }
        if self.snapshot.is_some_and(|held| up_to <= held) { Ok(true) } else { Err(self.conflict(up_to)) }
    }

    fn conflict(&self, expected: LogPosition) -> LogError {
        LogError::Conflict { expected, next: self.last.next() }
    }
}

/// A page of entries: at least one, then as many as fit.
pub(super) struct Page {
    records: Vec<LogRecord>,
    room: usize,
}

impl Page {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { records: Vec::new(), room: max_bytes }
    }

    /// Adds an entry; answers whether there is room for more.
    pub(super) fn push(&mut self, record: LogRecord) -> bool {
        self.room = self.room.saturating_sub(record.entry.len());
        self.records.push(record);
        self.room > 0
    }

    pub(super) fn into_records(self) -> Vec<LogRecord> {
        self.records
    }
}
