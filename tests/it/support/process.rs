//! Processes of the built binary, which a test kills and starts again.

use rand::Rng;
use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// How long a process may take to end: no property, only a bound.
const PATIENCE: Duration = Duration::from_secs(60);

/// A port on 127.0.0.1 that nobody uses, below those that the kernel gives to outgoing connections: whoever tries to
/// reach a killed server must not be given its port.
pub fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(12_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A process of the binary with a configuration and a data folder of its own, both kept when it is killed.
pub struct Process {
    pub name: String,
    command: &'static str,
    folder: PathBuf,
    running: Option<Child>,
}

impl Process {
    /// A process that runs `untorn COMMAND` with this configuration, to which its `data_dir` is added. It is started.
    pub fn new(home: &Path, name: &str, command: &'static str, config: &str) -> Self {
        let folder = home.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let data = folder.join("data");
        std::fs::write(folder.join("untorn.toml"), format!("data_dir = {data:?}\n{config}")).unwrap();
        let mut process = Self { name: name.to_owned(), command, folder, running: None };
        process.start();
        process
    }

    /// Starts it.
    pub fn start(&mut self) {
        let told = || OpenOptions::new().create(true).append(true).open(self.told_file()).unwrap();
        let mut command = Command::new(super::daemon::built());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UNTORN")) {
            command.env_remove(name);
        }
        command.args([self.command, "--config"]).arg(self.folder.join("untorn.toml"));
        command.stdin(Stdio::null()).stdout(told()).stderr(told());
        self.running = Some(command.spawn().unwrap());
    }

    /// `kill -9`, or its end by itself.
    pub fn kill(&mut self) {
        let mut child = self.running.take().expect("it runs");
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{} has ended by itself: {status}\n{}", self.name, self.told());
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends it a signal by name.
    pub fn signal(&self, signal: &str) {
        let id = self.running.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let child = self.running.as_mut().expect("it runs");
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.running = None;
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end\n{}", self.name, self.told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last lines that it printed, over all of its lives.
    pub fn told(&self) -> String {
        let told = self.whole();
        let lines: Vec<_> = told.lines().collect();
        format!("--- {}\n{}\n", self.name, lines[lines.len().saturating_sub(25)..].join("\n"))
    }

    /// Everything that it printed, over all of its lives.
    pub fn whole(&self) -> String {
        std::fs::read_to_string(self.told_file()).unwrap_or_default()
    }

    fn told_file(&self) -> PathBuf {
        self.folder.join("told")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
