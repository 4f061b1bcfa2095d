//! The service: tablets by name.

use super::super::TabletLeader;
use super::error::{malformed, to_status};
use crate::limits::GRPC_ROWS_BYTES_MAX;
use crate::proto::tablet as pb;
use crate::proto::tablet::tablet_service_server::{TabletService, TabletServiceServer};
use crate::tablet::TabletError;
use crate::wal::{Epoch, ReplicaTabletId, SourceTabletId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The tablets of a server by name.
pub type Tablets = BTreeMap<String, Arc<dyn TabletLeader>>;

/// A service that serves these tablets. A call that its client gives up, or that passes the client's deadline, is
/// dropped.
#[must_use]
pub fn tablet_service(tablets: Tablets) -> TabletServiceServer<impl TabletService> {
    TabletServiceServer::new(Service { tablets })
        .max_decoding_message_size(GRPC_ROWS_BYTES_MAX)
        .max_encoding_message_size(GRPC_ROWS_BYTES_MAX)
}

struct Service {
    tablets: Tablets,
}

impl Service {
    fn tablet(&self, name: &str) -> Result<&dyn TabletLeader, Status> {
        self.tablets.get(name).map(Arc::as_ref).ok_or_else(|| {
            let names: Vec<&str> = self.tablets.keys().map(String::as_str).collect();
            let names = names.join(", ");
            to_status(TabletError::Refused(format!("no tablet is named {name:?} here, only {names}")))
        })
    }
}

/// What a tablet answered as what the wire carries.
fn answer<T, U: From<T>>(result: Result<T, TabletError>) -> Result<Response<U>, Status> {
    result.map(|value| Response::new(value.into())).map_err(to_status)
}

#[tonic::async_trait]
impl TabletService for Service {
    async fn announce(&self, request: Request<pb::AnnounceRequest>) -> Result<Response<pb::AnnounceResponse>, Status> {
        let request = request.into_inner();
        let (id, owner) = (ReplicaTabletId(request.tablet_id), Epoch(request.owner));
        answer(self.tablet(&request.tablet)?.announce(&request.log_id, id, owner).await)
    }

    async fn announce_puller(
        &self,
        request: Request<pb::AnnouncePullerRequest>,
    ) -> Result<Response<pb::StreamMark>, Status> {
        let request = request.into_inner();
        let (stream, owner, puller) = (SourceTabletId(request.stream), Epoch(request.owner), Epoch(request.puller));
        answer(self.tablet(&request.tablet)?.announce_puller(stream, owner, puller).await)
    }

    async fn write_provisional(
        &self,
        request: Request<pb::WriteProvisionalRequest>,
    ) -> Result<Response<pb::WriteProvisionalResponse>, Status> {
        let request = request.into_inner();
        let tablet = self.tablet(&request.tablet)?;
        answer(tablet.write_provisional(request.try_into().map_err(malformed)?).await)
    }

    async fn stage_chunk(
        &self,
        request: Request<pb::StageChunkRequest>,
    ) -> Result<Response<pb::StageChunkResponse>, Status> {
        let request = request.into_inner();
        let tablet = self.tablet(&request.tablet)?;
        tablet.stage_chunk(request.try_into().map_err(malformed)?).await.map_err(to_status)?;
        Ok(Response::new(pb::StageChunkResponse {}))
    }

    async fn drop_chunks(
        &self,
        request: Request<pb::DropChunksRequest>,
    ) -> Result<Response<pb::DropChunksResponse>, Status> {
        let request = request.into_inner();
        self.tablet(&request.tablet)?.drop_chunks(request.into()).await.map_err(to_status)?;
        Ok(Response::new(pb::DropChunksResponse {}))
    }

    async fn fill(&self, request: Request<pb::FillRequest>) -> Result<Response<pb::FillResponse>, Status> {
        let request = request.into_inner();
        let tablet = self.tablet(&request.tablet)?;
        answer(tablet.fill(request.try_into().map_err(malformed)?).await)
    }

    async fn copy_rows(&self, request: Request<pb::CopyRowsRequest>) -> Result<Response<pb::CopyRowsResponse>, Status> {
        let request = request.into_inner();
        let tablet = self.tablet(&request.tablet)?;
        tablet.copy_rows(request.try_into().map_err(malformed)?).await.map_err(to_status)?;
        Ok(Response::new(pb::CopyRowsResponse {}))
    }

    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Result<Response<pb::Applied>, Status> {
        let request = request.into_inner();
        let tablet = self.tablet(&request.tablet)?;
        answer(tablet.apply(request.try_into().map_err(malformed)?).await)
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        let request = request.into_inner();
        let tablet = self.tablet(&request.tablet)?;
        answer(tablet.read(request.into()).await)
    }

    async fn sync(&self, request: Request<pb::SyncRequest>) -> Result<Response<pb::Applied>, Status> {
        answer(self.tablet(&request.into_inner().tablet)?.sync().await)
    }

    async fn stats(&self, request: Request<pb::StatsRequest>) -> Result<Response<pb::StatsResponse>, Status> {
        answer(self.tablet(&request.into_inner().tablet)?.stats().await)
    }
}
