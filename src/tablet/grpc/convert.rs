//! Messages of `tablet.proto` to and from the contract's types.

use super::super::{
    Adopt, Announced, Applied, ApplyBatch, BranchWrites, ChunkBatch, Conflict, CopyBatch, Decided, DropChunks,
    FillRequest, ProvisionalBatch, ReadPage, ReadPoint, ReadRequest, Stored, StreamMark, TabletStats, Turn,
    VersionedRow, Work,
};
use crate::proto::cdc;
use crate::proto::tablet as pb;
use crate::proto::wire::{Malformed, op_id, required};
use crate::wal::{
    BranchId, DroppedChunks, Epoch, HybridTime, Key, LogPosition, ReplicaTabletId, Row, SourceTabletId, TableId,
    TableSchema, TransactionId, Write, WriteOp,
};

/// Converts every element.
fn into_all<T, U: From<T>>(values: Vec<T>) -> Vec<U> {
    values.into_iter().map(U::from).collect()
}

/// Converts every element that can be; the first that cannot is the fault of all.
fn try_all<T, U: TryFrom<T, Error = Malformed>>(values: Vec<T>) -> Result<Vec<U>, Malformed> {
    values.into_iter().map(U::try_from).collect()
}

impl From<BranchId> for pb::BranchId {
    fn from(branch: BranchId) -> Self {
        Self { stream: branch.stream.0, opened: Some(branch.opened.into()) }
    }
}

impl TryFrom<pb::BranchId> for BranchId {
    type Error = Malformed;

    fn try_from(branch: pb::BranchId) -> Result<Self, Malformed> {
        Ok(Self { stream: SourceTabletId(branch.stream), opened: op_id("branch.opened", branch.opened)? })
    }
}

impl From<TableSchema> for pb::TableSchema {
    fn from(schema: TableSchema) -> Self {
        let TableSchema { table, name, version, columns } = schema;
        Self { table: table.0, name, version, columns: into_all(columns) }
    }
}

impl From<pb::TableSchema> for TableSchema {
    fn from(schema: pb::TableSchema) -> Self {
        let pb::TableSchema { table, name, version, columns } = schema;
        Self { table: TableId(table), name, version, columns: into_all(columns) }
    }
}

impl From<Write> for pb::Write {
    fn from(write: Write) -> Self {
        let operation = match write.op {
            WriteOp::Put { row, fill_from } => {
                pb::write::Operation::Put(pb::Put { row: Some(row.into()), fill_from: fill_from.map(|key| key.0) })
            }
            WriteOp::Delete => pb::write::Operation::Delete(cdc::Delete {}),
            WriteOp::Truncate => pb::write::Operation::Truncate(cdc::Truncate {}),
        };
        Self { at: Some(write.at.into()), table: write.table.0, key: write.key.0, operation: Some(operation) }
    }
}

impl TryFrom<pb::Write> for Write {
    type Error = Malformed;

    fn try_from(write: pb::Write) -> Result<Self, Malformed> {
        let op = match required("write.operation", write.operation)? {
            pb::write::Operation::Put(put) => {
                WriteOp::Put { row: required("put.row", put.row)?.try_into()?, fill_from: put.fill_from.map(Key) }
            }
            pb::write::Operation::Delete(cdc::Delete {}) => WriteOp::Delete,
            pb::write::Operation::Truncate(cdc::Truncate {}) => WriteOp::Truncate,
        };
        Ok(Self { at: op_id("write.at", write.at)?, table: TableId(write.table), key: Key(write.key), op })
    }
}

impl From<Adopt> for pb::Adopt {
    fn from(adopt: Adopt) -> Self {
        let Adopt { connection, xid, rolled_back, last_chunk } = adopt;
        Self { connection, xid, rolled_back, last_chunk }
    }
}

impl From<pb::Adopt> for Adopt {
    fn from(adopt: pb::Adopt) -> Self {
        let pb::Adopt { connection, xid, rolled_back, last_chunk } = adopt;
        Self { connection, xid, rolled_back, last_chunk }
    }
}

impl From<BranchWrites> for pb::BranchWrites {
    fn from(branch: BranchWrites) -> Self {
        Self {
            branch: Some(branch.branch.into()),
            writes: into_all(branch.writes),
            adopt: branch.adopt.map(pb::Adopt::from),
        }
    }
}

impl TryFrom<pb::BranchWrites> for BranchWrites {
    type Error = Malformed;

    fn try_from(branch: pb::BranchWrites) -> Result<Self, Malformed> {
        Ok(Self {
            branch: required("branches.branch", branch.branch)?.try_into()?,
            writes: try_all(branch.writes)?,
            adopt: branch.adopt.map(Adopt::from),
        })
    }
}

impl From<ProvisionalBatch> for pb::WriteProvisionalRequest {
    /// The request without its tablet's name.
    fn from(batch: ProvisionalBatch) -> Self {
        Self {
            tablet: String::new(),
            stream: batch.stream.0,
            owner: batch.owner.0,
            puller: batch.puller.0,
            follows: Some(batch.follows.into()),
            upto: Some(batch.upto.into()),
            schemas: into_all(batch.schemas),
            branches: into_all(batch.branches),
            report_conflicts: batch.report_conflicts,
            rolled_back: into_all(batch.rolled_back),
        }
    }
}

impl TryFrom<pb::WriteProvisionalRequest> for ProvisionalBatch {
    type Error = Malformed;

    fn try_from(request: pb::WriteProvisionalRequest) -> Result<Self, Malformed> {
        Ok(Self {
            stream: SourceTabletId(request.stream),
            owner: Epoch(request.owner),
            puller: Epoch(request.puller),
            follows: op_id("follows", request.follows)?,
            upto: op_id("upto", request.upto)?,
            schemas: into_all(request.schemas),
            branches: try_all(request.branches)?,
            rolled_back: into_all(request.rolled_back),
            report_conflicts: request.report_conflicts,
        })
    }
}

impl From<Stored> for pb::WriteProvisionalResponse {
    fn from(stored: Stored) -> Self {
        let conflict = |(branch, after): Conflict| pb::Conflict { branch: Some(branch.into()), after: into_all(after) };
        Self { mark: Some(stored.mark.into()), conflicts: stored.conflicts.into_iter().map(conflict).collect() }
    }
}

impl TryFrom<pb::WriteProvisionalResponse> for Stored {
    type Error = Malformed;

    fn try_from(response: pb::WriteProvisionalResponse) -> Result<Self, Malformed> {
        let conflict = |conflict: pb::Conflict| -> Result<Conflict, Malformed> {
            Ok((required("conflicts.branch", conflict.branch)?.try_into()?, try_all(conflict.after)?))
        };
        Ok(Self {
            mark: op_id("mark", response.mark)?,
            conflicts: response.conflicts.into_iter().map(conflict).collect::<Result<_, _>>()?,
        })
    }
}

impl From<ChunkBatch> for pb::StageChunkRequest {
    /// The request without its tablet's name.
    fn from(chunk: ChunkBatch) -> Self {
        Self {
            tablet: String::new(),
            stream: chunk.stream.0,
            owner: chunk.owner.0,
            puller: chunk.puller.0,
            connection: chunk.connection,
            xid: chunk.xid,
            sub_xid: chunk.sub_xid,
            number: chunk.number,
            schemas: into_all(chunk.schemas),
            writes: into_all(chunk.writes),
        }
    }
}

impl TryFrom<pb::StageChunkRequest> for ChunkBatch {
    type Error = Malformed;

    fn try_from(request: pb::StageChunkRequest) -> Result<Self, Malformed> {
        Ok(Self {
            stream: SourceTabletId(request.stream),
            owner: Epoch(request.owner),
            puller: Epoch(request.puller),
            connection: request.connection,
            xid: request.xid,
            sub_xid: request.sub_xid,
            number: request.number,
            schemas: into_all(request.schemas),
            writes: try_all(request.writes)?,
        })
    }
}

impl From<DropChunks> for pb::DropChunksRequest {
    /// The request without its tablet's name.
    fn from(drop: DropChunks) -> Self {
        let DroppedChunks { connection, xid, sub_xid } = drop.dropped;
        Self {
            tablet: String::new(),
            stream: drop.stream.0,
            owner: drop.owner.0,
            puller: drop.puller.0,
            connection,
            xid,
            sub_xid,
        }
    }
}

impl From<pb::DropChunksRequest> for DropChunks {
    fn from(request: pb::DropChunksRequest) -> Self {
        let pb::DropChunksRequest { connection, xid, sub_xid, .. } = request;
        Self {
            stream: SourceTabletId(request.stream),
            owner: Epoch(request.owner),
            puller: Epoch(request.puller),
            dropped: DroppedChunks { connection, xid, sub_xid },
        }
    }
}

impl From<FillRequest> for pb::FillRequest {
    /// The request without its tablet's name.
    fn from(request: FillRequest) -> Self {
        Self {
            tablet: String::new(),
            stream: request.stream.0,
            owner: request.owner.0,
            puller: request.puller.0,
            connection: request.connection,
            xid: request.xid,
            rolled_back: request.rolled_back,
            upto: Some(request.upto.into()),
            schemas: into_all(request.schemas),
            table: request.table.0,
            from: request.from.0,
            row: Some(request.row.into()),
        }
    }
}

impl TryFrom<pb::FillRequest> for FillRequest {
    type Error = Malformed;

    fn try_from(request: pb::FillRequest) -> Result<Self, Malformed> {
        Ok(Self {
            stream: SourceTabletId(request.stream),
            owner: Epoch(request.owner),
            puller: Epoch(request.puller),
            connection: request.connection,
            xid: request.xid,
            rolled_back: request.rolled_back,
            upto: op_id("upto", request.upto)?,
            schemas: into_all(request.schemas),
            table: TableId(request.table),
            from: Key(request.from),
            row: required("row", request.row)?.try_into()?,
        })
    }
}

impl From<Row> for pb::FillResponse {
    fn from(row: Row) -> Self {
        Self { row: Some(row.into()) }
    }
}

impl TryFrom<pb::FillResponse> for Row {
    type Error = Malformed;

    fn try_from(response: pb::FillResponse) -> Result<Self, Malformed> {
        required("row", response.row)?.try_into()
    }
}

impl From<CopyBatch> for pb::CopyRowsRequest {
    /// The request without its tablet's name.
    fn from(batch: CopyBatch) -> Self {
        let row = |(key, row): (Key, Row)| pb::CopiedRow { key: key.0, row: Some(row.into()) };
        Self {
            tablet: String::new(),
            stream: batch.stream.0,
            owner: batch.owner.0,
            base: batch.base.to_u64(),
            last: batch.last,
            schema: Some(batch.schema.into()),
            rows: batch.rows.into_iter().map(row).collect(),
        }
    }
}

impl TryFrom<pb::CopyRowsRequest> for CopyBatch {
    type Error = Malformed;

    fn try_from(request: pb::CopyRowsRequest) -> Result<Self, Malformed> {
        let row = |copied: pb::CopiedRow| -> Result<(Key, Row), Malformed> {
            Ok((Key(copied.key), required("rows.row", copied.row)?.try_into()?))
        };
        Ok(Self {
            stream: SourceTabletId(request.stream),
            owner: Epoch(request.owner),
            base: HybridTime::from_u64(request.base),
            last: request.last,
            schema: required("schema", request.schema)?.into(),
            rows: request.rows.into_iter().map(row).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Decided> for pb::Decided {
    fn from(decided: Decided) -> Self {
        let work = match decided.work {
            Work::Commit { transaction, time, branches, tablets } => pb::decided::Work::Commit(pb::CommitWork {
                transaction_id: transaction.0,
                commit_hybrid_time: time.to_u64(),
                branches: into_all(branches),
                tablets: tablets.into_iter().map(|tablet| tablet.0).collect(),
            }),
            Work::Discard { branches } => pb::decided::Work::Discard(pb::DiscardWork { branches: into_all(branches) }),
            Work::Turn { stream, table, turn } => {
                let (base, time) = match turn {
                    Turn::Begun { base } => (Some(base.to_u64()), None),
                    Turn::Shown { base, time } => (Some(base.to_u64()), Some(time.to_u64())),
                    Turn::Hidden { time } => (None, Some(time.to_u64())),
                };
                pb::decided::Work::Turn(pb::TurnWork { stream: stream.0, table: table.0, base, time })
            }
        };
        Self { position: decided.position.0, work: Some(work) }
    }
}

impl TryFrom<pb::Decided> for Decided {
    type Error = Malformed;

    fn try_from(decided: pb::Decided) -> Result<Self, Malformed> {
        let work = match required("work.work", decided.work)? {
            pb::decided::Work::Commit(commit) => Work::Commit {
                transaction: TransactionId(commit.transaction_id),
                time: HybridTime::from_u64(commit.commit_hybrid_time),
                branches: try_all(commit.branches)?,
                tablets: commit.tablets.into_iter().map(ReplicaTabletId).collect(),
            },
            pb::decided::Work::Discard(discard) => Work::Discard { branches: try_all(discard.branches)? },
            pb::decided::Work::Turn(pb::TurnWork { stream, table, base, time }) => Work::Turn {
                stream: SourceTabletId(stream),
                table: TableId(table),
                turn: match (base.map(HybridTime::from_u64), time.map(HybridTime::from_u64)) {
                    (Some(base), None) => Turn::Begun { base },
                    (Some(base), Some(time)) => Turn::Shown { base, time },
                    (None, Some(time)) => Turn::Hidden { time },
                    (None, None) => return Err(Malformed::new("work.turn", "has neither a base nor a time")),
                },
            },
        };
        Ok(Self { position: LogPosition(decided.position), work })
    }
}

impl From<ApplyBatch> for pb::ApplyRequest {
    /// The request without its tablet's name.
    fn from(batch: ApplyBatch) -> Self {
        Self {
            tablet: String::new(),
            owner: batch.owner.0,
            follows: batch.follows.0,
            through: batch.through.0,
            safe_time: batch.safe.map_or(0, |safe| safe.time.to_u64()),
            safe_position: batch.safe.map_or(0, |safe| safe.position.0),
            work: into_all(batch.work),
            one_writer: batch.one_writer,
        }
    }
}

impl TryFrom<pb::ApplyRequest> for ApplyBatch {
    type Error = Malformed;

    fn try_from(request: pb::ApplyRequest) -> Result<Self, Malformed> {
        let safe = |time| ReadPoint { position: LogPosition(request.safe_position), time: HybridTime::from_u64(time) };
        Ok(Self {
            owner: Epoch(request.owner),
            follows: LogPosition(request.follows),
            through: LogPosition(request.through),
            safe: Some(request.safe_time).filter(|time| *time > 0).map(safe),
            one_writer: request.one_writer,
            work: try_all(request.work)?,
        })
    }
}

impl From<Applied> for pb::Applied {
    fn from(applied: Applied) -> Self {
        Self { heard: applied.heard.0, applied: applied.applied.0 }
    }
}

impl From<pb::Applied> for Applied {
    fn from(applied: pb::Applied) -> Self {
        Self { heard: LogPosition(applied.heard), applied: LogPosition(applied.applied) }
    }
}

impl From<StreamMark> for pb::StreamMark {
    fn from(mark: StreamMark) -> Self {
        Self { stream: mark.stream.0, stored: Some(mark.stored.into()), puller: mark.puller.0 }
    }
}

impl TryFrom<pb::StreamMark> for StreamMark {
    type Error = Malformed;

    fn try_from(mark: pb::StreamMark) -> Result<Self, Malformed> {
        let stored = op_id("stored", mark.stored)?;
        Ok(Self { stream: SourceTabletId(mark.stream), stored, puller: Epoch(mark.puller) })
    }
}

impl From<Announced> for pb::AnnounceResponse {
    fn from(announced: Announced) -> Self {
        Self { marks: into_all(announced.marks), heard: announced.heard.0, applied: announced.applied.0 }
    }
}

impl TryFrom<pb::AnnounceResponse> for Announced {
    type Error = Malformed;

    fn try_from(response: pb::AnnounceResponse) -> Result<Self, Malformed> {
        Ok(Self {
            marks: try_all(response.marks)?,
            heard: LogPosition(response.heard),
            applied: LogPosition(response.applied),
        })
    }
}

impl From<ReadRequest> for pb::ReadRequest {
    /// The request without its tablet's name.
    fn from(request: ReadRequest) -> Self {
        Self {
            tablet: String::new(),
            table: request.table.0,
            position: request.at.position.0,
            hybrid_time: request.at.time.to_u64(),
            key: request.key.map(|key| key.0),
            after: request.after.map(|key| key.0),
            history: request.history,
            max_bytes: request.max_bytes as u64,
        }
    }
}

impl From<pb::ReadRequest> for ReadRequest {
    fn from(request: pb::ReadRequest) -> Self {
        Self {
            table: TableId(request.table),
            at: ReadPoint { position: LogPosition(request.position), time: HybridTime::from_u64(request.hybrid_time) },
            key: request.key.map(Key),
            after: request.after.map(Key),
            history: request.history,
            max_bytes: usize::try_from(request.max_bytes).unwrap_or(usize::MAX),
        }
    }
}

impl From<ReadPage> for pb::ReadResponse {
    fn from(page: ReadPage) -> Self {
        let row = |row: VersionedRow| pb::VersionedRow {
            key: row.key.0,
            row: row.row.map(cdc::Row::from),
            hybrid_time: row.time.to_u64(),
            position: row.position.0,
            stream: row.stream.0,
        };
        Self { rows: page.rows.into_iter().map(row).collect(), more_after: page.more_after.map(|key| key.0) }
    }
}

impl TryFrom<pb::ReadResponse> for ReadPage {
    type Error = Malformed;

    fn try_from(response: pb::ReadResponse) -> Result<Self, Malformed> {
        let row = |row: pb::VersionedRow| -> Result<VersionedRow, Malformed> {
            Ok(VersionedRow {
                key: Key(row.key),
                row: row.row.map(Row::try_from).transpose()?,
                time: HybridTime::from_u64(row.hybrid_time),
                position: LogPosition(row.position),
                stream: SourceTabletId(row.stream),
            })
        };
        Ok(Self {
            rows: response.rows.into_iter().map(row).collect::<Result<_, _>>()?,
            more_after: response.more_after.map(Key),
        })
    }
}

impl From<TabletStats> for pb::StatsResponse {
    fn from(stats: TabletStats) -> Self {
        let TabletStats { provisional_branches, provisional_records, provisional_bytes, disk_bytes } = stats;
        Self { provisional_branches, provisional_records, provisional_bytes, disk_bytes }
    }
}

impl From<pb::StatsResponse> for TabletStats {
    fn from(stats: pb::StatsResponse) -> Self {
        let pb::StatsResponse { provisional_branches, provisional_records, provisional_bytes, disk_bytes } = stats;
        Self { provisional_branches, provisional_records, provisional_bytes, disk_bytes }
    }
}
