//! The memory engine: for tests, and for `kind = "memory"`. Nothing outlives the process.

use super::head::{Head, Page};
use super::{LogError, LogRecord, Opened, Snapshot, TransactionLog};
use crate::wal::{Epoch, LogPosition};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

struct Store {
    head: Head,
    entries: BTreeMap<LogPosition, LogRecord>,
    snapshot: Option<Snapshot>,
}

/// A log in memory. Clones share one store, so that one handle can fence another.
#[derive(Clone)]
pub struct MemoryLog(Arc<Mutex<Store>>);

impl Default for MemoryLog {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Store { head: Head::create(), entries: BTreeMap::new(), snapshot: None })))
    }
}

impl MemoryLog {
    /// A call checks before it changes anything, so a store left by a thread that panicked is whole.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl TransactionLog for MemoryLog {
    async fn open(&mut self, _owner: &str) -> Result<Opened, LogError> {
        let head = &mut self.store().head;
        head.epoch.0 += 1;
        Ok(Opened { epoch: head.epoch, log_id: head.log_id.clone(), last: head.last })
    }

    async fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError> {
        let mut store = self.store();
        store.head.admit_append(expected, epoch)?;
        store.head.last = expected;
        store.entries.insert(expected, LogRecord { position: expected, epoch, entry });
        Ok(expected)
    }

    async fn read(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        let store = self.store();
        let from = store.head.admit_read(from)?;
        let mut page = Page::new(max_bytes);
        for record in store.entries.range(from..).map(|(_, record)| record) {
            if !page.push(record.clone()) {
                break;
            }
        }
        Ok(page.into_records())
    }

    async fn write_snapshot(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(), LogError> {
        let mut store = self.store();
        store.head.admit_snapshot(epoch, snapshot.position)?;
        store.head.snapshot = Some(snapshot.position);
        store.snapshot = Some(snapshot);
        Ok(())
    }

    async fn read_snapshot(&mut self) -> Result<Option<Snapshot>, LogError> {
        Ok(self.store().snapshot.clone())
    }

    async fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        let mut store = self.store();
        if store.head.admit_trim(epoch, up_to)? {
            store.head.trimmed = up_to;
            store.entries = store.entries.split_off(&up_to.next());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn_log::Faults;
    use crate::txn_log::conformance::{self, Storage};

    struct Shared(MemoryLog);

    impl Storage for Shared {
        fn log(&self) -> Box<dyn TransactionLog> {
            Box::new(self.0.clone())
        }

        fn shared(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn conforms() {
        conformance::run_all(|| Shared(MemoryLog::default()), Faults::NONE, 0).await;
    }

    #[tokio::test]
    async fn conforms_behind_a_bad_network() {
        for seed in 1..=20 {
            conformance::run_all(|| Shared(MemoryLog::default()), Faults::MANY, seed).await;
        }
    }
}
