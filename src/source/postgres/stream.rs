//! A running stream: the keeper reads the socket and tells the server what it may forget, whoever stalls; the stream
//! decodes, learns the shapes of tables, and assembles.

use super::assemble::{Assembler, Change};
use super::confirm::Confirmable;
use super::decode::{self, Decoder, Frame};
use super::relation::Relation;
use super::rules::TableRules;
use super::wire::Replication;
use crate::limits;
use crate::postgres::{Failure, Sql, Target};
use crate::source::{Catalog, SourceError, Stream, StreamEvent};
use crate::wal::{HybridTime, OpId};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// What the stream, its keeper and its source tell one another. All positions are end positions and only grow.
#[derive(Default)]
pub struct Positions {
    /// The server may forget everything up to here.
    confirm: AtomicU64,
    /// The server was told so up to here.
    told: AtomicU64,
    /// Somebody waits for the stream to come this far.
    wanted: AtomicU64,
    changed: Notify,
}

impl Positions {
    /// Asks the server where it is until the stream has come this far.
    pub fn want(&self, position: u64) {
        self.wanted.fetch_max(position, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Whether there is something to forget that the server was not told.
    fn has_news(&self) -> bool {
        self.confirm.load(Ordering::Relaxed) > self.told.load(Ordering::Relaxed)
    }

    fn confirm(&self, position: u64) {
        if self.confirm.fetch_max(position, Ordering::Relaxed) < position {
            self.changed.notify_one();
        }
    }
}

type Group = Result<Vec<Bytes>, Failure>;

/// Reads the socket until the stream is dropped or the connection ends; `feedback` is how often the server must hear of
/// us at least; it is asked where it is as often, so that the age of its last answer tells how well it is.
pub async fn keep(
    mut session: Replication,
    groups: mpsc::Sender<Group>,
    positions: Arc<Positions>,
    start: u64,
    feedback: Duration,
) {
    let mut received = start;
    let mut waiting: Option<Vec<Bytes>> = None;
    let mut last_told = Instant::now();
    // What the newest ping asked for, and whether anything has come since.
    let (mut pinged_for, mut answered) = (0, true);
    let mut heard_at = Instant::now();
    let failure = loop {
        if !answered && waiting.is_none() && heard_at.elapsed() > limits::CONNECTION_DEAD_AFTER {
            // What stands between may hold a connection open whose other end is gone.
            let seconds = limits::CONNECTION_DEAD_AFTER.as_secs();
            break Failure::lost(format!("the server has not answered for {seconds} s"));
        }
        // While the reader stalls, an answer would only queue up behind what it has not taken.
        let wanted = positions.wanted.load(Ordering::Relaxed);
        let short = wanted > received && waiting.is_none();
        if short && wanted > pinged_for {
            if let Err(failure) = tell(&mut session, &positions, received, Tell::Ping).await {
                break failure;
            }
            (pinged_for, answered, last_told) = (wanted, false, Instant::now());
        }
        let ask = answered && waiting.is_none();
        let soon = (short && answered) || positions.has_news();
        let due = last_told + if soon { limits::PING_INTERVAL } else { feedback };
        let what = tokio::select! {
            () = groups.closed() => {
                // The server learns what it may forget before it hears that nobody listens.
                let _ = tell(&mut session, &positions, received, Tell::Feedback).await;
                return;
            }
            permit = groups.reserve(), if waiting.is_some() => {
                let Ok(permit) = permit else { return };
                if let Some(group) = waiting.take() {
                    permit.send(Ok(group));
                }
                heard_at = Instant::now();
                continue;
            }
            read = session.read(), if waiting.is_none() => {
                let group = match read {
                    Ok(group) => group,
                    Err(failure) => break failure,
                };
                (answered, heard_at) = (true, Instant::now());
                let mut asked = false;
                for frame in &group {
                    let (reply_wanted, position) = decode::header(frame);
                    asked |= reply_wanted;
                    received = received.max(position);
                }
                waiting = Some(group);
                if !asked {
                    continue;
                }
                Tell::Answer
            }
            () = positions.changed.notified() => continue,
            () = tokio::time::sleep_until(due) => if ask { Tell::Ping } else { Tell::Feedback },
        };
        if let Err(failure) = tell(&mut session, &positions, received, what).await {
            break failure;
        }
        last_told = Instant::now();
        answered &= what != Tell::Ping;
    };
    if let Some(group) = waiting.take() {
        let _ = groups.send(Ok(group)).await;
    }
    let _ = groups.send(Err(failure)).await;
}

/// Why the server is told something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    /// It is time, or there is something to forget.
    Feedback,
    /// It asked. A server that shuts down asks until its client has *flushed* everything; where that is not said, what
    /// was received counts. So an answer without news leaves it out, and no server waits for an applier to shut down.
    Answer,
    /// It is asked where it is.
    Ping,
}

async fn tell(session: &mut Replication, positions: &Positions, received: u64, what: Tell) -> Result<(), Failure> {
    let confirm = positions.confirm.load(Ordering::Relaxed);
    let flushed = if what == Tell::Answer && !positions.has_news() { 0 } else { confirm };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = HybridTime::from_micros(u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
    session.write(&decode::status_update(received, flushed, now, what == Tell::Ping)).await?;
    positions.told.fetch_max(confirm, Ordering::Relaxed);
    Ok(())
}

/// An open stream.
pub struct PostgresStream {
    /// The server.
    pub target: Target,
    /// Where the keeper's frames come out.
    pub groups: mpsc::Receiver<Group>,
    /// What the keeper is told.
    pub positions: Arc<Positions>,
    /// The log's catalog of tables.
    pub catalog: Arc<dyn Catalog>,
    /// Which tables are replicated.
    pub rules: Arc<TableRules>,
    /// A session to ask for the columns of tables.
    pub sql: Option<Sql>,
    /// Where the messages go.
    pub assembler: Assembler,
    /// State of the connection, empty at its start.
    pub state: State,
    /// Who answers.
    pub identity: String,
}

/// How far a connection is.
pub struct State {
    decoder: Decoder,
    frames: VecDeque<Bytes>,
    /// A table whose shape must be known before the next frame is looked at.
    relation: Option<Box<pg_walstream::protocol::LogicalReplicationMessage>>,
    failed: Option<SourceError>,
    confirmable: Confirmable,
}

impl State {
    /// For a connection that has just begun to stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            frames: VecDeque::new(),
            relation: None,
            failed: None,
            confirmable: Confirmable::default(),
        }
    }
}

impl PostgresStream {
    fn take(&mut self, frame: Bytes) -> Result<(), String> {
        match self.state.decoder.decode(frame)? {
            Frame::Keepalive { end, sent_at } => self.assembler.keepalive(end, sent_at),
            Frame::Message { message, .. } if Relation::from_message(&message).is_some() => {
                self.state.relation = Some(message);
            }
            Frame::Message { sent_at, wal_at, sub_xid, message } => {
                self.assembler.message(Change { wal_at, sub_xid }, sent_at, *message)?;
            }
        }
        Ok(())
    }

    /// Learns the shape of the table that waits for it. Starts anew when it is cancelled, but keeps the session: else a
    /// server farther away than its caller is patient would be connected to for ever.
    async fn learn(&mut self) -> Result<(), SourceError> {
        let Self { target, catalog, rules, sql, state, .. } = self;
        let Some(mut relation) = state.relation.as_deref().and_then(Relation::from_message) else { return Ok(()) };
        let id = relation.id;
        if rules.name_of(&relation.namespace, &relation.name).is_none() {
            self.assembler.exclude(id);
            self.state.relation = None;
            return Ok(());
        }
        let server = target.label();
        let session = match sql {
            Some(session) => session,
            None => sql.insert(target.session().await?),
        };
        let asked = relation.ask_for_key(session).await.map_err(|failure| failure.at(&server));
        let shape = match asked {
            Ok(()) => relation.shape(session, &server, catalog.as_ref(), Some(id)).await,
            Err(error) => Err(error),
        };
        // After an error the session may be of no further use.
        let shape = shape.inspect_err(|_| *sql = None)?;
        self.assembler.relation(id, Arc::new(shape));
        self.state.relation = None;
        Ok(())
    }

    fn received(&mut self, group: Option<Group>) {
        match group {
            Some(Ok(frames)) => self.state.frames = frames.into(),
            Some(Err(failure)) => self.state.failed = Some(failure.at(&self.target.label())),
            None => self.state.failed = Some(Failure::lost("nobody reads it any more").at(&self.target.label())),
        }
    }

    fn hand_over(&mut self, event: StreamEvent) -> StreamEvent {
        if let StreamEvent::Batch(batch) = &event {
            self.state.confirmable.handed_over(batch);
            self.confirm();
        }
        event
    }

    fn confirm(&self) {
        if let Some(position) = self.state.confirmable.confirm() {
            self.positions.confirm(position);
        }
    }
}

#[async_trait]
impl Stream for PostgresStream {
    async fn next(&mut self) -> Result<StreamEvent, SourceError> {
        loop {
            if let Some(event) = self.assembler.poll(false) {
                return Ok(self.hand_over(event));
            }
            if self.state.relation.is_some() && self.state.failed.is_none() {
                match self.learn().await {
                    Ok(()) => {}
                    // The frame is kept: the next call tries again.
                    Err(error @ SourceError::Retry(_)) => return Err(error),
                    Err(error) => self.state.failed = Some(error),
                }
                continue;
            }
            if self.state.failed.is_none()
                && let Some(frame) = self.state.frames.pop_front()
            {
                if let Err(damage) = self.take(frame) {
                    self.state.failed = Some(SourceError::Stop(format!("{}: {damage}", self.target.label())));
                }
                continue;
            }
            if self.state.failed.is_none()
                && let Ok(group) = self.groups.try_recv()
            {
                self.received(Some(group));
                continue;
            }
            // Nothing more has come: what is there need not wait.
            if let Some(event) = self.assembler.poll(true) {
                return Ok(self.hand_over(event));
            }
            if let Some(error) = &self.state.failed {
                return Err(error.clone());
            }
            let group = self.groups.recv().await;
            self.received(group);
        }
    }

    fn acknowledge(&mut self, upto: OpId) {
        self.state.confirmable.acknowledge(upto);
        self.confirm();
    }

    fn acknowledged(&self) -> OpId {
        let told = OpId::end_of_term(self.positions.told.load(Ordering::Relaxed));
        told.min(self.state.confirmable.acknowledged())
    }

    fn identity(&self) -> Option<&str> {
        Some(&self.identity)
    }
}
