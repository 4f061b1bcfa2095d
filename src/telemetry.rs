//! Tracing to standard error, as text for people or JSON for machines; standard output belongs to commands.
//!
//! Spans carry what an operator searches for, under the same field names everywhere: `stream`, `tablet` and
//! `transaction`. Make them here, so that a log can be filtered by them. Values of rows and secrets are in no event, at no
//! level.

use crate::config::TracingConfig;
use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::{OnceLock, PoisonError, RwLock};
use tracing::Span;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::SubscriberInitExt;

/// Why logging could not start, or be filtered otherwise.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// It could not be started.
    #[error("logging could not start: {0}")]
    Start(String),
    /// A text that is no filter.
    #[error("{filter:?} is no filter: {error}; write as in \"info,untorn::source=debug\"")]
    Filter {
        /// The text.
        filter: String,
        /// What is wrong with it.
        error: String,
    },
}

/// Audit lines are in every log: whoever may change the filter cannot hide what they do.
const AUDIT: &str = "untorn::audit=info";

/// Puts another filter in place of the one that stands.
type Swap = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// The process' filter: tracing has one subscriber for the whole process, and so this is one.
static FILTER: OnceLock<(RwLock<String>, Swap)> = OnceLock::new();

/// Starts logging for the process; once.
///
/// # Errors
/// When logging was started before, or the filter is none.
pub fn start(config: &TracingConfig) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt().with_env_filter(parse(&config.filter)?).with_writer(std::io::stderr);
    let (started, swap): (_, Swap) = if config.json {
        let builder = builder.json().with_filter_reloading();
        let handle = builder.reload_handle();
        let swap = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (builder.finish().try_init(), Box::new(swap))
    } else {
        let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
        let handle = builder.reload_handle();
        let swap = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (builder.finish().try_init(), Box::new(swap))
    };
    started.map_err(|error| TelemetryError::Start(error.to_string()))?;
    FILTER.set((RwLock::new(config.filter.clone()), swap)).ok();
    Ok(())
}

/// The filter that stands; none where logging was not started.
#[must_use]
pub fn filter() -> String {
    let text = FILTER.get().map(|(text, _)| text.read().unwrap_or_else(PoisonError::into_inner).clone());
    text.unwrap_or_default()
}

/// Filters otherwise from now on, until the process ends or this is called again.
///
/// # Errors
/// No filter, or logging was not started; what stood stands.
pub fn set_filter(text: &str) -> Result<(), TelemetryError> {
    let filter = parse(text)?;
    let (stands, swap) = FILTER.get().ok_or_else(|| TelemetryError::Start("it was not started".into()))?;
    let mut stands = stands.write().unwrap_or_else(PoisonError::into_inner);
    swap(filter).map_err(TelemetryError::Start)?;
    text.clone_into(&mut stands);
    Ok(())
}

fn parse(text: &str) -> Result<EnvFilter, TelemetryError> {
    let fault = |error: String| TelemetryError::Filter { filter: text.to_owned(), error };
    let parsed = EnvFilter::builder().parse(text).map_err(|error| fault(error.to_string()))?;
    let audit = AUDIT.parse().map_err(|error: ParseError| fault(error.to_string()))?;
    Ok(parsed.add_directive(audit))
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
