//! `liveness`: faults that do not end, outside a core set; then everything is healed, and the replica must come to the
//! source's head within a bound. Faults that come and go would hide a system that only moves when it is pushed.

use super::report::{Options, Report, on_all_cores};
use super::tally::{Tally, ask};
use super::universe::{self, Ask, Mode};

/// Seeds in CI.
const SEEDS: u64 = 200;

/// Runs it.
pub fn run(options: &Options) -> Report {
    let tally = Tally::default();
    on_all_cores(options.n.unwrap_or(SEEDS), |number| {
        tally.add(options, &universe::run(Ask { mode: Mode::Liveness, ..ask(options, number) }));
    });
    tally.into_report()
}
