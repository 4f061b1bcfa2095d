//! The client: a [`TransactionLeader`] that lives in another process.

use super::super::leader::{
    Copied, LeaderError, PullerId, Reported, StandingSlot, StreamOpened, StreamState, Taker, TransactionLeader, Wanted,
};
use super::convert::report_bytes;
use super::error::from_status;
use crate::access::{Address, BadAddress};
use crate::coordinator::{PublishedTable, Report};
use crate::limits::{CALL_MS, GRPC_MESSAGE_BYTES_MAX};
use crate::proto::transaction as pb;
use crate::proto::transaction::transaction_service_client::TransactionServiceClient;
use crate::wal::{Column, Epoch, HybridTime, OpId, SourceTabletId, TableSchema, TransactionId};
use async_trait::async_trait;
use std::fmt::Display;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// The transaction leader at an address. It connects when it is first called, and again whenever it must; every call
/// has a deadline of [`CALL_MS`].
#[derive(Clone, Debug)]
pub struct GrpcLeader {
    client: TransactionServiceClient<Channel>,
    url: String,
}

impl GrpcLeader {
    /// The leader at this address. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn new(server: impl Into<Address>) -> Result<Self, BadAddress> {
        let server = server.into();
        let client = TransactionServiceClient::new(server.channel()?)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
        Ok(Self { client, url: server.to_string() })
    }

    /// Who did not answer, and why.
    fn unavailable(&self, why: impl Display) -> LeaderError {
        LeaderError::Unavailable(format!("{}: {why}", self.url))
    }

    /// What the leader answered.
    fn answer<T>(&self, result: Result<Response<T>, Status>) -> Result<T, LeaderError> {
        result.map(Response::into_inner).map_err(|status| match from_status(&status) {
            LeaderError::Unavailable(why) => self.unavailable(why),
            error => error,
        })
    }
}

/// The request with its deadline.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_millis(CALL_MS));
    request
}

// Cloning a generated client is cheap, and its calls want it mutable: each call has its own.
#[async_trait]
impl TransactionLeader for GrpcLeader {
    async fn open_stream(&self, name: &str, taker: Taker) -> Result<StreamOpened, LeaderError> {
        let Taker { puller, held, found } = taker;
        let (name, held) = (name.to_owned(), held.map(|epoch| epoch.0));
        let (found, unknown) = found.map_or_else(|unknown| (None, Some(unknown)), |found| (found, None));
        let message = pb::OpenStreamRequest { name, puller, held, found, unknown };
        let opened = self.answer(self.client.clone().open_stream(request(message)).await)?;
        opened.try_into().map_err(|fault| self.unavailable(fault))
    }

    async fn report(&self, report: Report) -> Result<Reported, LeaderError> {
        let bytes = report_bytes(&report).map_err(|fault| LeaderError::Stop(fault.to_string()))?;
        let message = pb::ReportRequest { report: bytes.into() };
        let reported = self.answer(self.client.clone().report(request(message)).await)?;
        reported.try_into().map_err(|fault| self.unavailable(fault))
    }

    async fn table(
        &self,
        stream: SourceTabletId,
        name: &str,
        columns: Vec<Column>,
        relation: Option<u32>,
    ) -> Result<TableSchema, LeaderError> {
        let columns = columns.into_iter().map(Into::into).collect();
        let message = pb::TableRequest { stream: stream.0, name: name.to_owned(), columns, relation };
        Ok(self.answer(self.client.clone().table(request(message)).await)?.into())
    }

    async fn slot(&self, puller: PullerId, slot: StandingSlot) -> Result<HybridTime, LeaderError> {
        let message = pb::SlotRequest {
            stream: puller.stream.0,
            puller: puller.epoch.0,
            start: Some(slot.start.into()),
            identity: slot.identity,
            tables: slot.tables.into_iter().map(Into::into).collect(),
        };
        let pb::SlotResponse { base } = self.answer(self.client.clone().slot(request(message)).await)?;
        Ok(HybridTime::from_u64(base))
    }

    async fn published(
        &self,
        puller: PullerId,
        flushed: OpId,
        tables: Vec<PublishedTable>,
    ) -> Result<Vec<String>, LeaderError> {
        let message = pb::PublishedRequest {
            stream: puller.stream.0,
            puller: puller.epoch.0,
            flushed: Some(flushed.into()),
            tables: tables.into_iter().map(Into::into).collect(),
        };
        Ok(self.answer(self.client.clone().published(request(message)).await)?.tables)
    }

    async fn copy_begun(&self, puller: PullerId, tables: Vec<String>) -> Result<HybridTime, LeaderError> {
        let message = pb::CopyBegunRequest { stream: puller.stream.0, puller: puller.epoch.0, tables };
        let pb::CopyBegunResponse { base } = self.answer(self.client.clone().copy_begun(request(message)).await)?;
        Ok(HybridTime::from_u64(base))
    }

    async fn copied(&self, puller: PullerId, copied: Copied) -> Result<(), LeaderError> {
        let message = pb::CopiedRequest {
            stream: puller.stream.0,
            puller: puller.epoch.0,
            table: copied.table,
            base: copied.base.to_u64(),
            snapshot: Some(copied.snapshot.into()),
            rows: copied.rows,
        };
        let pb::CopiedResponse {} = self.answer(self.client.clone().copied(request(message)).await)?;
        Ok(())
    }

    async fn stream_state(
        &self,
        stream: SourceTabletId,
        puller: Epoch,
        state: StreamState,
    ) -> Result<Wanted, LeaderError> {
        let message = pb::StreamStateRequest { stream: stream.0, puller: puller.0, state: Some(state.into()) };
        Ok(self.answer(self.client.clone().set_stream_state(request(message)).await)?.into())
    }

    async fn transaction_record(
        &self,
        transaction: TransactionId,
    ) -> Result<Option<pb::TransactionRecord>, LeaderError> {
        let message = pb::GetTransactionRecordRequest { transaction_id: transaction.0 };
        match self.client.clone().get_transaction_record(request(message)).await {
            Err(status) if status.code() == Code::NotFound => Ok(None),
            answered => self.answer(answered).map(Some),
        }
    }
}
