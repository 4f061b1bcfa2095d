//! The runtime: the async shell around the pure machines. It moves bytes, runs outputs, and is the one place that
//! spawns.
//!
//! [`Applier::start`] composes it: the task that owns the transaction leader's machine, the thread that owns the log, an
//! executor for each replica tablet, a poller for each stream. All of them belong to the [`Applier`] and end with it.

mod ahead;
mod copier;
mod driver;
mod ended;
mod executor;
mod host;
mod inputs;
mod inspector;
pub mod leader;
pub mod leader_grpc;
mod leader_local;
mod log_thread;
mod opened;
mod poller;
mod probes;
mod pull;
mod reads;
mod recovery;
mod refusals;
mod releases;
mod retention;
mod shown;
mod streams;
mod tablets;

pub use copier::CopyOptions;
pub use ended::Ended;
pub use host::{Clock, Host};
pub use inputs::Inputs;
pub use inspector::Inspector;
pub use reads::{NotReady, Reader, TableScan};
pub use recovery::RecoveryError;
pub use refusals::{Given, Retried, Skipped};
pub use shown::Shown;
pub use streams::{CopyProgress, Progress};
pub use tablets::{Hold, NamedTablet, Tablets};

use crate::coordinator::{Release, Settings};
use crate::limits::{APPLIER_DRAIN_MS, LEADER_INPUTS};
use crate::source::Source;
use crate::txn_log::TransactionLog;
use ahead::Ahead;
use copier::Copier;
use driver::Driver;
use executor::Executor;
use inputs::Input;
use inspector::LedView;
use leader::TransactionLeader;
use poller::Poller;
use probes::Probes;
use recovery::Recovered;
use shown::{Finished, Pullers};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use streams::{SharedBudget, StreamSide};
use tablets::ApplyQueue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tracing::warn;

/// Who owns the transaction records.
pub enum Leadership {
    /// This process, by this log.
    Here {
        /// The log, not open yet.
        log: Box<dyn TransactionLog>,
        /// How transactions are decided.
        settings: Settings,
    },
    /// Another process.
    Elsewhere(Arc<dyn TransactionLeader>),
}

/// What an applier is made of.
pub struct Components {
    /// Who owns the transaction records.
    pub leadership: Leadership,
    /// The replica tablets.
    pub tablets: Tablets,
    /// The source's tablets. A leader asks their servers even when others pull them.
    pub sources: Vec<Arc<dyn Source>>,
    /// The streams that this process pulls, by name; `None` is all of them.
    pub pull: Option<Vec<String>>,
    /// How tables are copied.
    pub copy: CopyOptions,
    /// Bytes of records that may be on their way, over all streams.
    pub memory_budget: usize,
    /// This process, for people.
    pub owner: String,
}

/// Why an applier could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log could not be taken over.
    #[error("the transaction log: {0}")]
    Recovery(#[from] RecoveryError),
    /// The log was made with another configuration: the text says what differs and how to mend it.
    #[error("{0}")]
    Configuration(String),
    /// The log's thread could not be started.
    #[error("the log's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running applier. Dropping it ends all of its tasks at once, as a crash would; see [`Applier::drain`].
pub struct Applier {
    leader: Arc<dyn TransactionLeader>,
    led: Option<Led>,
    inspector: Inspector,
    draining: watch::Sender<bool>,
    pollers: JoinSet<Result<(), Ended>>,
}

/// The part of an applier that owns the transaction records.
struct Led {
    view: LedView,
    queues: Vec<Arc<ApplyQueue>>,
    executors: JoinSet<Result<(), Ended>>,
    driver: JoinSet<Ended>,
    /// The log, where it is a task: it ends with the applier.
    #[expect(dead_code, reason = "held, so that dropping the applier ends it")]
    log: JoinSet<()>,
}

impl Applier {
    /// Starts an applier; answers once the log is taken over and everything runs. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(components: Components) -> Result<Self, StartError> {
        Self::start_on(Host::default(), components).await
    }

    /// As [`Applier::start`], on this machine.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on(host: Host, components: Components) -> Result<Self, StartError> {
        let Components { leadership, tablets, sources, pull, copy, memory_budget, owner } = components;
        let streams: Vec<_> = sources.into_iter().map(|source| Arc::new(StreamSide::new(source))).collect();
        let (leader, led): (Arc<dyn TransactionLeader>, _) = match leadership {
            Leadership::Elsewhere(leader) => (leader, None),
            Leadership::Here { log, settings } => {
                let led = lead(&host, log, settings, &tablets, &streams, &owner).await?;
                (Arc::new(led.view.inputs.clone()), Some(led))
            }
        };
        let (draining, drain) = watch::channel(false);
        let budget = Arc::new(SharedBudget::new(memory_budget, streams.len()));
        let ahead = Ahead::of(led.as_ref().map_or(&[], |led| &led.queues));
        let mut pollers = JoinSet::new();
        let pulled = |side: &StreamSide| pull.as_ref().is_none_or(|pull| pull.contains(&side.name));
        for (index, side) in streams.iter().enumerate().filter(|(_, side)| pulled(side)) {
            let poller = Poller {
                side: Arc::clone(side),
                index,
                leader: Arc::clone(&leader),
                tablets: tablets.clone(),
                budget: Arc::clone(&budget),
                ahead: Arc::clone(&ahead),
                draining: drain.clone(),
                puller: owner.clone(),
                clock: host.clock.clone(),
            };
            pollers.spawn(poller.run(host.seed(index)));
            let copier = Copier {
                side: Arc::clone(side),
                leader: Arc::clone(&leader),
                tablets: tablets.clone(),
                options: copy,
                draining: drain.clone(),
            };
            pollers.spawn(copier.run(host.seed(index)));
        }
        let inspector = Inspector { led: led.as_ref().map(|led| led.view.clone()), streams, budget, clock: host.clock };
        Ok(Self { leader, led, inspector, draining, pollers })
    }

    /// The transaction leader that this applier's pollers report to, to be served to others.
    #[must_use]
    pub fn leader(&self) -> Arc<dyn TransactionLeader> {
        Arc::clone(&self.leader)
    }

    /// What this applier can be asked.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        self.inspector.clone()
    }

    /// Reads of the replica; `None` where another process leads.
    #[must_use]
    pub fn reader(&self) -> Option<Reader> {
        self.inspector.reader()
    }

    /// The leader's inputs, for looks at its machine; `None` where another process leads.
    #[must_use]
    pub fn inputs(&self) -> Option<Inputs> {
        self.led.as_ref().map(|led| led.view.inputs.clone())
    }

    /// Waits until the applier ends by itself, and says why.
    pub async fn wait(&mut self) -> Ended {
        let Some(led) = &mut self.led else { return first_end(&mut self.pollers).await };
        tokio::select! {
            biased;
            ended = led.driver.join_next() => match ended {
                Some(ended) => ended.unwrap_or_else(panicked),
                None => Ended::Failed("the transaction leader has ended".into()),
            },
            ended = first_end(&mut led.executors) => ended,
            ended = first_end(&mut self.pollers) => ended,
        }
    }

    /// Pulls no more, and ends once everything that is on its way has arrived: stored, reported, decided as far as can
    /// be, applied, and durable. What is not drained in time is resumed at the next start.
    pub async fn drain(mut self) -> Ended {
        let late = |what: &str| Ended::NotDrained(what.to_owned());
        let deadline = tokio::time::Instant::now() + Duration::from_millis(APPLIER_DRAIN_MS);
        self.draining.send_replace(true);
        match tokio::time::timeout_at(deadline, all(&mut self.pollers)).await {
            Ok(Ok(())) => {}
            Ok(Err(ended)) => return ended,
            Err(_) => return late("a stream's last batch"),
        }
        let Some(mut led) = self.led.take() else { return Ended::Drained };
        // Everything said so far is in the log, and handed to the tablets' queues, before they are closed.
        led.view.inputs.settle().await;
        led.queues.iter().for_each(|queue| queue.close());
        match tokio::time::timeout_at(deadline, all(&mut led.executors)).await {
            Ok(Ok(())) => {}
            Ok(Err(ended)) => return ended,
            Err(_) => return late("a replica tablet's last decisions"),
        }
        led.view.inputs.send(Input::Stop).await;
        match tokio::time::timeout_at(deadline, led.driver.join_next()).await {
            Ok(Some(ended)) => ended.unwrap_or_else(panicked),
            Ok(None) => Ended::Drained,
            Err(_) => late("the log's last entry"),
        }
    }
}

/// Takes the log over, and starts what a leader needs.
async fn lead(
    host: &Host,
    mut log: Box<dyn TransactionLog>,
    settings: Settings,
    tablets: &Tablets,
    streams: &[Arc<StreamSide>],
    owner: &str,
) -> Result<Led, StartError> {
    let release = settings.release;
    let (log_commands, commands) = mpsc::channel(4);
    let (events, log_events) = mpsc::channel(4);
    let (recovered, recovery) = oneshot::channel();
    let log_owner = owner.to_owned();
    let work = async move {
        let answer = recovery::recover(log.as_mut(), &log_owner, settings).await;
        let epoch = answer.as_ref().map(|recovered| recovered.opened.epoch).ok();
        if recovered.send(answer).is_ok()
            && let Some(epoch) = epoch
        {
            log_thread::run(log, epoch, commands, events).await;
        }
    };
    let mut log_tasks = JoinSet::new();
    if host.log_blocks {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("log".into()).spawn(move || runtime.block_on(work))?;
    } else {
        log_tasks.spawn(work);
    }
    let now = || host.clock.now();
    let recovered = recovery.await.map_err(|_| std::io::Error::other("it ended before it had opened the log"))?;
    let Recovered { mut coordinator, opened, bytes, snapshot_bytes } = recovered?;
    let (epoch, log_id) = (opened.epoch, opened.log_id);
    coordinator.handle_opened(now(), epoch, owner, &tablets.cut()).map_err(StartError::Configuration)?;
    let names: Vec<&str> = streams.iter().map(|side| side.name.as_str()).collect();
    // Without any, pollers elsewhere name the streams, or there are none.
    if !names.is_empty() {
        let rows = if coordinator.is_read_directly() { "stay as they are" } else { "are not seen from here on" };
        for gone in coordinator.handle_configured(host.clock.now(), &names) {
            warn!(
                stream = gone,
                "the configuration does not name this source tablet any more: its rows {rows}, and what it had prepared is \
                 discarded. Its slot stays on its server and keeps WAL there until somebody drops it (pg_drop_replication_slot)"
            );
        }
    }
    let (sender, receiver) = mpsc::channel(LEADER_INPUTS);
    let inputs = Inputs::new(sender);
    let mut executors = JoinSet::new();
    let mut queues = BTreeMap::new();
    for (index, tablet) in tablets.of(coordinator.map()).map_err(StartError::Configuration)?.into_iter().enumerate() {
        tablet.leader.release_through(Arc::new(inputs.clone()));
        let queue = Arc::new(ApplyQueue::default());
        queues.insert(tablet.id, (Arc::clone(&queue), Vec::new()));
        let executor = Executor {
            applied: coordinator.state().applied.get(&tablet.id).copied().unwrap_or_default(),
            tablet,
            queue,
            inputs: inputs.clone(),
            log_id: log_id.clone(),
            owner: epoch,
            refused: None,
            one_writer: release != Release::CommonClock,
        };
        executors.spawn(executor.run(host.seed(index)));
    }
    let (shown, shown_to) = watch::channel(Shown::default());
    let (pullers, pullers_to) = watch::channel(Pullers::default());
    let all_queues: Vec<_> = queues.values().map(|(queue, _)| Arc::clone(queue)).collect();
    let finished = Arc::new(Finished::default());
    let driver = Driver {
        coordinator,
        inputs: receiver,
        log: log_commands,
        log_events,
        queues,
        probes: Probes::new(streams.to_vec(), inputs.clone()),
        shown,
        pullers,
        clock: host.clock.clone(),
        owner: epoch,
        log_id,
        release,
        joins: streams.is_empty(),
        waiting: BTreeMap::new(),
        in_flight: None,
        bytes,
        snapshot_bytes,
        snapshot_after_bytes: host.snapshot_after_bytes,
        snapshot_in_flight: false,
        snapshot: None,
        waited_since: std::time::Instant::now(),
        waited: 0.0,
        settling: Vec::new(),
        tables_changed: true,
        to_check: BTreeMap::new(),
        finished: Arc::clone(&finished),
    };
    let mut drivers = JoinSet::new();
    drivers.spawn(driver.run());
    let reader = Reader { shown: shown_to, tablets: tablets.clone() };
    let view = LedView { inputs, reader, pullers: pullers_to, epoch, queues: all_queues.clone(), finished };
    Ok(Led { view, queues: all_queues, executors, driver: drivers, log: log_tasks })
}

/// The first end that ends the applier. Tasks that ended because they were done do not.
async fn first_end(tasks: &mut JoinSet<Result<(), Ended>>) -> Ended {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(ended)) => return ended,
            Err(error) => return panicked(error),
        }
    }
    std::future::pending().await
}

/// Waits until all have ended.
async fn all(tasks: &mut JoinSet<Result<(), Ended>>) -> Result<(), Ended> {
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap_or_else(|error| Err(panicked(error)))?;
    }
    Ok(())
}

fn panicked(error: JoinError) -> Ended {
    Ended::Failed(format!("a task failed: {error}"))
}
