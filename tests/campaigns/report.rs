//! How a campaign is asked for, and what it prints: one JSON object last.

use super::universe::{Ask, Outcome};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which campaign.
    pub campaign: String,
    /// How many; the size in CI where nobody says.
    pub n: Option<u64>,
    /// The first seed.
    pub seed: u64,
    /// Nothing but the JSON on standard output.
    pub json: bool,
    /// One part of the campaign only: a bug, a published failure.
    pub only: Option<String>,
    /// Bugs are looked for in the seeds of `sim` only.
    pub plain: bool,
    /// Print the end of the trace of what fails.
    pub trace: bool,
    begun: Instant,
}

impl Options {
    /// From the arguments.
    ///
    /// # Errors
    /// How it is used.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let usage =
            || "usage: tests/prove CAMPAIGN [--n N] [--seed S] [--only NAME] [--plain] [--trace] [--json]".to_owned();
        let mut args = args;
        let campaign = args.next().ok_or_else(usage)?;
        let mut options = Self {
            campaign,
            n: None,
            seed: 1,
            json: false,
            only: None,
            plain: false,
            trace: false,
            begun: Instant::now(),
        };
        while let Some(arg) = args.next() {
            let mut number = || args.next().and_then(|text| text.parse().ok()).ok_or_else(usage);
            match arg.as_str() {
                "--n" => options.n = Some(number()?),
                "--seed" => options.seed = number()?,
                "--only" => options.only = Some(args.next().ok_or_else(usage)?),
                "--json" => options.json = true,
                "--plain" => options.plain = true,
                "--trace" => options.trace = true,
                _ => return Err(usage()),
            }
        }
        Ok(options)
    }

    /// Says how it goes, for people.
    pub fn say(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }
}

/// What a campaign found.
#[derive(Debug, Default)]
pub struct Report {
    /// How many were run.
    pub n: u64,
    /// What failed, and the command that replays it.
    pub failures: Vec<(String, String)>,
    /// What was exercised.
    pub exercised: Map<String, Value>,
}

impl Report {
    /// Prints it, and answers how the process ends.
    pub fn print(self, campaign: &str, options: &Options) -> ExitCode {
        for (what, replay) in &self.failures {
            options.say(&format!("FAILED {what}\n  replay: {replay}"));
        }
        let commit = option_env!("UNTORN_COMMIT").map(str::to_owned).or_else(|| std::env::var("UNTORN_COMMIT").ok());
        let mut object = json!({
            "campaign": campaign,
            "commit": commit.unwrap_or_else(|| "unknown".into()),
            "seed": options.seed,
            "n": self.n,
            "failures": self.failures.len(),
            "seconds": (options.begun.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        });
        if let Value::Object(object) = &mut object {
            object.extend(self.exercised);
        }
        println!("{object}");
        if self.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Runs `of` for every number below `n`, on all cores, in any order.
pub fn on_all_cores(n: u64, of: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= n {
                        return;
                    }
                    of(number);
                }
            });
        }
    });
}

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
