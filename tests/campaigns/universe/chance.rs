//! The one source of randomness of a run.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A seeded generator with the few questions that the simulator asks.
#[derive(Debug)]
pub struct Chance(SmallRng);

impl Chance {
    /// The generator of a seed.
    pub fn of(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// True so often.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.0.random::<f64>() < probability
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// A number between two, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        self.0.random_range(first..=last.max(first))
    }

    /// As [`Chance::between`], small ones as likely as large ones: equal odds for each doubling.
    pub fn skewed(&mut self, first: u64, last: u64) -> u64 {
        let (low, high) = ((first.max(1) as f64).ln(), (last.max(1) as f64).ln());
        let at = low + (high - low) * self.0.random::<f64>();
        (at.exp().round() as u64).clamp(first, last.max(first))
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
