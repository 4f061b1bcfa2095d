//! What an applier takes from the machine that it runs on. The simulator puts its own in place: a clock that it moves, a
//! seed, and the log as a task like every other, so that a run can be repeated to the letter.

use crate::limits::SNAPSHOT_AFTER_BYTES;
use crate::wal::HybridTime;
use std::sync::Arc;
use std::time::SystemTime;

/// A wall clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> HybridTime + Send + Sync>);

impl Clock {
    /// A clock that answers what this function does.
    #[must_use]
    pub fn new(now: impl Fn() -> HybridTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> HybridTime {
        (self.0)()
    }
}

/// The machine that an applier runs on.
#[derive(Clone)]
pub struct Host {
    /// Its wall clock.
    pub clock: Clock,
    /// Where the jitter of waits comes from.
    pub seed: u64,
    /// Whether the log runs on a thread of its own, because its engine blocks; else it is a task of the runtime.
    pub log_blocks: bool,
    /// Bytes of log entries after which a snapshot is due; see [`SNAPSHOT_AFTER_BYTES`].
    pub snapshot_after_bytes: usize,
}

impl Default for Host {
    /// This machine.
    fn default() -> Self {
        let now = || {
            let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            HybridTime::from_micros(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
        };
        Self {
            clock: Clock::new(now),
            seed: u64::from(std::process::id()) << 16,
            log_blocks: true,
            snapshot_after_bytes: SNAPSHOT_AFTER_BYTES,
        }
    }
}

impl Host {
    /// A seed for the jitter of one task's waits.
    pub(super) fn seed(&self, index: usize) -> u64 {
        self.seed | index as u64
    }
}
