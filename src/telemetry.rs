//! Tracing to standard error, as text for people or JSON for machines; standard output belongs to commands.
//!
//! Spans carry what an operator searches for, under the same field names everywhere: `stream`, `tablet` and
//! `transaction`. Make them here, so that a log can be filtered by them.

use crate::config::TracingConfig;
use std::fmt::Display;
use std::io::IsTerminal;
use tracing::Span;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
#[error("logging could not start: {0}")]
pub struct TelemetryError(String);

/// Starts logging for the process; once.
///
/// # Errors
/// When logging was started before, or the filter is none.
pub fn start(config: &TracingConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder().parse(&config.filter).map_err(|error| TelemetryError(error.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if config.json {
        builder.json().finish().try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init()
    };
    started.map_err(|error| TelemetryError(error.to_string()))
}

/// The span of one stream's puller.
pub fn stream_span(stream: &str) -> Span {
    tracing::info_span!("stream", stream)
}

/// The span of one replica tablet's work.
pub fn tablet_span(tablet: &str) -> Span {
    tracing::info_span!("tablet", tablet)
}

/// The span of one transaction, by untorn's id or the source's.
pub fn transaction_span(transaction: impl Display) -> Span {
    tracing::info_span!("transaction", %transaction)
}
