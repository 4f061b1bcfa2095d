//! `model`: every order of events that a small universe allows, checked by `stateright`. Two source tablets, two replica
//! tablets, three transactions of which one is aborted; calls arrive in any order, twice, late or never; the leader and the
//! tablets die. The leader is the product's own coordinator, recovered from its log: only the world around it is a model.

mod source;
mod tablets;
mod world;

use super::report::{Options, Report};
use serde_json::json;
use stateright::{Checker, Model};
use world::{Bounds, Protocol};

/// Faults in one history, in CI.
const FAULTS: u64 = 2;

/// Runs it; `--n` is how many faults a history may have.
pub fn run(options: &Options) -> Report {
    let faults = options.n.unwrap_or(FAULTS);
    let protocol = Protocol { bounds: Bounds { faults: faults as u8 } };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let checker = protocol.checker().threads(cores).spawn_bfs().join();
    let failures = checker.discoveries().into_iter().map(|(property, path)| {
        let steps: Vec<String> = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
        options.say(&format!("{property}:\n  {}", steps.join("\n  ")));
        (
            format!("{property} does not hold after {} steps: {}", steps.len(), steps.join("; ")),
            format!("tests/prove model --n {faults}"),
        )
    });
    let mut report = Report { n: faults, failures: failures.collect(), ..Report::default() };
    report.exercised.insert("states".into(), json!(checker.unique_state_count()));
    report.exercised.insert("transitions".into(), json!(checker.state_count()));
    report.exercised.insert("longest_history".into(), json!(checker.max_depth()));
    report
}
