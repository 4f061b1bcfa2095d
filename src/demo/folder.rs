//! Where the demo keeps its log and its tablets.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A folder that is this demo's alone; a temporary one goes with it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    kept: bool,
}

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The source universe lives in memory, so a replica of an earlier one has nothing to go on from.
    #[error("{0} is not empty, and the source of an earlier demo is gone with its process: name a new folder")]
    NotEmpty(PathBuf),
    /// It cannot be made or read.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

impl Folder {
    /// The named folder, made if it is not there, or a temporary one.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn open(named: Option<&Path>) -> Result<Self, FolderError> {
        let path = named.map_or_else(temporary, Path::to_owned);
        let entries = std::fs::create_dir_all(&path).and_then(|()| std::fs::read_dir(&path));
        match entries.map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(Self { path, kept: named.is_some() }),
            Ok(false) => Err(FolderError::NotEmpty(path)),
            Err(error) => Err(FolderError::Io(path, error)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "the demo's folder stays behind");
        }
    }
}

fn temporary() -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    std::env::temp_dir().join(format!("untorn-demo-{}-{}", std::process::id(), now.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_goes_with_its_demo_and_a_named_one_stays() {
        let temporary = Folder::open(None).unwrap();
        let path = temporary.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(temporary);
        assert!(!path.exists());

        let home = tempfile::tempdir().unwrap();
        let named = home.path().join("demo");
        drop(Folder::open(Some(&named)).unwrap());
        assert!(named.exists());
        std::fs::write(named.join("file"), "x").unwrap();
        assert!(matches!(Folder::open(Some(&named)), Err(FolderError::NotEmpty(_))));
    }
}
