//! The transaction leader as pullers in other processes reach it: over the network, where calls overtake each other; behind
//! it, the product's own rule puts reports back into their order.

use super::network::{Network, Place};
use super::process::Life;
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex};
use untorn::applier::leader::{
    Copied, LeaderError, PullerId, Reported, StandingSlot, StreamOpened, StreamState, Taker, TransactionLeader, Wanted,
};
use untorn::applier::leader_grpc::ReportOrder;
use untorn::coordinator::{PublishedTable, Report};
use untorn::proto::transaction::TransactionRecord;
use untorn::wal::{Column, Epoch, HybridTime, OpId, SourceTabletId, TableSchema, TransactionId};

/// A leader, as its server hands calls to it.
#[derive(Clone)]
pub struct Served {
    leader: Arc<dyn TransactionLeader>,
    order: Arc<ReportOrder>,
}

impl Served {
    /// Serves a leader.
    pub fn new(leader: Arc<dyn TransactionLeader>) -> Self {
        Self { leader, order: Arc::default() }
    }
}

/// Whoever leads now.
pub type Current = Arc<Mutex<Option<Served>>>;

/// The way to the leader.
pub struct LeaderClient {
    /// Where it is.
    pub current: Current,
    /// The link.
    pub network: Network,
    /// The process that calls.
    pub life: Arc<Life>,
}

type Answer<T> = Result<T, LeaderError>;

impl LeaderClient {
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        run: impl Fn(Served) -> BoxFuture<'static, Answer<T>> + Send + Sync + 'static,
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
    async fn open_stream(&self, name: &str, taker: Taker) -> Answer<StreamOpened> {
        let name = name.to_owned();
        self.call("open a stream", move |leader| {
            let (name, taker) = (name.clone(), taker.clone());
            Box::pin(async move {
                let Served { leader, order } = leader;
                let opened = leader.open_stream(&name, taker).await?;
                order.opened(opened.stream, opened.puller, opened.resume.after);
                Ok(opened)
            })
        })
        .await
    }

    async fn report(&self, report: Report) -> Answer<Reported> {
        self.call("a report", move |leader| {
            let report = report.clone();
            Box::pin(async move { leader.order.hand_in(&*leader.leader, report).await })
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
            Box::pin(async move { leader.leader.table(stream, &name, columns, relation).await })
        })
        .await
    }

    async fn slot(&self, puller: PullerId, slot: StandingSlot) -> Answer<HybridTime> {
        self.call("a slot", move |leader| {
            let slot = slot.clone();
            Box::pin(async move { leader.leader.slot(puller, slot).await })
        })
        .await
    }

    async fn published(&self, puller: PullerId, flushed: OpId, tables: Vec<PublishedTable>) -> Answer<Vec<String>> {
        self.call("a publication", move |leader| {
            let tables = tables.clone();
            Box::pin(async move { leader.leader.published(puller, flushed, tables).await })
        })
        .await
    }

    async fn copy_begun(&self, puller: PullerId, tables: Vec<String>) -> Answer<HybridTime> {
        self.call("a copy's begin", move |leader| {
            let tables = tables.clone();
            Box::pin(async move { leader.leader.copy_begun(puller, tables).await })
        })
        .await
    }

    async fn copied(&self, puller: PullerId, copied: Copied) -> Answer<()> {
        self.call("a copy's end", move |leader| {
            let copied = copied.clone();
            Box::pin(async move { leader.leader.copied(puller, copied).await })
        })
        .await
    }

    async fn stream_state(&self, stream: SourceTabletId, puller: Epoch, state: StreamState) -> Answer<Wanted> {
        self.call("a state", move |leader| {
            let state = state.clone();
            Box::pin(async move { leader.leader.stream_state(stream, puller, state).await })
        })
        .await
    }

    async fn transaction_record(&self, transaction: TransactionId) -> Answer<Option<TransactionRecord>> {
        self.call("a record", move |leader| {
            Box::pin(async move { leader.leader.transaction_record(transaction).await })
        })
        .await
    }
}
