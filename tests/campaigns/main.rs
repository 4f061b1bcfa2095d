//! The deterministic campaigns, one file each: see `tests/prove` for how they are run. Campaigns over real processes stand
//! beside them as scripts of their own in `tests/campaigns/`, which `tests/prove` finds by name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a campaign that cannot set itself up has failed")]

/// As the daemon has it; a quarter of a run's time would go into the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod bugs;
mod circumstances;
mod determinism;
mod liveness;
mod published;
mod report;
mod sim;
mod tally;
mod universe;

use report::{Options, Report};
use std::process::ExitCode;

/// A campaign: its name, what it does, and itself.
type Campaign = (&'static str, fn(&Options) -> Report);

const CAMPAIGNS: &[Campaign] = &[
    ("sim", sim::run),
    ("determinism", determinism::run),
    ("liveness", liveness::run),
    ("bugs", bugs::run),
    ("published", published::run),
];

fn main() -> ExitCode {
    universe::note_panics();
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    let Some((name, run)) = CAMPAIGNS.iter().find(|(name, _)| *name == options.campaign) else {
        let names: Vec<&str> = CAMPAIGNS.iter().map(|(name, _)| *name).collect();
        eprintln!("no campaign {:?}: {}", options.campaign, names.join(", "));
        return ExitCode::from(2);
    };
    run(&options).print(name, &options)
}
