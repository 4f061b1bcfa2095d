//! One owner at a time for a folder: a locked file that says who.

use super::LogError;
use crate::limits::OWNER_WAIT_MS;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Creates a folder, and makes its name durable.
pub(super) fn create_durably(dir: &Path) -> std::io::Result<()> {
    if !dir.as_os_str().is_empty() {
        std::fs::create_dir_all(dir)?;
    }
    let dir = std::fs::canonicalize(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?;
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

const FILE: &str = "owner";
const RETRY: Duration = Duration::from_millis(20);

/// The lock on a folder, held until it is dropped or the process ends.
pub(super) struct Owner(#[expect(dead_code, reason = "holding the file holds the lock")] File);

impl Owner {
    /// Takes the folder, waiting a moment for an owner that is going away.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] naming who holds it; [`LogError::Poisoned`] when the file cannot be written.
    pub(super) fn take(dir: &Path, owner: &str) -> Result<Self, LogError> {
        let path = dir.join(FILE);
        let io = |e: std::io::Error| LogError::Poisoned(format!("{}: {e}", path.display()));
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(io)?;
        let patience = Instant::now() + Duration::from_millis(OWNER_WAIT_MS);
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < patience => std::thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder).map_err(io)?;
                    return Err(LogError::Unavailable(format!(
                        "{} is in use by {}; stop it, or use another folder",
                        dir.display(),
                        holder.trim()
                    )));
                }
                Err(TryLockError::Error(e)) => return Err(io(e)),
            }
        }
        file.set_len(0).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        writeln!(file, "{owner} (process {})", std::process::id()).map_err(io)?;
        Ok(Self(file))
    }
}
