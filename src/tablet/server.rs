//! A tablet server: tablets and their change records on one listener.

use super::cdc_service::cdc_service;
use super::change_log::ChangeLog;
use super::grpc::{Tablets, tablet_service};
use crate::access::{self, Listener};
use crate::limits::DRAIN_MS;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::service::Routes;

/// Serves `TabletService` of these tablets, and `CdcService` of this log where there is one, until `shutdown` is ready;
/// then takes no new calls and returns when those in work have ended, at the latest after [`DRAIN_MS`].
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: impl Into<Listener>,
    tablets: Tablets,
    change_log: Option<Arc<dyn ChangeLog>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (drain, draining) = oneshot::channel::<()>();
    let mut routes = Routes::new(tablet_service(tablets));
    if let Some(change_log) = change_log {
        routes = routes.add_service(cdc_service(change_log));
    }
    let server = access::serve(listener.into(), routes.into_axum_router(), async {
        let _ = draining.await;
    });
    let mut server = pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        () = shutdown => drop(drain),
    }
    tokio::time::timeout(Duration::from_millis(DRAIN_MS), server).await.unwrap_or(Ok(()))
}
