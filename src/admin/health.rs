//! Whether the process lives, and whether it does its part.
//!
//! `/livez` says only that the process answers: whatever it waits for, a restart would not bring it sooner, and an error
//! that a restart mends ends the process by itself. `/readyz` says that it does what it was configured for, and names what
//! is missing: a leader serves reads at safe time, a puller is known to its leader with every stream, a tablet server
//! serves. While it starts or drains, no process is ready.

use super::Inspect;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a process is in its life, for all who ask.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Phase>>);

/// A process' phase. The command that runs it sets it; probes wait for it.
#[derive(Clone, Default)]
enum Phase {
    /// Set at first; until everything runs.
    #[default]
    Starting,
    /// Set once everything runs; what it can be asked, where it can be.
    Running(Option<Arc<dyn Inspect>>),
    /// Set by a signal; until the process ends.
    Draining,
}

impl Health {
    /// Everything runs from now on.
    pub fn running(&self, inspect: Option<Arc<dyn Inspect>>) {
        self.set(Phase::Running(inspect));
    }

    /// The process ends what it has begun, and then itself.
    pub fn draining(&self) {
        self.set(Phase::Draining);
    }

    fn set(&self, phase: Phase) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn phase(&self) -> Phase {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What can be asked now.
    pub(super) fn inspect(&self) -> Option<Arc<dyn Inspect>> {
        match self.phase() {
            Phase::Running(inspect) => inspect,
            Phase::Starting | Phase::Draining => None,
        }
    }

    /// What is said to whoever asks whether it is ready.
    async fn readiness(&self) -> Result<String, String> {
        match self.phase() {
            Phase::Starting => Err("not ready: it is starting\n".into()),
            Phase::Draining => Err("not ready: it is draining\n".into()),
            Phase::Running(None) => Ok("ready\n".into()),
            Phase::Running(Some(inspect)) => inspect.readiness().await,
        }
    }

    /// `/livez` and `/readyz`.
    pub(super) fn routes(self) -> Router {
        let ready = async |State(health): State<Self>| match health.readiness().await {
            Ok(text) => (StatusCode::OK, text),
            Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
        };
        Router::new().route("/livez", get(async || "ok\n")).route("/readyz", get(ready)).with_state(self)
    }
}
