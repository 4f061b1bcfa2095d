//! What the transaction leader of this process is told and asked.

use super::leader::{Copied, LeaderError, PullerId, Reported, StandingSlot, StreamOpened, StreamState, Taker, Wanted};
use crate::coordinator::{Applied, Coordinator, Fence, PublishedTable, ReleaseId, Report};
use crate::wal::{
    Column, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TableSchema,
    TransactionId,
};
use tokio::sync::{mpsc, oneshot};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, LeaderError>>;

/// Looks at the machine.
pub(super) type Look = Box<dyn FnOnce(&Coordinator, HybridTime) + Send>;

/// The way to the transaction leader of this process. It is a [`super::leader::TransactionLeader`].
#[derive(Clone)]
pub struct Inputs(pub(super) mpsc::Sender<Input>);

/// What the leader is told or asked.
pub(super) enum Input {
    OpenStream {
        name: String,
        taker: Taker,
        reply: Reply<StreamOpened>,
    },
    Report {
        report: Report,
        reply: Reply<Reported>,
    },
    Table {
        name: String,
        columns: Vec<Column>,
        spoken: Option<(SourceTabletId, u32)>,
        reply: Reply<TableSchema>,
    },
    Slot {
        puller: PullerId,
        slot: StandingSlot,
        reply: Reply<HybridTime>,
    },
    Published {
        puller: PullerId,
        flushed: OpId,
        tables: Vec<PublishedTable>,
        reply: Reply<Vec<String>>,
    },
    CopyBegun {
        puller: PullerId,
        tables: Vec<String>,
        reply: Reply<HybridTime>,
    },
    Copied {
        puller: PullerId,
        copied: Copied,
        reply: Reply<()>,
    },
    /// Answered with the tables asked for, by stream and name, or why there are none.
    Recopy {
        stream: Option<String>,
        table: Option<String>,
        reply: Reply<Result<Vec<(String, String)>, String>>,
    },
    State {
        stream: SourceTabletId,
        puller: Epoch,
        state: StreamState,
        reply: Reply<Wanted>,
    },
    Fence(Option<Fence>),
    FenceResolved {
        stream: SourceTabletId,
        transactions: Vec<SourceTransactionId>,
        position: OpId,
    },
    Round {
        begun_after: LogPosition,
        positions: Option<Vec<(SourceTabletId, OpId)>>,
    },
    Applied {
        tablet: ReplicaTabletId,
        applied: Applied,
    },
    Refused {
        tablet: ReplicaTabletId,
        position: LogPosition,
        transaction: Option<TransactionId>,
        cause: String,
    },
    /// Every server of a replica tablet has prepared a release.
    Prepared {
        tablet: ReplicaTabletId,
        release: ReleaseId,
        through: LogPosition,
        reply: Reply<()>,
    },
    LastRelease {
        tablet: ReplicaTabletId,
        reply: Reply<Option<ReleaseId>>,
    },
    Look(Look),
    /// Answered once everything said before is durable and its outputs are handed over.
    Settle {
        reply: oneshot::Sender<()>,
    },
    /// Append what there is to say, then end.
    Stop,
}

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

    /// Tells that a replica tablet refuses the decisions of an entry, or one of them where it is known which.
    pub(super) async fn refused(
        &self,
        tablet: ReplicaTabletId,
        position: LogPosition,
        transaction: Option<TransactionId>,
        cause: String,
    ) {
        self.send(Input::Refused { tablet, position, transaction, cause }).await;
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

    /// Hands an input over and waits for its answer.
    pub(super) async fn ask<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, LeaderError> {
        let (reply, answer) = oneshot::channel();
        self.send(input(reply)).await;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> LeaderError {
    LeaderError::Unavailable("it has ended".into())
}
