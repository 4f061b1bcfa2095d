//! The transaction leader in this process: its inputs, and the contract over them.

use super::driver::{Input, Inputs, Reply};
use super::leader::{LeaderError, Reported, StreamOpened, StreamState, TransactionLeader};
use crate::coordinator::{Applied, CopyState, Coordinator, Report};
use crate::wal::{Column, Epoch, HybridTime, OpId, ReplicaTabletId, SourceTabletId, TableSchema};
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

impl Inputs {
    pub(super) fn new(sender: mpsc::Sender<Input>) -> Self {
        Self(sender)
    }

    /// Hands an input over. One that comes after the leader's end is lost, as everything then is.
    pub(super) async fn send(&self, input: Input) {
        self.0.send(input).await.ok();
    }

    /// Tells how far a replica tablet is.
    pub(super) async fn applied(&self, tablet: ReplicaTabletId, applied: Applied) {
        self.send(Input::Applied { tablet, applied }).await;
    }

    /// Looks at the machine, between two inputs.
    ///
    /// # Errors
    /// The leader has ended.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Coordinator, HybridTime) -> T + Send + 'static,
    ) -> Result<T, LeaderError> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Look(Box::new(move |coordinator, now| {
            reply.send(look(coordinator, now)).ok();
        })))
        .await;
        answer.await.map_err(|_| ended())
    }

    async fn ask<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, LeaderError> {
        let (reply, answer) = oneshot::channel();
        self.send(input(reply)).await;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> LeaderError {
    LeaderError::Unavailable("it has ended".into())
}

#[async_trait]
impl TransactionLeader for Inputs {
    async fn open_stream(&self, name: &str, puller: &str) -> Result<StreamOpened, LeaderError> {
        let (name, puller) = (name.to_owned(), puller.to_owned());
        self.ask(|reply| Input::OpenStream { name, puller, reply }).await
    }

    async fn report(&self, report: Report) -> Result<Reported, LeaderError> {
        self.ask(|reply| Input::Report { report, reply }).await
    }

    async fn table(
        &self,
        _stream: SourceTabletId,
        name: &str,
        columns: Vec<Column>,
    ) -> Result<TableSchema, LeaderError> {
        let name = name.to_owned();
        self.ask(|reply| Input::Table { name, columns, reply }).await
    }

    async fn slot(
        &self,
        stream: SourceTabletId,
        puller: Epoch,
        start: OpId,
        identity: &str,
    ) -> Result<(), LeaderError> {
        let identity = identity.to_owned();
        self.ask(|reply| Input::Slot { stream, puller, start, identity, reply }).await
    }

    async fn copy(
        &self,
        stream: SourceTabletId,
        puller: Epoch,
        table: &str,
        state: CopyState,
    ) -> Result<(), LeaderError> {
        let table = table.to_owned();
        self.ask(|reply| Input::Copy { stream, puller, table, state, reply }).await
    }

    async fn stream_state(&self, stream: SourceTabletId, puller: Epoch, state: StreamState) -> Result<(), LeaderError> {
        self.ask(|reply| Input::State { stream, puller, state, reply }).await
    }
}
