//! The transaction log: the product's engine in memory, whose appends are late, lost, or land although nobody was told.

use super::faults::Kind;
use super::process::Life;
use super::properties::monotone::LogWatch;
use super::world::World;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use untorn::coordinator::Entry;
use untorn::txn_log::{LogError, LogRecord, MemoryLog, Opened, Snapshot, TransactionLog};
use untorn::wal::{Epoch, LogPosition};

/// The log as one process has it open.
#[derive(Clone)]
pub struct SimLog {
    /// The world.
    pub world: World,
    /// The engine, shared by all processes.
    pub engine: MemoryLog,
    /// Sees every entry that landed.
    pub watch: Arc<Mutex<LogWatch>>,
    /// The process.
    pub life: Arc<Life>,
    /// The longest ordinary append, in milliseconds.
    pub delay_ms: u64,
}

impl SimLog {
    async fn land(&mut self, at: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError> {
        let landed = self.engine.append(at, epoch, entry.clone()).await;
        if landed.is_ok() {
            self.world.event((at, epoch, &entry[..]), || {
                let items = Entry::decode(&entry).map(|entry| entry.items);
                format!("the log takes {at} of {epoch}: {:?}", items.unwrap_or_default())
            });
            self.watch.lock().unwrap().landed(&self.world, at, epoch, &entry);
        }
        landed
    }

    async fn reach(&self) -> Result<(), LogError> {
        self.life.output().await;
        self.world.sleep_ms(1, self.delay_ms).await;
        if self.world.strikes(Kind::LogUnavailable, 0.3) {
            return Err(LogError::Unavailable("the simulated log does not answer".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl TransactionLog for SimLog {
    async fn open(&mut self, owner: &str) -> Result<Opened, LogError> {
        self.reach().await?;
        self.engine.open(owner).await
    }

    async fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError> {
        self.reach().await?;
        if self.world.strikes(Kind::LateAppend, 0.1) {
            let mut late = self.clone();
            tokio::spawn(async move {
                late.world.sleep_ms(10, 20_000).await;
                late.land(expected, epoch, entry).await.ok();
            });
            return Err(LogError::Indeterminate("no answer came".into()));
        }
        if self.world.strikes(Kind::FailedBarrier, 0.002) {
            if self.world.chance(|chance| chance.happens(0.5)) {
                self.land(expected, epoch, entry).await.ok();
            }
            return Err(LogError::Poisoned("the simulated disk failed".into()));
        }
        let landed = self.land(expected, epoch, entry).await;
        self.life.output().await;
        if self.world.strikes(Kind::LostAppend, 0.2) {
            return Err(LogError::Indeterminate("the answer was lost".into()));
        }
        landed
    }

    async fn read(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        self.reach().await?;
        let small = self.world.chance(|chance| chance.skewed(200, 1 << 20)) as usize;
        self.engine.read(from, max_bytes.min(small)).await
    }

    async fn write_snapshot(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(), LogError> {
        self.reach().await?;
        self.world.reached("a snapshot of the fold's state");
        let stored = self.engine.write_snapshot(epoch, snapshot).await;
        self.life.output().await;
        stored
    }

    async fn read_snapshot(&mut self) -> Result<Option<Snapshot>, LogError> {
        self.reach().await?;
        self.engine.read_snapshot().await
    }

    async fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        self.reach().await?;
        self.engine.trim(epoch, up_to).await
    }
}
