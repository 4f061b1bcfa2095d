//! The transaction leader in this process: the contract over its inputs.

use super::inputs::{Input, Inputs};
use super::leader::{
    Copied, LeaderError, PullerId, Reported, StandingSlot, StreamOpened, StreamState, Taker, TransactionLeader, Wanted,
};
use crate::coordinator::{Coordinator, Outcome, PublishedTable, Refused, Report, Status};
use crate::proto::transaction::{TransactionRecord, TransactionStatus};
use crate::wal::{Column, Epoch, HybridTime, OpId, SourceTabletId, TableSchema, TransactionId};
use async_trait::async_trait;
use std::collections::BTreeSet;

#[async_trait]
impl TransactionLeader for Inputs {
    async fn open_stream(&self, name: &str, taker: Taker) -> Result<StreamOpened, LeaderError> {
        let name = name.to_owned();
        self.ask(|reply| Input::OpenStream { name, taker, reply }).await
    }

    async fn report(&self, report: Report) -> Result<Reported, LeaderError> {
        self.ask(|reply| Input::Report { report, reply }).await
    }

    async fn table(
        &self,
        stream: SourceTabletId,
        name: &str,
        columns: Vec<Column>,
        relation: Option<u32>,
    ) -> Result<TableSchema, LeaderError> {
        let (name, spoken) = (name.to_owned(), relation.map(|relation| (stream, relation)));
        self.ask(|reply| Input::Table { name, columns, spoken, reply }).await
    }

    async fn slot(&self, puller: PullerId, slot: StandingSlot) -> Result<HybridTime, LeaderError> {
        self.ask(|reply| Input::Slot { puller, slot, reply }).await
    }

    async fn published(
        &self,
        puller: PullerId,
        flushed: OpId,
        tables: Vec<PublishedTable>,
    ) -> Result<Vec<String>, LeaderError> {
        self.ask(|reply| Input::Published { puller, flushed, tables, reply }).await
    }

    async fn copy_begun(&self, puller: PullerId, tables: Vec<String>) -> Result<HybridTime, LeaderError> {
        self.ask(|reply| Input::CopyBegun { puller, tables, reply }).await
    }

    async fn copied(&self, puller: PullerId, copied: Copied) -> Result<(), LeaderError> {
        self.ask(|reply| Input::Copied { puller, copied, reply }).await
    }

    async fn stream_state(
        &self,
        stream: SourceTabletId,
        puller: Epoch,
        state: StreamState,
    ) -> Result<Wanted, LeaderError> {
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

impl From<Refused> for LeaderError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::OutOfOrder { held, follows } => Self::OutOfOrder { held, follows },
            Refused::Fenced { .. } => Self::Fenced(refused.to_string()),
            Refused::Damage(cause) => Self::Stop(cause),
            Refused::ForeignSlot { .. } => Self::Refused(refused.to_string()),
            Refused::UnknownStream(_) => Self::Unavailable(refused.to_string()),
        }
    }
}
