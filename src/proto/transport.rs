//! How untorn's gRPC connections are set up, at both ends.

use crate::limits::{GRPC_CONNECT_MS, GRPC_KEEPALIVE_MS, GRPC_WINDOW_BYTES};
use std::error::Error;
use std::time::Duration;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Server};

/// A URL that no connection can be made to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no gRPC address ({fault}); write it as http://HOST:PORT")]
pub struct BadUrl {
    url: String,
    fault: String,
}

/// A channel to `url` (`http://host:port`) that connects when it is first used, and again whenever it must. To be called
/// within a tokio runtime. Calls have no deadline of their own.
///
/// # Errors
/// [`BadUrl`].
pub fn channel(url: &str) -> Result<Channel, BadUrl> {
    let bad = |fault: &str| BadUrl { url: url.to_owned(), fault: fault.to_owned() };
    let uri: tonic::codegen::http::Uri =
        url.parse().map_err(|fault: tonic::codegen::http::uri::InvalidUri| bad(&fault.to_string()))?;
    if uri.scheme_str() != Some("http") || uri.port().is_none() {
        return Err(bad("its scheme is not http or it has no port"));
    }
    let keepalive = Duration::from_millis(GRPC_KEEPALIVE_MS);
    let endpoint = Endpoint::from(uri)
        .connect_timeout(Duration::from_millis(GRPC_CONNECT_MS))
        .http2_keep_alive_interval(keepalive)
        .keep_alive_timeout(keepalive)
        .initial_stream_window_size(GRPC_WINDOW_BYTES)
        .initial_connection_window_size(GRPC_WINDOW_BYTES * 4);
    Ok(endpoint.connect_lazy())
}

/// A server with untorn's settings and no services yet.
#[must_use]
pub fn server() -> Server {
    let keepalive = Some(Duration::from_millis(GRPC_KEEPALIVE_MS));
    Server::builder()
        .http2_keepalive_interval(keepalive)
        .http2_keepalive_timeout(keepalive)
        .initial_stream_window_size(GRPC_WINDOW_BYTES)
        .initial_connection_window_size(GRPC_WINDOW_BYTES * 4)
}

/// What a status says, with the causes that tonic keeps beneath it: "tcp connect error" alone helps nobody.
#[must_use]
pub fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        let beneath = error.to_string();
        if !text.contains(&beneath) {
            text.push_str(": ");
            text.push_str(&beneath);
        }
        cause = error.source();
    }
    text
}
