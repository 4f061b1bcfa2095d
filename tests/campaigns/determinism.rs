//! `determinism`: every seed twice, with the same trace. Without this no failure could be replayed.

use super::report::{Options, Report, on_all_cores};
use super::tally::ask;
use super::universe;
use serde_json::json;
use std::sync::Mutex;

/// Seeds in CI.
const SEEDS: u64 = 100;

/// Runs it.
pub fn run(options: &Options) -> Report {
    let n = options.n.unwrap_or(SEEDS);
    let found = Mutex::new((Vec::new(), 0));
    on_all_cores(n, |number| {
        let [first, second] = [0, 1].map(|_| universe::run(ask(options, number)));
        let mut found = found.lock().unwrap();
        found.1 += first.hash.1;
        if first.hash != second.hash {
            let what = format!("seed {}: {:x?} and {:x?}", first.seed, first.hash, second.hash);
            found.0.push((what, format!("tests/prove determinism --n 1 --seed {}", first.seed)));
        }
    });
    let (failures, events) = found.into_inner().unwrap();
    let mut report = Report { n, failures, ..Report::default() };
    report.exercised.insert("events".into(), json!(events));
    report
}
