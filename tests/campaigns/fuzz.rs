//! `fuzz`: every decoder and every gRPC handler is fed by libFuzzer, which keeps the inputs that reach code that no input
//! before them reached. The targets are a program of their own, `tests/fuzz`; two run at a time.

use super::report::{Options, Report, on_all_cores};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Seconds for each target, where nobody asks for a number of executions.
const SECONDS: u64 = 20;
/// Bytes of an input: several records or calls.
const INPUT_BYTES: u64 = 4096;
/// Seconds that one input may take, and megabytes of memory: a bound for hangs and for growth.
const INPUT_SECONDS: u64 = 30;
const MEGABYTES: u64 = 1024;
/// Lines that are kept of what a target says before it ends.
const LAST_LINES: usize = 30;

/// What became of one target.
#[derive(Default)]
struct Outcome {
    executions: u64,
    edges: u64,
    /// How it ended, where it failed, and the input that did it.
    failed: Option<(String, Option<PathBuf>)>,
}

/// Runs it; `--n` is the number of executions of each target.
pub fn run(options: &Options) -> Report {
    let program = std::env::current_exe().unwrap().with_file_name("fuzz");
    let listed = Command::new(&program).output().expect("tests/prove builds the targets");
    let targets: Vec<String> = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    let chosen: Vec<&String> =
        targets.iter().filter(|target| options.only.as_ref().is_none_or(|only| only == *target)).collect();
    let found = Mutex::new((Report::default(), Map::new()));
    on_all_cores(chosen.len() as u64, |number| {
        let target = chosen[number as usize];
        let outcome = one_target(&program, target, options);
        let Outcome { executions, edges, failed } = outcome;
        options.say(&format!("{target}: {executions} executions, {edges} edges covered"));
        let mut found = found.lock().unwrap();
        let (report, covered) = &mut *found;
        report.n += executions;
        covered.insert(target.clone(), json!({ "executions": executions, "edges": edges }));
        if let Some((what, input)) = failed {
            let replay = match input {
                Some(input) => format!("UNTORN_FUZZ={target} {} {}", program.display(), input.display()),
                None => format!("tests/prove fuzz --only {target} --seed {}", options.seed),
            };
            report.failures.push((format!("{target}: {what}"), replay));
        }
    });
    let (mut report, covered) = found.into_inner().unwrap();
    if chosen.is_empty() {
        let replay = format!("tests/prove fuzz --only {}", targets.first().map_or("", String::as_str));
        report.failures.push((format!("no such target; there are {}", targets.join(", ")), replay));
    }
    report.exercised.insert("targets".into(), Value::Object(covered));
    report
}

fn one_target(program: &Path, target: &str, options: &Options) -> Outcome {
    let corpus = tempfile::tempdir().unwrap();
    // What fails is kept where the program is.
    let kept = program.with_file_name(format!("fuzz-{target}-"));
    let size = match options.n {
        Some(n) => format!("-runs={n}"),
        None => format!("-max_total_time={SECONDS}"),
    };
    let mut running = Command::new(program)
        .env("UNTORN_FUZZ", target)
        .env("UNTORN_FUZZ_SEEDS", corpus.path())
        .arg(corpus.path())
        .args([size, format!("-seed={}", options.seed.max(1)), format!("-artifact_prefix={}", kept.display())])
        .args([format!("-max_len={INPUT_BYTES}"), format!("-timeout={INPUT_SECONDS}")])
        .args([format!("-rss_limit_mb={MEGABYTES}"), "-print_final_stats=1".into()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut outcome = Outcome::default();
    let mut last = VecDeque::new();
    let mut input = None;
    for line in BufReader::new(running.stderr.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        outcome.edges = number_after(&line, " cov: ").unwrap_or(outcome.edges);
        outcome.executions = number_after(&line, "stat::number_of_executed_units: ").unwrap_or(outcome.executions);
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            input = Some(PathBuf::from(path));
        }
        last.push_back(line);
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
    let ended = running.wait().unwrap();
    if !ended.success() {
        last.iter().for_each(|line| options.say(line));
        let panicked = last.iter().position(|line| line.contains("panicked at"));
        let what = panicked.map(|place| last.iter().skip(place).take(2).cloned().collect::<Vec<_>>().join(" "));
        outcome.failed = Some((what.unwrap_or_else(|| format!("it ended with {ended}")), input));
    } else if outcome.edges == 0 {
        outcome.failed = Some(("its coverage is not counted".into(), None));
    }
    outcome
}

/// The number behind a word in a line.
fn number_after(line: &str, word: &str) -> Option<u64> {
    let (_, rest) = line.split_once(word)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
