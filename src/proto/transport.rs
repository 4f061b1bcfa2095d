//! How untorn's gRPC servers are set up, and what a status says.

use crate::limits::{GRPC_CALL_MS_MAX, GRPC_HEADER_BYTES_MAX, GRPC_KEEPALIVE_MS, GRPC_STREAMS_MAX, GRPC_WINDOW_BYTES};
use std::error::Error;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Server;

/// A server with untorn's settings and no services yet.
#[must_use]
pub fn server() -> Server {
    let keepalive = Some(Duration::from_millis(GRPC_KEEPALIVE_MS));
    Server::builder()
        .http2_keepalive_interval(keepalive)
        .http2_keepalive_timeout(keepalive)
        .initial_stream_window_size(GRPC_WINDOW_BYTES)
        .initial_connection_window_size(GRPC_WINDOW_BYTES * 4)
        .max_concurrent_streams(GRPC_STREAMS_MAX)
        .http2_max_header_list_size(GRPC_HEADER_BYTES_MAX)
        .timeout(Duration::from_millis(GRPC_CALL_MS_MAX))
}

/// What a status says, with the causes that tonic keeps beneath it: "tcp connect error" alone helps nobody.
#[must_use]
pub fn describe(status: &Status) -> String {
    let text = format!("{:?}: {}", status.code(), status.message());
    with_causes(text, status.source())
}

/// A sentence with the causes beneath it that it does not tell already.
#[must_use]
pub fn with_causes(mut text: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
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
