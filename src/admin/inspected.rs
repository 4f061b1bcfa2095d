//! The applier as its admin interface shows it: one look at the leader's machine, and what the pullers say.

mod explanation;
mod rows;

use super::explain::Explanation;
use super::scan::{Scan, ScanAt, ScanError};
use super::status::{CopyPhase, CopyStatus, Position, Role, State, Status, StreamStatus, TransactionCounts};
use super::verify::{Event, Verifier, VerifyError};
use super::{Inspect, RecopyError, gauges};
use crate::applier::leader::StreamState;
use crate::applier::{CopyProgress, Inspector, NotReady, Progress, Retried, Skipped};
use crate::coordinator::{self, Absence, Coordinator, CopyState, ReadPoint, Release, StreamView, TableCopy};
use crate::limits::{COUNTED_TRANSACTIONS, WAITING_LISTED};
use crate::wal::{HybridTime, LogPosition, OpId, SourceTabletId};
use async_trait::async_trait;
use explanation::explained;
use futures::stream::BoxStream;
use rows::rows;
use std::collections::BTreeMap;

/// A running applier, to be asked by people.
pub struct Inspected {
    inspector: Inspector,
    /// Positions are PostgreSQL's.
    lsn: bool,
}

/// What one look at the leader's machine finds.
struct Seen {
    now: HybridTime,
    release: Release,
    held_by: Option<SourceTabletId>,
    streams: Vec<StreamView>,
    /// Why a stream must stand still, where it must.
    stopped: BTreeMap<SourceTabletId, String>,
    counts: coordinator::TransactionCounts,
    oldest_invisible: Option<HybridTime>,
}

impl Seen {
    fn of(coordinator: &Coordinator, now: HybridTime) -> Self {
        let streams = coordinator.streams();
        let must_stop = |view: &StreamView| Some((view.stream, coordinator.must_stop(view.stream)?));
        Self {
            now,
            release: coordinator.state().release,
            held_by: coordinator.held_by(),
            stopped: streams.iter().filter_map(must_stop).collect(),
            streams,
            counts: coordinator.transaction_counts(),
            oldest_invisible: coordinator.oldest_invisible(),
        }
    }
}

impl Inspected {
    /// `lsn` says that positions are PostgreSQL's.
    #[must_use]
    pub fn new(inspector: Inspector, lsn: bool) -> Self {
        Self { inspector, lsn }
    }

    fn position(&self, at: OpId) -> Position {
        if self.lsn { Position::Lsn(at.term) } else { Position::OpId(at) }
    }

    /// Age of a stream's last answer, or, where it is pulled elsewhere, of its puller's last word; 0 before the first.
    fn answer_age(&self, stream: SourceTabletId, name: &str, now: HybridTime) -> f64 {
        let answered = self.inspector.progress(name).map(|progress| progress.answered_at);
        let here = answered.filter(|at| *at > HybridTime::MIN);
        here.or_else(|| self.inspector.heard(stream)).map_or(0.0, |at| at.seconds_behind(now))
    }

    fn stream(&self, seen: &Seen, view: &StreamView, seen_at: Option<LogPosition>) -> StreamStatus {
        let progress = self.inspector.progress(&view.name).unwrap_or_default();
        let (mut state, mut cause) = self.held(seen, view);
        let is_first = |copy: &TableCopy| copy.shown.is_none() && !matches!(copy.state, CopyState::Done { .. });
        let first = view.copies.iter().any(is_first);
        if matches!(state, State::Running | State::Copying) {
            state = if first { State::Copying } else { State::Running };
        }
        if !view.takes_part && cause.is_none() {
            cause = Some("it joins: its tables are shown once all of them are copied and its fence is passed".into());
        }
        let invisible = seen.oldest_invisible.filter(|_| seen.held_by == Some(view.stream));
        StreamStatus {
            name: view.name.clone(),
            state,
            cause,
            received: self.position(view.received.max(progress.received)),
            durable: self.position(view.durable),
            checkpointed: self.position(view.checkpointed),
            lag_seconds: self
                .answer_age(view.stream, &view.name, seen.now)
                .max(invisible.map_or(0.0, |time| time.seconds_behind(seen.now))),
            records_total: progress.records,
            copy: copy(&view.copies, &progress.copy, view.slot_stands, seen_at),
        }
    }

    /// What a stream does, unless what it brought is not taken: a decision that the replica refuses stops the streams that
    /// brought it, and a replica that takes nothing has all of them wait.
    fn held(&self, seen: &Seen, view: &StreamView) -> (State, Option<String>) {
        if let Some(cause) = seen.stopped.get(&view.stream) {
            return (State::Stopped, Some(cause.clone()));
        }
        let (state, cause) = state(self.inspector.stream_state(view.stream, &view.name));
        match self.inspector.holds().into_iter().next() {
            Some(hold) if state == State::Running => {
                (if hold.stopped { State::Stopped } else { State::Waiting }, Some(hold.cause))
            }
            _ => (state, cause),
        }
    }

    /// What one look at the leader's machine finds, in people's words; nothing where another process leads.
    async fn explanations(
        &self,
        look: impl FnOnce(&Coordinator) -> Vec<coordinator::Explanation> + Send + 'static,
    ) -> Vec<Explanation> {
        let found = self.inspector.look(move |coordinator, now| explained(coordinator, now, look(coordinator))).await;
        found.unwrap_or_default().into_iter().map(|explained| self.explanation(explained)).collect()
    }

    /// Whether every stream that this process pulls comes, as far as the process can help.
    fn pulls(&self) -> bool {
        let states = self.inspector.all_progress().map(|(_, progress)| progress.state);
        // Those that others pull are not polled here.
        let mut here = states.filter(|state| *state != StreamState::NotPolled).peekable();
        here.peek().is_some()
            && here.all(|state| !matches!(state, StreamState::Waiting { .. } | StreamState::Stopped { .. }))
    }

    /// The status of a process that pulls for a leader elsewhere.
    fn follower(&self) -> Status {
        let progress: Vec<_> = self.inspector.all_progress().collect();
        let stream = |(name, progress): &(String, Progress)| {
            let (state, cause) = state(progress.state.clone());
            StreamStatus {
                name: name.clone(),
                state,
                cause,
                received: self.position(progress.received),
                durable: self.position(progress.durable),
                checkpointed: self.position(progress.checkpointed),
                lag_seconds: 0.0,
                records_total: progress.records,
                copy: copy(&[], &progress.copy, true, None),
            }
        };
        Status {
            ready: false,
            role: Role::Standby,
            epoch: progress.iter().map(|(_, progress)| progress.owner).max().unwrap_or_default(),
            safe_time: None,
            safe_time_lag_seconds: 0.0,
            held_by: None,
            streams: progress.iter().map(stream).collect(),
            transactions: TransactionCounts::default(),
        }
    }
}

#[async_trait]
impl Inspect for Inspected {
    async fn set_gauges(&self) {
        gauges::set(&self.status().await);
        self.inspector.set_gauges().await;
    }

    async fn readiness(&self) -> Result<String, String> {
        let status = self.status().await;
        // Where another process leads, reads are its business; this one is ready when none of its streams lacks anything.
        if self.inspector.epoch().is_none() && self.pulls() {
            return Ok("ready: it pulls its streams for a leader elsewhere\n".into());
        }
        if status.ready { Ok(status.to_string()) } else { Err(status.to_string()) }
    }

    async fn status(&self) -> Status {
        let Ok(seen) = self.inspector.look(Seen::of).await else { return self.follower() };
        let safe = self.inspector.reader().and_then(|reader| reader.safe().ok());
        let seen_at = safe.map(|safe| safe.position);
        let name = |stream| seen.streams.iter().find(|view| view.stream == stream).map(|view| view.name.clone());
        let streams: Vec<_> = seen.streams.iter().map(|view| self.stream(&seen, view, seen_at)).collect();
        let invisible = seen.oldest_invisible.map_or(0.0, |time| time.seconds_behind(seen.now));
        let lag = match (seen.release, safe) {
            // With a common clock, safe time follows the source's clock even when nothing is committed.
            (Release::CommonClock, Some(safe)) if safe.time < HybridTime::MAX => safe.time.seconds_behind(seen.now),
            _ => streams.iter().map(|stream| stream.lag_seconds).fold(invisible, f64::max),
        };
        let [committed_total, aborted_total] = self.inspector.finished();
        Status {
            ready: safe.is_some(),
            role: Role::Leader,
            epoch: self.inspector.epoch().unwrap_or_default(),
            safe_time: safe.map(|safe| safe.time),
            safe_time_lag_seconds: lag,
            held_by: seen.held_by.and_then(name),
            streams,
            transactions: TransactionCounts {
                pending: seen.counts.pending,
                waiting_to_commit: seen.counts.waiting_to_commit,
                committed_not_applied: seen.counts.committed_not_applied,
                oldest_waiting_seconds: seen.counts.oldest_waiting.map_or(0.0, |at| at.seconds_behind(seen.now)),
                committed_total,
                aborted_total,
            },
        }
    }

    async fn explain(&self, transaction: &str) -> Vec<Explanation> {
        let transaction = transaction.to_owned();
        self.explanations(move |coordinator| coordinator.explain(&transaction)).await
    }

    async fn waiting(&self) -> Vec<Explanation> {
        let oldest = |coordinator: &Coordinator| {
            let few = coordinator.state().transactions.len() <= COUNTED_TRANSACTIONS;
            coordinator.longest_waiting(if few { WAITING_LISTED } else { 1 })
        };
        self.explanations(oldest).await
    }

    async fn skip(&self, transaction: &str) -> Result<Skipped, String> {
        self.inspector.skip(transaction).await
    }

    fn retry(&self) -> Retried {
        self.inspector.retry()
    }

    async fn recopy(&self, tablet: Option<&str>, table: Option<&str>) -> Result<Vec<(String, String)>, RecopyError> {
        let asked = self.inspector.recopy(tablet, table).await;
        asked.map_err(|error| RecopyError::NotHere(error.to_string()))?.map_err(RecopyError::Refused)
    }

    async fn scan(&self, table: &str, at: ScanAt) -> Result<Scan, ScanError> {
        let reader = self.inspector.reader();
        let reader = reader.ok_or_else(|| ScanError::NotReady("another process leads; ask that one".into()))?;
        let point = match at {
            ScanAt::Safe => reader.safe(),
            ScanAt::Latest => reader.latest(),
            ScanAt::Time(time) => reader.at(time),
        };
        let point = point.map_err(|error| match error {
            NotReady::Start | NotReady::NoSafePoint | NotReady::FirstCut { .. } => {
                ScanError::NotReady(error.to_string())
            }
            NotReady::AboveSafeTime { .. } | NotReady::OneMoment => ScanError::NotServed(error.to_string()),
        })?;
        let schema = reader.table(table).ok_or_else(|| ScanError::UnknownTable(table.to_owned()))?;
        let (name, ReadPoint { position, time }) = (table.to_owned(), point);
        let missed = self.inspector.look(move |coordinator, _| {
            let state = coordinator.state();
            if let Some(stream) = state.unreadable(&name, position) {
                let stream = state.stream_name(stream);
                return Some(ScanError::NotReady(format!("table {name} is being copied from {stream}, and not shown yet")));
            }
            let (record, Absence { from, until, .. }) = state.absent(&name, time)?;
            Some(ScanError::NotServed(format!(
                "there is no complete {name} at {time}: {} was joining anew, and its rows are missed from {from} on and below \
                 {until}; ask for a time below or above",
                record.name
            )))
        });
        match missed.await {
            Ok(None) => {}
            Ok(Some(missed)) => return Err(missed),
            Err(error) => return Err(ScanError::NotReady(error.to_string())),
        }
        Ok(rows(reader, schema, point))
    }

    async fn verify_tables(&self) -> Result<Vec<String>, VerifyError> {
        Verifier::new(self.inspector.clone()).tables().await
    }

    fn verify(&self, table: &str) -> BoxStream<'static, Result<Event, VerifyError>> {
        Verifier::new(self.inspector.clone()).verify(table.to_owned())
    }
}

fn state(state: StreamState) -> (State, Option<String>) {
    match state {
        StreamState::NotPolled => (State::Waiting, Some("nobody pulls it".into())),
        StreamState::Copying { .. } => (State::Copying, None),
        StreamState::Running => (State::Running, None),
        StreamState::Waiting { cause } => (State::Waiting, Some(cause)),
        StreamState::BackPressure { tablet } => (State::Waiting, Some(format!("its writes wait for {tablet}"))),
        StreamState::Stopped { cause } => (State::Stopped, Some(cause)),
    }
}

/// How far the copies of a stream's tables are: what the log knows of each, and the rows of those on their way.
/// Before the stream's slot stands, nobody knows its tables. Once readers are served, at `seen_at`, a copy is done when they
/// see its rows: whoever waits for it means to read them.
fn copy(copies: &[TableCopy], progress: &CopyProgress, slot_stands: bool, seen_at: Option<LogPosition>) -> CopyStatus {
    let done = copies.iter().filter_map(|copy| match copy.state {
        CopyState::Done { rows, .. } if !progress.tables.contains_key(&copy.table) => Some(rows),
        _ => None,
    });
    let done: u64 = done.sum();
    let (rows, total) = progress.rows();
    let is_over = |copy: &&TableCopy| match seen_at {
        Some(seen_at) => copy.is_over() && copy.shown_at <= seen_at,
        None => matches!(copy.state, CopyState::Done { .. }),
    };
    let over = copies.iter().filter(is_over).count();
    let state = if slot_stands && over == copies.len() && progress.tables.is_empty() {
        CopyPhase::Done
    } else if copies.iter().all(|copy| copy.state == CopyState::Pending) && progress.tables.is_empty() {
        CopyPhase::Pending
    } else {
        CopyPhase::Running
    };
    let total = if state == CopyPhase::Pending { None } else { total.map(|total| done + total) };
    CopyStatus {
        state,
        rows: done + rows,
        total,
        tables_done: over as u64,
        tables: copies.len() as u64,
        rows_per_second: progress.rate,
        eta_seconds: progress.seconds_left(),
        cause: progress.cause.clone(),
    }
}
