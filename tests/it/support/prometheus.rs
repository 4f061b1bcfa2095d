//! A real Prometheus that scrapes processes of the binary.

use super::daemon::{PATIENCE, free_port};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One series of an answer, at its time.
#[derive(Debug)]
pub struct Sample {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A server with its own folder. Dropping it kills it.
pub struct Prometheus {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these ports of 127.0.0.1 and evaluates these rules, once a second.
    pub async fn start(targets: &[u16], rules: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("rules.yaml"), rules).expect("the rules can be written");
        let targets: Vec<_> = targets.iter().map(|port| format!("'127.0.0.1:{port}'")).collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{:?}]\n\
             scrape_configs: [{{ job_name: untorn, static_configs: [{{ targets: [{}] }}] }}]\n",
            file("rules.yaml"),
            targets.join(", ")
        );
        std::fs::write(file("prometheus.yaml"), config).expect("the configuration can be written");
        let port = free_port();
        let log = std::fs::File::create(file("log")).expect("a log file");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file("prometheus.yaml").display()));
        command.arg(format!("--storage.tsdb.path={}", file("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("this test needs Prometheus; run: apt-get install prometheus");
        let server = Self { process, port, _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        while !server.ask("up").status.success() {
            assert!(Instant::now() < deadline, "Prometheus does not start");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        server
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn ask(&self, query: &str) -> Output {
        let mut command = promtool();
        command.args(["query", "instant", "--format", "json", &self.url(), query]);
        tokio::task::block_in_place(|| command.output().expect("promtool runs"))
    }

    /// The answer to a query now; every query must be one that Prometheus understands.
    pub fn query(&self, query: &str) -> Vec<Sample> {
        let output = self.ask(query);
        assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("promtool prints JSON");
        let series = answer.as_array().expect("a vector of series");
        let sample = |series: &Value| Sample {
            labels: serde_json::from_value(series["metric"].clone()).expect("labels"),
            value: series["value"][1].as_str().and_then(|value| value.parse().ok()).expect("a value"),
        };
        series.iter().map(sample).collect()
    }

    /// The alerts that fire.
    pub fn firing(&self) -> BTreeSet<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}");
        alerts.into_iter().filter_map(|mut alert| alert.labels.remove("alertname")).collect()
    }

    /// Waits until an alert fires.
    pub async fn until_fires(&self, alert: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.firing().contains(alert) {
            assert!(Instant::now() < deadline, "{alert} never fires: {:?}", self.query("ALERTS"));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `promtool`, which comes with Prometheus.
pub fn promtool() -> Command {
    assert!(
        Path::new("/usr/bin/promtool").exists() || Command::new("promtool").arg("--version").output().is_ok(),
        "this test needs promtool; run: apt-get install prometheus"
    );
    Command::new("promtool")
}
