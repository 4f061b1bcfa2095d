//! What many simulated universes came to, together.

use super::report::{Options, Report};
use super::universe::{Ask, Outcome};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Sums over many runs.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Sums>);

#[derive(Debug, Default)]
struct Sums {
    n: u64,
    failures: BTreeMap<u64, (String, String)>,
    faults: BTreeMap<String, u64>,
    reached: BTreeMap<&'static str, u64>,
    kinds: BTreeMap<String, u64>,
    transactions: u64,
    reads: u64,
    counted: u64,
    hours: f64,
}

impl Tally {
    /// Adds a run.
    pub fn add(&self, options: &Options, outcome: &Outcome) {
        let sums = &mut *self.0.lock().unwrap();
        sums.n += 1;
        for (kind, count) in &outcome.faults {
            *sums.faults.entry(format!("{kind:?}")).or_default() += count;
        }
        for (what, count) in &outcome.reached {
            *sums.reached.entry(what).or_default() += count;
        }
        let plan = &outcome.plan;
        let place = if plan.embedded { "embedded" } else { "apart" };
        *sums.kinds.entry(format!("{:?} {place}", plan.release)).or_default() += 1;
        sums.transactions += outcome.transactions;
        sums.reads += outcome.reads;
        if outcome.counts() {
            sums.counted += 1;
            sums.hours += outcome.seconds / 3600.0;
        }
        if let Some(first) = outcome.broken.first() {
            let (seed, campaign) = (outcome.seed, &options.campaign);
            let topology = format!(
                "{:?}, {} source and {} replica tablets {place}",
                plan.release, plan.source_tablets, plan.replica_tablets
            );
            let replay = format!("tests/prove {campaign} --n 1 --seed {seed} --trace");
            options.say(&format!("seed {seed} FAILED ({topology}): {first}"));
            sums.failures.insert(seed, (format!("seed {seed} ({topology}): {}", outcome.broken.join(" | ")), replay));
            if options.trace {
                outcome.lines.iter().for_each(|line| options.say(line));
            }
        } else if sums.n.is_multiple_of(100) {
            options.say(&format!(
                "{} seeds, {} transactions, {:.1} simulated hours",
                sums.n, sums.transactions, sums.hours
            ));
        }
    }

    /// The report.
    pub fn into_report(self) -> Report {
        let Sums { n, failures, faults, reached, kinds, transactions, reads, counted, hours } =
            self.0.into_inner().unwrap();
        let exercised = json!({
            "transactions": transactions,
            "reads_of_the_whole_replica": reads,
            "seeds_that_count": counted,
            "simulated_hours": (hours * 100.0).round() / 100.0,
            "universes": kinds,
            "faults": faults,
            "reached": reached,
        });
        let Value::Object(exercised) = exercised else { unreachable!("an object was written") };
        Report { n, failures: failures.into_values().collect(), exercised }
    }
}

/// The seed of a campaign's so-manyth run.
pub fn ask(options: &Options, number: u64) -> Ask {
    Ask { tracing: options.trace, ..Ask::seed(options.seed + number) }
}
