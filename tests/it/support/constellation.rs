//! One leader, two pollers, four source tablets and three replica tablets, each a process of its own.

use super::process::{Process, free_port};
use super::upstream::{self, Upstream};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use untorn::access::Address;
use untorn::admin::client::AdminClient;
use untorn::admin::status::{State, Status};
use untorn::wal::HybridTime;

/// How long anything may take before a test gives up: no property, only a bound.
const PATIENCE: Duration = Duration::from_secs(90);

/// The processes' addresses.
pub struct Addresses {
    pub sources: Vec<u16>,
    pub replicas: Vec<u16>,
    pub leader: u16,
    pub admin: u16,
    /// The second replica's, whose source are the first one's tablets.
    pub chained_admin: u16,
}

impl Addresses {
    pub fn new() -> Self {
        let ports = |count: usize| (0..count).map(|_| free_port()).collect();
        Self {
            sources: ports(upstream::TABLETS),
            replicas: ports(3),
            leader: free_port(),
            admin: free_port(),
            chained_admin: free_port(),
        }
    }

    /// Other addresses of a leader over the same tablets.
    pub fn other_leader(&self) -> Self {
        Self { sources: self.sources.clone(), replicas: self.replicas.clone(), ..Self::new() }
    }

    /// A daemon's configuration: the streams that it polls, and its part of the leadership.
    pub fn daemon(&self, polls: &[usize], leadership: &str, admin: u16) -> String {
        let poll: Vec<_> = polls.iter().map(|stream| format!("shard-{stream}")).collect();
        let mut config = format!(
            "{leadership}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n[metrics]\nlisten = \"127.0.0.1:{}\"\n\
             [source]\nkind = \"cdc\"\npoll = {poll:?}\n",
            free_port()
        );
        for (number, port) in self.sources.iter().enumerate() {
            // A tablet's WAL goes by its number in the source's log.
            let tablet =
                format!("name = \"shard-{number}\"\nurl = \"http://127.0.0.1:{port}\"\ntablet = \"r{number}\"");
            writeln!(config, "[[source.tablets]]\n{tablet}").unwrap();
        }
        config.push_str("[replica]\nkind = \"grpc\"\n");
        for (number, port) in self.replicas.iter().enumerate() {
            let tablet = format!("name = \"replica-{number}\"\nurl = \"http://127.0.0.1:{port}\"");
            writeln!(config, "[[replica.tablets]]\n{tablet}").unwrap();
        }
        config
    }

    /// The configuration of a leader with its log in this file.
    pub fn leading(&self, log: &std::path::Path) -> String {
        let leadership =
            format!("[leader]\nlisten = \"127.0.0.1:{}\"\n[log]\nkind = \"sqlite\"\npath = {log:?}", self.leader);
        self.daemon(&[], &leadership, self.admin)
    }

    /// The configuration of a poller.
    pub fn polling(&self, polls: &[usize]) -> String {
        let leadership = format!("[leader]\nurl = \"http://127.0.0.1:{}\"", self.leader);
        self.daemon(polls, &leadership, free_port())
    }

    /// The configuration of a second replica, in one process, of the first.
    pub fn chained(&self) -> String {
        let mut config = format!(
            "[admin]\nlisten = \"127.0.0.1:{}\"\n[metrics]\nlisten = \"127.0.0.1:{}\"\n[source]\nkind = \"cdc\"\n\
             [replica]\ntablet_count = 2\n",
            self.chained_admin,
            free_port()
        );
        for (number, port) in self.replicas.iter().enumerate() {
            let tablet = format!("name = \"part-{number}\"\nurl = \"http://127.0.0.1:{port}\"\ntablet = \"r{number}\"");
            writeln!(config, "[[source.tablets]]\n{tablet}").unwrap();
        }
        config
    }

    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }

    pub fn chained_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.chained_admin)
    }
}

/// The running constellation. `processes` holds the leader first, then the pollers, the source tablets, the replica
/// tablets.
pub struct Constellation {
    pub home: TempDir,
    pub at: Addresses,
    pub processes: Vec<Process>,
    pub upstream: Upstream,
}

impl Constellation {
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = Addresses::new();
        let tablet = |name: String, port: u16| {
            let config = format!("[tablet]\nlisten = \"127.0.0.1:{port}\"\nnames = [{name:?}]\n");
            Process::new(home.path(), &name, "tablet", &config)
        };
        let log = home.path().join("log.sqlite");
        let mut processes = vec![
            Process::new(home.path(), "leader", "run", &at.leading(&log)),
            Process::new(home.path(), "poller-0", "run", &at.polling(&[0, 1])),
            Process::new(home.path(), "poller-1", "run", &at.polling(&[2, 3])),
        ];
        processes.extend(at.sources.iter().enumerate().map(|(number, port)| tablet(upstream::name(number), *port)));
        processes
            .extend(at.replicas.iter().enumerate().map(|(number, port)| tablet(format!("replica-{number}"), *port)));
        let source = |port: &u16| Address::from(&format!("http://127.0.0.1:{port}"));
        let addresses = at.sources.iter().map(source).collect();
        Self { upstream: Upstream::start(addresses), home, at, processes }
    }

    /// Adds a second replica, whose source is the first one.
    pub fn chain(&mut self) {
        self.processes.push(Process::new(self.home.path(), "chained", "run", &self.at.chained()));
    }

    /// What every process said last.
    pub fn told(&self) -> String {
        self.processes.iter().map(Process::told).collect()
    }

    /// Waits until a daemon's status is as wanted.
    pub async fn status(&self, url: &str, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = match AdminClient::connect(url).await {
                Ok(mut client) => client.status().await,
                Err(error) => Err(error),
            };
            if let Ok(status) = &status
                && wanted(status)
            {
                return status.clone();
            }
            if Instant::now() > deadline {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                panic!("{what}: not so within {PATIENCE:?}\n{status}\n{}", self.told());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until everything that the source committed is safe at a replica.
    pub async fn caught_up(&self, url: &str) {
        let end = self.upstream.history.end();
        self.status(url, "the replica catches up", |status| status.safe_time.is_some_and(|safe| safe >= end)).await;
    }

    /// Waits until every stream of a daemon runs.
    pub async fn all_run(&self, url: &str) {
        let all = |status: &Status| {
            !status.streams.is_empty() && status.streams.iter().all(|stream| stream.state == State::Running)
        };
        self.status(url, "every stream runs", all).await;
    }

    /// Every version that the replica's tablets hold.
    pub async fn replicated(&self) -> BTreeMap<(usize, HybridTime), i64> {
        use untorn::tablet::{ReadPoint, TabletLeader, grpc::GrpcTablet};
        use untorn::wal::{LogPosition, TableId};
        let mut versions = BTreeMap::new();
        for (number, port) in self.at.replicas.iter().enumerate() {
            let tablet = GrpcTablet::new(&format!("http://127.0.0.1:{port}"), &format!("replica-{number}")).unwrap();
            let position: LogPosition = tablet.sync().await.unwrap().heard;
            let at = ReadPoint { position, time: HybridTime::MAX };
            // The first table that the log heard of.
            for (account, time, balance) in upstream::history_of(&tablet, TableId(0), at).await {
                assert_eq!(versions.insert((account, time), balance), None, "a version is there twice");
            }
        }
        versions
    }
}
