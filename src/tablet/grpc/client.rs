//! The client: a [`TabletLeader`] whose tablet lives in another process.

use super::super::{
    Announced, Applied, ApplyBatch, ChunkBatch, CopyBatch, DropChunks, FillRequest, ProvisionalBatch, ReadPage,
    ReadRequest, Stored, StreamMark, TabletError, TabletLeader, TabletStats,
};
use super::error::from_status;
use crate::access::{Address, BadAddress};
use crate::limits::{CALL_MS, GRPC_ROWS_BYTES_MAX};
use crate::proto::tablet as pb;
use crate::proto::tablet::tablet_service_client::TabletServiceClient;
use crate::proto::wire::Malformed;
use crate::wal::{Epoch, ReplicaTabletId, Row, SourceTabletId};
use async_trait::async_trait;
use prost::Message;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// A tablet at a tablet server. It connects when it is first called, and again whenever it must; every call has a
/// deadline of [`CALL_MS`].
#[derive(Clone, Debug)]
pub struct GrpcTablet {
    client: TabletServiceClient<Channel>,
    url: String,
    tablet: String,
}

impl GrpcTablet {
    /// The tablet named `tablet` at the server at this address. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn new(server: impl Into<Address>, tablet: &str) -> Result<Self, BadAddress> {
        let server = server.into();
        let client = TabletServiceClient::new(server.channel()?)
            .max_decoding_message_size(GRPC_ROWS_BYTES_MAX)
            .max_encoding_message_size(GRPC_ROWS_BYTES_MAX);
        Ok(Self { client, url: server.to_string(), tablet: tablet.to_owned() })
    }

    /// The request with its deadline. One that is too large for a message is refused here, where it is known that it
    /// did not happen.
    fn request<T: Message>(&self, message: T) -> Result<Request<T>, TabletError> {
        let bytes = message.encoded_len();
        if bytes > GRPC_ROWS_BYTES_MAX {
            return Err(TabletError::Refused(format!(
                "{bytes} bytes for tablet {} are above the {GRPC_ROWS_BYTES_MAX} of a message",
                self.tablet
            )));
        }
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_millis(CALL_MS));
        Ok(request)
    }

    /// What the tablet answered. An answer that cannot be read leaves open what happened.
    fn answer<T, U>(&self, result: Result<Response<T>, Status>) -> Result<U, TabletError>
    where
        U: TryFrom<T>,
        Malformed: From<U::Error>,
    {
        let response = result.map_err(|status| match from_status(&status) {
            TabletError::Indeterminate(why) => {
                TabletError::Indeterminate(format!("tablet {} at {}: {why}", self.tablet, self.url))
            }
            error => error,
        })?;
        response.into_inner().try_into().map_err(|fault| {
            let fault = Malformed::from(fault);
            TabletError::Indeterminate(format!("tablet {} at {} answered a {fault}", self.tablet, self.url))
        })
    }
}

impl From<std::convert::Infallible> for Malformed {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<pb::StageChunkResponse> for () {
    fn from(_: pb::StageChunkResponse) -> Self {}
}

impl From<pb::DropChunksResponse> for () {
    fn from(_: pb::DropChunksResponse) -> Self {}
}

impl From<pb::CopyRowsResponse> for () {
    fn from(_: pb::CopyRowsResponse) -> Self {}
}

// Cloning a generated client is cheap, and its calls want it mutable: each call has its own.
#[async_trait]
impl TabletLeader for GrpcTablet {
    async fn announce(&self, log_id: &str, tablet: ReplicaTabletId, owner: Epoch) -> Result<Announced, TabletError> {
        let request = self.request(pb::AnnounceRequest {
            tablet: self.tablet.clone(),
            log_id: log_id.to_owned(),
            tablet_id: tablet.0,
            owner: owner.0,
        })?;
        self.answer(self.client.clone().announce(request).await)
    }

    async fn announce_puller(
        &self,
        stream: SourceTabletId,
        owner: Epoch,
        puller: Epoch,
    ) -> Result<StreamMark, TabletError> {
        let request = self.request(pb::AnnouncePullerRequest {
            tablet: self.tablet.clone(),
            stream: stream.0,
            owner: owner.0,
            puller: puller.0,
        })?;
        self.answer(self.client.clone().announce_puller(request).await)
    }

    async fn write_provisional(&self, batch: ProvisionalBatch) -> Result<Stored, TabletError> {
        let request = pb::WriteProvisionalRequest { tablet: self.tablet.clone(), ..batch.into() };
        self.answer(self.client.clone().write_provisional(self.request(request)?).await)
    }

    async fn stage_chunk(&self, chunk: ChunkBatch) -> Result<(), TabletError> {
        let request = pb::StageChunkRequest { tablet: self.tablet.clone(), ..chunk.into() };
        self.answer(self.client.clone().stage_chunk(self.request(request)?).await)
    }

    async fn drop_chunks(&self, drop: DropChunks) -> Result<(), TabletError> {
        let request = pb::DropChunksRequest { tablet: self.tablet.clone(), ..drop.into() };
        self.answer(self.client.clone().drop_chunks(self.request(request)?).await)
    }

    async fn fill(&self, request: FillRequest) -> Result<Row, TabletError> {
        let request = pb::FillRequest { tablet: self.tablet.clone(), ..request.into() };
        self.answer(self.client.clone().fill(self.request(request)?).await)
    }

    async fn copy_rows(&self, batch: CopyBatch) -> Result<(), TabletError> {
        let request = pb::CopyRowsRequest { tablet: self.tablet.clone(), ..batch.into() };
        self.answer(self.client.clone().copy_rows(self.request(request)?).await)
    }

    async fn apply(&self, batch: ApplyBatch) -> Result<Applied, TabletError> {
        let request = pb::ApplyRequest { tablet: self.tablet.clone(), ..batch.into() };
        self.answer(self.client.clone().apply(self.request(request)?).await)
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadPage, TabletError> {
        let request = pb::ReadRequest { tablet: self.tablet.clone(), ..request.into() };
        self.answer(self.client.clone().read(self.request(request)?).await)
    }

    async fn sync(&self) -> Result<Applied, TabletError> {
        let request = self.request(pb::SyncRequest { tablet: self.tablet.clone() })?;
        self.answer(self.client.clone().sync(request).await)
    }

    async fn stats(&self) -> Result<TabletStats, TabletError> {
        let request = self.request(pb::StatsRequest { tablet: self.tablet.clone() })?;
        self.answer(self.client.clone().stats(request).await)
    }
}
