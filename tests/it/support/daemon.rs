//! The built binary as a daemon, and its commands as people call them.

use super::postgres::Postgres;
pub use super::process::free_port;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up: no property, only a bound.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A process of the binary with its own folder. Dropping it kills the process.
pub struct Daemon {
    folder: TempDir,
    admin: u16,
    listeners: String,
    metrics: u16,
    command: &'static str,
    process: Option<Child>,
}

/// A source tablet's section; its slot has its name, with an underscore.
pub fn source_tablet(name: &str, url: &str) -> String {
    let slot = name.replace('-', "_");
    format!("[[source.tablets]]\nname = \"{name}\"\nurl = \"{url}\"\npublication = \"untorn\"\nslot = \"{slot}\"\n")
}

/// A source of these servers, each called `shard-a`, `shard-b`, …
pub fn source_of(servers: &[Postgres]) -> String {
    let shards = servers.iter().zip('a'..).map(|(server, letter)| {
        let url = server.url("postgres");
        source_tablet(&format!("shard-{letter}"), &url)
    });
    format!("[source]\nkind = \"postgres\"\n{}", shards.collect::<String>())
}

impl Daemon {
    /// `untorn run` with these sections beside `data_dir` and the listeners. It is not started.
    pub fn new(sections: &str) -> Self {
        let (admin, metrics) = (free_port(), free_port());
        let listeners =
            format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n");
        let mut daemon = Self::of("run", admin, metrics, &format!("{sections}{listeners}"));
        daemon.listeners = listeners;
        daemon
    }

    /// Another one on the same data folder, with listeners of its own. It is not started.
    pub fn beside(&self, sections: &str) -> Self {
        let other = Self::new(sections);
        let text = format!("data_dir = {:?}\n{sections}{}", self.data(), other.listeners);
        std::fs::write(other.config(), text).expect("the configuration can be written");
        other
    }

    /// `untorn tablet` that serves these tablets, started, and where it listens.
    pub fn tablets(names: &[&str]) -> (Self, u16) {
        let (port, metrics) = (free_port(), free_port());
        let mut server = Self::of(
            "tablet",
            0,
            metrics,
            &format!(
                "[tablet]\nlisten = \"127.0.0.1:{port}\"\nnames = {names:?}\n\
                 [metrics]\nlisten = \"127.0.0.1:{metrics}\"\n"
            ),
        );
        server.start();
        (server, port)
    }

    fn of(command: &'static str, admin: u16, metrics: u16, sections: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let daemon = Self { folder, admin, listeners: String::new(), metrics, command, process: None };
        daemon.configure(sections);
        daemon
    }

    /// Gives an `untorn run` other sections at its next start.
    pub fn reconfigure(&self, sections: &str) {
        self.configure(&format!("{sections}{}", self.listeners));
    }

    /// Writes the configuration anew.
    fn configure(&self, sections: &str) {
        let text = format!("data_dir = {:?}\n{sections}", self.data());
        std::fs::write(self.config(), text).expect("the configuration can be written");
    }

    /// Its data folder, which it makes when it starts.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Whether it has ended by itself, and how.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut().and_then(|process| process.try_wait().expect("it can be waited for"));
        self.process.take_if(|_| status.is_some());
        status
    }

    /// Waits for its end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        assert!(self.process.is_some(), "it runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("untorn.toml")
    }

    /// Starts the process; what it says is added to its log.
    pub fn start(&mut self) {
        self.start_under(&[]);
    }

    /// Starts it by a program that runs what its last arguments say.
    pub fn start_under(&mut self, wrapper: &[String]) {
        assert!(self.process.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).expect("a log file");
        let mut command = match wrapper {
            [] => binary(),
            [program, arguments @ ..] => {
                let mut command = clean(Command::new(program));
                command.args(arguments).arg(built());
                command
            }
        };
        command.arg(self.command).arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("the binary starts"));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it can be killed");
        process.wait().expect("it ends");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs");
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(process.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Sends SIGTERM, and waits for its end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.process.take().expect("it runs").wait().expect("it ends")
    }

    /// Its resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let process = self.process.as_ref().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("it has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// What its data folder takes, in bytes.
    pub fn on_disk(&self) -> u64 {
        let output = Command::new("du").arg("-sB1").arg(self.data()).output().expect("du runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a number")
    }

    /// What the process said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs a command against it.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = binary();
        command.args(arguments).arg("--admin").arg(format!("http://127.0.0.1:{}", self.admin));
        tokio::task::block_in_place(|| command.output().expect("the binary runs"))
    }

    /// Runs a command with its configuration.
    pub fn configured(&self, arguments: &[&str]) -> Output {
        let mut command = binary();
        command.args(arguments).arg("--config").arg(self.config());
        tokio::task::block_in_place(|| command.output().expect("the binary runs"))
    }

    /// Where it serves its metrics, on 127.0.0.1.
    pub fn metrics_port(&self) -> u16 {
        self.metrics
    }

    /// What it exports for Prometheus; empty while it does not listen.
    pub fn metrics(&self) -> String {
        let ask = || -> std::io::Result<String> {
            let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.metrics))?;
            connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            connection.read_to_string(&mut text)?;
            Ok(text)
        };
        tokio::task::block_in_place(|| ask().unwrap_or_default())
    }

    /// `status`, while it answers.
    pub fn status(&self) -> Option<Value> {
        json_lines(&self.ask(&["status", "--format", "json"])).pop()
    }

    /// Safe time, as `scan --at` takes it.
    pub fn safe_time(&self) -> String {
        let status = self.status().expect("it answers");
        status["safe_time"].as_str().expect("there is a safe time").to_owned()
    }

    /// `explain`, every transaction that fits; none when it is not known.
    pub fn explain(&self, transaction: &str) -> Vec<Value> {
        json_lines(&self.ask(&["explain", transaction, "--format", "json"]))
    }

    /// `scan`, when it exits 0: its whole output.
    pub fn scan(&self, table: &str, at: &str, format: &str) -> Result<String, String> {
        let output = self.ask(&["scan", "--table", table, "--at", at, "--format", format]);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Waits until the status is as wanted, and answers it.
    pub async fn until_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until(what, || self.status().filter(&wanted)).await
    }

    /// Waits until it is ready and every copy is done.
    pub async fn until_ready(&self) {
        self.until_status("ready", |status| {
            let streams = status["streams"].as_array().expect("streams");
            status["ready"] == true && streams.iter().all(|stream| stream["copy"]["state"] == "done")
        })
        .await;
    }

    /// Waits until some use of a transaction waits for this, and answers what it says.
    pub async fn until_waits_for(&self, transaction: &str, cause: &str, tablet: Option<&str>) -> Value {
        let what = format!("{transaction} waits for {cause} {tablet:?}");
        let wanted = |found: &Value| {
            found["waits_for"]["cause"] == cause && tablet.is_none_or(|tablet| found["waits_for"]["tablet"] == tablet)
        };
        self.until(&what, || self.explain(transaction).into_iter().find(wanted)).await
    }

    /// Waits until no use of a transaction waits for anything: applied, and perhaps forgotten.
    pub async fn until_over(&self, transaction: &str) {
        let what = format!("{transaction} is over");
        self.until(&what, || self.explain(transaction).iter().all(|found| found["waits_for"].is_null()).then_some(()))
            .await;
    }

    /// Waits until there is an answer.
    pub async fn until<T>(&self, what: &str, answer: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = answer() {
                return answer;
            }
            if Instant::now() > deadline {
                let status = self.ask(&["status"]);
                panic!("never: {what}\n{}\n{}", String::from_utf8_lossy(&status.stdout), self.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("untorn {}:\n{}", self.command, self.log());
        }
    }
}

/// The binary, without the keys in the environment of whoever runs the tests.
pub fn binary() -> Command {
    clean(Command::new(built()))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UNTORN") || name.starts_with("PG")) {
        command.env_remove(name);
    }
    command
}

/// The built binary: the one that Cargo names to tests, or the one beside the program that runs.
pub fn built() -> PathBuf {
    let beside = || std::env::current_exe().expect("a program has a path").ancestors().nth(2).map(|f| f.join("untorn"));
    option_env!("CARGO_BIN_EXE_untorn").map(PathBuf::from).or_else(beside).expect("a program stands in a folder")
}

/// Standard output, a JSON value a line.
pub fn json_lines(output: &Output) -> Vec<Value> {
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("standard output carries JSON and nothing else")).collect()
}
