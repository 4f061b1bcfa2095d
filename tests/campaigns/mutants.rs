//! `mutants`: how many of the mutants of the core does the simulator kill by itself, without any unit test? All of them are
//! in this program, each behind a switch (`tests/mutants` puts them there); each is turned on in a process of its own,
//! because some never end and some take all memory.
//!
//! A mutant is killed by the first seed that fails with it, by a panic, or by a seed that does not end. `--n` is how many
//! mutants are drawn, by the seed; `--only NUMBER` takes that one. What the simulator cannot see is named here, with who
//! judges it, and does not count when it survives.

use super::report::{Options, Report, on_all_cores};
use super::universe::faults::TABLES;
use super::universe::{self, Ask, Mode};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use untorn::planted::mutate;

/// Mutants that are drawn where nobody says how many.
const DRAWN: u64 = 100;
/// Seeds within which a mutant must show.
const SEEDS: u64 = 100;
/// One seed in so many is one of `liveness`, as the product's own bugs were found there, too.
const LIVELY: u64 = 8;
/// One in so many is one of `tables`.
const OF_TABLES: u64 = 4;
/// Seconds after which a seed counts as one that does not end; an ordinary one takes less than one.
const ENDS_WITHIN: u64 = 120;
/// Bytes of address space that a process with a mutant may take, in KiB.
const MEMORY_KIB: u64 = 6 << 20;
/// The least share of killed mutants, in percent.
const LEAST_PERCENT: f64 = 90.0;

/// Functions whose mutants the simulator is not to kill, because what they answer changes nothing that it could see: who
/// judges them instead. Of what `cargo mutants` calls a mutant, the name ends with `in FUNCTION`, or names it before `->`.
const JUDGED_ELSEWHERE: [(&str, &str); 20] = [
    ("State::fence_laggard", "words of explain: unit tests and tests/it/postgres_waits.rs"),
    ("Discovery::laggard", "words of explain: tests/it/postgres_waits.rs"),
    ("Transaction::status", "words of status: the scripts, which show every status"),
    ("State::unreadable", "refuses a scan by name: tests/it/postgres_copies.rs"),
    ("history", "histories are read by verify alone: tests/it/verify.rs"),
    ("State<S>::stats", "figures of the metrics: tests/it/dashboards.rs"),
    ("<impl PartialEq for Transactions>::eq", "used by tests alone"),
    ("check_key", "refuses what no source sends: the conformance suite"),
    ("State::check_report", "refuses what no poller says: the scripts"),
    ("State::check_branch", "refuses what no source sends: the scripts"),
    ("State::carried", "counts of split tablets, which the simulated source does not split: the scripts"),
    ("State::check_split", "refuses what no source says: the scripts"),
    ("State::check_commit", "refuses what no source says: the scripts"),
    ("State::absent", "refuses a scan by name: tests/it/postgres_copies.rs"),
    ("State::who_lacks", "words of explain: the scripts"),
    ("Missing::stream", "words of explain: the scripts"),
    ("<impl fmt::Display for Status>::fmt", "words of status: the scripts"),
    ("<impl PartialEq for Agenda>::eq", "used by tests alone"),
    ("Coordinator::may_be_replaced", "of PostgreSQL replicas alone: tests/it/replica_copies.rs"),
    ("Window::may_store", "a bound on memory, which unit tests look at"),
];

/// Who judges a mutant instead of the simulator.
fn elsewhere(name: &str) -> Option<&'static str> {
    let of = |function: &str| {
        name.ends_with(&format!(" in {function}")) || name.contains(&format!("replace {function} -> "))
    };
    JUDGED_ELSEWHERE.iter().find(|(function, _)| of(function)).map(|(_, who)| *who)
}

/// How the process of one mutant ends.
const SURVIVED: i32 = 0;
const KILLED: i32 = 10;
const HANGS: i32 = 11;

struct Mutant {
    number: u64,
    file: String,
    name: String,
}

/// The list of what this program was built with; `None` in an ordinary build.
fn built() -> Option<Value> {
    let text = std::fs::read_to_string(std::env::var_os("UNTORN_MUTANTS")?).ok()?;
    serde_json::from_str(&text).ok()
}

fn drawn(built: &Value, options: &Options) -> Vec<Mutant> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = built["mutants"].as_array().cloned().unwrap_or_default();
    let all = all.iter().map(|mutant| Mutant {
        number: mutant["number"].as_u64().unwrap_or_default(),
        file: text(&mutant["file"]),
        name: text(&mutant["name"]),
    });
    let mut all: Vec<Mutant> = all.collect();
    match options.only.as_ref().and_then(|only| only.parse::<u64>().ok()) {
        Some(only) => all.retain(|mutant| mutant.number == only),
        None => {
            all.shuffle(&mut rand::rngs::StdRng::seed_from_u64(options.seed));
            all.truncate(usize::try_from(options.n.unwrap_or(DRAWN)).unwrap());
        }
    }
    all
}

/// Runs it.
pub fn run(options: &Options) -> Report {
    let Some(built) = built() else {
        let what = "this program holds no mutants".to_owned();
        return Report { failures: vec![(what, "tests/prove mutants".into())], ..Report::default() };
    };
    let mutants = drawn(&built, options);
    let replay = |number: u64| format!("tests/prove mutants --only {number} --seed {}", options.seed);
    // What fails without any mutant proves nothing.
    let control = process(0, options);
    if control.0 != SURVIVED {
        let what = format!("the seeds fail without any mutant, too: {}", control.1);
        return Report { failures: vec![(what, replay(0))], ..Report::default() };
    }
    let found = Mutex::new((BTreeMap::<String, [u64; 2]>::new(), Vec::new(), 0, BTreeMap::new()));
    on_all_cores(mutants.len() as u64, |place| {
        let Mutant { number, file, name } = &mutants[place as usize];
        let (code, said) = process(*number, options);
        let mut found = found.lock().unwrap();
        if let Some(who) = elsewhere(name).filter(|_| code == SURVIVED) {
            options.say(&format!("{number} is judged elsewhere ({who}): {name}"));
            found.3.insert(name.clone(), who);
            return;
        }
        let place = usize::from(code == SURVIVED);
        found.0.entry(file.clone()).or_default()[place] += 1;
        found.2 += u64::from(code == HANGS);
        if code == SURVIVED {
            options.say(&format!("{number} SURVIVED {SEEDS} seeds: {name}"));
            found.1.push((name.clone(), replay(*number)));
        } else {
            options.say(&format!("{number} killed ({said}): {name}"));
        }
    });
    let (files, survivors, hung, elsewhere) = found.into_inner().unwrap();
    let judged = mutants.len() - elsewhere.len();
    let killed = judged - survivors.len();
    let percent = (killed as f64 * 1000.0 / judged.max(1) as f64).round() / 10.0;
    let mut report = Report { n: mutants.len() as u64, ..Report::default() };
    if percent < LEAST_PERCENT {
        report.failures =
            survivors.iter().map(|(name, replay)| (format!("survived: {name}"), replay.clone())).collect();
    }
    let files =
        files.into_iter().map(|(file, [killed, survived])| (file, json!({ "killed": killed, "survived": survived })));
    let names = |survivors: Vec<(String, String)>| survivors.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let exercised = json!({
        "built": built["mutants"].as_array().map_or(0, Vec::len),
        "unviable": built["unviable"],
        "unplaced": built["unplaced"],
        "seeds_each": SEEDS,
        "killed": killed,
        "killed_percent": percent,
        "judged_elsewhere": elsewhere,
        "killed_because_a_seed_did_not_end": hung,
        "files": serde_json::Value::Object(files.collect()),
        "survivors": names(survivors),
    });
    if let Value::Object(exercised) = exercised {
        report.exercised = exercised;
    }
    report
}

/// The process of one mutant: how it ended, and the last that it said.
fn process(number: u64, options: &Options) -> (i32, String) {
    let program = std::env::current_exe().unwrap();
    let bounded = format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &bounded])
        .arg(program)
        .args(["mutant", "--json", "--only", &number.to_string(), "--seed", &options.seed.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().chars().take(160).collect();
    // Whoever ran out of memory ends by a signal.
    (output.status.code().unwrap_or(KILLED), said)
}

/// One mutant, in this process.
pub fn run_one(options: &Options) -> Report {
    mutate(options.only.as_ref().and_then(|only| only.parse().ok()).unwrap_or_default());
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(|| {
        let mut seen = (u64::MAX, 0);
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let begun = BEGUN.load(Ordering::Relaxed);
            seen = if begun == seen.0 { (begun, seen.1 + 1) } else { (begun, 0) };
            if seen.1 > ENDS_WITHIN {
                eprintln!("at seed {begun}: it does not end");
                std::process::exit(HANGS);
            }
        }
    });
    for place in 0..SEEDS {
        BEGUN.store(place + 1, Ordering::Relaxed);
        let mode = if place % LIVELY == LIVELY - 1 { Mode::Liveness } else { Mode::Safety };
        let with = if place % OF_TABLES == 1 { &TABLES[..] } else { &[] };
        let outcome = universe::run(Ask { mode, with, ..Ask::seed(options.seed + place) });
        if let Some(broken) = outcome.broken.first() {
            eprintln!("at seed {}: {broken}", place + 1);
            std::process::exit(KILLED);
        }
    }
    std::process::exit(SURVIVED);
}
