//! The threads of a tablet's storage. Storage calls block, so they never run on the callers' tasks.
//!
//! One worker owns the state of all tablets that share one storage and takes calls in the order in which they come. It
//! takes every call that waits, then makes one durability barrier for all of them, then answers: group commit, across
//! streams and tablets. Another worker reads, from frozen views, so that a large scan holds up no write.

use super::state::State;
use crate::limits::{TABLET_GROUP, TABLET_QUEUE};
use crate::tablet::TabletError;
use crate::tablet::store::Store;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// A loop that the caller runs; it ends when every engine that it serves is dropped. Storage calls block, so it belongs
/// on a thread of its own ([`Worker::run`]).
pub struct Worker {
    name: String,
    work: BoxFuture<'static, ()>,
}

impl Worker {
    /// A name for the thread.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Runs the loop on this thread.
    pub fn run(self) {
        futures::executor::block_on(self.work);
    }

    /// Does this, too, when the loop has ended.
    #[must_use]
    pub fn then(self, ended: impl FnOnce() + Send + 'static) -> Self {
        let work = async move {
            self.work.await;
            ended();
        };
        Self { name: self.name, work: Box::pin(work) }
    }

    /// The loop as a task, for storage that does not block.
    #[must_use]
    pub fn into_task(self) -> BoxFuture<'static, ()> {
        self.work
    }
}

/// Gives the answer of a call once the barrier that covers it has passed or failed.
type Answer = Box<dyn FnOnce(Result<(), TabletError>) + Send>;
type Job<S> = Box<dyn FnOnce(&mut State<S>) -> Option<Answer> + Send>;
type ReadJob = Box<dyn FnOnce() + Send>;

/// When a call is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answered {
    /// At once.
    Now,
    /// Once everything written so far is durable. Refusals wait too: "the tablet holds 7" is a promise as well.
    Durable,
}

/// The first failure of the storage. Set by the worker that met it, for ever (C11); every call asks it first.
#[derive(Clone, Debug)]
pub(super) struct Poison(Arc<watch::Sender<Option<String>>>);

impl Default for Poison {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Poison {
    pub(super) fn check(&self) -> Result<(), TabletError> {
        self.0.borrow().as_ref().map_or(Ok(()), |cause| Err(TabletError::Poisoned(cause.clone())))
    }

    fn note(&self, error: &TabletError) {
        if let TabletError::Poisoned(cause) = error {
            self.0.send_if_modified(|noted| {
                let first = noted.is_none();
                if first {
                    *noted = Some(cause.clone());
                }
                first
            });
        }
    }

    /// Waits for the failure.
    async fn noted(&self) -> String {
        let mut watched = self.0.subscribe();
        match watched.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// The way to the workers of one storage.
pub(super) struct Queue<S> {
    jobs: mpsc::Sender<(usize, Job<S>)>,
    reads: mpsc::Sender<ReadJob>,
    poison: Poison,
}

impl<S> Clone for Queue<S> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), reads: self.reads.clone(), poison: self.poison.clone() }
    }
}

fn stopped() -> TabletError {
    TabletError::Indeterminate("the tablet's worker has stopped".into())
}

impl<S: Store> Queue<S> {
    /// The queue, and the workers that serve it.
    pub(super) fn new(name: &str, tablets: Vec<State<S>>) -> (Self, Vec<Worker>) {
        let (jobs, job_queue) = mpsc::channel(TABLET_QUEUE);
        let (reads, mut read_queue) = mpsc::channel::<ReadJob>(TABLET_QUEUE);
        let poison = Poison::default();
        let queue = Self { jobs, reads, poison: poison.clone() };
        let write = Box::pin(serve(tablets, job_queue, poison));
        let read = Box::pin(async move {
            while let Some(job) = read_queue.recv().await {
                job();
            }
        });
        let worker = |kind: &str, work| Worker { name: format!("{name}-{kind}"), work };
        (queue, vec![worker("write", write), worker("read", read)])
    }

    /// Waits until the storage fails, and says how.
    pub(super) async fn failed(&self) -> String {
        self.poison.noted().await
    }

    /// Runs a call on a tablet's state.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        tablet: usize,
        answered: Answered,
        call: impl FnOnce(&mut State<S>) -> Result<T, TabletError> + Send + 'static,
    ) -> Result<T, TabletError> {
        let (reply, answer) = oneshot::channel();
        let poison = self.poison.clone();
        let job: Job<S> = Box::new(move |state| {
            let outcome = poison.check().and_then(|()| call(state)).inspect_err(|error| poison.note(error));
            match answered {
                Answered::Now => {
                    let _ = reply.send(outcome);
                    None
                }
                Answered::Durable => Some(Box::new(move |barrier: Result<(), TabletError>| {
                    let _ = reply.send(barrier.and(outcome));
                })),
            }
        });
        self.jobs.send((tablet, job)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Runs a read.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, TabletError> + Send + 'static,
    ) -> Result<T, TabletError> {
        let (reply, answer) = oneshot::channel();
        let poison = self.poison.clone();
        let job: ReadJob = Box::new(move || {
            let outcome = poison.check().and_then(|()| read()).inspect_err(|error| poison.note(error));
            let _ = reply.send(outcome);
        });
        self.reads.send(job).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

async fn serve<S: Store>(mut tablets: Vec<State<S>>, mut queue: mpsc::Receiver<(usize, Job<S>)>, poison: Poison) {
    let mut waiting: Vec<Answer> = Vec::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some((tablet, job)) = next {
            if let Some(state) = tablets.get_mut(tablet) {
                waiting.extend(job(state));
            }
            taken += 1;
            next = if taken < TABLET_GROUP { queue.try_recv().ok() } else { None };
        }
        if waiting.is_empty() {
            continue;
        }
        let barrier = poison.check().and_then(|()| barrier(&mut tablets)).inspect_err(|error| poison.note(error));
        waiting.drain(..).for_each(|answer| answer(barrier.clone()));
    }
}

/// One barrier for all tablets: they share the storage.
fn barrier<S: Store>(tablets: &mut [State<S>]) -> Result<(), TabletError> {
    if let Some(tablet) = tablets.first() {
        tablet.store.sync()?;
    }
    tablets.iter_mut().for_each(State::now_durable);
    Ok(())
}
