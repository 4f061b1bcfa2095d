//! What a slot holds back at its server, and when that ends badly. Pure.

/// What a source keeps for a stream that has not taken it yet.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Retention {
    /// Bytes of WAL that the server keeps for the slot.
    pub retained: u64,
    /// Bytes of WAL that it may still write before the slot is lost; `None` where nothing but its disk limits it.
    pub safe: Option<u64>,
    /// Age in seconds of the oldest transaction that is prepared in this database; 0 where none is.
    pub prepared_oldest_seconds: f64,
}

/// Something that an operator should do something about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warning {
    /// At this pace the slot is lost in so many seconds; 0 where it may be lost at any moment.
    LostIn {
        /// Seconds.
        seconds: u64,
    },
    /// So many bytes are kept, twice as many as when it was said last, and nothing but the disk ends it.
    Grows {
        /// Bytes.
        retained: u64,
    },
    /// A transaction has been prepared for so long.
    Prepared {
        /// Seconds.
        seconds: u64,
    },
}

/// Bytes kept below which growth alone is not worth a word: an hour of a busy server.
const GROWS_FROM: u64 = 8 << 30;
/// Seconds before the slot is lost from which on that is said, and again whenever half of them have passed.
const LOST_SOON: u64 = 6 * 3600;
/// Seconds that a transaction is prepared before that is said, and again whenever twice as many have passed.
const PREPARED_LONG: u64 = 300;

/// Looks at one stream's retention from time to time, and says when it is time to say something: each thing again only
/// once it is twice as bad.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    /// When it was looked last, in milliseconds of any clock, and what could still be written then.
    last: Option<(u64, u64)>,
    said_lost: Option<u64>,
    said_grows: u64,
    said_prepared: u64,
}

impl Forecast {
    /// Takes one look.
    pub fn look(&mut self, now_ms: u64, seen: &Retention) -> Vec<Warning> {
        let mut warnings = Vec::new();
        match seen.safe {
            Some(safe) => {
                if let Some(seconds) = self.lost_in(now_ms, safe) {
                    let worse = self.said_lost.is_none_or(|said| seconds <= said / 2);
                    if seconds <= LOST_SOON && worse && self.said_lost != Some(0) {
                        self.said_lost = Some(seconds);
                        warnings.push(Warning::LostIn { seconds });
                    } else if seconds > LOST_SOON {
                        self.said_lost = None;
                    }
                }
                self.last = Some((now_ms, safe));
            }
            None if seen.retained >= GROWS_FROM.max(self.said_grows.saturating_mul(2)) => {
                self.said_grows = seen.retained;
                warnings.push(Warning::Grows { retained: seen.retained });
            }
            None if seen.retained < GROWS_FROM => self.said_grows = 0,
            None => {}
        }
        let seconds = seen.prepared_oldest_seconds as u64;
        if seconds >= PREPARED_LONG.max(self.said_prepared.saturating_mul(2)) {
            self.said_prepared = seconds;
            warnings.push(Warning::Prepared { seconds });
        } else if seconds < PREPARED_LONG {
            self.said_prepared = 0;
        }
        warnings
    }

    /// Seconds until nothing may be written any more, at the pace since the last look; `None` while it does not shrink.
    fn lost_in(&self, now_ms: u64, safe: u64) -> Option<u64> {
        if safe == 0 {
            return Some(0);
        }
        let (then, before) = self.last?;
        let shrunk = before.checked_sub(safe).filter(|shrunk| *shrunk > 0)?;
        let elapsed = now_ms.saturating_sub(then).max(1);
        u64::try_from(u128::from(safe) * u128::from(elapsed) / u128::from(shrunk) / 1000).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn safe(safe: u64) -> Retention {
        Retention { safe: Some(safe), ..Retention::default() }
    }

    #[test]
    fn a_slot_that_runs_out_is_told_early_and_again_when_it_is_twice_as_near() {
        let mut forecast = Forecast::default();
        assert_eq!(forecast.look(0, &safe(100 * GIB)), [], "nothing to compare with");
        assert_eq!(forecast.look(10_000, &safe(100 * GIB)), [], "it does not shrink");
        assert_eq!(forecast.look(20_000, &safe(99 * GIB)), [Warning::LostIn { seconds: 990 }]);
        assert_eq!(forecast.look(30_000, &safe(98 * GIB)), []);
        assert_eq!(forecast.look(40_000, &safe(49 * GIB)), [Warning::LostIn { seconds: 10 }]);
        assert_eq!(forecast.look(50_000, &safe(0)), [Warning::LostIn { seconds: 0 }]);
        assert_eq!(forecast.look(60_000, &safe(0)), [], "once");
        assert_eq!(forecast.look(70_000, &safe(100 * GIB)), []);
        let slowly = safe(100 * GIB - 1000);
        assert_eq!(forecast.look(80_000, &slowly), [], "years are no warning");
        assert_eq!(forecast.look(90_000, &safe(50 * GIB)), [Warning::LostIn { seconds: 10 }], "it begins anew");
    }

    #[test]
    fn growth_without_a_limit_is_told_whenever_it_doubled() {
        let mut forecast = Forecast::default();
        let retained = |retained| Retention { retained, ..Retention::default() };
        let told: Vec<_> = [1, 8, 9, 15, 16, 40, 1, 8].map(|gib| forecast.look(0, &retained(gib * GIB)).len()).to_vec();
        assert_eq!(told, [0, 1, 0, 0, 1, 1, 0, 1]);
    }

    #[test]
    fn a_transaction_that_stays_prepared_is_told() {
        let mut forecast = Forecast::default();
        let prepared = |seconds| Retention { prepared_oldest_seconds: seconds, ..Retention::default() };
        let told: Vec<_> =
            [10.0, 301.0, 500.0, 602.5, 0.0, 300.0].map(|s| forecast.look(0, &prepared(s)).len()).to_vec();
        assert_eq!(told, [0, 1, 0, 1, 0, 1]);
    }
}
