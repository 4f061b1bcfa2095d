//! The data folder, and the reserve in it that lets recovery start on a full disk.

use super::Failure;
use crate::limits::RESERVE_BYTES;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// An open data folder.
pub(super) struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// Makes the folder, and frees the reserve: whatever recovery needs to write has room even when the disk filled up.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let folder = Self { path: path.to_owned() };
        fs::create_dir_all(path).map_err(|error| folder.failed("cannot be made", &error))?;
        match fs::remove_file(folder.path.join("reserve")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(folder.failed("holds a reserve file that cannot be removed", &error))
            }
            _ => Ok(folder),
        }
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Failure {
        Failure::Failed(format!("data_dir {} {what}: {error}", self.path.display()))
    }

    /// Puts the reserve back, as far as there is room: a daemon runs without one, and says so.
    pub(super) fn reserve(&self) {
        let file = self.path.join("reserve");
        let written = fs::File::create(&file).and_then(|mut reserve| {
            let block = vec![0_u8; 1 << 20];
            (0..RESERVE_BYTES / block.len()).try_for_each(|_| reserve.write_all(&block))?;
            reserve.sync_data()
        });
        if let Err(error) = written {
            let _ = fs::remove_file(&file);
            tracing::warn!(folder = %self.path.display(), %error, "no room for the reserve file: free some before the disk is full");
        }
    }

    /// Adds to a storage failure what an operator needs: a full disk is named with its folder.
    pub(super) fn explain(&self, cause: &str) -> String {
        if cause.contains("No space left") || cause.contains("os error 28") {
            return format!(
                "{cause}; no space is left in {}: free some and start again, nothing is lost (a reserve of {} MiB lets recovery begin)",
                self.path.display(),
                RESERVE_BYTES >> 20
            );
        }
        cause.to_owned()
    }
}
