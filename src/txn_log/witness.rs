//! A second word on how far a log has come.
//!
//! sled and SQLite both take the first damaged record of their own journal for the torn end of it, and silently drop
//! everything behind: one flipped bit, and acknowledged entries are gone without a word. So after each durable change
//! the engine notes beside its data how far the log is. The note is not synced, because any older one is true as well;
//! a log that is found to be short of it is damaged.

use super::LogError;
use super::head::Head;
use crate::wal::codec::{self, CodecError};
use crate::wal::{Epoch, LogPosition};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const FORMAT_VERSION: u8 = 1;
/// Two notes, written in turn, each in a disk sector of its own: a torn one leaves the other.
const SECTOR: usize = 512;

/// What the log has had for certain.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Note {
    log_id: String,
    epoch: Epoch,
    last: LogPosition,
    snapshot: Option<LogPosition>,
}

/// The file of notes.
pub(super) struct Witness {
    path: PathBuf,
    file: File,
    held: Option<Note>,
    turn: u64,
}

impl Witness {
    /// Opens the notes, or begins them.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when neither note can be read; [`LogError::Poisoned`].
    pub(super) fn open(path: PathBuf) -> Result<Self, LogError> {
        let read = || -> std::io::Result<(File, Vec<u8>)> {
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            let bytes = std::fs::read(&path)?;
            Ok((file, bytes))
        };
        let (file, bytes) = read().map_err(|e| poisoned(&path, &e))?;
        let notes: Vec<_> =
            bytes.chunks(SECTOR).filter(|note| note.iter().any(|byte| *byte != 0)).map(decode).collect();
        if !notes.is_empty() && notes.iter().all(Result::is_err) {
            return Err(LogError::Damaged(format!("{}: neither of its notes can be read: {notes:?}", path.display())));
        }
        let held = notes.into_iter().flatten().max_by_key(|note| (note.last, note.epoch, note.snapshot));
        Ok(Self { path, file, held, turn: 0 })
    }

    /// Refuses a log that is short of what it has had, or that is another log.
    ///
    /// # Errors
    /// [`LogError::Damaged`].
    pub(super) fn check(&self, head: &Head) -> Result<(), LogError> {
        let Some(held) = &self.held else { return Ok(()) };
        if held.log_id == head.log_id
            && held.epoch <= head.epoch
            && held.last <= head.last
            && held.snapshot <= head.snapshot
        {
            return Ok(());
        }
        Err(LogError::Damaged(format!(
            "what was acknowledged is missing: log {} ends at {} with {} and snapshot {:?}, and was at least at {held:?}; \
             bring back the lost data, or, if an older copy was put here on purpose, remove {}",
            head.log_id,
            head.last,
            head.epoch,
            head.snapshot,
            self.path.display()
        )))
    }

    /// Notes what is durable by now.
    ///
    /// # Errors
    /// [`LogError::Poisoned`].
    pub(super) fn note(&mut self, head: &Head) -> Result<(), LogError> {
        let note = Note { log_id: head.log_id.clone(), epoch: head.epoch, last: head.last, snapshot: head.snapshot };
        let mut bytes = encode(&note).map_err(|e| poisoned(&self.path, &e))?;
        bytes.resize(SECTOR, 0);
        self.turn += 1;
        self.file.write_all_at(&bytes, self.turn % 2 * SECTOR as u64).map_err(|e| poisoned(&self.path, &e))
    }
}

/// The note's length stands before it, because a sector is longer.
fn encode(note: &Note) -> Result<Vec<u8>, CodecError> {
    let note = codec::encode(FORMAT_VERSION, note)?;
    let length = u16::try_from(note.len()).map_err(|e| CodecError::Damaged(e.to_string()))?;
    Ok([&length.to_le_bytes()[..], &note].concat())
}

fn decode(sector: &[u8]) -> Result<Note, CodecError> {
    let short = || CodecError::Damaged("too short".into());
    let (length, note) = sector.split_first_chunk::<2>().ok_or_else(short)?;
    codec::decode(FORMAT_VERSION, note.get(..usize::from(u16::from_le_bytes(*length))).ok_or_else(short)?)
}

fn poisoned(path: &Path, error: &dyn std::fmt::Display) -> LogError {
    LogError::Poisoned(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(last: u64) -> Head {
        Head { log_id: "id".into(), last: LogPosition(last), epoch: Epoch(3), ..Head::create() }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let note = Note { log_id: "id".into(), epoch: Epoch(3), last: LogPosition(300), snapshot: None };
        let mut bytes = encode(&note).unwrap();
        bytes[2] = FORMAT_VERSION + 1;
        assert_eq!(decode(&bytes).unwrap_err(), CodecError::Newer { found: 2, known: 1 });
    }

    #[test]
    fn golden_bytes() {
        let note = Note { log_id: "id".into(), epoch: Epoch(3), last: LogPosition(300), snapshot: None };
        assert_eq!(encode(&note).unwrap(), [12, 0, 1, 169, 40, 191, 141, 2, 105, 100, 3, 172, 2, 0]);
    }

    #[test]
    fn a_log_that_is_short_of_the_note_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("witness");
        let mut witness = Witness::open(path.clone()).unwrap();
        witness.check(&head(0)).unwrap();
        for last in 1..=5 {
            witness.note(&head(last)).unwrap();
        }
        let witness = Witness::open(path.clone()).unwrap();
        witness.check(&head(5)).unwrap();
        witness.check(&head(9)).unwrap();
        assert!(matches!(witness.check(&head(4)), Err(LogError::Damaged(_))));
        assert!(matches!(witness.check(&Head { epoch: Epoch(2), ..head(5) }), Err(LogError::Damaged(_))));
        assert!(matches!(witness.check(&Head { log_id: "another".into(), ..head(5) }), Err(LogError::Damaged(_))));

        // One torn note leaves the other, and two are damage.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[7; 20], 0).unwrap();
        Witness::open(path.clone()).unwrap().check(&head(5)).unwrap();
        file.write_all_at(&[7; 20], SECTOR as u64).unwrap();
        assert!(matches!(Witness::open(path), Err(LogError::Damaged(_))));
    }
}
