//! The thread that owns the transaction log. Engines block, and one caller at a time is their contract.

use super::ended::Ended;
use crate::flow::Backoff;
use crate::limits::{RETRY_FIRST_MS, RETRY_LAST_MS};
use crate::metrics::{LOG_APPEND_SECONDS, LOG_APPENDS, LOG_CONFLICTS, LOG_FENCED, LOG_INDETERMINATE};
use crate::planted::{Bug, planted};
use crate::txn_log::{Fate, LogError, Snapshot, TransactionLog, read_back};
use crate::wal::{Epoch, LogPosition};
use ::metrics::{counter, histogram};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::warn;

/// What the log is to do, in order.
#[derive(Debug)]
pub(super) enum LogCommand {
    /// Append an entry.
    Append { position: LogPosition, entry: Bytes },
    /// Store a snapshot, then forget what it includes.
    Snapshot(Snapshot),
}

/// What became of it.
#[derive(Debug)]
pub(super) enum LogEvent {
    /// The entry at this position is durable.
    Durable(LogPosition),
    /// The snapshot is durable.
    SnapshotStored,
    /// The log is lost to this owner.
    Ended(Ended),
}

/// Runs commands until there are no more, or the log is lost.
pub(super) async fn run(
    mut log: Box<dyn TransactionLog>,
    epoch: Epoch,
    mut commands: mpsc::Receiver<LogCommand>,
    events: mpsc::Sender<LogEvent>,
) {
    while let Some(command) = commands.recv().await {
        let event = match command {
            LogCommand::Append { position, entry } => {
                append(log.as_mut(), epoch, position, entry).await.map(|()| LogEvent::Durable(position))
            }
            LogCommand::Snapshot(snapshot) => {
                store_snapshot(log.as_mut(), epoch, snapshot).await.map(|()| LogEvent::SnapshotStored)
            }
        };
        let last = event.is_err();
        if events.send(event.unwrap_or_else(LogEvent::Ended)).await.is_err() || last {
            return;
        }
    }
}

/// Appends until the outcome is known. An entry whose append was not answered is appended again at the same position:
/// whichever of the two lands stands there once, and nothing else may (C6).
async fn append(log: &mut dyn TransactionLog, epoch: Epoch, position: LogPosition, entry: Bytes) -> Result<(), Ended> {
    let mut backoff = patience(epoch);
    let begun = Instant::now();
    let appended = || {
        counter!(LOG_APPENDS).increment(1);
        histogram!(LOG_APPEND_SECONDS).record(begun.elapsed().as_secs_f64());
    };
    loop {
        let error = match log.append(position, epoch, entry.clone()).await {
            Err(LogError::Indeterminate(_)) if planted(Bug::UnknownAppendCounts) => return Ok(()),
            Ok(_) => {
                appended();
                return Ok(());
            }
            Err(error) => error,
        };
        match &error {
            LogError::Conflict { .. } => counter!(LOG_CONFLICTS).increment(1),
            LogError::Fenced { .. } => counter!(LOG_FENCED).increment(1),
            LogError::Indeterminate(_) => counter!(LOG_INDETERMINATE).increment(1),
            LogError::Unavailable(_) | LogError::Damaged(_) | LogError::Poisoned(_) => {}
        }
        let happened = match &error {
            // The position may be taken by this very entry, whose first append was not answered.
            LogError::Conflict { .. } | LogError::Indeterminate(_) => {
                match read_back(log, position, epoch, &entry).await {
                    Ok(Fate::Happened) => {
                        appended();
                        return Ok(());
                    }
                    Ok(Fate::Not) => Some(false),
                    Ok(Fate::Open) => None,
                    Err(error) => match Ended::of_log(&error) {
                        Some(ended) => return Err(ended),
                        None => None,
                    },
                }
            }
            _ => None,
        };
        if happened == Some(false) {
            return Err(Ended::Fenced(format!("the log holds another entry at {position}")));
        }
        match Ended::of_log(&error) {
            Some(ended) => return Err(ended),
            None => warn!(%position, %error, "the append is tried again"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn store_snapshot(log: &mut dyn TransactionLog, epoch: Epoch, snapshot: Snapshot) -> Result<(), Ended> {
    let position = snapshot.position;
    let mut backoff = patience(epoch);
    loop {
        let stored = match log.write_snapshot(epoch, snapshot.clone()).await {
            Ok(()) => log.trim(epoch, position).await,
            Err(error) => Err(error),
        };
        let Err(error) = stored else { return Ok(()) };
        match Ended::of_log(&error) {
            Some(ended) => return Err(ended),
            None => warn!(%position, %error, "the snapshot is tried again"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

fn patience(epoch: Epoch) -> Backoff {
    Backoff::new(Duration::from_millis(RETRY_FIRST_MS), Duration::from_millis(RETRY_LAST_MS), epoch.0)
}
