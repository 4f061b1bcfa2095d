//! The admin surface: gRPC and HTTP on one port, and the metrics listener. These hand back futures; the caller runs
//! them.

use super::health::Health;
use super::page;
use super::scan::{ScanAt, ScanError};
use super::verify::VerifyError;
use super::{Inspect, RecopyError};
use crate::access::{Keyring, Listener, Peer, audit, serve};
use crate::applier::{Given, Retried};
use crate::limits;
use crate::proto::admin as proto;
use crate::proto::admin::admin_service_server::{AdminService, AdminServiceServer};
use crate::telemetry;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use metrics_exporter_prometheus::PrometheusHandle;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, TryAcquireError};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// How often samples of histograms are folded into their buckets, so that they do not pile up while nobody asks.
const UPKEEP: Duration = Duration::from_secs(5);

/// Serves AdminService, `/status`, `/explain/{transaction}`, `/livez` and `/readyz` until `stop` ends and the calls
/// that were under way are answered.
///
/// # Errors
/// When the listener fails.
pub async fn admin(
    listener: impl Into<Listener>,
    inspect: Arc<dyn Inspect>,
    health: Health,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    serve(listener.into(), admin_routes(inspect, health), stop).await.map_err(io::Error::other)
}

/// What [`admin`] serves, for callers that have been let in.
pub fn admin_routes(inspect: Arc<dyn Inspect>, health: Health) -> Router {
    let service = AdminServiceServer::new(Service {
        inspect: Arc::clone(&inspect),
        scans: Arc::new(Semaphore::new(limits::SCANS_MAX)),
        verifications: Arc::new(Semaphore::new(1)),
    })
    .max_encoding_message_size(limits::GRPC_ROWS_BYTES_MAX);
    let http = Router::new()
        .route("/status", get(status))
        .route("/explain/{transaction}", get(explain))
        .route("/waiting", get(waiting))
        .route("/", get(page::page))
        .with_state(inspect)
        .merge(health.routes());
    // Without this, gRPC's answer to an unknown service, which HTTP takes for a 200, would be that of the whole port.
    let unknown = async || StatusCode::NOT_FOUND;
    Routes::new(service).prepare().into_axum_router().merge(http).fallback(unknown)
}

/// Serves `/metrics`, `/livez` and `/readyz` until `stop` ends.
///
/// # Errors
/// When the listener fails.
pub async fn metrics(
    listener: impl Into<Listener>,
    recorder: PrometheusHandle,
    health: Health,
    keys: Keyring,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let (shown, scraped) = (health.clone(), recorder.clone());
    let render = move || {
        let (scraped, shown, keys) = (scraped.clone(), shown.clone(), keys.clone());
        async move {
            keys.set_gauges();
            if let Some(shown) = shown.inspect() {
                shown.set_gauges().await;
            }
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], scraped.render())
        }
    };
    let server = serve(listener.into(), health.routes().route("/metrics", get(render)), stop);
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            recorder.run_upkeep();
        }
    };
    tokio::select! {
        served = server => served.map_err(io::Error::other),
        () = upkeep => Ok(()),
    }
}

async fn status(State(inspect): State<Arc<dyn Inspect>>) -> impl IntoResponse {
    Json(inspect.status().await)
}

/// An array of those that have waited for longest.
async fn waiting(State(inspect): State<Arc<dyn Inspect>>) -> impl IntoResponse {
    Json(inspect.waiting().await)
}

/// An array of all that fit; 404 with an empty one when none does.
async fn explain(State(inspect): State<Arc<dyn Inspect>>, Path(transaction): Path<String>) -> impl IntoResponse {
    let explanations = inspect.explain(&transaction).await;
    let code = if explanations.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    (code, Json(explanations))
}

struct Service {
    inspect: Arc<dyn Inspect>,
    scans: Arc<Semaphore>,
    verifications: Arc<Semaphore>,
}

#[tonic::async_trait]
impl AdminService for Service {
    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        Ok(Response::new(self.inspect.status().await.into()))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        let transaction = request.into_inner().transaction;
        let explanations = self.inspect.explain(&transaction).await;
        if explanations.is_empty() {
            return Err(Status::not_found(format!("no transaction {transaction}")));
        }
        Ok(Response::new(proto::ExplainResponse { explanations: explanations.into_iter().map(Into::into).collect() }))
    }

    async fn skip(&self, request: Request<proto::SkipRequest>) -> Result<Response<proto::SkipResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let transaction = request.into_inner().transaction;
        let skipped = self.inspect.skip(&transaction).await;
        audit(peer.as_ref(), "skip", &transaction, &skipped);
        let skipped = skipped.map_err(Status::failed_precondition)?;
        let told = |given: Given| proto::SkippedTransaction {
            transaction: given.transaction.to_string(),
            source_id: given.source_id,
        };
        Ok(Response::new(proto::SkipResponse {
            transaction: Some(told(skipped.transaction)),
            dependents: skipped.dependents.into_iter().map(told).collect(),
        }))
    }

    async fn retry(&self, request: Request<proto::RetryRequest>) -> Result<Response<proto::RetryResponse>, Status> {
        let Retried { tablets, streams } = self.inspect.retry();
        let subject = tablets.iter().chain(&streams).map(String::as_str).collect::<Vec<_>>().join(", ");
        audit(request.extensions().get::<Peer>(), "retry", &subject, &Ok::<_, Status>(()));
        Ok(Response::new(proto::RetryResponse { tablets, streams }))
    }

    async fn waiting(&self, _: Request<proto::WaitingRequest>) -> Result<Response<proto::ExplainResponse>, Status> {
        let waiting = self.inspect.waiting().await;
        Ok(Response::new(proto::ExplainResponse { explanations: waiting.into_iter().map(Into::into).collect() }))
    }

    async fn log_filter(
        &self,
        request: Request<proto::LogFilterRequest>,
    ) -> Result<Response<proto::LogFilterResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        if let Some(filter) = request.into_inner().filter {
            let set = telemetry::set_filter(&filter);
            audit(peer.as_ref(), "log-level", &filter, &set);
            set.map_err(|error| Status::invalid_argument(error.to_string()))?;
        }
        Ok(Response::new(proto::LogFilterResponse { filter: telemetry::filter() }))
    }

    async fn recopy(&self, request: Request<proto::RecopyRequest>) -> Result<Response<proto::RecopyResponse>, Status> {
        let proto::RecopyRequest { tablet, table } = request.into_inner();
        if tablet.is_none() && table.is_none() {
            return Err(Status::invalid_argument("name a source tablet, a table, or both"));
        }
        let asked = self.inspect.recopy(tablet.as_deref(), table.as_deref()).await;
        // The audit: who asked for what, and what came of it.
        tracing::info!(tablet, table, copies = asked.as_ref().map_or(0, Vec::len), "an operator asks for new copies");
        let asked = asked.map_err(|error| match error {
            RecopyError::Refused(_) => Status::invalid_argument(error.to_string()),
            RecopyError::NotHere(_) => Status::failed_precondition(error.to_string()),
        })?;
        let tables = asked.into_iter().map(|(tablet, table)| proto::RecopiedTable { tablet, table });
        Ok(Response::new(proto::RecopyResponse { tables: tables.collect() }))
    }

    type ScanStream = BoxStream<'static, Result<proto::ScanResponse, Status>>;

    async fn scan(&self, request: Request<proto::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let at = match request.at {
            None | Some(proto::scan_request::At::Safe(_)) => ScanAt::Safe,
            Some(proto::scan_request::At::Latest(_)) => ScanAt::Latest,
            Some(proto::scan_request::At::HybridTime(time)) => ScanAt::Time(crate::wal::HybridTime::from_u64(time)),
        };
        let permit = Arc::clone(&self.scans).try_acquire_owned().map_err(|error| match error {
            TryAcquireError::NoPermits => refused(ScanError::Busy(limits::SCANS_MAX)),
            TryAcquireError::Closed => Status::unavailable("the process is stopping"),
        })?;
        let scan = self.inspect.scan(&request.table, at).await.map_err(refused)?;
        let header = proto::ScanHeader { columns: scan.columns.into_iter().map(Into::into).collect() };
        let mut sent = 0_u64;
        let mut failed = false;
        let rows = scan.rows.map(Some).chain(stream::iter([None])).filter_map(move |page| {
            // The permit is held until the last page is sent or the client is gone.
            let _held = &permit;
            let part = match page {
                Some(Ok(rows)) => {
                    sent += rows.len() as u64;
                    let rows = rows.into_iter().map(Into::into).collect();
                    Some(Ok(proto::scan_response::Part::Rows(proto::ScanRows { rows })))
                }
                Some(Err(error)) => {
                    failed = true;
                    Some(Err(refused(error)))
                }
                // The end is said only after all rows.
                None if failed => None,
                None => Some(Ok(proto::scan_response::Part::End(proto::ScanEnd { rows: sent }))),
            };
            std::future::ready(part)
        });
        let parts = stream::iter([Ok(proto::scan_response::Part::Header(header))]).chain(rows);
        Ok(Response::new(parts.map(|part| part.map(|part| proto::ScanResponse { part: Some(part) })).boxed()))
    }

    async fn verify_tables(
        &self,
        _: Request<proto::VerifyTablesRequest>,
    ) -> Result<Response<proto::VerifyTablesResponse>, Status> {
        let tables = self.inspect.verify_tables().await.map_err(unverified)?;
        Ok(Response::new(proto::VerifyTablesResponse { tables }))
    }

    type VerifyStream = BoxStream<'static, Result<proto::VerifyResponse, Status>>;

    async fn verify(&self, request: Request<proto::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let table = request.into_inner().table;
        // Each holds checksums of a whole table.
        let permit = Arc::clone(&self.verifications).try_acquire_owned();
        let permit = permit.map_err(|_| "a verification runs already; wait for it");
        // It changes nothing, but it reads every row of a server that others need: said when it begins.
        audit(peer.as_ref(), "verify", &table, &permit);
        let permit = permit.map_err(Status::resource_exhausted)?;
        let events = self.inspect.verify(&table);
        let messages = events.map(move |event| {
            let _held = &permit;
            event.map(Into::into).map_err(unverified)
        });
        Ok(Response::new(messages.boxed()))
    }
}

fn unverified(error: VerifyError) -> Status {
    let text = error.to_string();
    match error {
        VerifyError::NotReady(_) | VerifyError::NotReadable => Status::failed_precondition(text),
        VerifyError::UnknownTable(_) => Status::not_found(text),
        VerifyError::Source(_) | VerifyError::Tablet(_) => Status::unavailable(text),
    }
}

fn refused(error: ScanError) -> Status {
    let text = error.to_string();
    match error {
        ScanError::NotReady(_) => Status::failed_precondition(text),
        ScanError::UnknownTable(_) => Status::not_found(text),
        ScanError::NotServed(_) => Status::out_of_range(text),
        ScanError::Busy(_) => Status::resource_exhausted(text),
        ScanError::Failed(_) => Status::unavailable(text),
    }
}

#[cfg(test)]
mod tests;
