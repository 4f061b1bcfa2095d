//! Puts every mutant that `cargo mutants` lists into one copy of the sources, each behind a switch, and builds that once:
//! `tests/prove mutants` then turns them on one by one, instead of building the library anew for each.
//!
//! Arguments: the list (`cargo mutants --list --json`), the folder with the copy of the sources, and where the list of
//! what was built goes. What a mutant makes of an expression is decided by `cargo mutants`; where the compiler refuses one,
//! it is unviable and left out, and so is one that no switch can stand in front of (a `const fn`, an `impl Trait`).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a tool that cannot read its input has failed")]

mod rewrite;

use rewrite::{Mutant, SWITCH, rewritten};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Builds that find another mutant refused, before something else must be wrong.
const MOST_BUILDS: usize = 40;

fn main() -> ExitCode {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [list, copy, built] = &args[..] else {
        eprintln!("usage: mutants LIST COPY BUILT");
        return ExitCode::from(2);
    };
    let listed = listed(&std::fs::read_to_string(list).unwrap());
    let sources: BTreeMap<&str, String> = listed
        .iter()
        .map(|mutant| mutant.file.as_str())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|file| (file, std::fs::read_to_string(copy.join(file)).unwrap()))
        .collect();
    let mut refused = BTreeSet::new();
    for _ in 0..MOST_BUILDS {
        let mut placed = BTreeSet::new();
        for (file, source) in &sources {
            let wanted = listed.iter().filter(|m| m.file == *file && !refused.contains(&m.number));
            let (text, switches) = rewritten(source, wanted.cloned().collect());
            std::fs::write(copy.join(file), text).unwrap();
            placed.extend(switches);
        }
        eprintln!("{} mutants listed, {} placed, {} refused", listed.len(), placed.len(), refused.len());
        let now = refuses(copy, &listed);
        if now.is_empty() {
            let mutants: Vec<Value> = listed
                .iter()
                .filter(|mutant| placed.contains(&mutant.number))
                .map(|mutant| json!({ "number": mutant.number, "file": mutant.file, "name": mutant.name }))
                .collect();
            let unplaced = listed.len() - placed.len() - refused.len();
            let object = json!({ "mutants": mutants, "unviable": refused.len(), "unplaced": unplaced });
            std::fs::write(built, object.to_string()).unwrap();
            return ExitCode::SUCCESS;
        }
        refused.extend(now);
    }
    eprintln!("the copy does not build without the mutants that the compiler refused");
    ExitCode::FAILURE
}

fn listed(text: &str) -> Vec<Mutant> {
    let list: Vec<Value> = serde_json::from_str(text).unwrap();
    let place = |place: &Value| {
        let number = |of: &str| usize::try_from(place[of].as_u64().unwrap()).unwrap();
        (number("line"), number("column"))
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mutant = |(number, value): (u32, &Value)| Mutant {
        number,
        file: text(&value["file"]),
        name: text(&value["name"]),
        genre: text(&value["genre"]),
        from: place(&value["span"]["start"]),
        to: place(&value["span"]["end"]),
        replacement: text(&value["replacement"]),
    };
    (1..).zip(&list).map(mutant).collect()
}

/// Builds the campaigns with the copy; answers the mutants that the compiler refuses.
///
/// # Panics
/// The compiler refuses something else.
fn refuses(copy: &Path, listed: &[Mutant]) -> BTreeSet<u32> {
    let cargo = Command::new("cargo")
        .args(["build", "--quiet", "--locked", "--features", "planted-bugs", "--example", "campaigns"])
        .args(["--message-format", "json"])
        .current_dir(copy)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = cargo.wait_with_output().unwrap();
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let errors = messages.map(|line| line["message"].clone()).filter(|message| message["level"] == "error");
    let mut refused = BTreeSet::new();
    let mut others = Vec::new();
    for error in errors {
        let spans = error["spans"].as_array().cloned().unwrap_or_default();
        let primary = spans.iter().find(|span| span["is_primary"] == true);
        if error["code"]["code"] == "E0004" {
            // A match that lacks an arm once one may be gone: the compiler points at what is matched, not at the arm.
            let file = primary.and_then(|span| span["file_name"].as_str()).unwrap_or_default();
            let arms = listed.iter().filter(|mutant| mutant.genre == "MatchArm" && mutant.file == file);
            refused.extend(arms.map(|mutant| mutant.number));
            continue;
        }
        match primary.and_then(|span| switch_before(copy, span)) {
            Some(number) => drop(refused.insert(number)),
            None => others.push(error["rendered"].as_str().unwrap_or_default().to_owned()),
        }
    }
    assert!(output.status.success() || !refused.is_empty(), "the copy does not build: {}", others.join("\n"));
    refused
}

/// The mutant whose switch stands last before what the compiler points at.
fn switch_before(copy: &Path, span: &Value) -> Option<u32> {
    let text = std::fs::read_to_string(copy.join(span["file_name"].as_str()?)).ok()?;
    let before = text.get(..usize::try_from(span["byte_start"].as_u64()?).ok()?)?;
    let switch = &before[before.rfind(SWITCH)? + SWITCH.len()..];
    let digits: String = switch.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
