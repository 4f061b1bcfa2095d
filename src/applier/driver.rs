//! The task that owns the transaction leader's machine.

use super::ended::Ended;
use super::host::Clock;
use super::inputs::{Input, Reply};
use super::leader::{Copied, LeaderError, PullerId, Reported, StandingSlot, StreamState, Taker, Wanted};
use super::log_thread::{LogCommand, LogEvent};
use super::opened::Given;
use super::probes::Probes;
use super::shown::{Finished, Pullers, Shown};
use super::tablets::ApplyQueue;
use crate::coordinator::{Coordinator, Decided, Output, Promise, Refused, Release, Work};
use crate::limits::{COUNTED_TRANSACTIONS, TICK_MS};
use crate::metrics::{CAUSE, COMMIT_TO_VISIBLE, STATUS, STREAM, TRANSACTIONS_FINISHED, WAITED};
use crate::planted::{Bug, planted};
use crate::txn_log::Snapshot;
use crate::wal::{Epoch, HybridTime, LogPosition, ReplicaTabletId, SourceTabletId, SourceTransactionId};
use ::metrics::{counter, histogram};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{error, info};

/// The task that owns the machine: drains inputs, appends entries one at a time (facts gather while one is on its way,
/// which is the group commit), answers what has become durable, and runs outputs.
pub(super) struct Driver {
    pub(super) coordinator: Coordinator,
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) log: mpsc::Sender<LogCommand>,
    pub(super) log_events: mpsc::Receiver<LogEvent>,
    pub(super) queues: BTreeMap<ReplicaTabletId, (Arc<ApplyQueue>, Vec<Decided>)>,
    pub(super) probes: Probes,
    pub(super) shown: watch::Sender<Shown>,
    pub(super) pullers: watch::Sender<Pullers>,
    pub(super) clock: Clock,
    pub(super) owner: Epoch,
    pub(super) log_id: String,
    pub(super) release: Release,
    /// Whether pollers elsewhere name the streams: the configuration here names none.
    pub(super) joins: bool,
    /// Answers that wait for the log to be durable up to a position.
    pub(super) waiting: BTreeMap<LogPosition, Vec<Box<dyn FnOnce() + Send>>>,
    /// The position and bytes of the append that is on its way.
    pub(super) in_flight: Option<(LogPosition, usize)>,
    /// Bytes appended since the last snapshot, and that one's.
    pub(super) bytes: usize,
    pub(super) snapshot_bytes: usize,
    pub(super) snapshot_after_bytes: usize,
    pub(super) snapshot_in_flight: bool,
    /// A snapshot that waits until what it holds is durable.
    pub(super) snapshot: Option<Snapshot>,
    /// Since when waiting was last counted, and what was not worth a whole second.
    pub(super) waited_since: Instant,
    pub(super) waited: f64,
    pub(super) settling: Vec<oneshot::Sender<()>>,
    pub(super) tables_changed: bool,
    /// Transactions that a stream's puller is to ask its source about, when it says its next word.
    pub(super) to_check: BTreeMap<SourceTabletId, Vec<SourceTransactionId>>,
    pub(super) finished: Arc<Finished>,
}

impl Driver {
    /// Runs until it is stopped, or the log is lost.
    pub(super) async fn run(mut self) -> Ended {
        let mut tick = tokio::time::interval(Duration::from_millis(TICK_MS));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let mut stopping = false;
        self.tables_changed = true;
        self.show();
        loop {
            if let Err(ended) = self.advance().await {
                return ended;
            }
            if self.in_flight.is_none() {
                self.settling.drain(..).for_each(|reply| {
                    reply.send(()).ok();
                });
            }
            if stopping && self.in_flight.is_none() && !self.snapshot_in_flight {
                return Ended::Drained;
            }
            tokio::select! {
                biased;
                event = self.log_events.recv() => match event {
                    Some(LogEvent::Durable(position)) => self.durable(position),
                    Some(LogEvent::SnapshotStored) => self.snapshot_in_flight = false,
                    Some(LogEvent::Ended(ended)) => return ended,
                    None => return Ended::Failed("the log's thread has ended".into()),
                },
                _ = tick.tick() => {
                    self.coordinator.handle_tick(self.clock.now());
                    if self.waited_since.elapsed() >= Duration::from_secs(1) {
                        self.count_waiting();
                        }
                }
                taken = self.inputs.recv_many(&mut batch, 64) => {
                    if taken == 0 {
                        return Ended::Drained;
                    }
                    for input in batch.drain(..) {
                        stopping |= matches!(input, Input::Stop);
                        self.handle(input);
                    }
                }
            }
        }
    }

    /// Begins the next append if none is on its way, and runs every output.
    async fn advance(&mut self) -> Result<(), Ended> {
        if self.in_flight.is_none() {
            self.snapshot_if_due().await?;
            if let Some(entry) = self.coordinator.poll_entry() {
                let position = entry.position;
                let bytes = entry.encode().map_err(|error| Ended::Failed(format!("entry {position}: {error}")))?;
                self.in_flight = Some((position, bytes.len()));
                self.command(LogCommand::Append { position, entry: Bytes::from(bytes) }).await?;
            }
        }
        while let Some(output) = self.coordinator.poll_output() {
            self.run_output(output);
        }
        for (tablet, (queue, work)) in &mut self.queues {
            queue.hand_over(work, self.coordinator.handed_through(*tablet), self.coordinator.handed_safe(*tablet));
        }
        Ok(())
    }

    async fn command(&mut self, command: LogCommand) -> Result<(), Ended> {
        // The thread ends only after it said why.
        self.log.send(command).await.map_err(|_| Ended::Failed("the log's thread has ended".into()))
    }

    /// Takes a snapshot when one is due. It holds what is on its way to the log, too, so it is stored once that is durable.
    async fn snapshot_if_due(&mut self) -> Result<(), Ended> {
        if !self.snapshot_in_flight && self.bytes >= self.snapshot_after_bytes.max(self.snapshot_bytes) {
            let (position, state) =
                self.coordinator.snapshot().map_err(|error| Ended::Failed(format!("the snapshot: {error}")))?;
            self.bytes = 0;
            self.snapshot_bytes = state.len();
            self.snapshot_in_flight = true;
            self.snapshot = Some(Snapshot { position, state: state.into() });
        }
        match self.snapshot.take_if(|snapshot| snapshot.position <= self.coordinator.durable()) {
            Some(snapshot) => self.command(LogCommand::Snapshot(snapshot)).await,
            None => Ok(()),
        }
    }

    /// Counts what a decision made visible, once for a transaction: at its first replica tablet.
    fn count(&self, tablet: ReplicaTabletId, decided: &Decided) {
        match &decided.work {
            Work::Commit { time, tablets, .. } if tablets.first() == Some(&tablet) => {
                counter!(TRANSACTIONS_FINISHED, STATUS => "committed").increment(1);
                self.finished.committed.fetch_add(1, Ordering::Relaxed);
                histogram!(COMMIT_TO_VISIBLE).record(time.seconds_behind(self.clock.now()));
            }
            Work::Commit { .. } | Work::Turn { .. } => {}
            Work::Discard { branches } => {
                counter!(TRANSACTIONS_FINISHED, STATUS => "aborted").increment(branches.len() as u64);
                self.finished.aborted.fetch_add(branches.len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Counts the seconds that transactions wait, by what the oldest of them waits for.
    fn count_waiting(&mut self) {
        let seconds = std::mem::replace(&mut self.waited_since, Instant::now()).elapsed().as_secs_f64();
        // Looking at each of very many would hold up what they wait for.
        if self.coordinator.state().transactions.len() > COUNTED_TRANSACTIONS {
            return;
        }
        let Some(oldest) = self.coordinator.oldest_waiting() else { return };
        let Some(wait) = oldest.waits_for else { return };
        let stream = wait.stream().map_or("", |stream| self.coordinator.state().stream_name(stream)).to_owned();
        self.waited += seconds * self.coordinator.transaction_counts().waiting_to_commit as f64;
        // A counter holds whole numbers: what is below a second is kept for later.
        let whole = self.waited.trunc();
        self.waited -= whole;
        counter!(WAITED, CAUSE => wait.cause().to_string(), STREAM => stream).increment(whole as u64);
    }

    fn run_output(&mut self, output: Output) {
        match output {
            Output::Apply { tablet, decided } => {
                self.count(tablet, &decided);
                if let Some((_, work)) = self.queues.get_mut(&tablet) {
                    work.push(decided);
                }
            }
            Output::CheckRunning { stream, transactions } => {
                // Its puller asks, wherever that lives.
                self.to_check.insert(stream, transactions);
            }
            probe => self.probes.run(probe, |stream| self.coordinator.state().stream_name(stream).to_owned()),
        }
    }

    fn durable(&mut self, position: LogPosition) {
        if let Some((_, bytes)) = self.in_flight.take() {
            self.bytes += bytes;
        }
        self.coordinator.handle_durable(position);
        self.show();
        let later = self.waiting.split_off(&position.next());
        for answers in std::mem::replace(&mut self.waiting, later).into_values() {
            answers.into_iter().for_each(|answer| answer());
        }
    }

    /// A puller says what it does, news or the same once more, and hears what is wanted of it.
    fn puller_says(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        puller: Epoch,
        state: StreamState,
    ) -> Result<Wanted, LeaderError> {
        let held = self.coordinator.state().stream(stream).map(|record| record.puller);
        if held != Some(puller) {
            return Err(LeaderError::Fenced(self.has_it(stream)));
        }
        let news = self.pullers.borrow().states.get(&stream) != Some(&state);
        if news {
            let cause = match &state {
                StreamState::Stopped { cause } => Some(cause.clone()),
                _ => None,
            };
            self.coordinator.handle_stream_stopped(stream, cause);
        }
        self.pullers.send_if_modified(|pullers| {
            pullers.heard.insert(stream, now);
            if news {
                pullers.states.insert(stream, state);
            }
            news
        });
        if let Some(cause) = self.coordinator.must_stop(stream) {
            return Err(LeaderError::Refused(cause));
        }
        Ok(Wanted {
            pause_for: self.coordinator.must_pause(stream).map(str::to_owned),
            check_running: self.to_check.remove(&stream).unwrap_or_default(),
        })
    }

    /// Whether the slot that was found for a stream may be this log's. A stream that nobody has taken yet shows why not.
    fn owns_slot(
        &mut self,
        now: HybridTime,
        name: &str,
        found: Result<Option<String>, String>,
    ) -> Result<(), LeaderError> {
        let (error, state) = match found {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => {
                let Err(refused) = self.coordinator.owns_slot(name, &found) else { return Ok(()) };
                (LeaderError::from(refused.clone()), StreamState::Stopped { cause: refused.to_string() })
            }
            Err(_) if self.coordinator.may_have_slot(name) => return Ok(()),
            Err(cause) => (LeaderError::Unavailable(cause.clone()), StreamState::Waiting { cause }),
        };
        if let Some((stream, puller)) = self.coordinator.state().stream_named(name).map(|s| (s.stream, s.puller)) {
            self.puller_says(now, stream, puller, state).ok();
        }
        Err(error)
    }

    /// Whether a puller that had the stream under this epoch may take it again.
    fn may_take(&self, name: &str, held: Option<Epoch>, now: HybridTime) -> Result<(), LeaderError> {
        let Some(record) = self.coordinator.state().stream_named(name) else { return Ok(()) };
        if let Some(cause) = self.coordinator.must_stop(record.stream) {
            return Err(LeaderError::Refused(cause));
        }
        if held.is_some_and(|held| held < record.puller) && self.pullers.borrow().is_alive(record.stream, now) {
            return Err(LeaderError::Fenced(self.has_it(record.stream)));
        }
        Ok(())
    }

    fn has_it(&self, stream: SourceTabletId) -> String {
        let pullers = self.pullers.borrow();
        let puller = pullers.names.get(&stream).map_or("another process", String::as_str);
        format!("{puller} pulls stream {} now", self.coordinator.state().stream_name(stream))
    }

    /// Shows readers how far they may read now.
    fn show(&mut self) {
        let (latest, safe) = (self.coordinator.latest(), self.coordinator.safe());
        let tables = std::mem::take(&mut self.tables_changed).then(|| Arc::new(self.coordinator.table_versions()));
        let map = self.coordinator.map();
        self.shown.send_modify(|shown| {
            (shown.latest, shown.safe) = (latest, safe);
            if let Some(tables) = tables {
                shown.tables = tables;
            }
            if shown.map.version != map.version {
                shown.map = Arc::new(map.clone());
            }
        });
    }

    /// Gives an answer once the log is durable up to where it rests on.
    fn promise<T: Send + 'static, U: Send + 'static>(
        &mut self,
        promised: Result<Promise<T>, Refused>,
        reply: Reply<U>,
        answer: impl FnOnce(T) -> U + Send + 'static,
    ) {
        match promised {
            Err(refused) => {
                reply.send(Err(refused.into())).ok();
            }
            Ok(Promise { after, value }) => {
                let answer = move || {
                    reply.send(Ok(answer(value))).ok();
                };
                if after <= self.coordinator.durable() || planted(Bug::AnswerBeforeDurable) {
                    answer();
                } else {
                    self.waiting.entry(after).or_default().push(Box::new(answer));
                }
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Report { report, reply } => {
                if let Some(cause) = self.coordinator.must_stop(report.stream) {
                    reply.send(Err(LeaderError::Refused(cause))).ok();
                    return;
                }
                let promised = self.coordinator.handle_report(now, report);
                self.promise(promised, reply, |checkpoint| Reported { checkpoint, acknowledge: checkpoint });
            }
            Input::Refused { tablet, position, transaction, cause } => {
                error!(tablet = self.coordinator.tablet_name(tablet), %cause, "the replica tablet refuses a decision");
                self.coordinator.handle_refused(tablet, position, transaction, cause);
            }
            Input::Applied { tablet, applied } => self.coordinator.handle_applied(tablet, applied),
            Input::Prepared { tablet, release, through, reply } => {
                let promise = self.coordinator.handle_prepared(now, tablet, release, through);
                self.promise(Ok(promise), reply, |()| ());
            }
            Input::LastRelease { tablet, reply } => {
                let promise = self.coordinator.last_release(tablet);
                self.promise(Ok(promise), reply, |last| last);
            }
            Input::OpenStream { name, taker: Taker { puller, held, found }, reply } => {
                if let Err(error) = self.may_take(&name, held, now) {
                    reply.send(Err(error)).ok();
                    return;
                }
                if self.joins {
                    self.coordinator.handle_stream_joined(now, &name);
                }
                if let Err(error) = self.owns_slot(now, &name, found) {
                    reply.send(Err(error)).ok();
                    return;
                }
                let promised = self.coordinator.handle_open_stream(now, &name);
                if let Ok(promise) = &promised {
                    let stream = promise.value.stream;
                    info!(stream = %name, %puller, epoch = %promise.value.puller, "a puller takes the stream");
                    self.pullers.send_modify(|pullers| {
                        pullers.heard.insert(stream, now);
                        pullers.names.insert(stream, puller);
                    });
                }
                let given = Given {
                    owner: self.owner,
                    log_id: self.log_id.clone(),
                    map: self.coordinator.map().clone(),
                    streams: self.coordinator.streams().into_iter().map(|view| (view.name, view.stream)).collect(),
                    release: self.release,
                };
                self.promise(promised, reply, |opening| given.opened(opening));
            }
            Input::Table { name, columns, spoken, reply } => {
                let promise = self.coordinator.handle_table(now, &name, columns, spoken);
                self.tables_changed = true;
                if promise.after <= self.coordinator.durable() {
                    self.show();
                }
                self.promise(Ok(promise), reply, |schema| schema);
            }
            Input::Slot { puller: PullerId { stream, epoch }, slot, reply } => {
                let StandingSlot { start, identity, tables } = slot;
                let promised = self.coordinator.handle_slot(now, stream, epoch, start, &identity, &tables);
                self.promise(promised, reply, |base| base);
            }
            Input::Published { puller: PullerId { stream, epoch }, flushed, tables, reply } => {
                let promised = self.coordinator.handle_published(now, stream, epoch, flushed, &tables);
                self.tables_changed = true;
                self.promise(promised, reply, |tables| tables);
            }
            Input::CopyBegun { puller: PullerId { stream, epoch }, tables, reply } => {
                let promised = self.coordinator.handle_copy_begun(now, stream, epoch, &tables);
                self.promise(promised, reply, |base| base);
            }
            Input::Copied { puller: PullerId { stream, epoch }, copied, reply } => {
                let Copied { table, base, snapshot, rows } = copied;
                let promised = self.coordinator.handle_copied(now, stream, epoch, &table, (base, snapshot, rows));
                self.promise(promised, reply, |()| ());
            }
            Input::Recopy { stream, table, reply } => {
                match self.coordinator.handle_recopy(now, stream.as_deref(), table.as_deref()) {
                    Ok(promise) => self.promise(Ok(promise), reply, Ok),
                    Err(refusal) => {
                        reply.send(Ok(Err(refusal))).ok();
                    }
                }
            }
            Input::State { stream, puller, state, reply } => {
                reply.send(self.puller_says(now, stream, puller, state)).ok();
            }
            Input::Fence(fence) => self.coordinator.handle_fence(now, fence),
            Input::FenceResolved { stream, transactions, position } => {
                self.coordinator.handle_fence_resolved(now, stream, transactions, position);
            }
            Input::Round { begun_after, positions } => self.coordinator.handle_round(now, begun_after, positions),
            Input::Settle { reply } => self.settling.push(reply),
            Input::Look(look) => look(&self.coordinator, now),
            Input::Stop => {}
        }
    }
}
