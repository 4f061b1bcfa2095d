//! From the checked tree to the typed configuration: defaults, and the rules that hold between keys.

mod replica;
mod replica_postgres;
mod section;
mod source;
mod tls;
mod values;

use super::tree::Vars;
use super::{
    Configuration, DaemonConfig, Faults, LeaderConfig, LogConfig, ReleaseConfig, ReplicaConfig, SourceConfig,
    TabletServerConfig, TracingConfig,
};
use crate::limits;
use section::Section;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::Table;
use tracing_subscriber::EnvFilter;

/// Makes the configuration, adding to the faults of the tree's reading.
pub fn configuration(tree: &Table, vars: &Vars, faults: Faults) -> Result<Configuration, Faults> {
    let mut build = Build { vars, faults };
    let root = Section { table: Some(tree), path: String::new() };
    let configuration = if tree.contains_key("tablet") {
        Configuration::TabletServer(Box::new(build.tablet_server(&root)))
    } else {
        Configuration::Daemon(Box::new(build.daemon(&root)))
    };
    build.faults.or(configuration)
}

struct Build<'a> {
    vars: &'a Vars,
    faults: Faults,
}

impl Build<'_> {
    fn daemon(&mut self, root: &Section<'_>) -> DaemonConfig {
        if root.get("console").is_some() {
            self.faults.push("console", "the console is not part of this version", "remove the section");
        }
        let data_dir = self.data_dir(root);
        let source = self.source(&root.section("source"));
        let poll = self.poll(&root.section("source"), &source);
        let replica = self.replica(&root.section("replica"));
        if let (SourceConfig::Cdc(_), ReplicaConfig::Postgres(_)) = (&source, &replica) {
            let what =
                "keeps one moment of every row, and cannot yet wait for the safe time of a source with a common clock";
            self.faults.push("replica.kind", what, "write \"embedded\" or \"grpc\", or use source.kind = \"postgres\"");
        }
        let release = self.one_of(
            &root.section("replica"),
            "release",
            &[("ordered", ReleaseConfig::Ordered), ("atomic", ReleaseConfig::Atomic)],
        );
        let leader = self.leader(root, &replica, &data_dir);
        DaemonConfig {
            memory_budget: self.memory_budget(root),
            source,
            poll,
            replica,
            release,
            leader,
            admin: self.listen(&root.section("admin"), Some("127.0.0.1:7100")),
            metrics: self.listen(&root.section("metrics"), Some("127.0.0.1:9464")),
            tracing: self.tracing(&root.section("tracing")),
            data_dir,
        }
    }

    fn tablet_server(&mut self, root: &Section<'_>) -> TabletServerConfig {
        for foreign in ["source", "replica", "log", "leader", "admin", "console"] {
            if root.get(foreign).is_some() {
                let what = "does not belong in a tablet server's file, which [tablet] makes this one";
                self.faults.push(foreign, what, "keep the daemon's file and the tablet server's apart");
            }
        }
        let tablet = root.section("tablet");
        let names = self.tablet_names(&tablet);
        let metrics = root.section("metrics");
        TabletServerConfig {
            data_dir: self.data_dir(root),
            memory_budget: self.memory_budget(root),
            listen: self.listen(&tablet, None),
            names,
            wal_retention: self.size(&tablet, "wal_retention", 1 << 30),
            metrics: metrics.table.map(|_| self.listen(&metrics, None)),
            tracing: self.tracing(&root.section("tracing")),
        }
    }

    fn tablet_names(&mut self, tablet: &Section<'_>) -> Vec<String> {
        let key = tablet.key("names");
        let names = tablet.names("names").unwrap_or_default();
        if names.is_empty() && !self.faults.has(&key) {
            self.faults.push(&key, "is missing", "name the tablets that this server holds: [\"r0\", \"r1\"]");
        }
        let mut seen = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            self.name(name, &format!("{key}[{i}]"), &mut seen);
        }
        names
    }

    fn data_dir(&mut self, root: &Section<'_>) -> PathBuf {
        PathBuf::from(self.required(root, "data_dir", "name a folder, like \"/var/lib/untorn\""))
    }

    fn memory_budget(&mut self, root: &Section<'_>) -> u64 {
        let bytes = self.size(root, "memory_budget", 512 << 20);
        if bytes < limits::MEMORY_BUDGET_MIN {
            let what = format!("is below {} MiB", limits::MEMORY_BUDGET_MIN >> 20);
            self.faults.push("memory_budget", what, "give more: batches of every stream must fit");
        }
        bytes
    }

    fn leader(&mut self, root: &Section<'_>, replica: &ReplicaConfig, data_dir: &std::path::Path) -> LeaderConfig {
        let section = root.section("leader");
        if section.table.is_some() && matches!(replica, ReplicaConfig::Embedded { .. } | ReplicaConfig::Postgres(_)) {
            let what = "several processes cannot share tablets that are embedded in one";
            self.faults.push("leader", what, "set replica.kind = \"grpc\"");
        }
        if section.text("url").is_some() {
            if section.get("listen").is_some() {
                let what = "cannot stand beside leader.url";
                self.faults.push("leader.listen", what, "serve the leader here (listen), or reach it elsewhere (url)");
            }
            if root.get("log").is_some() {
                self.faults.push(
                    "log",
                    "belongs to the transaction leader's process",
                    "remove it, or remove leader.url",
                );
            }
            let (url, tls) = self.http_url(&section);
            return LeaderConfig::At { url, tls };
        }
        let listen = section.get("listen").map(|_| self.listen(&section, None));
        LeaderConfig::Here { log: self.log(&root.section("log"), data_dir), listen }
    }

    fn log(&mut self, section: &Section<'_>, data_dir: &std::path::Path) -> LogConfig {
        const KINDS: &str = "write one that this build has: \"sled\", \"sqlite\", \"memory\"";
        let path = section.text("path").map(PathBuf::from);
        match section.text("kind") {
            None | Some("sled") => LogConfig::Sled(path.unwrap_or_else(|| data_dir.join("log"))),
            Some("sqlite") => LogConfig::Sqlite(path.unwrap_or_else(|| data_dir.join("log.sqlite"))),
            Some("memory") => {
                self.foreign(section, &["path"], "log.kind = \"sled\" or \"sqlite\"");
                LogConfig::Memory
            }
            Some(other) => {
                let what = match other {
                    "postgres" | "etcd" | "object-store" | "kafka" => "is not part of this version",
                    _ => "is no kind of log",
                };
                self.faults.push(&section.key("kind"), format!("{other:?} {what}"), KINDS);
                LogConfig::Memory
            }
        }
    }

    fn tracing(&mut self, section: &Section<'_>) -> TracingConfig {
        let json = self.one_of(section, "format", &[("text", false), ("json", true)]);
        let filter = section.text("filter").map_or_else(|| TracingConfig::default().filter, str::to_owned);
        if let Err(error) = EnvFilter::builder().parse(&filter) {
            let what = format!("is no filter: {error}");
            self.faults.push(&section.key("filter"), what, "write as in \"info,untorn::source=debug\"");
        }
        TracingConfig { json, filter }
    }
}
