//! The transaction leader in this process: its inputs, and the contract over them.

use super::driver::{Input, Inputs, Reply};
use super::leader::{LeaderError, Reported, StreamOpened, StreamState, TransactionLeader};
use crate::coordinator::{Applied, Coordinator, CopyState, Outcome, Report, Status};
use crate::proto::transaction::{TransactionRecord, TransactionStatus};
use crate::wal::{Column, Epoch, HybridTime, OpId, ReplicaTabletId, SourceTabletId, TableSchema, TransactionId};
use async_trait::async_trait;
use std::collections::BTreeSet;
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

    /// Waits until everything that was said before is durable, and its outputs have been handed over.
    pub(super) async fn settle(&self) {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Settle { reply }).await;
        answer.await.ok();
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

    async fn transaction_record(&self, transaction: TransactionId) -> Result<Option<TransactionRecord>, LeaderError> {
        self.look(move |coordinator, _| record(coordinator, transaction)).await
    }
}

/// The transaction record, as the log's fold has it.
fn record(coordinator: &Coordinator, id: TransactionId) -> Option<TransactionRecord> {
    let state = coordinator.state();
    let found = state.transactions.get(id)?;
    let mut status = found.status();
    if found.decision.is_some_and(|decision| decision.position > coordinator.durable()) {
        // The decision is on its way to the log: nobody hears of it before it is there.
        status = Status::WaitingToCommit;
    }
    let name = |stream: SourceTabletId| state.stream_name(stream).to_owned();
    let listed = found.commit.as_ref().and_then(|commit| commit.listed.as_deref()).unwrap_or_default();
    let branches = || found.branches.iter().filter(|branch| !branch.bystander);
    let involved: BTreeSet<_> = listed.iter().map(|i| i.stream).chain(branches().map(|b| b.stream)).collect();
    let applying: BTreeSet<_> = branches().filter(|branch| branch.applying).map(|branch| branch.stream).collect();
    let time = match found.decision.map(|decision| decision.outcome) {
        Some(Outcome::Commit(time)) => Some(time),
        Some(Outcome::Abort) => None,
        None => found.commit.as_ref().map(|commit| commit.time),
    };
    Some(TransactionRecord {
        transaction_id: id.0,
        source_id: found.source.id.to_vec().into(),
        incarnation: found.source.incarnation,
        status: TransactionStatus::from(status).into(),
        involved_tablets: involved.into_iter().map(name).collect(),
        tablets_received_applying_record: applying.into_iter().map(name).collect(),
        commit_hybrid_time: time.map(HybridTime::to_u64),
    })
}

impl From<Status> for TransactionStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Created => Self::Created,
            Status::Pending => Self::Pending,
            Status::WaitingToCommit => Self::WaitingToCommit,
            Status::Committed => Self::Committed,
            Status::Applied => Self::Applied,
            Status::Aborted => Self::Aborted,
        }
    }
}
