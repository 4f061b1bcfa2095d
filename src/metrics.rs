//! Every metric: its name, kind, labels and meaning, each once. Code that counts uses the consts, so that no name is
//! spelled twice, and [`describe_all`] tells Prometheus what the table says.
//!
//! Labels are bounded: streams and tablets stand in the configuration, the rest are a few fixed words. A transaction's
//! id is never a label.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::fmt::Write;

/// The label of a stream, by its name in the configuration.
pub const STREAM: &str = "stream";
/// The label of a replica tablet, by its name in the map.
pub const TABLET: &str = "tablet";
/// The label of a transaction's status, in small letters: `waiting_to_commit`.
pub const STATUS: &str = "status";
/// The label of a stream's state: `copying`, `running`, `stopped`, `waiting`.
pub const STATE: &str = "state";
/// The label of what a transaction waits for: a cause of `explain`.
pub const CAUSE: &str = "cause";
/// The label of the process's role: `leader`, `standby`.
pub const ROLE: &str = "role";

/// The stream label of a safe time that no stream holds back.
pub const HELD_BY_NOBODY: &str = "";

/// What a metric's number does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    /// It only rises.
    Counter,
    /// It is what it is now.
    Gauge,
    /// It is a distribution.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What its number does.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says, with its unit.
    pub about: &'static str,
}

/// Makes a const of each name and one table of all, so that a metric cannot be named without being described.
macro_rules! metrics {
    ($($const:ident = $name:literal, $kind:ident, [$($label:ident),*], $about:literal;)*) => {
        $(#[doc = $about] pub const $const: &str = $name;)*

        /// Every metric.
        pub const METRICS: &[Metric] = &[
            $(Metric { name: $const, kind: MetricKind::$kind, labels: &[$($label),*], about: $about }),*
        ];
    };
}

metrics! {
    STREAM_RECORDS = "untorn_stream_records_total", Counter, [STREAM], "Records taken from a stream.";
    STREAM_BYTES = "untorn_stream_bytes_total", Counter, [STREAM], "Bytes of records taken from a stream.";
    STREAM_BATCHES = "untorn_stream_batches_total", Counter, [STREAM], "Batches taken from a stream.";
    STREAM_RECEIVED = "untorn_stream_received_position", Gauge, [STREAM],
        "Position of the last record received: the LSN for PostgreSQL, the index for cdc.";
    STREAM_DURABLE = "untorn_stream_durable_position", Gauge, [STREAM],
        "Position up to which records are durable at the replica and in the log.";
    STREAM_CHECKPOINTED = "untorn_stream_checkpointed_position", Gauge, [STREAM],
        "Position acknowledged to the source.";
    STREAM_LAG = "untorn_stream_lag_seconds", Gauge, [STREAM],
        "Age, by wall clock, of the oldest invisible commit of a stream or of its last answer, whichever is greater.";
    STREAM_STATE = "untorn_stream_state_info", Gauge, [STREAM, STATE], "1 for the state that a stream is in, else 0.";
    STREAM_RECONNECTS = "untorn_stream_reconnects_total", Counter, [STREAM], "Times that a stream was opened again.";
    STREAM_COPIED_ROWS = "untorn_stream_copied_rows_total", Counter, [STREAM], "Rows of the initial copy.";
    SOURCE_WAL_RETAINED = "untorn_source_wal_retained_bytes", Gauge, [STREAM],
        "Bytes of WAL that the server keeps for the stream's slot.";
    SOURCE_WAL_SAFE = "untorn_source_wal_safe_bytes", Gauge, [STREAM],
        "Bytes of WAL that the server may write before the slot is lost; +Inf where only its disk limits it.";
    SOURCE_PREPARED_OLDEST = "untorn_source_prepared_oldest_seconds", Gauge, [STREAM],
        "Age of the oldest transaction prepared on the server; 0 where none is.";
    TRANSACTIONS = "untorn_held_transactions", Gauge, [STATUS], "Transactions held, by status.";
    TRANSACTIONS_FINISHED = "untorn_finished_transactions_total", Counter, [STATUS],
        "Transactions applied or aborted.";
    OLDEST_WAITING = "untorn_oldest_waiting_seconds", Gauge, [], "Age of the oldest undecided transaction.";
    COMMIT_TO_VISIBLE = "untorn_commit_to_visible_seconds", Histogram, [],
        "From the source's commit to its visibility at the replica.";
    WAITED = "untorn_transaction_waited_seconds_total", Counter, [CAUSE, STREAM],
        "Seconds that transactions waited, by cause and the stream waited for.";
    SAFE_TIME = "untorn_safe_time_seconds", Gauge, [], "Safe time, as seconds since the Unix epoch.";
    SAFE_TIME_LAG = "untorn_safe_time_lag_seconds", Gauge, [], "How far safe time lies behind the wall clock.";
    SAFE_TIME_HELD = "untorn_safe_time_held_info", Gauge, [STREAM], "1 for the stream that holds safe time, else 0.";
    LOG_APPENDS = "untorn_log_appends_total", Counter, [], "Appends to the transaction log that succeeded.";
    LOG_CONFLICTS = "untorn_log_conflicts_total", Counter, [], "Appends that found another entry at their position.";
    LOG_FENCED = "untorn_log_fenced_total", Counter, [], "Appends refused because a higher epoch is open.";
    LOG_INDETERMINATE = "untorn_log_indeterminate_total", Counter, [], "Appends whose outcome had to be read back.";
    LOG_APPEND_SECONDS = "untorn_log_append_seconds", Histogram, [], "How long an append took, with its barrier.";
    PROVISIONAL_RECORDS = "untorn_provisional_records", Gauge, [TABLET], "Provisional records held.";
    PROVISIONAL_BYTES = "untorn_provisional_records_bytes", Gauge, [TABLET], "Bytes of provisional records held.";
    PROVISIONAL_OLDEST = "untorn_provisional_records_oldest_seconds", Gauge, [], "Age of the oldest provisional record.";
    BUDGET = "untorn_memory_budget_bytes", Gauge, [], "The memory budget.";
    BUDGET_USED = "untorn_memory_budget_used_bytes", Gauge, [], "How much of the memory budget is in use.";
    READY = "untorn_ready_info", Gauge, [], "1 when reads at safe time are served, else 0.";
    ROLE_INFO = "untorn_role_info", Gauge, [ROLE], "1 for the role that this process has, else 0.";
    EPOCH = "untorn_owner_epoch", Gauge, [], "The epoch of this process's ownership of the transaction log.";
}

/// Upper bounds, in seconds, of every histogram: from a fast barrier to a stream that was away for minutes.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];

/// Tells the recorder what every metric means.
pub fn describe_all() {
    for metric in METRICS {
        match metric.kind {
            MetricKind::Counter => ::metrics::describe_counter!(metric.name, metric.about),
            MetricKind::Gauge => ::metrics::describe_gauge!(metric.name, metric.about),
            MetricKind::Histogram => ::metrics::describe_histogram!(metric.name, metric.about),
        }
    }
}

/// A recorder with fixed buckets for every histogram. (Without buckets the exporter makes summaries, which cannot be
/// added up over processes.)
fn builder() -> Result<PrometheusBuilder, BuildError> {
    METRICS
        .iter()
        .filter(|metric| metric.kind == MetricKind::Histogram)
        .try_fold(PrometheusBuilder::new(), |builder, metric| {
            builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), &BUCKETS)
        })
}

/// Makes the process's recorder and describes every metric. Whoever holds the handle must call its `run_upkeep` now
/// and then, or samples of histograms pile up; [`crate::admin::server::metrics`] does.
///
/// # Errors
/// When a recorder was made before.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let recorder = builder()?.build_recorder();
    let handle = recorder.handle();
    ::metrics::set_global_recorder(recorder)?;
    describe_all();
    Ok(handle)
}

/// The metrics as a Markdown table, for the documentation.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from("| metric | kind | labels | what it says |\n|---|---|---|---|\n");
    for metric in METRICS {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.about);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_described_and_histograms_have_buckets() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        ::metrics::with_local_recorder(&recorder, || {
            describe_all();
            for metric in METRICS {
                let labels: Vec<_> = metric.labels.iter().map(|&label| ::metrics::Label::new(label, "a")).collect();
                match metric.kind {
                    MetricKind::Counter => ::metrics::counter!(metric.name, labels).increment(1),
                    MetricKind::Gauge => ::metrics::gauge!(metric.name, labels).set(1.0),
                    MetricKind::Histogram => ::metrics::histogram!(metric.name, labels).record(0.1),
                }
            }
        });
        let rendered = handle.render();
        for metric in METRICS {
            assert!(rendered.contains(&format!("# HELP {} {}", metric.name, metric.about)), "{}", metric.name);
            if metric.kind == MetricKind::Histogram {
                assert!(rendered.contains(&format!("{}_bucket{{le=\"600\"}} 1", metric.name)), "{rendered}");
            }
        }
    }

    #[test]
    fn names_follow_the_rule() {
        let mut names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len(), "a name stands twice");
        for metric in METRICS {
            assert!(metric.name.starts_with("untorn_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == MetricKind::Counter, "{}", metric.name);
        }
    }
}
