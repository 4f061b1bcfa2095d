//! `untorn demo`, from outside.

use serde_json::Value;
use std::process::{Command, Output};

fn demo(args: &[&str]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_untorn"));
    let output = command.arg("demo").args(args).args(["--format", "json"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let report = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"));
    (output, report)
}

#[test]
fn the_demo_keeps_every_promise() {
    let (output, report) = demo(&["--seconds", "3"]);
    assert!(output.status.success(), "{report}");
    assert!(report["transactions_committed"].as_u64() > Some(100), "{report}");
    assert!(report["snapshots_read"].as_u64() > Some(0), "{report}");
    for count in ["torn_snapshots", "lost_rows", "duplicated_rows"] {
        assert_eq!(report[count], 0, "{report}");
    }
    assert_eq!(report["replica_equals_source"], true, "{report}");
}

/// Whether readers saw parts depends on when they looked; that this counts as done does not.
#[test]
fn without_the_gate_the_demo_is_done_whatever_it_counted() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kept");
    let (output, report) = demo(&["--seconds", "1", "--without-gate", "--dir", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{report}");
    assert!(report["torn_snapshots"].is_u64(), "{report}");
    assert!(dir.join("log").exists() && dir.join("tablets").exists());

    let again = Command::new(env!("CARGO_BIN_EXE_untorn")).args(["demo", "--dir"]).arg(&dir).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"));
}
