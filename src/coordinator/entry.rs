//! What stands in the transaction log: facts and decisions, ids, counts, tablets and times, never rows.
//!
//! State is a pure fold over the items of the entries in order ([`super::State`]). An item's meaning must not depend on
//! anything but the fold's state: not on a clock, not on the process that folds it.

use super::copies::PublishedTable;
use super::fact::Report;
use crate::wal::codec::{self, CodecError};
use crate::wal::{
    Column, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TableId,
    TransactionId,
};
use serde::{Deserialize, Serialize};

/// The version byte of entries. Raise it when an older build could misread what is written. Version 2 has items of
/// copies while everything else goes on, and of streams that join it. Version 3 has decisions on releases.
pub const FORMAT_VERSION: u8 = 3;

/// The version byte of snapshots. Version 3 has the last release of each replica tablet, version 4 when streams that joined
/// anew were missed; older ones are read.
pub const SNAPSHOT_VERSION: u8 = 4;

/// Snapshots of this version hold the state and the releases.
pub(super) const SNAPSHOT_WITH_RELEASES: u8 = 3;

/// Snapshots below it are refused by name: what they say of copies is too little.
pub(super) const OLDEST_SNAPSHOT: u8 = 2;

/// How a transaction ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It becomes visible at this hybrid time.
    Commit(HybridTime),
    /// It leaves nothing.
    Abort,
}

/// The hash ranges of keys, one a replica tablet: tablet `i` of `n` holds the keys whose 64-bit hash falls in the `i`th
/// of `n` equal parts, or an explicit key range where the configuration gives one.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TabletMap {
    /// Counts up with every change; 0 is the empty map.
    pub version: u64,
    /// The tablets in order, with their names.
    pub tablets: Vec<MappedTablet>,
}

/// One tablet of the map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MappedTablet {
    /// The log's number.
    pub id: ReplicaTabletId,
    /// Its name in the configuration.
    pub name: String,
    /// The first key it holds, where the map is cut by key ranges instead of hashes; `None` throughout means hashes.
    pub from_key: Option<Vec<u8>>,
}

/// How transactions of this log are decided. Fixed by the log's first entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Release {
    /// The source has a common clock: decided when the gate opens, at the source's commit time.
    #[default]
    CommonClock,
    /// No common clock: the largest consistent cut is decided, again and again.
    Ordered,
    /// No common clock: decided when the gate opens; two writes of one key are never reordered.
    Atomic,
}

/// A start fence: no stream shows anything before it has passed its part (postgresql.md).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fence {
    /// For each stream: the flush position read after the last slot stood and before `prepared` was read. What ends at or
    /// below it had ended before, so it is another use of its id.
    pub before: Vec<(SourceTabletId, OpId)>,
    /// What was prepared on each server then, as its stream names transactions; one for each prepared branch.
    pub prepared: Vec<(SourceTabletId, SourceTransactionId)>,
    /// For each stream: the flush position read after that.
    pub positions: Vec<(SourceTabletId, OpId)>,
}

impl Fence {
    /// The stream's flush position read before the list.
    #[must_use]
    pub fn before_of(&self, stream: SourceTabletId) -> OpId {
        self.before.iter().find(|(s, _)| *s == stream).map_or(OpId::ZERO, |(_, at)| *at)
    }
}

/// One thing that the log says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Item {
    /// A new owner took the log. First item of its first entry.
    Opened {
        /// Its epoch.
        epoch: Epoch,
        /// Who, for people.
        owner: String,
        /// How far the source servers' clocks may differ, from here on.
        clock_skew_micros: u64,
    },
    /// The first item of a log: how it decides.
    Created {
        /// How.
        release: Release,
    },
    /// The key → tablet map from here on.
    Map(TabletMap),
    /// A stream joined.
    StreamJoined {
        /// Its number.
        stream: SourceTabletId,
        /// Its name in the configuration.
        name: String,
        /// Its safe time counts from here; never below safe time.
        at: HybridTime,
    },
    /// A stream left for good (`source drop`, a split's parent).
    StreamLeft {
        /// Its number.
        stream: SourceTabletId,
    },
    /// A puller opened a stream; lower epochs are refused from here on.
    PullerOpened {
        /// The stream.
        stream: SourceTabletId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A table, or a new version of its columns.
    Table {
        /// Its number.
        table: TableId,
        /// `schema.table`.
        name: String,
        /// The version of the columns.
        version: u32,
        /// The columns.
        columns: Vec<Column>,
    },
    /// The stream's slot stands: it carries every transaction that commits above this position.
    Slot {
        /// The stream.
        stream: SourceTabletId,
        /// Where it starts.
        start: OpId,
        /// What tells this server from another that took its place (PostgreSQL's system identifier), for `check`.
        identity: String,
    },
    /// The initial copy of a table from a stream's server.
    Copy {
        /// The stream.
        stream: SourceTabletId,
        /// `schema.table`.
        table: String,
        /// How far it is.
        state: CopyState,
    },
    /// A start fence was taken.
    Fence(Fence),
    /// These of the fence's list are gone from `pg_prepared_xacts`: resolved once the stream has passed the position, even
    /// if they never showed in it (a prepared transaction without changes does not).
    FenceResolved {
        /// The stream.
        stream: SourceTabletId,
        /// Which.
        transactions: Vec<SourceTransactionId>,
        /// A flush position read after they were gone.
        position: OpId,
    },
    /// Positions of all servers, read after everything in the log at or below `begun_after` had happened.
    Round {
        /// The log position that was durable when the reading began.
        begun_after: LogPosition,
        /// The flush position of each stream's server.
        positions: Vec<(SourceTabletId, OpId)>,
    },
    /// A poller's report.
    Report(Report),
    /// The decision on a transaction. The first for a transaction wins; one for a transaction that the fold does not
    /// hold open counts for nothing.
    Decision {
        /// Which.
        transaction: TransactionId,
        /// How it ends.
        outcome: Outcome,
    },
    /// A replica tablet has durably applied every decision at or below this position.
    Applied {
        /// Which.
        tablet: ReplicaTabletId,
        /// Up to where.
        through: LogPosition,
    },
    /// Reads at this time are complete for whoever has applied the log up to this entry.
    SafeTime {
        /// The time; it only rises.
        time: HybridTime,
    },
    /// A copy of a table is asked for, while the stream runs.
    CopyAsked {
        /// The stream.
        stream: SourceTabletId,
        /// `schema.table`.
        table: String,
        /// It may begin once everything is decided that committed in the stream at or below this position.
        after: OpId,
    },
    /// How the stream's server describes a table of its publication, from here on.
    Published {
        /// The stream.
        stream: SourceTabletId,
        /// The table.
        table: PublishedTable,
    },
    /// Under which relation and version of its columns the stream speaks of a table, from here on.
    Spoken {
        /// The stream.
        stream: SourceTabletId,
        /// `schema.table`.
        table: String,
        /// What tells it from another table of that name.
        relation: u32,
        /// The version of the columns.
        version: u32,
    },
    /// From this entry and time on nothing that this stream brought of the table is seen, until a copy is shown.
    CopyHidden {
        /// The stream.
        stream: SourceTabletId,
        /// `schema.table`.
        table: String,
        /// The time.
        time: HybridTime,
        /// It left the publication: nothing more is known of it.
        gone: bool,
    },
    /// From this entry and time on the rows of the copy with this base are seen, and what the stream brought above it.
    CopyShown {
        /// The stream.
        stream: SourceTabletId,
        /// `schema.table`.
        table: String,
        /// The hybrid time at which the copied rows stand.
        base: HybridTime,
        /// The time.
        time: HybridTime,
    },
    /// From here on rounds ask this stream's server, too: its tables are copied.
    StreamCounted {
        /// The stream.
        stream: SourceTabletId,
    },
    /// The start fence of streams that join.
    JoinFence {
        /// The streams.
        streams: Vec<SourceTabletId>,
        /// The fence, over all servers.
        fence: Fence,
    },
    /// The stream has joined: its tables are shown from this entry and time on.
    StreamShown {
        /// The stream.
        stream: SourceTabletId,
        /// The time.
        time: HybridTime,
    },
    /// Every server of a replica tablet of several has prepared this release: it is committed there, whatever happens.
    Released {
        /// The tablet.
        tablet: ReplicaTabletId,
        /// Which release.
        release: ReleaseId,
        /// It shows the decisions at or below this position.
        through: LogPosition,
    },
}

/// A release: what the servers of one replica tablet commit together. Never given out twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ReleaseId {
    /// The owner that prepares it.
    pub epoch: Epoch,
    /// The owner's count of its attempts, from 1.
    pub number: u64,
}

/// How far the initial copy of one table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CopyState {
    /// Asked for; set by the leader when it hears of a table without a copy, waited for by the copier.
    Pending,
    /// Set when the copier begins an attempt: rows of earlier attempts do not count. Waited for by nobody: a copier that
    /// finds it begins again.
    Running {
        /// The hybrid time at which the rows stand: above every time in the log when it was named.
        base: HybridTime,
        /// Transactions whose commit lies at or below this position are in the copy; zero before the snapshot was taken.
        snapshot: OpId,
    },
    /// Set by the copier when every row is durable; waits to be shown.
    Done {
        /// The base of the attempt that finished.
        base: HybridTime,
        /// Transactions whose commit lies at or below this position are in the copy.
        snapshot: OpId,
        /// How many rows it brought.
        rows: u64,
    },
}

/// One append to the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The position that it must get. In a total-order log the fold counts it only there.
    pub position: LogPosition,
    /// The owner's clock when it began the entry: what the fold knows of time.
    pub time: HybridTime,
    /// What it says, in order.
    pub items: Vec<Item>,
}

impl Entry {
    /// The entry's bytes for the log.
    ///
    /// # Errors
    /// See [`codec::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(FORMAT_VERSION, self)
    }

    /// Reads an entry back.
    ///
    /// # Errors
    /// See [`codec::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(FORMAT_VERSION, bytes)
    }
}
