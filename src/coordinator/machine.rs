//! The machine: inputs in, entries and outputs out. See the room's opening for the protocol.

use super::decided::{Applied, ReadPoint};
use super::entry::{CopyState, Entry, Fence, Release, TabletMap};
use super::fact::Report;
use super::output::{Output, Promise, Refused, StreamOpening};
use crate::wal::codec::CodecError;
use crate::wal::{Column, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, TableSchema};

/// How the coordinator is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How transactions are decided.
    pub release: Release,
    /// How far the source servers' clocks may differ, in microseconds (told-apart reuse of gids needs it).
    pub clock_skew_micros: u64,
    /// `false` only in `untorn demo --without-gate`: then the first Applying record opens the gate.
    pub gate: bool,
}

/// The transaction leader's machine. Inputs are `handle_*`, outputs `poll_*`, and time is an argument. The runtime
///
/// 1. restores it: [`Coordinator::restore`], [`Coordinator::handle_replayed`] for each entry after the snapshot, then
///    [`Coordinator::handle_opened`];
/// 2. feeds inputs; those which return a [`Promise`] are answered once [`Coordinator::durable`] has reached it;
/// 3. appends what [`Coordinator::poll_entry`] yields, one entry at a time and in order, and reports each by
///    [`Coordinator::handle_durable`]; an append that did not happen (conflict, fenced) ends this machine's life;
/// 4. drains [`Coordinator::poll_output`] after every input.
#[derive(Debug)]
pub struct Coordinator {}

impl Coordinator {
    /// From a snapshot's bytes, or empty.
    ///
    /// # Errors
    /// The snapshot is damaged or newer than this build.
    pub fn restore(_settings: Settings, _snapshot: Option<(LogPosition, &[u8])>) -> Result<Self, CodecError> {
        unimplemented!()
    }
    /// Folds one entry of the log, in order.
    ///
    /// # Errors
    /// The entry does not follow.
    pub fn handle_replayed(&mut self, _entry: &Entry) -> Result<(), CodecError> {
        unimplemented!()
    }
    /// The log is replayed and taken under this epoch: from here on the machine decides.
    ///
    /// # Errors
    /// The log was made with another `release`, or another number of replica tablets: the text says which and how to mend it.
    pub fn handle_opened(
        &mut self,
        _now: HybridTime,
        _epoch: Epoch,
        _owner: &str,
        _tablets: &[(String, Option<Vec<u8>>)],
    ) -> Result<(), String> {
        unimplemented!()
    }
    /// A stream of the configuration; joins it if the log does not know it.
    pub fn handle_stream_joined(&mut self, _now: HybridTime, _name: &str) -> SourceTabletId {
        unimplemented!()
    }
    /// A puller takes a stream.
    ///
    /// # Errors
    /// The stream is unknown.
    pub fn handle_open_stream(&mut self, _now: HybridTime, _name: &str) -> Result<Promise<StreamOpening>, Refused> {
        unimplemented!()
    }
    /// A table's shape.
    pub fn handle_table(&mut self, _name: &str, _columns: Vec<Column>) -> Promise<TableSchema> {
        unimplemented!()
    }
    /// A stream's slot stands.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_slot(
        &mut self,
        _stream: SourceTabletId,
        _puller: Epoch,
        _start: OpId,
        _identity: &str,
    ) -> Result<Promise<()>, Refused> {
        unimplemented!()
    }
    /// How far a table's copy is.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_copy(
        &mut self,
        _stream: SourceTabletId,
        _puller: Epoch,
        _table: &str,
        _state: CopyState,
    ) -> Result<Promise<()>, Refused> {
        unimplemented!()
    }
    /// A poller's report. The promise's value is the checkpoint.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn handle_report(&mut self, _now: HybridTime, _report: Report) -> Result<Promise<OpId>, Refused> {
        unimplemented!()
    }
    /// What `TakeFence` found.
    pub fn handle_fence(&mut self, _now: HybridTime, _fence: Fence) {
        unimplemented!()
    }
    /// What `CheckPrepared` found.
    pub fn handle_fence_resolved(&mut self, _stream: SourceTabletId, _ids: Vec<String>, _position: OpId) {
        unimplemented!()
    }
    /// What `TakeRound` found; no positions when a server did not answer (it will be asked for again).
    pub fn handle_round(
        &mut self,
        _now: HybridTime,
        _begun_after: LogPosition,
        _positions: Option<Vec<(SourceTabletId, OpId)>>,
    ) {
        unimplemented!()
    }
    /// How far a replica tablet is.
    pub fn handle_applied(&mut self, _tablet: ReplicaTabletId, _applied: Applied) {
        unimplemented!()
    }
    /// The poller of this stream stopped (or runs again): what `explain` says of whoever waits for it.
    pub fn handle_stream_stopped(&mut self, _stream: SourceTabletId, _cause: Option<String>) {
        unimplemented!()
    }
    /// Time has passed: about every 100 ms. Never needed for a decision, only for nudges, orphan checks and rounds that failed.
    pub fn handle_tick(&mut self, _now: HybridTime) {
        unimplemented!()
    }
    /// The entry at this position is durable.
    pub fn handle_durable(&mut self, _position: LogPosition) {
        unimplemented!()
    }
    /// The next entry to append, if there is anything to say. Everything before it was yielded earlier.
    pub fn poll_entry(&mut self) -> Option<Entry> {
        unimplemented!()
    }
    /// The next thing to do, if there is one.
    pub fn poll_output(&mut self) -> Option<Output> {
        unimplemented!()
    }
    /// Everything that was yielded as durable. `latest` reads use (this, `HybridTime::MAX`).
    #[must_use]
    pub fn durable(&self) -> LogPosition {
        unimplemented!()
    }
    /// The `latest` read point, once anything may be shown.
    #[must_use]
    pub fn latest(&self) -> Option<ReadPoint> {
        unimplemented!()
    }
    /// The `safe` read point, once there is one: its safe time is durable.
    #[must_use]
    pub fn safe(&self) -> Option<ReadPoint> {
        unimplemented!()
    }
    /// The fold's state as of the last entry that was yielded, and that position: a snapshot once it is durable.
    ///
    /// # Errors
    /// See [`crate::wal::codec::encode`].
    pub fn snapshot(&self) -> Result<(LogPosition, Vec<u8>), CodecError> {
        unimplemented!()
    }
    /// The map.
    #[must_use]
    pub fn map(&self) -> &TabletMap {
        unimplemented!()
    }
    /// Every table's newest shape.
    #[must_use]
    pub fn tables(&self) -> Vec<TableSchema> {
        unimplemented!()
    }
}
