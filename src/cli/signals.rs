//! SIGTERM and SIGINT: the first drains, a second one ends at once.

use super::Failure;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a daemon.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::Failed(format!("signals cannot be watched: {error}")));
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(super) async fn terminated(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
