//! How a campaign is asked for, and what it prints: one JSON object last.

use serde_json::{Map, Value, json};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A campaign: its name, and itself.
pub type Campaign = (&'static str, fn(&Options) -> Report);

/// Runs the campaign that the command line names.
pub fn main(campaigns: &[Campaign]) -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    let Some((name, run)) = campaigns.iter().find(|(name, _)| *name == options.campaign) else {
        let names: Vec<&str> = campaigns.iter().map(|(name, _)| *name).collect();
        eprintln!("no campaign {:?}: {}", options.campaign, names.join(", "));
        return ExitCode::from(2);
    };
    run(&options).print(name, &options)
}

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
