//! Serving routes to those who may call them.

use super::audit::audit;
use super::listener::Listener;
use super::peer::Peer;
use super::role::{Role, needs};
use crate::proto::transport;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, Version};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use std::future::Future;
use tonic::Status;
use tonic::service::Routes;

/// Serves gRPC services and HTTP pages until `stop` ends and the calls that were under way are answered. Who may not make
/// a call is told so, and the attempt leaves an audit line.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: Listener,
    routes: Router,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let routes = Routes::from(routes.layer(from_fn(admit)));
    let server = transport::server().accept_http1(true).add_routes(routes);
    server.serve_with_incoming_shutdown(listener.incoming(), stop).await
}

async fn admit(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let role = peer.and_then(|peer| peer.role);
    let path = request.uri().path();
    // Every service's package begins so; pages do not.
    let grpc = path.starts_with("/untorn.");
    // A browser on this machine may be made to post to an open port, but it never speaks HTTP/2 without TLS.
    if grpc && request.version() != Version::HTTP_2 {
        return StatusCode::HTTP_VERSION_NOT_SUPPORTED.into_response();
    }
    let needed = needs(path);
    if role >= Some(needed) {
        return next.run(request).await;
    }
    let refused = refusal(peer, needed);
    audit(peer, "call", path, &Err::<(), _>(&refused));
    if grpc {
        Status::permission_denied(refused).into_http()
    } else {
        (StatusCode::FORBIDDEN, refused + "\n").into_response()
    }
}

fn refusal(peer: Option<&Peer>, needed: Role) -> String {
    let needed = needed.word();
    match peer {
        Some(Peer { names: Some(names), role, .. }) => {
            let has = role.map_or("no role", Role::word);
            format!("{} has {has} here, and this call needs {needed}; grant it in [[….access]]", names.join(", "))
        }
        _ => format!("this call needs {needed}"),
    }
}

#[cfg(test)]
mod tests;
