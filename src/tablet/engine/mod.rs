//! The rules of a tablet, written once over any [`Store`].
//!
//! One **record** a branch, batch and tablet holds a branch's writes until the transaction is decided; it stands in the
//! same atomic batch as the stream's mark, so a batch is stored once or not at all (C5). Applying a decision turns
//! records into versions and deletes them in the same atomic batch; a huge transaction takes several, and its records
//! go with the last one, so whatever a crash interrupts is done again whole. Versions of a transaction that is
//! applied in part are seen by nobody, because their position lies above what the tablet has heard.

mod apply;
mod changes;
mod chunks;
mod collect;
mod conflicts;
#[cfg(test)]
mod crash_tests;

mod copy;
mod earlier;
mod elsewhere;
mod fill;
mod one_writer;
mod overlay;
mod provisional;
mod read;
mod removal;
#[cfg(test)]
mod removal_tests;
mod state;
mod truncate;
mod wal;
mod worker;

pub use changes::TabletWals;
pub use elsewhere::{Cursor, StagedWrites};
pub use worker::Worker;

use super::store::Store;
use super::{
    Announced, Applied, ApplyBatch, ChunkBatch, CopyBatch, DropChunks, FillRequest, ProvisionalBatch, ReadPage,
    ReadRequest, Stored, StreamMark, TabletError, TabletLeader, TabletStats,
};
use crate::limits::READ_WAIT_MS;
use crate::planted::{Bug, planted};
use crate::wal::{Epoch, LogPosition, ReplicaTabletId, Row, SourceTabletId};
use async_trait::async_trait;
use state::{Shared, State};
use std::sync::Arc;
use std::time::Duration;
use worker::{Answered, Queue};

/// How a tablet keeps what it keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TabletOptions {
    /// How long old versions are kept, counted back from safe time: reads at older times are refused. `None` keeps them
    /// for ever.
    pub keep_age: Option<Duration>,
    /// How many versions of a key are kept in any case.
    pub keep_versions: usize,
    /// Whether the tablet keeps a WAL of its own, to be a source ([`TabletWals`]).
    pub wal: bool,
}

impl Default for TabletOptions {
    fn default() -> Self {
        Self { keep_age: Some(Duration::from_secs(600)), keep_versions: 1, wal: false }
    }
}

/// A tablet in this process. A clone is the same tablet.
pub struct Engine<S: Store> {
    tablet: usize,
    queue: Queue<S>,
    shared: Arc<Shared<S>>,
}

impl<S: Store> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self { tablet: self.tablet, queue: self.queue.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S: Store> Engine<S> {
    /// Waits until the tablet's storage fails, and says how: the process that holds it must end then (C11).
    pub async fn failed(&self) -> String {
        self.queue.failed().await
    }
}

/// Opens the tablets of one storage, with its workers: `stores` are their names and parts of it, and one
/// [`Store::sync`] makes all of them durable.
///
/// # Errors
/// [`TabletError::Poisoned`] when what is stored cannot be read.
pub fn start<S: Store>(
    stores: Vec<(String, S)>,
    options: TabletOptions,
) -> Result<(Vec<Engine<S>>, Vec<Worker>), TabletError> {
    let mut states = Vec::with_capacity(stores.len());
    let mut name = String::from("tablet");
    for (tablet, store) in stores {
        states.push(State::open(store, options)?);
        name = tablet;
    }
    if states.len() > 1 {
        name = String::from("tablets");
    }
    let shared: Vec<_> = states.iter().map(|state| Arc::clone(&state.shared)).collect();
    let (queue, workers) = Queue::new(&name, states);
    let engine = |(tablet, shared)| Engine { tablet, queue: queue.clone(), shared };
    Ok((shared.into_iter().enumerate().map(engine).collect(), workers))
}

impl<S: Store> Engine<S> {
    async fn call<T: Send + 'static>(
        &self,
        answered: Answered,
        call: impl FnOnce(&mut State<S>) -> Result<T, TabletError> + Send + 'static,
    ) -> Result<T, TabletError> {
        self.queue.call(self.tablet, answered, call).await
    }
}

#[async_trait]
impl<S: Store> TabletLeader for Engine<S> {
    async fn announce(&self, log_id: &str, tablet: ReplicaTabletId, owner: Epoch) -> Result<Announced, TabletError> {
        let log_id = log_id.to_owned();
        self.call(Answered::Durable, move |state| state.announce(log_id, tablet, owner)).await
    }

    async fn announce_puller(
        &self,
        stream: SourceTabletId,
        owner: Epoch,
        puller: Epoch,
    ) -> Result<StreamMark, TabletError> {
        self.call(Answered::Durable, move |state| state.announce_puller(stream, owner, puller)).await
    }

    async fn write_provisional(&self, batch: ProvisionalBatch) -> Result<Stored, TabletError> {
        let answered = if planted(Bug::StoredBeforeBarrier) { Answered::Now } else { Answered::Durable };
        self.call(answered, move |state| state.write_provisional(batch)).await
    }

    async fn stage_chunk(&self, chunk: ChunkBatch) -> Result<(), TabletError> {
        self.call(Answered::Now, move |state| state.stage_chunk(chunk)).await
    }

    async fn drop_chunks(&self, drop: DropChunks) -> Result<(), TabletError> {
        self.call(Answered::Now, move |state| state.drop_chunks(drop)).await
    }

    async fn fill(&self, request: FillRequest) -> Result<Row, TabletError> {
        self.call(Answered::Now, move |state| state.fill_before_storing(request)).await
    }

    async fn copy_rows(&self, batch: CopyBatch) -> Result<(), TabletError> {
        // Every batch and not only the last: its rows come once, and whoever sends them would not notice that a tablet
        // lost some of them in a power cut and goes on with the rest.
        self.call(Answered::Durable, move |state| state.copy_rows(batch)).await
    }

    async fn apply(&self, batch: ApplyBatch) -> Result<Applied, TabletError> {
        self.call(Answered::Now, move |state| state.apply(batch)).await
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadPage, TabletError> {
        let wanted = request.at.position;
        let mut heard = self.shared.heard.subscribe();
        let wanted = if planted(Bug::ReadDoesNotWait) { LogPosition(0) } else { wanted };
        let wait = tokio::time::timeout(Duration::from_millis(READ_WAIT_MS), heard.wait_for(|heard| *heard >= wanted));
        if wait.await.is_err() {
            let heard = *self.shared.heard.borrow();
            return Err(TabletError::Indeterminate(format!(
                "it has heard the log up to {heard} and waited {READ_WAIT_MS} ms for {wanted}"
            )));
        }
        let shared = Arc::clone(&self.shared);
        self.queue.read(move || read::page(&shared, &request)).await
    }

    async fn sync(&self) -> Result<Applied, TabletError> {
        let heard = |state: &mut State<S>| {
            let heard = state.applied().heard;
            Ok(Applied { heard, applied: heard })
        };
        self.call(Answered::Durable, heard).await
    }

    async fn stats(&self) -> Result<TabletStats, TabletError> {
        self.call(Answered::Now, |state| Ok(state.stats())).await
    }
}
