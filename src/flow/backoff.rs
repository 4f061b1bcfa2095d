//! How long to wait after a failure.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// Exponential with jitter: each wait lies between half and the whole of a bound that doubles from `first` to `last`.
/// The jitter keeps many pollers that lost one server from coming back to it all at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    bound: Duration,
    random: SmallRng,
}

impl Backoff {
    /// Begins at `first`, never above `last`. The seed is handed in, so that a test's waits are its own.
    #[must_use]
    pub fn new(first: Duration, last: Duration, seed: u64) -> Self {
        Self { first, last, bound: first, random: SmallRng::seed_from_u64(seed) }
    }

    /// How long to wait now.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.bound.mul_f64(self.random.random_range(0.5..=1.0));
        self.bound = (self.bound * 2).min(self.last);
        wait
    }

    /// It worked: the next failure waits the shortest again.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_double_up_to_the_last_and_start_over(seed: u64, resets in proptest::collection::vec(any::<bool>(), 0..40)) {
            let (first, last) = (Duration::from_millis(50), Duration::from_secs(5));
            let mut backoff = Backoff::new(first, last, seed);
            let mut bound = first;
            for reset in resets {
                if reset {
                    backoff.reset();
                    bound = first;
                }
                let wait = backoff.next_wait();
                prop_assert!(wait >= bound / 2 && wait <= bound, "{wait:?} of {bound:?}");
                bound = (bound * 2).min(last);
            }
        }
    }
}
