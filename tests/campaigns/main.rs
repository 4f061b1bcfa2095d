//! The deterministic campaigns, one file each: see `tests/prove` for how they are run. Campaigns over real processes stand
//! beside them as scripts of their own in `tests/campaigns/`, which `tests/prove` finds by name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a campaign that cannot set itself up has failed")]

/// As the daemon has it; a quarter of a run's time would go into the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod bugs;
mod circumstances;
mod determinism;
mod fuzz;
mod liveness;
mod mutants;
mod published;
mod report;
mod sim;
mod tally;
mod universe;

use report::Campaign;
use std::process::ExitCode;

const CAMPAIGNS: &[Campaign] = &[
    ("sim", sim::run),
    ("tables", sim::run_tables),
    ("determinism", determinism::run),
    ("liveness", liveness::run),
    ("bugs", bugs::run),
    ("published", published::run),
    ("fuzz", fuzz::run),
    ("mutants", mutants::run),
    ("mutant", mutants::run_one),
];

fn main() -> ExitCode {
    universe::note_panics();
    report::main(CAMPAIGNS)
}
