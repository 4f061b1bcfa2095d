//! The product as the demo starts it: CDC pollers over loopback, the sled log, embedded LSM tablets.

use super::Plan;
use super::replica::Replica;
use crate::admin::Inspect;
use crate::admin::explain::Explanation;
use crate::admin::inspected::Inspected;
use crate::admin::status::Status;
use crate::applier::{Applier, Components, CopyOptions, Ended, Inspector, Leadership, NamedTablet, Reader, Tablets};
use crate::coordinator::{ReadPoint, Release, Settings};
use crate::limits::COPY_PARALLEL;
use crate::source::Source;
use crate::source::cdc::{CdcSource, CdcTablet, StreamNames};
use crate::tablet::engine::{TabletOptions, Worker};
use crate::tablet::{ReadPage, ReadRequest, TabletError, TabletLeader, embedded};
use crate::txn_log::SledLog;
use crate::wal::{HybridTime, TableId};
use async_trait::async_trait;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

/// Bytes of records on their way, over all streams.
const MEMORY_BUDGET: usize = 128 << 20;

/// How long the tablets' storage may take to come to rest.
const WORKERS_END: Duration = Duration::from_secs(2);

/// A running applier over embedded tablets.
pub struct Pipeline {
    applier: Mutex<Applier>,
    reader: Reader,
    inspector: Inspector,
    inspected: Arc<Inspected>,
    /// Closed once every worker of the tablets' storage has ended.
    workers: mpsc::Receiver<()>,
}

impl Pipeline {
    /// Starts the applier that the plan asks for. `spawn` runs a tablet store's worker on a thread of its own.
    ///
    /// # Errors
    /// What failed, for people.
    pub async fn start(plan: Plan, spawn: impl Fn(Worker) -> io::Result<()>) -> Result<Self, String> {
        let names: Vec<_> = (1..=plan.replica_tablets).map(|number| format!("replica-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // Every version is compared at the end, so none is collected.
        let options = TabletOptions { keep_age: None, ..TabletOptions::default() };
        let opened = embedded::open(&plan.data_dir.join("tablets"), &names, options);
        let (engines, workers) = opened.map_err(|error| error.to_string())?;
        let (running, ended) = mpsc::channel(1);
        for worker in workers {
            let running = running.clone();
            spawn(worker.then(move || drop(running))).map_err(|error| format!("a tablet's thread: {error}"))?;
        }
        drop(running);
        let tablets = names.iter().zip(engines).map(|(name, engine)| {
            let leader: Arc<dyn TabletLeader> = Arc::new(engine);
            NamedTablet { name: (*name).to_owned(), from_key: None, leader }
        });

        let streams: StreamNames = plan.source_tablets.iter().map(|name| (name.clone(), name.clone())).collect();
        let streams = Arc::new(streams);
        let mut sources: Vec<Arc<dyn Source>> = Vec::with_capacity(streams.len());
        for name in &plan.source_tablets {
            let url = format!("http://{}", plan.source);
            let tablet = CdcTablet { name: name.clone(), url, tablet: name.clone() };
            let source = CdcSource::new(tablet, None, Arc::clone(&streams)).map_err(|error| error.to_string())?;
            sources.push(Arc::new(source));
        }

        let components = Components {
            leadership: Leadership::Here {
                log: Box::new(SledLog::new(plan.data_dir.join("log"))),
                settings: Settings { release: Release::CommonClock, gate: plan.gate, ..Settings::default() },
            },
            tablets: Tablets::new(tablets, true),
            sources,
            pull: None,
            copy: CopyOptions { rate: None, parallel: COPY_PARALLEL },
            memory_budget: MEMORY_BUDGET,
            owner: "untorn demo".into(),
        };
        let applier = Applier::start(components).await.map_err(|error| error.to_string())?;
        let inspector = applier.inspector();
        let reader = inspector.reader().ok_or("the applier does not lead")?;
        let inspected = Arc::new(Inspected::new(inspector.clone(), false));
        Ok(Self { applier: Mutex::new(applier), reader, inspector, inspected, workers: ended })
    }
}

#[async_trait]
impl Replica for Pipeline {
    fn tablets(&self) -> usize {
        self.reader.tablet_count()
    }

    fn table(&self, name: &str) -> Option<TableId> {
        self.reader.table(name).map(|schema| schema.table)
    }

    fn latest(&self) -> Option<ReadPoint> {
        self.reader.latest().ok()
    }

    fn safe(&self) -> Option<ReadPoint> {
        self.reader.safe().ok()
    }

    async fn safe_above(&self, time: HybridTime) -> Option<HybridTime> {
        let mut shown = self.reader.shown();
        let above = |safe: Option<ReadPoint>| safe.map(|safe| safe.time).filter(|&safe| safe > time);
        let shown = shown.wait_for(|shown| above(shown.safe).is_some()).await.ok()?;
        above(shown.safe)
    }

    async fn read(&self, tablet: usize, request: ReadRequest) -> Result<ReadPage, TabletError> {
        self.reader.page(tablet, request).await
    }

    async fn status(&self) -> Option<Status> {
        Some(self.inspected.status().await)
    }

    async fn oldest_waiting(&self) -> Option<Explanation> {
        let oldest = self.inspector.look(|coordinator, _| coordinator.oldest_waiting().map(|oldest| oldest.id)).await;
        self.inspected.explain(&oldest.ok()??.to_string()).await.into_iter().next()
    }

    fn inspect(&self) -> Option<Arc<dyn Inspect>> {
        Some(Arc::clone(&self.inspected) as _)
    }

    async fn failed(&self) -> String {
        self.applier.lock().await.wait().await.to_string()
    }

    async fn stop(self) {
        match self.applier.into_inner().drain().await {
            Ended::Drained => {}
            ended => tracing::warn!(%ended, "the applier did not drain"),
        }
        // The storage is at rest only when its workers have ended, and they do once nobody can call them. A call that is
        // still being answered somewhere keeps them a little longer than it is worth to wait.
        drop((self.reader, self.inspector, self.inspected));
        let mut workers = self.workers;
        if timeout(WORKERS_END, workers.recv()).await.is_err() {
            tracing::debug!("the tablets' storage is still in use");
        }
    }
}
