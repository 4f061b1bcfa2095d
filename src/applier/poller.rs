//! One stream's task: creates its slot, opens it and pulls it, again and again.

use super::ahead::Ahead;
use super::ended::{Ended, Trouble};
use super::host::Clock;
use super::leader::{LeaderError, PullerId, StandingSlot, StreamOpened, StreamState, Taker, TransactionLeader};
use super::probes;
use super::pull::Pull;
use super::retention;
use super::streams::{SharedBudget, StreamSide};
use super::tablets::{Tablet, Tablets};
use crate::coordinator::Release;
use crate::flow::{Assembler, Backoff, Opening};
use crate::limits::{PULLER_SAYS_EVERY_MS, RETRY_FIRST_MS, RETRY_LAST_MS, STOPPED_RETRY_MS};
use crate::metrics::{STREAM, STREAM_RECONNECTS};
use crate::source::{Catalog, NewSlot, SourceError};
use crate::wal::{Column, Epoch, OpId, ReplicaTabletId, SourceTabletId, TableSchema};
use ::metrics::counter;
use async_trait::async_trait;
use futures::future::{BoxFuture, OptionFuture, try_join_all};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// One stream's poller.
pub(super) struct Poller {
    pub(super) side: Arc<StreamSide>,
    /// Its number in the budget.
    pub(super) index: usize,
    pub(super) leader: Arc<dyn TransactionLeader>,
    pub(super) tablets: Tablets,
    pub(super) budget: Arc<SharedBudget>,
    pub(super) ahead: Arc<Ahead>,
    pub(super) draining: watch::Receiver<bool>,
    /// This process, for people.
    pub(super) puller: String,
    pub(super) clock: Clock,
}

/// How a session ended well.
pub(super) enum SessionEnd {
    /// The stream was prepared; it is to be opened again.
    Again,
    /// Everything that was on its way has arrived, as was asked.
    Drained,
}

/// The catalog of the leader, for one stream.
pub(super) struct LeaderCatalog {
    pub(super) leader: Arc<dyn TransactionLeader>,
    pub(super) stream: SourceTabletId,
}

#[async_trait]
impl Catalog for LeaderCatalog {
    async fn table(&self, name: &str, columns: Vec<Column>, relation: Option<u32>) -> Result<TableSchema, SourceError> {
        self.leader.table(self.stream, name, columns, relation).await.map_err(|error| match error {
            LeaderError::Stop(cause) => SourceError::Stop(cause),
            other => SourceError::Retry(other.to_string()),
        })
    }
}

impl Poller {
    /// Runs until it is told to drain, or the applier must end. Beside it this puller keeps in touch with the leader.
    pub(super) async fn run(self, seed: u64) -> Result<(), Ended> {
        let (side, watched, leader) = (Arc::clone(&self.side), Arc::clone(&self.side), Arc::clone(&self.leader));
        tokio::select! {
            biased;
            ended = self.run_sessions(seed) => ended,
            () = keep_in_touch(side, leader) => Ok(()),
            () = retention::watch(&watched) => Ok(()),
        }
    }

    async fn run_sessions(mut self, seed: u64) -> Result<(), Ended> {
        let mut backoff =
            Backoff::new(Duration::from_millis(RETRY_FIRST_MS), Duration::from_millis(RETRY_LAST_MS), seed);
        let mut said = None;
        let mut held = None;
        loop {
            let mut opened = None;
            self.side.begin();
            let mut draining = self.draining.clone();
            let side = Arc::clone(&self.side);
            let session = tokio::select! {
                biased;
                session = self.session(held, &mut opened, &mut backoff) => session,
                // What is still being opened or copied is not waited for; what is being pulled drains by itself.
                () = drained_before_pulling(&mut draining, &side) => {
                    self.side.source.abandon_slot().await;
                    return Ok(());
                }
            };
            held = opened.map_or(held, |(_, puller)| Some(puller));
            let (state, wait) = match session {
                Ok(SessionEnd::Drained) => return Ok(()),
                Ok(SessionEnd::Again) => continue,
                Err(Trouble::Ended(ended)) => return Err(ended),
                Err(Trouble::Retry(cause)) => {
                    counter!(STREAM_RECONNECTS, STREAM => self.side.name.clone()).increment(1);
                    (StreamState::Waiting { cause }, backoff.next_wait())
                }
                Err(Trouble::Fenced(cause)) => {
                    self.side.lost();
                    opened = None;
                    (StreamState::Waiting { cause }, backoff.next_wait())
                }
                Err(Trouble::Stop(cause)) => (StreamState::Stopped { cause }, Duration::from_millis(STOPPED_RETRY_MS)),
                // Asking costs nothing, and it is to go on as soon as it may.
                Err(Trouble::StandStill(cause)) => {
                    (StreamState::Stopped { cause }, Duration::from_millis(PULLER_SAYS_EVERY_MS))
                }
            };
            self.say(&mut said, &state);
            self.side.note(|progress| progress.state = state.clone());
            if let Some((stream, puller)) = opened {
                // Whoever cannot be told asks again when it opens.
                self.tell(stream, puller, state).await.ok();
            }
            tokio::select! {
                biased;
                () = asked_to_drain(&mut self.draining) => return Ok(()),
                () = self.side.asked_again() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Tells the leader what this puller does.
    pub(super) async fn tell(
        &self,
        stream: SourceTabletId,
        puller: Epoch,
        state: StreamState,
    ) -> Result<(), LeaderError> {
        self.side.says(state.clone());
        let answer = self.leader.stream_state(stream, puller, state).await;
        self.side.hear(puller, answer.clone());
        answer.map(|_| ())
    }

    /// Says a cause once, not at every attempt.
    fn say(&self, said: &mut Option<StreamState>, state: &StreamState) {
        if said.as_ref() == Some(state) {
            return;
        }
        match state {
            StreamState::Stopped { cause } => warn!(stream = %self.side.name, %cause, "the stream stops"),
            StreamState::Waiting { cause } => warn!(stream = %self.side.name, %cause, "the stream is opened again"),
            _ => {}
        }
        *said = Some(state.clone());
    }

    async fn session(
        &self,
        held: Option<Epoch>,
        opened_as: &mut Option<(SourceTabletId, Epoch)>,
        backoff: &mut Backoff,
    ) -> Result<SessionEnd, Trouble> {
        let opened = Arc::new(self.take(held).await?);
        // Until there is news, the leader hears what it heard before.
        self.side.opens(Arc::clone(&opened));
        *opened_as = Some((opened.stream, opened.puller));
        self.side.note(|progress| progress.owner = opened.owner);
        let streams = opened.streams.iter().cloned().collect();
        let tablets = self.tablets.of(&opened.map).map_err(Trouble::Stop)?;
        let tablets: Vec<Tablet> = tablets.into_iter().map(|tablet| tablet.knowing(&streams)).collect();
        let marks = announce(&tablets, &opened).await?;
        let catalog = Arc::new(LeaderCatalog { leader: Arc::clone(&self.leader), stream: opened.stream });
        if !opened.slot_stands {
            let created = self.create_slot(&opened).await;
            if created.is_err() {
                self.side.source.abandon_slot().await;
            }
            created?;
            return Ok(SessionEnd::Again);
        }
        let (stream, keeper) = self.side.source.open(opened.resume.clone(), catalog).await?;
        if let Some(identity) = stream.identity().filter(|identity| *identity != opened.resume.identity) {
            info!(stream = %self.side.name, identity, before = opened.resume.identity, "another server took this one's place");
            let puller = PullerId { stream: opened.stream, epoch: opened.puller };
            let (start, identity) = (opened.resume.after, identity.to_owned());
            self.leader.slot(puller, StandingSlot { start, identity, tables: Vec::new() }).await?;
        }
        let mut keepers = JoinSet::new();
        keepers.spawn(keeper);
        self.tell(opened.stream, opened.puller, StreamState::Running).await?;
        info!(stream = %self.side.name, puller = %opened.puller, after = %opened.resume.after, "the stream runs");
        backoff.reset();
        let pull = Pull {
            assembler: Assembler::new(opening(&opened, marks)),
            stream,
            opened: &opened,
            tablets: &tablets,
            poller: self,
        };
        pull.run().await
    }

    /// Takes the stream. The first time in this process its slot may be one that this log never made.
    async fn take(&self, held: Option<Epoch>) -> Result<StreamOpened, Trouble> {
        let found = match held {
            Some(_) => Ok(None),
            None => self.side.source.found_slot().await.map_err(|error| error.to_string()),
        };
        Ok(self.leader.open_stream(&self.side.name, Taker { puller: self.puller.clone(), held, found }).await?)
    }

    /// Creates the stream's slot, and hands its snapshot to the copier once the log says that it stands.
    async fn create_slot(&self, opened: &StreamOpened) -> Result<(), Trouble> {
        let NewSlot { start, identity, snapshot } = self.side.source.create_slot().await?;
        let tables = snapshot.iter().flat_map(|snapshot| snapshot.tables());
        let tables = tables.map(|table| table.published.clone()).collect();
        let puller = PullerId { stream: opened.stream, epoch: opened.puller };
        self.side.source.slot_stands();
        let base = self.leader.slot(puller, StandingSlot { start, identity, tables }).await?;
        if let Some(snapshot) = snapshot {
            self.side.hand_over(base, snapshot);
        }
        Ok(())
    }
}

/// Tells the leader again and again what a puller does, because one that falls silent is dead, and a leader that was
/// started again must be told; hears what the leader wants of it, and asks the source what it is to be asked (C8).
async fn keep_in_touch(side: Arc<StreamSide>, leader: Arc<dyn TransactionLeader>) {
    let mut checking: OptionFuture<BoxFuture<'_, ()>> = None.into();
    let mut busy = false;
    loop {
        tokio::select! {
            biased;
            Some(()) = &mut checking, if busy => busy = false,
            () = tokio::time::sleep(Duration::from_millis(PULLER_SAYS_EVERY_MS)) => {
                if let Some((stream, puller, state)) = side.said() {
                    let answer = leader.stream_state(stream, puller, state).await;
                    side.hear(puller, answer);
                }
                let to_check = if busy { Vec::new() } else { side.take_to_check() };
                if !to_check.is_empty() {
                    checking = Some(probes::check_running(&side, to_check)).into();
                    busy = true;
                }
            }
        }
    }
}

/// Ends when draining is asked for while no records are on their way. What is being pulled drains by itself, and this
/// must not end before it.
async fn drained_before_pulling(draining: &mut watch::Receiver<bool>, side: &StreamSide) {
    asked_to_drain(draining).await;
    if side.is_pulled() {
        std::future::pending().await
    }
}

/// Ends when draining is asked for.
pub(super) async fn asked_to_drain(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        // The applier is gone, and this task with it.
        std::future::pending().await
    }
}

/// Every tablet hears of the new puller before its mark is read (C7), and must hold what the log says it stored (C14).
async fn announce(tablets: &[Tablet], opened: &StreamOpened) -> Result<Vec<(ReplicaTabletId, OpId)>, Trouble> {
    let announced = tablets.iter().map(|tablet| async move {
        let mark = tablet.leader.announce_puller(opened.stream, opened.owner, opened.puller).await;
        let mark = mark.map_err(|error| tablet.trouble(&error))?.stored;
        let logged = opened.stored.iter().find(|(id, _)| *id == tablet.id).map_or(OpId::ZERO, |(_, at)| *at);
        if mark < logged {
            return Err(Trouble::Stop(format!(
                "replica tablet {} holds this stream up to {mark} only, but the log says that it stored it up to \
                 {logged}: it lost acknowledged writes; bring its folder back, or set up the replica again from a new \
                 copy",
                tablet.name
            )));
        }
        Ok((tablet.id, mark))
    });
    try_join_all(announced).await
}

fn opening(opened: &StreamOpened, marks: Vec<(ReplicaTabletId, OpId)>) -> Opening {
    let branches = |applying: bool| {
        let chosen = opened.resume.open_branches.iter().filter(move |branch| branch.applying == applying);
        chosen.map(|branch| (branch.transaction.clone(), branch.opened)).collect()
    };
    Opening {
        stream: opened.stream,
        owner: opened.owner,
        puller: opened.puller,
        map: opened.map.clone(),
        report_conflicts: opened.release == Release::Atomic,
        streams: opened.streams.iter().cloned().collect(),
        checkpoint: opened.resume.after,
        open: branches(false),
        // Only where a branch is named by its transaction alone: a prepared one is ended by where it opened.
        applied: if opened.release == Release::CommonClock { branches(true) } else { Vec::new() },
        marks,
    }
}
