//! Which engine keeps the log.

use super::{LogError, MemoryLog, SledLog, SqliteLog, TransactionLog};
use std::path::PathBuf;

/// An engine and where it keeps its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EngineConfig {
    /// In this process, gone with it.
    Memory,
    /// sled, the embedded default: one owner at a time.
    Sled {
        /// A folder of its own.
        dir: PathBuf,
    },
    /// SQLite: several processes of one machine may open it, and the newest fences the others.
    Sqlite {
        /// The database file; SQLite puts two more beside it.
        file: PathBuf,
    },
}

/// The engine that a configuration names. Nothing is touched before [`TransactionLog::open`].
///
/// # Errors
/// None of today's engines can fail here; one that needs a valid address may.
pub fn engine(config: EngineConfig) -> Result<Box<dyn TransactionLog>, LogError> {
    Ok(match config {
        EngineConfig::Memory => Box::new(MemoryLog::default()),
        EngineConfig::Sled { dir } => Box::new(SledLog::new(dir)),
        EngineConfig::Sqlite { file } => Box::new(SqliteLog::new(file)),
    })
}
