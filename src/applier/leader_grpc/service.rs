//! The service.

use super::super::leader::{Copied, LeaderError, PullerId, StandingSlot, Taker, TransactionLeader};
use super::convert::report_from;
use super::error::{malformed, to_status};
use super::order::ReportOrder;
use crate::coordinator::PublishedTable;
use crate::limits::GRPC_MESSAGE_BYTES_MAX;
use crate::proto::tablet::TableSchema;
use crate::proto::transaction as pb;
use crate::proto::transaction::transaction_service_server::{TransactionService, TransactionServiceServer};
use crate::proto::wire::{op_id, required};
use crate::wal::{Column, Epoch, HybridTime, SourceTabletId, TransactionId};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// A service of this leader.
#[must_use]
pub fn transaction_service(leader: Arc<dyn TransactionLeader>) -> TransactionServiceServer<impl TransactionService> {
    TransactionServiceServer::new(Service { leader, order: ReportOrder::default() })
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

struct Service {
    leader: Arc<dyn TransactionLeader>,
    order: ReportOrder,
}

/// What the leader answered as what the wire carries.
fn answer<T, U: From<T>>(result: Result<T, LeaderError>) -> Result<Response<U>, Status> {
    result.map(|value| Response::new(value.into())).map_err(to_status)
}

fn puller(stream: u32, epoch: u64) -> PullerId {
    PullerId { stream: SourceTabletId(stream), epoch: Epoch(epoch) }
}

fn described(tables: Vec<pb::PublishedTable>) -> Result<Vec<PublishedTable>, Status> {
    tables.into_iter().map(|table| table.try_into().map_err(malformed)).collect()
}

#[tonic::async_trait]
impl TransactionService for Service {
    async fn open_stream(
        &self,
        request: Request<pb::OpenStreamRequest>,
    ) -> Result<Response<pb::OpenStreamResponse>, Status> {
        let pb::OpenStreamRequest { name, puller, held, found, unknown } = request.into_inner();
        let taker = Taker { puller, held: held.map(Epoch), found: unknown.map_or(Ok(found), Err) };
        let opened = self.leader.open_stream(&name, taker).await.map_err(to_status)?;
        self.order.opened(opened.stream, opened.puller, opened.resume.after);
        Ok(Response::new(opened.into()))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportResponse>, Status> {
        let report = report_from(&request.into_inner().report).map_err(malformed)?;
        answer(self.order.hand_in(&*self.leader, report).await)
    }

    async fn table(&self, request: Request<pb::TableRequest>) -> Result<Response<TableSchema>, Status> {
        let request = request.into_inner();
        let columns = request.columns.into_iter().map(Column::from).collect();
        answer(self.leader.table(SourceTabletId(request.stream), &request.name, columns, request.relation).await)
    }

    async fn slot(&self, request: Request<pb::SlotRequest>) -> Result<Response<pb::SlotResponse>, Status> {
        let request = request.into_inner();
        let slot = StandingSlot {
            start: op_id("start", request.start).map_err(malformed)?,
            identity: request.identity,
            tables: described(request.tables)?,
        };
        let base = self.leader.slot(puller(request.stream, request.puller), slot).await.map_err(to_status)?;
        Ok(Response::new(pb::SlotResponse { base: base.to_u64() }))
    }

    async fn published(
        &self,
        request: Request<pb::PublishedRequest>,
    ) -> Result<Response<pb::PublishedResponse>, Status> {
        let request = request.into_inner();
        let flushed = op_id("flushed", request.flushed).map_err(malformed)?;
        let (puller, tables) = (puller(request.stream, request.puller), described(request.tables)?);
        let tables = self.leader.published(puller, flushed, tables).await.map_err(to_status)?;
        Ok(Response::new(pb::PublishedResponse { tables }))
    }

    async fn copy_begun(
        &self,
        request: Request<pb::CopyBegunRequest>,
    ) -> Result<Response<pb::CopyBegunResponse>, Status> {
        let pb::CopyBegunRequest { stream, puller: epoch, tables } = request.into_inner();
        let base = self.leader.copy_begun(puller(stream, epoch), tables).await.map_err(to_status)?;
        Ok(Response::new(pb::CopyBegunResponse { base: base.to_u64() }))
    }

    async fn copied(&self, request: Request<pb::CopiedRequest>) -> Result<Response<pb::CopiedResponse>, Status> {
        let request = request.into_inner();
        let copied = Copied {
            table: request.table,
            base: HybridTime::from_u64(request.base),
            snapshot: op_id("snapshot", request.snapshot).map_err(malformed)?,
            rows: request.rows,
        };
        self.leader.copied(puller(request.stream, request.puller), copied).await.map_err(to_status)?;
        Ok(Response::new(pb::CopiedResponse {}))
    }

    async fn set_stream_state(
        &self,
        request: Request<pb::StreamStateRequest>,
    ) -> Result<Response<pb::StreamStateResponse>, Status> {
        let request = request.into_inner();
        let (stream, puller) = (SourceTabletId(request.stream), Epoch(request.puller));
        let state = required("state", request.state).and_then(TryInto::try_into).map_err(malformed)?;
        let wanted = self.leader.stream_state(stream, puller, state).await.map_err(to_status)?;
        Ok(Response::new(wanted.into()))
    }

    async fn get_transaction_record(
        &self,
        request: Request<pb::GetTransactionRecordRequest>,
    ) -> Result<Response<pb::TransactionRecord>, Status> {
        let transaction = TransactionId(request.into_inner().transaction_id);
        let record = self.leader.transaction_record(transaction).await.map_err(to_status)?;
        let none = || Status::not_found(format!("transaction {transaction} was never heard of, or is forgotten"));
        record.map(Response::new).ok_or_else(none)
    }
}
