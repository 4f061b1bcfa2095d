//! Why a running applier, or one of its tasks, came to its end.

use crate::source::SourceError;
use crate::tablet::TabletError;
use crate::txn_log::LogError;

/// Why the applier ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Ended {
    /// It was asked to, and everything that was on its way has arrived.
    #[error("drained")]
    Drained,
    /// It was asked to, and something that was on its way did not arrive in time; it is resumed at the next start.
    #[error("stopped before everything on its way had arrived: {0}")]
    NotDrained(String),
    /// Another process owns the log now: whatever this one still did would be refused.
    #[error("another process has taken over: {0}")]
    Fenced(String),
    /// The log, or a tablet in this process, failed for good (C11): only a new start may read what is on disk.
    #[error("{0}")]
    Failed(String),
}

impl Ended {
    /// The end that a log's error means; `None` for those that may pass.
    pub(super) fn of_log(error: &LogError) -> Option<Self> {
        match error {
            LogError::Conflict { .. } | LogError::Fenced { .. } => Some(Self::Fenced(error.to_string())),
            LogError::Damaged(_) | LogError::Poisoned(_) => Some(Self::Failed(error.to_string())),
            LogError::Indeterminate(_) | LogError::Unavailable(_) => None,
        }
    }
}

/// Why a stream's session came to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// It may work again after a while.
    Retry(String),
    /// Somebody must mend it; the stream stops by name.
    Stop(String),
    /// The leader has the stream stand still by name, and knows when that is over.
    StandStill(String),
    /// Another puller has the stream: this one leaves it alone while that one lives.
    Fenced(String),
    /// The whole applier must end.
    Ended(Ended),
}

impl From<SourceError> for Trouble {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Retry(cause) => Self::Retry(cause),
            SourceError::Stop(cause) => Self::Stop(cause),
        }
    }
}

impl From<super::leader::LeaderError> for Trouble {
    fn from(error: super::leader::LeaderError) -> Self {
        match error {
            super::leader::LeaderError::Stop(cause) => Self::Stop(cause),
            super::leader::LeaderError::Refused(cause) => Self::StandStill(cause),
            super::leader::LeaderError::Fenced(cause) => Self::Fenced(cause),
            other => Self::Retry(other.to_string()),
        }
    }
}

impl Trouble {
    /// What a tablet's error means for the stream that met it. `here` says whether the tablet lives in this process.
    pub(super) fn of_tablet(name: &str, here: bool, error: &TabletError) -> Self {
        let cause = format!("replica tablet {name}: {error}");
        match error {
            TabletError::Refused(_) | TabletError::RefusedWrite(_) | TabletError::WrittenTwice { .. } => {
                Self::Stop(cause)
            }
            TabletError::Poisoned(_) if here => Self::Ended(Ended::Failed(cause)),
            _ => Self::Retry(cause),
        }
    }
}
