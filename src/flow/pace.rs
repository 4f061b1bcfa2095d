//! How fast something may be taken: a rate limit without a clock of its own.

use std::time::Duration;

/// Spreads bytes evenly over time. Time is an argument: how long ago it began.
#[derive(Debug)]
pub struct Pace {
    rate: Option<u64>,
    /// When what was taken so far is paid for.
    paid: Duration,
}

impl Pace {
    /// So many bytes a second; `None` limits nothing.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), paid: Duration::ZERO }
    }

    /// Takes so many bytes, and answers how long to wait before the next are taken.
    pub fn take(&mut self, bytes: usize, now: Duration) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        // What was not used is gone: a pause does not make a burst.
        self.paid = self.paid.max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.paid - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spread_evenly_and_a_pause_makes_no_burst() {
        let mut pace = Pace::new(Some(1000));
        let ms = Duration::from_millis;
        assert_eq!(pace.take(500, ms(0)), ms(500));
        assert_eq!(pace.take(500, ms(100)), ms(900));
        assert_eq!(pace.take(500, ms(10_000)), ms(500));
        assert_eq!(Pace::new(None).take(usize::MAX, ms(1)), Duration::ZERO);
    }
}
