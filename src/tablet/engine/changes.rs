//! Tablets' own WALs as a [`ChangeLog`]: what the CDC service of a tablet server serves.

use super::Engine;
use super::state::Shared;
use super::wal::{TERM, schema_record, tablet_name};
use super::worker::Answered;
use crate::proto::cdc::CdcRecord;
use crate::tablet::TabletError;
use crate::tablet::change_log::{ChangeLog, ChangeLogError, ChangePage, NotRunning, ReadChanges};
use crate::tablet::format::{StoredWal, decode};
use crate::tablet::keys;
use crate::tablet::store::{Read, Space, Store};
use crate::wal::{OpId, SourceTransactionId};
use async_trait::async_trait;
use prost::Message;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// The WALs of these tablets, each under the name of its number in the log (`r3`). They must have been opened with
/// [`super::TabletOptions::wal`].
pub struct TabletWals<S: Store> {
    tablets: Vec<Engine<S>>,
}

impl<S: Store> TabletWals<S> {
    /// The WALs of these tablets.
    #[must_use]
    pub fn new(tablets: Vec<Engine<S>>) -> Self {
        Self { tablets }
    }

    fn tablet(&self, name: &str) -> Result<&Engine<S>, ChangeLogError> {
        let named = |tablet: &&Engine<S>| tablet.shared.number.get().is_some_and(|id| tablet_name(*id) == name);
        self.tablets.iter().find(named).ok_or_else(|| ChangeLogError::NotFound(name.to_owned()))
    }
}

fn unavailable(error: TabletError) -> ChangeLogError {
    ChangeLogError::Unavailable(error.to_string())
}

/// Why a page could not be read.
enum PageError {
    Gone { oldest: u64 },
    Failed(TabletError),
}

#[async_trait]
impl<S: Store> ChangeLog for TabletWals<S> {
    async fn tablets(&self) -> Result<Vec<String>, ChangeLogError> {
        Ok(self.tablets.iter().filter_map(|tablet| tablet.shared.number.get().copied()).map(tablet_name).collect())
    }

    async fn read(&self, request: ReadChanges) -> Result<ChangePage, ChangeLogError> {
        let tablet = self.tablet(&request.tablet)?;
        let deadline = Instant::now() + request.wait;
        let after = request.after.index;
        let acknowledged = request.acknowledged.map_or(0, |upto| upto.index).min(after);
        let (reader, need_schemas) = (request.reader, request.need_schemas);
        let note = move |state: &mut super::state::State<S>| {
            state.wal_acknowledge(&reader, acknowledged)?;
            let schemas = if need_schemas { state.schemas.values().map(schema_record).collect() } else { Vec::new() };
            Ok(schemas)
        };
        let schemas = tablet.call(Answered::Now, note).await.map_err(unavailable)?;
        let mut ends = tablet.shared.wal.subscribe();
        loop {
            let now = *ends.borrow_and_update();
            if now.durable > after || now.written < after {
                break;
            }
            if now.written > after {
                // Nobody else may be asking for a barrier now.
                tablet.call(Answered::Durable, |_| Ok(())).await.map_err(unavailable)?;
                continue;
            }
            if timeout_at(deadline, ends.changed()).await.is_err() {
                return Ok(ChangePage { records: Vec::new(), upto: request.after, schemas });
            }
        }
        let (shared, max_bytes) = (Arc::clone(&tablet.shared), request.max_bytes);
        let page = tablet.queue.read(move || match page(&shared, after, max_bytes) {
            Err(PageError::Failed(error)) => Err(error),
            Err(PageError::Gone { oldest }) => Ok(Err(oldest)),
            Ok(records) => Ok(Ok(records)),
        });
        match page.await.map_err(unavailable)? {
            Ok(records) => {
                let last = records.last().and_then(|record| record.at);
                let upto = last.map_or(request.after, |at| OpId::new(at.term, at.index));
                Ok(ChangePage { records, upto, schemas })
            }
            Err(oldest) => Err(ChangeLogError::Gone { after: request.after, oldest: OpId::new(TERM, oldest) }),
        }
    }

    /// A tablet's WAL carries transactions that are committed, each whole: whoever has read a record of one reads its
    /// Commit record too, so there is none whose Commit record can no longer come.
    async fn check_transactions(
        &self,
        tablet: &str,
        _transactions: Vec<SourceTransactionId>,
    ) -> Result<NotRunning, ChangeLogError> {
        let as_of = self.tablet(tablet)?.shared.wal.borrow().durable;
        Ok(NotRunning { transactions: Vec::new(), as_of: OpId::new(TERM, as_of) })
    }
}

fn page<S: Store>(shared: &Shared<S>, after: u64, max_bytes: usize) -> Result<Vec<CdcRecord>, PageError> {
    let view = shared.store.view();
    let durable = shared.wal.borrow().durable;
    let mut records = Vec::new();
    let mut bytes = 0;
    let gone = |oldest: u64| PageError::Gone { oldest };
    let entries = view.scan(Space::Wal, &keys::wal(after + 1), &keys::wal(durable + 1));
    for (next, entry) in (after + 1..).zip(entries) {
        let (_, value) = entry.map_err(|failed| PageError::Failed(failed.into()))?;
        let stored: StoredWal<'_> = decode("a WAL record", value.as_ref()).map_err(PageError::Failed)?;
        let record = CdcRecord::decode(stored.record.0)
            .map_err(|e| PageError::Failed(TabletError::Poisoned(format!("a WAL record: {e}"))))?;
        let index = record.at.map_or(0, |at| at.index);
        if index != next {
            return Err(gone(index.saturating_sub(1)));
        }
        bytes += stored.record.0.len();
        records.push(record);
        if bytes >= max_bytes {
            break;
        }
    }
    // Nothing where something was durable: it was trimmed, or the reader is ahead of what this WAL ever held.
    if records.is_empty() { Err(gone(durable)) } else { Ok(records) }
}
