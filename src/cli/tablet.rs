//! `untorn tablet`: a tablet server.

use super::run::{Signals, listen};
use super::{ConfigArgs, Failure};
use crate::admin;
use crate::applier::start_workers;
use crate::config::{self, Configuration};
use crate::tablet::engine::{TabletOptions, TabletWals};
use crate::tablet::grpc::Tablets;
use crate::tablet::{TabletLeader, embedded, server};
use crate::{metrics, telemetry};
use std::future::pending;
use std::sync::Arc;
use tracing::info;

/// Runs a tablet server until a signal asks it to stop.
///
/// # Errors
/// Faults of the configuration, or what could not be started or served.
pub async fn tablet(args: &ConfigArgs) -> Result<(), Failure> {
    let config = Configuration::load(&args.config, &config::process_vars())?.tablet_server()?;
    let failed = |error: String| Failure::Failed(error);
    telemetry::start(&config.tracing).map_err(|error| failed(error.to_string()))?;
    let recorder = metrics::install().map_err(|error| failed(error.to_string()))?;
    let mut signals = Signals::new()?;
    let listener = listen("tablet.listen", config.listen).await?;
    let scraped = match config.metrics {
        Some(address) => Some(listen("metrics.listen", address).await?),
        None => None,
    };
    let dir = config.data_dir.join("tablets");
    std::fs::create_dir_all(&config.data_dir)
        .map_err(|error| failed(format!("{}: {error}", config.data_dir.display())))?;
    let names: Vec<&str> = config.names.iter().map(String::as_str).collect();
    let opened = embedded::open(&dir, &names, TabletOptions::default());
    let (engines, workers) = opened.map_err(|error| failed(error.to_string()))?;
    start_workers(workers).map_err(|error| failed(error.to_string()))?;
    let wals = Arc::new(TabletWals::new(engines.clone()));
    let tablets: Tablets = config
        .names
        .iter()
        .zip(engines)
        .map(|(name, engine)| (name.clone(), Arc::new(engine) as Arc<dyn TabletLeader>))
        .collect();
    info!(listen = %config.listen, tablets = %config.names.join(", "), "the tablet server runs");
    let metrics = async {
        match scraped {
            Some(listener) => admin::server::metrics(listener, recorder, None, pending()).await,
            None => pending().await,
        }
    };
    tokio::select! {
        served = server::serve(listener, tablets, Some(wals), signals.next()) => {
            served.map_err(|error| failed(format!("the listener failed: {error}")))
        }
        served = metrics => Err(failed(format!("the metrics listener ended: {served:?}"))),
    }
}
