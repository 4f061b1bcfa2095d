//! A server's clock against ours, and servers' clocks against each other.

use super::super::error::Failure;
use super::super::sql::Sql;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Questions asked; the one that was answered fastest counts.
const QUESTIONS: usize = 5;

/// How far a server's clock is ahead of ours, as far as the way there lets us see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Microseconds that it is ahead.
    pub ahead: i64,
    /// Microseconds that `ahead` may be wrong by, either way: half of the answer's time.
    pub unsure: i64,
}

impl Clock {
    /// Asks a server for its time.
    pub(super) async fn ask(sql: &mut Sql) -> Result<Self, Failure> {
        let mut best = Self { ahead: 0, unsure: i64::MAX };
        for _ in 0..QUESTIONS {
            let (asked, waited) = (SystemTime::now(), Instant::now());
            let time = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::int8::text";
            let there = sql.text(time).await?.and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
            let unsure = micros(waited.elapsed()) / 2;
            let here = micros(asked.duration_since(UNIX_EPOCH).unwrap_or_default()) + unsure;
            if unsure < best.unsure {
                best = Self { ahead: there.saturating_sub(here), unsure };
            }
        }
        Ok(best)
    }

    /// By how much two clocks differ at least.
    #[must_use]
    pub fn differs(self, other: Self) -> Duration {
        let apart = self.ahead.abs_diff(other.ahead);
        let unsure = self.unsure.unsigned_abs().saturating_add(other.unsure.unsigned_abs());
        Duration::from_micros(apart.saturating_sub(unsure))
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_counts_as_a_difference() {
        let clock = |ahead, unsure| Clock { ahead, unsure };
        assert_eq!(clock(-300_000, 1_000).differs(clock(400_000, 2_000)), Duration::from_millis(697));
        assert_eq!(clock(5_000, 3_000).differs(clock(0, 3_000)), Duration::ZERO);
        assert_eq!(clock(i64::MIN, 0).differs(clock(i64::MAX, i64::MAX)).as_micros(), 1 << 63);
    }
}
