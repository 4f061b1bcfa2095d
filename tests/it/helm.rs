//! The chart and the image's recipe, looked at by the tools of their own worlds.

use crate::support::prometheus::promtool;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python with what tests/helm/requirements.txt names; made once, kept under target/.
fn python() -> PathBuf {
    let requirements = root().join("tests/helm/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).unwrap();
    let home = root().join("target/helm-python");
    let installed = home.join("installed");
    if std::fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&home).output().unwrap();
        assert!(
            made.status.success(),
            "this test needs python3 with venv (apt-get install python3-venv): {}",
            String::from_utf8_lossy(&made.stdout)
        );
        let mut pip = Command::new(home.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements);
        let pip = pip.output().unwrap();
        assert!(pip.status.success(), "pip: {}", String::from_utf8_lossy(&pip.stderr));
        std::fs::write(&installed, wanted).unwrap();
    }
    home.join("bin")
}

fn passes(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{told}");
    told
}

#[test]
fn the_chart_renders_what_kubernetes_takes_and_refuses_what_tears() {
    let python = python();
    let mut check = Command::new(python.join("python"));
    check.arg(root().join("tests/helm/check.py")).arg(root().join("helm")).arg(env!("CARGO_BIN_EXE_untorn"));
    let told = passes(&mut check);
    assert!(told.trim_end().ends_with(" passed, 0 failed"), "{told}");
    passes(Command::new(python.join("hadolint")).arg(root().join("Dockerfile")));
}

#[test]
fn every_alert_fires_and_is_silent_as_its_cases_say() {
    passes(promtool().args(["check", "rules"]).arg(root().join("helm/alerts.yaml")));
    passes(promtool().args(["test", "rules"]).arg(root().join("tests/helm/alerts.test.yaml")));
    let alerts = std::fs::read_to_string(root().join("helm/alerts.yaml")).unwrap();
    let cases = std::fs::read_to_string(root().join("tests/helm/alerts.test.yaml")).unwrap();
    let runbook = std::fs::read_to_string(root().join("src/docs/runbook.md")).unwrap();
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let names: Vec<_> = names.collect();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        assert!(cases.contains(&format!("alertname: {name}, exp_alerts: []")), "{name} has no case of silence");
        assert!(cases.contains(&format!("alertname: {name}\n        exp_alerts:\n")), "{name} has no case of firing");
        assert!(runbook.contains(&format!("\n## {name}\n")), "{name} has no section in the runbook");
    }
}
