//! The coordinator's scenario scripts: `tests/scripts/*.txt`.
//!
//! A script is a list of commands, one a line, each followed by its trace in indented lines; `#` begins a comment. The
//! trace says what the log was told, what the tablets and the sources are asked to do, what was refused, how the
//! transactions stand, and where readers may begin. `UPDATE_SCRIPTS=1` writes the traces anew: read every changed line
//! against the contracts before you keep it. The commands are listed in `command.rs`.

mod command;
mod trace;
mod world;

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

/// Runs a script and answers its text with the traces that it really gives.
fn run(text: &str) -> Result<String, String> {
    let mut world = world::World::default();
    let mut out = String::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with(' ') {
            continue;
        }
        writeln!(out, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |e: String| format!("line {}, `{line}`: {e}", number + 1);
        for traced in command::run(&mut world, line).map_err(at)? {
            writeln!(out, "    {traced}").unwrap();
        }
        world.check().map_err(at)?;
    }
    world.check_end()?;
    Ok(out)
}

#[test]
fn every_script_gives_its_trace() {
    let update = std::env::var_os("UPDATE_SCRIPTS").is_some();
    let only = std::env::var("SCRIPT").unwrap_or_default();
    let mut wrong = Vec::new();
    let files = scripts();
    for path in files.iter().filter(|path| path.to_string_lossy().contains(&only)) {
        let name = path.file_stem().unwrap().to_string_lossy();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.starts_with("# "), "{name} does not say what it shows");
        match run(&text) {
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(traced) if traced == text => {}
            Ok(traced) if update => std::fs::write(path, traced).unwrap(),
            Ok(traced) => wrong.push(format!("{name}: {}", first_difference(&text, &traced))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!only.is_empty() || files.len() >= 55, "only {} scripts were found", files.len());
}

fn first_difference(expected: &str, found: &str) -> String {
    let mut pairs = expected.lines().zip(found.lines()).enumerate();
    match pairs.find(|(_, (expected, found))| expected != found) {
        Some((number, (expected, found))) => {
            format!("line {}:\n  expected {}\n  found    {}", number + 1, expected.trim(), found.trim())
        }
        None => format!("{} lines expected, {} found", expected.lines().count(), found.lines().count()),
    }
}
