//! Pulling an open stream: records in, parts out to the tablets, reports out to the leader.

use super::ended::Trouble;
use super::leader::{LeaderError, Reported, StreamOpened, StreamState};
use super::poller::{Poller, SessionEnd, asked_to_drain};
use super::tablets::Tablet;
use crate::flow::{Assembled, Assembler, Pace, RoutedChunk, Window};
use crate::limits::{AHEAD_BYTES_PER_SECOND, BATCH_BYTES, REPORT_IDLE_MS, REPORTS_IN_FLIGHT, STALL_SHOWS_AFTER_MS};
use crate::metrics::{STREAM, STREAM_BATCHES, STREAM_BYTES, STREAM_RECORDS};
use crate::planted::{Bug, planted};
use crate::source::{Stream, StreamEvent};
use crate::tablet::{DropChunks, Stored};
use crate::wal::{OpId, ReplicaTabletId};
use ::metrics::counter;
use futures::future::{BoxFuture, OptionFuture, try_join_all};
use futures::stream::{FuturesOrdered, StreamExt};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// An open stream that is being pulled.
pub(super) struct Pull<'a> {
    pub(super) assembler: Assembler,
    pub(super) stream: Box<dyn Stream>,
    pub(super) opened: &'a StreamOpened,
    pub(super) tablets: &'a [Tablet],
    pub(super) poller: &'a Poller,
}

/// Bytes that a stream holds of the shared budget; given back with the stream, however it ends.
struct Held<'a> {
    poller: &'a Poller,
    bytes: usize,
}

impl Held<'_> {
    fn take(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.poller.budget.take(self.poller.index, bytes);
    }

    fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.poller.budget.give_back(self.poller.index, bytes);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.give_back(self.bytes);
        self.poller.side.pulled(false);
    }
}

impl Pull<'_> {
    /// Pulls until the stream fails, or everything has drained as was asked.
    ///
    /// One loop, no task of its own for any part of it: while one run is being stored, the next gathers, and the reports
    /// of those before are on their way to the log.
    pub(super) async fn run(mut self) -> Result<SessionEnd, Trouble> {
        let Poller { side, budget, ahead, leader, draining, index, .. } = self.poller;
        let mut draining = draining.clone();
        let mut window = Window::new(self.opened.resume.after, REPORTS_IN_FLIGHT);
        let mut held = Held { poller: self.poller, bytes: 0 };
        let mut storing: OptionFuture<BoxFuture<'_, Result<Assembled, Trouble>>> = None.into();
        let mut staging: OptionFuture<BoxFuture<'_, Result<(), Trouble>>> = None.into();
        let mut is_staging = false;
        // A chunk that has to wait until everything before it is stored, because it begins with a row to be filled.
        let mut to_stage: Option<RoutedChunk> = None;
        let mut reports: FuturesOrdered<BoxFuture<'_, Result<Reported, LeaderError>>> = FuturesOrdered::new();
        let mut stalled_at = None;
        let mut stall_shown = false;
        let mut acknowledged = OpId::ZERO;
        let mut idle_at = after_ms(REPORT_IDLE_MS);
        side.pulled(true);
        let mut paused_for = None;
        let (began, mut pace) = (Instant::now(), Pace::new(Some(AHEAD_BYTES_PER_SECOND)));
        let mut paced_until = began;
        loop {
            if let Some(error) = side.take_end() {
                return Err(error.into());
            }
            let pause_for = side.pause_for();
            let paused = pause_for.is_some();
            if pause_for != paused_for {
                paused_for.clone_from(&pause_for);
                let state = pause_for.map_or(StreamState::Running, |tablet| StreamState::BackPressure { tablet });
                self.poller.tell(self.opened.stream, self.opened.puller, state).await?;
            }
            for transactions in side.take_not_running(self.assembler.passed()) {
                self.assembler.push_not_running(transactions);
            }
            if stalled_at.is_none()
                && window.may_store()
                && let Some(run) = self.assembler.take()
            {
                window.received(run.report.upto);
                window.storing(run.report.upto, run.bytes);
                storing = Some(store(self.tablets, run)).into();
                stalled_at = Some(Instant::now() + Duration::from_millis(STALL_SHOWS_AFTER_MS));
            }
            if stalled_at.is_none()
                && self.assembler.is_empty()
                && let Some(chunk) = to_stage.take()
            {
                staging = Some(stage(self.tablets, chunk)).into();
            }
            let drain = *draining.borrow();
            if drain && window.is_empty() && !is_staging {
                return Ok(SessionEnd::Drained);
            }
            let freed = budget.freed();
            let slowly = ahead.is_far() && Instant::now() < paced_until;
            let may_pull = !(drain || is_staging || paused || slowly)
                && self.assembler.bytes() < BATCH_BYTES
                && budget.may_pull(*index);
            tokio::select! {
                biased;
                Some(stored) = &mut storing => {
                    storing = None.into();
                    stalled_at = None;
                    let mut run = stored?;
                    window.stored();
                    if std::mem::take(&mut stall_shown) {
                        let state = StreamState::Running;
                        self.poller.tell(self.opened.stream, self.opened.puller, state).await?;
                    }
                    if planted(Bug::AcknowledgedWhenStored) {
                        self.stream.acknowledge(run.report.upto);
                    }
                    acknowledged = self.stream.acknowledged();
                    window.acknowledged(acknowledged);
                    run.report.acknowledged = acknowledged;
                    reports.push_back(leader.report(run.report));
                    idle_at = after_ms(REPORT_IDLE_MS);
                    self.note(&window);
                }
                Some(reported) = reports.next() => {
                    let reported = reported?;
                    held.give_back(window.reported(reported.checkpoint).map_err(Trouble::Retry)?);
                    self.stream.acknowledge(reported.acknowledge);
                    self.note(&window);
                }
                Some(staged) = &mut staging => {
                    staging = None.into();
                    is_staging = false;
                    staged?;
                }
                // A source that answers that nothing came must not put this off.
                () = sleep_until(idle_at), if window.is_empty() && (may_pull || paused) => {
                    idle_at = after_ms(REPORT_IDLE_MS);
                    if self.stream.acknowledged() > acknowledged {
                        self.assembler.push_nothing();
                    }
                }
                event = self.stream.next(), if may_pull => {
                    let answered_at = self.poller.clock.now();
                    side.note(|progress| progress.answered_at = answered_at);
                    let event = event?;
                    match event {
                        StreamEvent::Batch(batch) => {
                            self.count(batch.records.len(), batch.bytes);
                            held.take(batch.bytes);
                            paced_until = Instant::now() + pace.take(batch.bytes, began.elapsed());
                            window.received(batch.upto);
                            self.assembler.push(batch).map_err(Trouble::Stop)?;
                            let came_again = self.assembler.take_came_again();
                            if !came_again.is_empty() {
                                is_staging = true;
                                staging = Some(drop_staged(self.tablets, came_again)).into();
                            }
                        }
                        StreamEvent::Chunk(chunk) => {
                            self.count(chunk.writes.len(), chunk.bytes);
                            paced_until = Instant::now() + pace.take(chunk.bytes, began.elapsed());
                            let chunk = self.assembler.chunk(chunk).map_err(Trouble::Stop)?;
                            is_staging = true;
                            if chunk.fill.is_some() {
                                to_stage = Some(chunk);
                            } else {
                                staging = Some(stage(self.tablets, chunk)).into();
                            }
                        }
                        StreamEvent::Dropped(dropped) => {
                            is_staging = true;
                            staging = Some(drop_staged(self.tablets, self.assembler.dropped(dropped))).into();
                        }
                    }
                }
                () = freed, if !may_pull => {}
                () = ahead.nearer(), if slowly => {}
                () = sleep_until(paced_until), if slowly => {}
                () = side.woken() => {}
                () = asked_to_drain(&mut draining), if !drain => {}
                () = sleep_until(stalled_at.unwrap_or_else(Instant::now)), if stalled_at.is_some() && !stall_shown => {
                    stall_shown = true;
                    let state = StreamState::BackPressure { tablet: self.slowest() };
                    self.poller.tell(self.opened.stream, self.opened.puller, state).await?;
                }
            }
        }
    }

    fn count(&self, records: usize, bytes: usize) {
        let name = || self.poller.side.name.clone();
        self.poller.side.note(|progress| progress.records += records as u64);
        counter!(STREAM_BATCHES, STREAM => name()).increment(1);
        counter!(STREAM_RECORDS, STREAM => name()).increment(records as u64);
        counter!(STREAM_BYTES, STREAM => name()).increment(bytes as u64);
    }

    fn note(&self, window: &Window) {
        let [received, durable, checkpointed] = window.positions();
        self.poller.side.note(|progress| {
            (progress.received, progress.durable, progress.checkpointed) = (received, durable, checkpointed);
        });
    }

    /// The tablets that the run in work goes to.
    fn slowest(&self) -> String {
        self.tablets.iter().map(|tablet| tablet.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

fn after_ms(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

/// Stores a run's parts at their tablets, all at once. A part that was not answered, or not in order, ends the session:
/// the next one begins with the marks that the tablets then hold, and the source sends again what is missing.
fn store<'a>(tablets: &'a [Tablet], mut run: Assembled) -> BoxFuture<'a, Result<Assembled, Trouble>> {
    Box::pin(async move {
        let parts = std::mem::take(&mut run.parts).into_iter().map(|(id, batch)| async move {
            let tablet = find(tablets, id)?;
            let mark = batch.upto;
            match tablet.leader.write_provisional(batch).await {
                Err(_) if planted(Bug::FailedWriteCounts) => Ok(Stored { mark, conflicts: Vec::new() }),
                stored => stored.map_err(|error| tablet.trouble(&error)),
            }
        });
        for Stored { conflicts, .. } in try_join_all(parts).await? {
            run.add_conflicts(conflicts);
        }
        Ok(run)
    })
}

/// Stages a chunk's parts, once its first row is filled if it must be.
fn stage(tablets: &[Tablet], mut chunk: RoutedChunk) -> BoxFuture<'_, Result<(), Trouble>> {
    Box::pin(async move {
        if let Some((id, request)) = chunk.fill.take() {
            let tablet = find(tablets, id)?;
            chunk.filled(tablet.leader.fill(request).await.map_err(|error| tablet.trouble(&error))?);
        }
        let parts = chunk.parts.into_iter().map(|(id, chunk)| async move {
            let tablet = find(tablets, id)?;
            tablet.leader.stage_chunk(chunk).await.map_err(|error| tablet.trouble(&error))
        });
        try_join_all(parts).await.map(|_| ())
    })
}

/// Throws staged chunks away.
fn drop_staged(tablets: &[Tablet], parts: Vec<(ReplicaTabletId, DropChunks)>) -> BoxFuture<'_, Result<(), Trouble>> {
    Box::pin(async move {
        let parts = parts.into_iter().map(|(id, drop)| async move {
            let tablet = find(tablets, id)?;
            tablet.leader.drop_chunks(drop).await.map_err(|error| tablet.trouble(&error))
        });
        try_join_all(parts).await.map(|_| ())
    })
}

fn find(tablets: &[Tablet], id: ReplicaTabletId) -> Result<&Tablet, Trouble> {
    let found = tablets.iter().find(|tablet| tablet.id == id);
    found.ok_or_else(|| Trouble::Retry(format!("the map does not name replica tablet {id}")))
}
