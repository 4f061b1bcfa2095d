//! `model`: every order of events that a small universe allows, checked by `stateright`. Two source tablets, two replica
//! tablets, three transactions of which one is aborted; what the streams carry arrives in every order, twice, and again under
//! an old epoch; the leader and the tablets die at any moment. The leader is the product's own coordinator, recovered from
//! its snapshot: only the world around it is a model. Then mistakes are planted, each of which must be found.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a campaign that cannot set itself up has failed")]

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[allow(dead_code, reason = "the other campaigns use the rest")]
#[path = "../campaigns/report.rs"]
mod report;
mod source;
mod tablets;
mod world;

use report::{Options, Report};
use serde_json::{Map, Value, json};
use stateright::report::WriteReporter;
use stateright::{Checker, HasDiscoveries, Model};
use std::process::ExitCode;
use untorn::planted::Bug;
use world::Protocol;

/// Deaths of the leader in one history, in CI.
const DEATHS: u64 = 1;

/// Mistakes in the rules that the model is about.
const BUGS: [Bug; 7] = [
    Bug::GateWithoutOne,
    Bug::AbortIsCommit,
    Bug::DecidedAgain,
    Bug::ForgottenWhenOneApplied,
    Bug::RestartAppliesNothing,
    Bug::SnapshotWithoutUndecided,
    Bug::SafeTimeIsLargest,
];

fn main() -> ExitCode {
    report::main(&[("model", run)])
}

/// Runs it; `--n` is how often the leader may die in one history.
fn run(options: &Options) -> Report {
    let deaths = options.n.unwrap_or(DEATHS);
    let protocol = Protocol { deaths, bug: None };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let checker =
        protocol.checker().threads(cores).spawn_dfs().join_and_report(&mut WriteReporter::new(&mut std::io::stderr()));
    let replay = format!("tests/prove model --n {deaths}");
    let failures = checker.discoveries().into_iter().map(|(property, path)| {
        let steps: Vec<String> = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
        (format!("{property} does not hold after {} steps: {}", steps.len(), steps.join("; ")), replay.clone())
    });
    let mut report = Report { n: deaths, failures: failures.collect(), ..Report::default() };
    report.exercised.insert("states".into(), json!(checker.unique_state_count()));
    report.exercised.insert("transitions".into(), json!(checker.state_count()));
    report.exercised.insert("longest_history".into(), json!(checker.max_depth()));
    options.say(&format!("{} states, {} transitions", checker.unique_state_count(), checker.state_count()));
    let mut found = Map::new();
    // A panic is a property that does not hold, and with a mistake planted there are many.
    std::panic::set_hook(Box::new(|_| {}));
    for bug in BUGS {
        let protocol = Protocol { deaths, bug: Some(bug) };
        let checker = protocol.checker().finish_when(HasDiscoveries::Any).threads(cores).spawn_dfs().join();
        match checker.discoveries().into_iter().next() {
            Some((property, path)) => {
                let steps = path.into_actions().len();
                options.say(&format!("{bug:?}: found after {} states: {property}", checker.unique_state_count()));
                found.insert(format!("{bug:?}"), json!({ "property": property, "steps": steps }));
            }
            None => report.failures.push((format!("{bug:?}, planted, is not found"), replay.clone())),
        }
    }
    report.exercised.insert("planted_found".into(), Value::Object(found));
    report
}
