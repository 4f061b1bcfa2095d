//! `sim`: random universes, random faults, an exact oracle.

use super::report::{Options, Report, on_all_cores};
use super::tally::{Tally, ask};
use super::universe::faults::TABLES;
use super::universe::{self, Ask};

/// Seeds in CI.
const SEEDS: u64 = 500;

/// Runs it.
pub fn run(options: &Options) -> Report {
    let tally = Tally::default();
    on_all_cores(options.n.unwrap_or(SEEDS), |number| tally.add(options, &universe::run(ask(options, number))));
    tally.into_report()
}

/// The same while tables are copied again and added, and streams come and go.
pub fn run_tables(options: &Options) -> Report {
    let tally = Tally::default();
    on_all_cores(options.n.unwrap_or(SEEDS), |number| {
        tally.add(options, &universe::run(Ask { with: &TABLES, ..ask(options, number) }));
    });
    tally.into_report()
}
