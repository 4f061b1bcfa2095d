//! Hybrid time: a wall clock and a logical counter in one number.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Bits of the logical counter, the low ones (as in YugabyteDB, the nearest ancestor).
const LOGICAL_BITS: u32 = 12;

/// Microseconds since the epoch in the high 52 bits, a logical counter in the low 12. Printed as a decimal string in
/// JSON, because it does not fit in a double.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HybridTime(u64);

impl HybridTime {
    /// Before every commit.
    pub const MIN: Self = Self(0);
    /// After every commit.
    pub const MAX: Self = Self(u64::MAX);

    /// From its 64 bits.
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// Its 64 bits.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The first hybrid time of a microsecond since the Unix epoch. Saturates in the year 2112.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        if micros >> (64 - LOGICAL_BITS) != 0 {
            return Self::MAX;
        }
        Self(micros << LOGICAL_BITS)
    }

    /// The microseconds since the Unix epoch.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The logical counter, 0 to 4095.
    #[must_use]
    pub const fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// The smallest hybrid time above this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The largest hybrid time below this one; `MIN` has none and stays.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How far this time lies behind `now`, in seconds; 0 when it lies ahead.
    #[must_use]
    pub fn seconds_behind(self, now: Self) -> f64 {
        now.micros().saturating_sub(self.micros()) as f64 / 1e6
    }
}

impl fmt::Display for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ht{}.{}", self.micros(), self.logical())
    }
}

impl FromStr for HybridTime {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        let time = HybridTime::from_micros(1_700_000_000_000_000);
        assert_eq!(time.micros(), 1_700_000_000_000_000);
        assert_eq!(time.next().logical(), 1);
        assert_eq!(time.next().previous(), time);
        assert_eq!(HybridTime::from_micros(u64::MAX), HybridTime::MAX);
        assert_eq!("42".parse(), Ok(HybridTime::from_u64(42)));
    }
}
