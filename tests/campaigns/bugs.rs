//! `bugs`: every planted bug is found by the simulator, and after how many seeds.

use super::report::{Options, Report, on_all_cores};
use super::universe::{self, Ask};
use serde_json::json;
use std::sync::Mutex;
use untorn::planted::{Bug, plant};

/// Seeds that a bug may hide behind.
const MOST_SEEDS: u64 = 5_000;

/// Runs it; `--n` is how many seeds a bug may take.
pub fn run(options: &Options) -> Report {
    let most = options.n.unwrap_or(MOST_SEEDS);
    let named = |bug: &&Bug| options.only.as_ref().is_none_or(|only| format!("{bug:?}") == *only);
    let bugs: Vec<Bug> = Bug::ALL.iter().filter(named).copied().collect();
    let found = Mutex::new(Vec::new());
    on_all_cores(bugs.len() as u64, |number| {
        let bug = bugs[number as usize];
        plant(Some(bug));
        let outcome = (0..most)
            .map(|seed| (seed + 1, universe::run(Ask { tracing: options.trace, ..Ask::seed(options.seed + seed) })))
            .find(|(_, outcome)| !outcome.broken.is_empty());
        plant(None);
        match &outcome {
            Some((seeds, outcome)) => {
                options.say(&format!("{bug:?}: found at seed {seeds}: {}", outcome.broken[0]));
                outcome.lines.iter().for_each(|line| options.say(line));
            }
            None => options.say(&format!("{bug:?}: NOT FOUND in {most} seeds")),
        }
        found.lock().unwrap().push((bug, outcome.map(|(seeds, _)| seeds)));
    });
    let found = found.into_inner().unwrap();
    let missed = found.iter().filter(|(_, seeds)| seeds.is_none());
    let failures = missed.map(|(bug, _)| {
        (
            format!("{bug:?} was not found in {most} seeds"),
            format!("tests/prove bugs --only {bug:?} --seed {}", options.seed),
        )
    });
    let mut report = Report { n: found.len() as u64, failures: failures.collect(), ..Report::default() };
    let mut seeds: Vec<u64> = found.iter().filter_map(|(_, seeds)| *seeds).collect();
    seeds.sort_unstable();
    report.exercised.insert("median_seeds".into(), json!(seeds.get(seeds.len() / 2)));
    report.exercised.insert("most_seeds".into(), json!(seeds.last()));
    let table = found.iter().map(|(bug, seeds)| (format!("{bug:?}"), json!(seeds))).collect();
    report.exercised.insert("seeds_to_detection".into(), serde_json::Value::Object(table));
    report
}
