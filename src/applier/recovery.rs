//! Taking a log over: read and fold.

use crate::coordinator::{Coordinator, Entry, Settings};
use crate::limits::ENTRY_BYTES;
use crate::txn_log::{LogError, Opened, TransactionLog};
use crate::wal::LogPosition;
use crate::wal::codec::CodecError;

/// A log that was taken over.
pub(super) struct Recovered {
    /// The machine, with everything folded that the log says.
    pub(super) coordinator: Coordinator,
    /// The epoch, the log's id, and its end.
    pub(super) opened: Opened,
    /// Bytes of the entries behind the snapshot, and of the snapshot: when the next one is due.
    pub(super) bytes: usize,
    /// See `bytes`.
    pub(super) snapshot_bytes: usize,
}

/// Why a log could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log itself.
    #[error("{0}")]
    Log(#[from] LogError),
    /// An entry or snapshot cannot be read.
    #[error("the log cannot be read at {at}: {error}")]
    Codec {
        /// Where.
        at: LogPosition,
        /// Why.
        error: CodecError,
    },
    /// An entry is missing.
    #[error("the log is damaged: it ends at {last}, but nothing can be read at {at}")]
    Missing {
        /// What was asked for.
        at: LogPosition,
        /// The end that the log gave when it was opened.
        last: LogPosition,
    },
}

/// Opens the log, which fences every owner before, then restores the newest snapshot and folds what follows it.
pub(super) async fn recover(
    log: &mut dyn TransactionLog,
    owner: &str,
    settings: Settings,
) -> Result<Recovered, RecoveryError> {
    let opened = log.open(owner).await?;
    let snapshot = log.read_snapshot().await?;
    let snapshot_bytes = snapshot.as_ref().map_or(0, |snapshot| snapshot.state.len());
    let mut at = snapshot.as_ref().map_or(LogPosition(0), |snapshot| snapshot.position);
    let codec = |at| move |error| RecoveryError::Codec { at, error };
    let mut coordinator =
        Coordinator::restore(settings, snapshot.as_ref().map(|s| (s.position, &s.state[..]))).map_err(codec(at))?;
    drop(snapshot);
    let mut bytes = 0;
    while at < opened.last {
        let page = log.read(at.next(), ENTRY_BYTES).await?;
        if page.is_empty() {
            return Err(RecoveryError::Missing { at: at.next(), last: opened.last });
        }
        for record in page {
            if record.position != at.next() {
                return Err(RecoveryError::Missing { at: at.next(), last: opened.last });
            }
            at = record.position;
            bytes += record.entry.len();
            let entry = Entry::decode(&record.entry).map_err(codec(at))?;
            coordinator.handle_replayed(&entry).map_err(codec(at))?;
        }
    }
    Ok(Recovered { coordinator, opened, bytes, snapshot_bytes })
}
