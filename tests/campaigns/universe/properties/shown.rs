//! Nothing is shown that is not durable: whoever may be read from holds no read point that the log does not hold.

use super::monotone::LogWatch;
use untorn::applier::Shown;

/// What does not hold, if anything.
pub fn broken(shown: &Shown, log: &LogWatch) -> Option<String> {
    let held = log.last();
    let beyond = [shown.latest, shown.safe].into_iter().flatten().find(|point| point.position > held)?;
    Some(format!("shown: {beyond:?}, and the log is durable up to {held} only"))
}
