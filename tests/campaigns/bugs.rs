//! `bugs`: every planted bug is found by the simulator, and after how many seeds.
//!
//! A bug is looked for first where it is likely to show ([`circumstances`]): seeds whose universe has the faults that the
//! bug is about beside those that it draws. One that is not found there, and with `--plain` every one, is looked for in the
//! seeds of `sim` as they are.

use super::circumstances;
use super::report::{Options, Report, on_all_cores};
use super::universe::{self, Ask};
use serde_json::json;
use std::sync::Mutex;
use untorn::planted::{Bug, plant};

/// Seeds that a bug may hide behind.
const MOST_SEEDS: u64 = 5_000;
/// Not found in 400 seeds that let streams come and go: looked for by `--only` alone until the simulator meets it.
const UNPROVED: &[Bug] = &[Bug::JoinShownAtOnce];
/// Seeds under its own circumstances, before those of `sim`.
const LIKELY_SEEDS: u64 = 30;

/// Runs it; `--n` is how many seeds a bug may take.
pub fn run(options: &Options) -> Report {
    let most = options.n.unwrap_or(MOST_SEEDS);
    let likely = if options.plain { 0 } else { LIKELY_SEEDS.min(most) };
    let named = |bug: &&Bug| match &options.only {
        Some(only) => format!("{bug:?}") == *only,
        None => !UNPROVED.contains(*bug),
    };
    let bugs: Vec<Bug> = Bug::ALL.iter().filter(named).copied().collect();
    let (found, faulty) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    on_all_cores(bugs.len() as u64, |number| {
        let bug = bugs[number as usize];
        let circumstances = circumstances::of(bug);
        let ask = |place: u64| Ask {
            tracing: options.trace,
            ..if place < likely {
                circumstances.ask(options.seed + place)
            } else {
                Ask::seed(options.seed + place - likely)
            }
        };
        plant(Some(bug));
        let outcome = (0..most)
            .map(|place| (place + 1, universe::run(ask(place))))
            .find(|(_, outcome)| !outcome.broken.is_empty());
        plant(None);
        // What fails without the bug, too, proves nothing.
        if let Some((seeds, _)) = &outcome {
            let control = universe::run(ask(seeds - 1));
            if let Some(broken) = control.broken.first() {
                let replay = format!("tests/prove bugs --only {bug:?} --n {most} --seed {} --trace", options.seed);
                options.say(&format!("{bug:?}: place {seeds} fails without it, too: {broken}"));
                control.lines.iter().for_each(|line| options.say(line));
                faulty.lock().unwrap().push((format!("without any bug, where {bug:?} is likely: {broken}"), replay));
            }
        }
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
        let plain = if options.plain { " --plain" } else { "" };
        (
            format!("{bug:?} was not found in {most} seeds"),
            format!("tests/prove bugs --only {bug:?} --n {most} --seed {}{plain}", options.seed),
        )
    });
    let failures = failures.chain(faulty.into_inner().unwrap()).collect();
    let mut report = Report { n: found.len() as u64, failures, ..Report::default() };
    let mut seeds: Vec<u64> = found.iter().filter_map(|(_, seeds)| *seeds).collect();
    seeds.sort_unstable();
    report.exercised.insert("found".into(), json!(seeds.len()));
    report.exercised.insert("likely_seeds_first".into(), json!(likely));
    report.exercised.insert("median_seeds".into(), json!(seeds.get(seeds.len() / 2)));
    report.exercised.insert("most_seeds".into(), json!(seeds.last()));
    let table = found.iter().map(|(bug, seeds)| (format!("{bug:?}"), json!(seeds))).collect();
    report.exercised.insert("seeds_to_detection".into(), serde_json::Value::Object(table));
    report
}
