//! The transaction leader as pullers in other processes reach it: over the network, reports of a stream in their order.

use super::network::{Network, Place};
use super::process::Life;
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex};
use untorn::applier::leader::{
    Copied, LeaderError, PullerId, Reported, StandingSlot, StreamOpened, StreamState, TransactionLeader, Wanted,
};
use untorn::coordinator::{PublishedTable, Report};
use untorn::proto::transaction::TransactionRecord;
use untorn::wal::{Column, Epoch, HybridTime, OpId, SourceTabletId, TableSchema, TransactionId};

/// Whoever leads now.
pub type Current = Arc<Mutex<Option<Arc<dyn TransactionLeader>>>>;

/// The way to the leader.
pub struct LeaderClient {
    /// Where it is.
    pub current: Current,
    /// The link.
    pub network: Network,
    /// The process that calls.
    pub life: Arc<Life>,
    /// Calls are handed in one after another, as one connection would.
    pub order: Arc<tokio::sync::Mutex<()>>,
}

type Answer<T> = Result<T, LeaderError>;

impl LeaderClient {
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        run: impl Fn(Arc<dyn TransactionLeader>) -> BoxFuture<'static, Answer<T>> + Send + Sync + 'static,
    ) -> Answer<T> {
        self.life.output().await;
        let current = Arc::clone(&self.current);
        let deliver = move || -> BoxFuture<'static, Answer<T>> {
            let leader = current.lock().unwrap().clone();
            match leader {
                Some(leader) => run(leader),
                None => Box::pin(async { Err(LeaderError::Unavailable("nobody leads".into())) }),
            }
        };
        let answer = self.network.call(self.life.place(), Place::Leader, what, deliver).await;
        self.life.output().await;
        answer.unwrap_or_else(|| Err(LeaderError::Unavailable("no answer came".into())))
    }
}

#[async_trait]
impl TransactionLeader for LeaderClient {
    async fn open_stream(&self, name: &str, puller: &str, held: Option<Epoch>) -> Answer<StreamOpened> {
        let (name, puller) = (name.to_owned(), puller.to_owned());
        self.call("open a stream", move |leader| {
            let (name, puller) = (name.clone(), puller.clone());
            Box::pin(async move { leader.open_stream(&name, &puller, held).await })
        })
        .await
    }

    async fn report(&self, report: Report) -> Answer<Reported> {
        let _turn = self.order.lock().await;
        self.call("a report", move |leader| {
            let report = report.clone();
            Box::pin(async move { leader.report(report).await })
        })
        .await
    }

    async fn table(
        &self,
        stream: SourceTabletId,
        name: &str,
        columns: Vec<Column>,
        relation: Option<u32>,
    ) -> Answer<TableSchema> {
        let name = name.to_owned();
        self.call("a table", move |leader| {
            let (name, columns) = (name.clone(), columns.clone());
            Box::pin(async move { leader.table(stream, &name, columns, relation).await })
        })
        .await
    }

    async fn slot(&self, puller: PullerId, slot: StandingSlot) -> Answer<HybridTime> {
        self.call("a slot", move |leader| {
            let slot = slot.clone();
            Box::pin(async move { leader.slot(puller, slot).await })
        })
        .await
    }

    async fn published(&self, puller: PullerId, flushed: OpId, tables: Vec<PublishedTable>) -> Answer<Vec<String>> {
        self.call("a publication", move |leader| {
            let tables = tables.clone();
            Box::pin(async move { leader.published(puller, flushed, tables).await })
        })
        .await
    }

    async fn copy_begun(&self, puller: PullerId, tables: Vec<String>) -> Answer<HybridTime> {
        self.call("a copy's begin", move |leader| {
            let tables = tables.clone();
            Box::pin(async move { leader.copy_begun(puller, tables).await })
        })
        .await
    }

    async fn copied(&self, puller: PullerId, copied: Copied) -> Answer<()> {
        self.call("a copy's end", move |leader| {
            let copied = copied.clone();
            Box::pin(async move { leader.copied(puller, copied).await })
        })
        .await
    }

    async fn stream_state(&self, stream: SourceTabletId, puller: Epoch, state: StreamState) -> Answer<Wanted> {
        self.call("a state", move |leader| {
            let state = state.clone();
            Box::pin(async move { leader.stream_state(stream, puller, state).await })
        })
        .await
    }

    async fn transaction_record(&self, transaction: TransactionId) -> Answer<Option<TransactionRecord>> {
        self.call("a record", move |leader| Box::pin(async move { leader.transaction_record(transaction).await })).await
    }
}
