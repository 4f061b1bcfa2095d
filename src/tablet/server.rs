//! A tablet server: tablets and their change records on one listener.

use super::cdc_service::cdc_service;
use super::change_log::ChangeLog;
use super::grpc::{Tablets, tablet_service};
use crate::limits::DRAIN_MS;
use crate::proto::transport;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;

/// Serves `TabletService` of these tablets, and `CdcService` of this log where there is one, until `shutdown` is ready;
/// then takes no new calls and returns when those in work have ended, at the latest after [`DRAIN_MS`].
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    tablets: Tablets,
    change_log: Option<Arc<dyn ChangeLog>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (drain, draining) = oneshot::channel::<()>();
    let server = transport::server()
        .add_service(tablet_service(tablets))
        .add_optional_service(change_log.map(cdc_service))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            let _ = draining.await;
        });
    let mut server = pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        () = shutdown => drop(drain),
    }
    tokio::time::timeout(Duration::from_millis(DRAIN_MS), server).await.unwrap_or(Ok(()))
}
