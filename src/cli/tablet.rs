//! `untorn tablet`: a tablet server. It serves its tablets to an applier, and their change records to anyone downstream.

use super::Failure;
use super::data_dir::DataDir;
use super::run::bind;
use super::signals::Signals;
use crate::access::Keyring;
use crate::admin::health::Health;
use crate::admin::server;
use crate::config::TabletServerConfig;
use crate::metrics;
use crate::tablet::change_log::ChangeLog;
use crate::tablet::engine::{TabletOptions, TabletWals, Worker};
use crate::tablet::{TabletLeader, embedded};
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// Serves until a signal. `spawn` runs a storage worker on a thread of its own.
///
/// # Errors
/// What could not be started or went wrong, for people.
pub async fn tablet(config: TabletServerConfig, spawn: impl Fn(Worker) -> io::Result<()>) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let recorder = metrics::install().map_err(|error| Failure::Failed(format!("metrics: {error}")))?;
    let mut keys = Keyring::default();
    let listener = bind("tablet.listen", &config.listen, &mut keys).await?;
    let exporter = match &config.metrics {
        Some(listen) => Some(bind("metrics.listen", listen, &mut keys).await?),
        None => None,
    };
    let folder = DataDir::open(&config.data_dir)?;
    let names: Vec<&str> = config.names.iter().map(String::as_str).collect();
    let options = TabletOptions { wal: true, ..TabletOptions::default() };
    let opened = embedded::open(&config.data_dir.join("tablets"), &names, options);
    let (engines, workers) = opened.map_err(|error| Failure::Failed(folder.explain(&error.to_string())))?;
    for worker in workers {
        spawn(worker).map_err(|error| Failure::Failed(format!("a tablet's thread: {error}")))?;
    }
    folder.reserve();
    let poisoned = engines.first().cloned();
    let tablets = config.names.iter().cloned().zip(engines.iter().map(|engine| {
        let leader: Arc<dyn TabletLeader> = Arc::new(engine.clone());
        leader
    }));
    let tablets = tablets.collect();
    let wals: Arc<dyn ChangeLog> = Arc::new(TabletWals::new(engines));
    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let health = Health::default();
    health.running(None);
    let serve = crate::tablet::server::serve(listener, tablets, Some(wals), until(stopped.clone()));
    let export = async {
        match exporter {
            Some(exporter) => server::metrics(exporter, recorder, health.clone(), keys, until(stopped.clone())).await,
            None => {
                until(stopped.clone()).await;
                Ok(())
            }
        }
    };
    let failed = async {
        match poisoned {
            Some(engine) => engine.failed().await,
            None => std::future::pending().await,
        }
    };
    tracing::info!(listen = %config.listen, tablets = %config.names.join(", "), "untorn serves tablets");
    let signalled = async {
        signals.terminated().await;
        health.draining();
        stop.send_replace(true);
        signals.terminated().await;
    };
    tokio::select! {
        served = async { tokio::join!(serve, export) } => {
            served.0.map_err(|error| Failure::Failed(format!("the tablets' listener failed: {error}")))?;
            served.1.map_err(|error| Failure::Failed(format!("the metrics listener failed: {error}")))
        }
        cause = failed => Err(Failure::Failed(folder.explain(&cause))),
        () = signalled => Err(Failure::Failed("ended by a second signal".into())),
    }
}
