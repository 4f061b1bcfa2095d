//! The transaction leader as pollers see it: in this process, or over gRPC.

use crate::coordinator::{PublishedTable, Release, Report, TabletMap};
use crate::proto::transaction::TransactionRecord;
use crate::source::Resume;
use crate::wal::{
    Column, Epoch, HybridTime, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TableSchema, TransactionId,
};
use async_trait::async_trait;

/// What a poller learns when it opens its stream.
#[derive(Clone, PartialEq, Debug)]
pub struct StreamOpened {
    /// The log's number of the stream.
    pub stream: SourceTabletId,
    /// The puller epoch, above every one given out for this stream before.
    pub puller: Epoch,
    /// The owner's epoch, which every call to a tablet carries.
    pub owner: Epoch,
    /// The log's id, which tablets are bound to.
    pub log_id: String,
    /// The key → tablet map.
    pub map: TabletMap,
    /// Every stream by name: Commit records name the involved ones.
    pub streams: Vec<(String, SourceTabletId)>,
    /// How the log decides; [`Release::Atomic`] needs the tablets' conflicts.
    pub release: Release,
    /// Whether the stream's slot stands already.
    pub slot_stands: bool,
    /// Where to resume.
    pub resume: Resume,
    /// What the log says was stored at each tablet: a tablet that holds less has lost acknowledged writes (C14).
    pub stored: Vec<(ReplicaTabletId, OpId)>,
}

/// Who takes a stream, and what it finds there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taker {
    /// Which process, for people.
    pub puller: String,
    /// The epoch under which it had the stream before: where another took it since and lives, this one is fenced, so that
    /// two who pull one stream do not take it from each other for ever.
    pub held: Option<Epoch>,
    /// The slot that is there before this process has asked for one, or why that cannot be known now. One that the log
    /// never asked for may be another untorn's: it is neither read nor dropped.
    pub found: Result<Option<String>, String>,
}

/// One stream's puller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PullerId {
    /// The stream.
    pub stream: SourceTabletId,
    /// The puller's epoch.
    pub epoch: Epoch,
}

/// A slot that stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StandingSlot {
    /// It carries what commits above this position.
    pub start: OpId,
    /// See [`crate::source::NewSlot::identity`].
    pub identity: String,
    /// What its snapshot holds.
    pub tables: Vec<PublishedTable>,
}

/// A table's copy whose rows are all durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copied {
    /// `schema.table`.
    pub table: String,
    /// Where its rows stand.
    pub base: HybridTime,
    /// Transactions whose commit lies at or below this position are in it.
    pub snapshot: OpId,
    /// How many there are.
    pub rows: u64,
}

/// A report is durable in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reported {
    /// The stream's checkpoint.
    pub checkpoint: OpId,
    /// What may be acknowledged to the source.
    pub acknowledge: OpId,
}

/// Why a call on the leader did not do what was asked.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum LeaderError {
    /// Determinate: the report does not follow the checkpoint that is held. Open the stream again.
    #[error("the log holds {held}, the report follows {follows}")]
    OutOfOrder {
        /// The checkpoint held.
        held: OpId,
        /// What the report follows.
        follows: OpId,
    },
    /// Determinate: another puller has this stream, or another owner the log.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The report says what cannot be true: the stream stops by name until somebody mends it.
    #[error("{0}")]
    Stop(String),
    /// The stream stands still until something outside of it is mended: a replica tablet refuses what it carried, or its
    /// slot is another's. Ask again soon.
    #[error("{0}")]
    Refused(String),
    /// The leader cannot be reached, or does not know yet; open the stream again.
    #[error("the transaction leader is unavailable: {0}")]
    Unavailable(String),
}

/// The owner of the transaction records.
#[async_trait]
pub trait TransactionLeader: Send + Sync {
    /// A puller takes a stream. The answer comes once its epoch is durable in the log.
    async fn open_stream(&self, name: &str, taker: Taker) -> Result<StreamOpened, LeaderError>;

    /// Reports facts; answers once they are durable in the log with their checkpoint. Reports of one stream are handed
    /// in in order, and several may be on their way: a report is handed in when its future is first polled.
    async fn report(&self, report: Report) -> Result<Reported, LeaderError>;

    /// The catalog: see [`crate::source::Catalog`].
    async fn table(
        &self,
        stream: SourceTabletId,
        name: &str,
        columns: Vec<Column>,
        relation: Option<u32>,
    ) -> Result<TableSchema, LeaderError>;

    /// The stream's slot stands, and these tables are being copied from its snapshot: answers the base of their rows.
    async fn slot(&self, puller: PullerId, slot: StandingSlot) -> Result<HybridTime, LeaderError>;

    /// What the stream's publication has, read before its server had flushed this position. Answers the tables that may be
    /// copied now.
    async fn published(
        &self,
        puller: PullerId,
        flushed: OpId,
        tables: Vec<PublishedTable>,
    ) -> Result<Vec<String>, LeaderError>;

    /// Copies of these tables begin, from a snapshot that is taken once this has answered the base of their rows.
    async fn copy_begun(&self, puller: PullerId, tables: Vec<String>) -> Result<HybridTime, LeaderError>;

    /// Every row of a table's copy is durable at the replica tablets.
    async fn copied(&self, puller: PullerId, copied: Copied) -> Result<(), LeaderError>;

    /// The stream runs, or why it does not: what `status` and `explain` show. The answer is what the leader wants of it;
    /// [`LeaderError::Refused`] where the stream must stand still.
    async fn stream_state(
        &self,
        stream: SourceTabletId,
        puller: Epoch,
        state: StreamState,
    ) -> Result<Wanted, LeaderError>;

    /// The transaction record; `None` when the log never heard of it or has forgotten it.
    async fn transaction_record(&self, transaction: TransactionId) -> Result<Option<TransactionRecord>, LeaderError>;
}

/// What the leader wants of a stream's puller.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Pull no more for now: the stream runs too far ahead of this replica tablet or stream (C10).
    pub pause_for: Option<String>,
    /// Ask the source whether it knows these transactions as running, and report what it does not know (C8).
    pub check_running: Vec<SourceTransactionId>,
}

/// What a stream's puller is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum StreamState {
    /// Set by the leader before a puller comes; waited for by readiness.
    #[default]
    NotPolled,
    /// Set by the copier while tables are copied and records come.
    Copying {
        /// Rows so far.
        rows: u64,
        /// Rows in all, where known.
        total: Option<u64>,
    },
    /// Set by the poller while records come.
    Running,
    /// Set by the poller while it tries to connect again.
    Waiting {
        /// Why.
        cause: String,
    },
    /// Set by the poller while a replica tablet does not take its writes, or while it runs too far ahead.
    BackPressure {
        /// The name of the replica tablet, or of the stream that is behind.
        tablet: String,
    },
    /// Set by the poller when somebody must mend it; it stays so until then.
    Stopped {
        /// Why.
        cause: String,
    },
}
