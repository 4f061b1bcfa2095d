//! From the checked tree to the typed configuration: defaults, and the rules that hold between keys.

use super::tree::Vars;
use super::value::{self, PostgresParts, Secret};
use super::{
    CdcTabletConfig, Configuration, DaemonConfig, Faults, GrpcTabletConfig, LeaderConfig, LogConfig,
    PostgresSourceConfig, PostgresTabletConfig, ReleaseConfig, ReplicaConfig, SourceConfig, TabletServerConfig,
    TracingConfig,
};
use crate::limits;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};
use tracing_subscriber::EnvFilter;

/// Makes the configuration, adding to the faults of the tree's reading.
pub fn configuration(tree: &Table, vars: &Vars, faults: Faults) -> Result<Configuration, Faults> {
    let mut build = Build { vars, faults };
    let root = Section { table: Some(tree), path: String::new() };
    let configuration = if tree.contains_key("tablet") {
        Configuration::TabletServer(build.tablet_server(&root))
    } else {
        Configuration::Daemon(Box::new(build.daemon(&root)))
    };
    build.faults.or(configuration)
}

/// A section, which may be absent, and its dotted path.
struct Section<'a> {
    table: Option<&'a Table>,
    path: String,
}

impl<'a> Section<'a> {
    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.table?.get(name)
    }

    fn section(&self, name: &str) -> Self {
        Section { table: self.get(name).and_then(Value::as_table), path: self.key(name) }
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    fn names(&self, name: &str) -> Option<Vec<String>> {
        let names = self.get(name)?.as_array()?;
        Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    fn tables(&self, name: &str) -> Vec<Self> {
        let entries = self.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        // What is no table has its fault already; the others keep their numbers.
        let section = |(i, entry): (usize, &'a Value)| {
            Some(Section { table: Some(entry.as_table()?), path: format!("{}[{i}]", self.key(name)) })
        };
        entries.iter().enumerate().filter_map(section).collect()
    }
}

const LOOPBACK_ONLY: &str = "is reached beyond loopback without TLS and credentials";

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

    fn source(&mut self, section: &Section<'_>) -> SourceConfig {
        let tablets = section.tables("tablets");
        let kind = section.text("kind");
        let key = section.key("kind");
        match kind {
            None if tablets.is_empty() => return SourceConfig::None,
            None if self.faults.has(&key) => {}
            None => self.faults.push(&key, "is missing", "write \"postgres\" or \"cdc\""),
            Some("postgres" | "cdc") => {}
            Some(other) => {
                self.faults.push(&key, format!("{other:?} is no kind of source"), "write \"postgres\" or \"cdc\"");
            }
        }
        if kind == Some("cdc") {
            self.foreign(section, &["gid_pattern", "clock_skew"], "source.kind = \"postgres\"");
        }
        if tablets.len() > limits::STREAMS_MAX {
            let what = format!("has {} entries, {} at most are served", tablets.len(), limits::STREAMS_MAX);
            self.faults.push(&section.key("tablets"), what, "divide them among several daemons");
        }
        let mut names = BTreeMap::new();
        for tablet in &tablets {
            let name = self.required(tablet, "name", "name the stream");
            self.name(&name, &tablet.key("name"), &mut names);
        }
        match kind {
            Some("cdc") => SourceConfig::Cdc(tablets.iter().map(|tablet| self.cdc_tablet(tablet)).collect()),
            Some("postgres") => SourceConfig::Postgres(PostgresSourceConfig {
                gid_pattern: self.gid_pattern(section),
                clock_skew: self.duration(section, "clock_skew", Duration::from_millis(500)),
                tablets: self.postgres_tablets(&tablets),
            }),
            _ => SourceConfig::None,
        }
        .none_without_tablets()
    }

    fn cdc_tablet(&mut self, tablet: &Section<'_>) -> CdcTabletConfig {
        self.foreign(tablet, &["publication", "slot", "password_file"], "source.kind = \"postgres\"");
        let name = tablet.text("name").unwrap_or_default().to_owned();
        CdcTabletConfig { url: self.http_url(tablet), tablet: tablet.text("tablet").unwrap_or(&name).to_owned(), name }
    }

    fn postgres_tablets(&mut self, tablets: &[Section<'_>]) -> Vec<PostgresTabletConfig> {
        let mut slots = BTreeMap::new();
        let mut read = |tablet: &Section<'_>| {
            self.foreign(tablet, &["tablet"], "source.kind = \"cdc\"");
            let slot = self.required(tablet, "slot", "name the replication slot; it is created when missing");
            if !slot.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')) || slot.len() > 63 {
                let what = format!("{slot:?} is no name of a slot");
                self.faults.push(&tablet.key("slot"), what, "use at most 63 of a-z, 0-9 and _");
            }
            let publication =
                self.required(tablet, "publication", "name the publication, made with CREATE PUBLICATION");
            let password_file = self.password_file(tablet);
            let url = self.required(tablet, "url", "write postgres://user@host:5432/database");
            if let Some(parts) = self.postgres_url(tablet, &url, password_file.is_some())
                && let Some(other) = slots.insert((parts.hosts, slot.clone()), tablet.path.clone())
            {
                let what = format!("is the slot of {other} too, and one slot feeds one stream");
                self.faults.push(&tablet.key("slot"), what, "give each stream a slot of its own");
            }
            let name = tablet.text("name").unwrap_or_default().to_owned();
            PostgresTabletConfig { name, url: Secret::new(url), password_file, publication, slot }
        };
        tablets.iter().map(&mut read).collect()
    }

    fn postgres_url(&mut self, tablet: &Section<'_>, url: &str, password: bool) -> Option<PostgresParts> {
        let key = tablet.key("url");
        if url.is_empty() {
            return None;
        }
        let parts = match value::postgres_url(url) {
            Ok(parts) => parts,
            Err(what) => {
                self.faults.push(&key, what, "write postgres://user@host:5432/database?sslmode=verify-full");
                return None;
            }
        };
        if !parts.loopback && !tablet.flag("insecure") {
            let insecure = tablet.key("insecure");
            if !parts.tls {
                let mend = format!("add ?sslmode=verify-full to the URL, or set {insecure} = true");
                self.faults.push(&key, "is reached beyond loopback without TLS", mend);
            }
            if !parts.credentials && !password && !self.libpq_credentials() {
                let mend = format!("set password_file (or PGPASSFILE), or set {insecure} = true");
                self.faults.push(&key, "is reached beyond loopback without credentials", mend);
            }
        }
        Some(parts)
    }

    /// Whether libpq would find a password by itself.
    fn libpq_credentials(&self) -> bool {
        let home = self.vars.get("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
        self.vars.contains_key("PGPASSWORD")
            || self.vars.contains_key("PGPASSFILE")
            || home.is_some_and(|file| file.exists())
    }

    fn password_file(&mut self, tablet: &Section<'_>) -> Option<PathBuf> {
        let file = tablet.text("password_file")?;
        let key = tablet.key("password_file");
        match std::fs::read_to_string(file) {
            Ok(text) if text.trim().is_empty() => {
                self.faults.push(&key, format!("{file} is empty"), "write the password into it");
            }
            Ok(_) => {}
            Err(error) => {
                self.faults.push(
                    &key,
                    format!("{file} cannot be read: {error}"),
                    "name a file that this user can read",
                );
            }
        }
        Some(PathBuf::from(file))
    }

    fn gid_pattern(&mut self, section: &Section<'_>) -> Option<String> {
        let pattern = section.text("gid_pattern")?;
        if !matches!(pattern, "citus" | "xa") {
            let key = section.key("gid_pattern");
            match regex::Regex::new(pattern) {
                Ok(regex) if regex.capture_names().any(|name| name == Some("txn")) => {}
                Ok(_) => self.faults.push(&key, "has no group named txn", "write it as '^(?<txn>.+)$'"),
                Err(error) => {
                    // The last line of regex's message says what is wrong; those above draw an arrow.
                    let error = error.to_string();
                    let what = format!("is no regular expression: {}", error.lines().last().unwrap_or_default().trim());
                    self.faults.push(&key, what, "mend it, or write \"citus\" or \"xa\"");
                }
            }
        }
        Some(pattern.to_owned())
    }

    fn poll(&mut self, section: &Section<'_>, source: &SourceConfig) -> Vec<String> {
        let known = source.names();
        let Some(poll) = section.names("poll") else {
            return known.into_iter().map(str::to_owned).collect();
        };
        for (i, name) in poll.iter().enumerate() {
            let key = format!("{}[{i}]", section.key("poll"));
            if !known.contains(&name.as_str()) {
                self.faults.push(&key, format!("{name:?} is no source tablet"), "write a name of [[source.tablets]]");
            } else if poll[..i].contains(name) {
                self.faults.push(&key, format!("{name:?} is named twice"), "name each stream once");
            }
        }
        poll
    }

    fn replica(&mut self, section: &Section<'_>) -> ReplicaConfig {
        let tablets = section.tables("tablets");
        let key = section.key("kind");
        match section.text("kind") {
            None | Some("embedded") => {
                if !tablets.is_empty() {
                    let what = "needs replica.kind = \"grpc\"";
                    self.faults.push(&section.key("tablets"), what, "set it, or remove the entries");
                }
                ReplicaConfig::Embedded { tablet_count: self.tablet_count(section) }
            }
            Some("grpc") => {
                self.foreign(section, &["tablet_count"], "replica.kind = \"embedded\"");
                ReplicaConfig::Grpc(self.grpc_tablets(section, &tablets))
            }
            Some("postgres") => {
                let what = "PostgreSQL as the replica is not part of this version";
                self.faults.push(&key, what, "write \"embedded\" or \"grpc\"");
                ReplicaConfig::Grpc(Vec::new())
            }
            Some(other) => {
                let what = format!("{other:?} is no kind of replica");
                self.faults.push(&key, what, "write \"embedded\" or \"grpc\"");
                ReplicaConfig::Grpc(Vec::new())
            }
        }
    }

    fn tablet_count(&mut self, section: &Section<'_>) -> u32 {
        let count = section.get("tablet_count").and_then(Value::as_integer).unwrap_or(3);
        let fits = u32::try_from(count).ok().filter(|count| (1..=limits::TABLETS_MAX).contains(count));
        fits.unwrap_or_else(|| {
            let what = format!("{count} is not between 1 and {}", limits::TABLETS_MAX);
            self.faults.push(&section.key("tablet_count"), what, "give a number in that range");
            1
        })
    }

    fn grpc_tablets(&mut self, section: &Section<'_>, tablets: &[Section<'_>]) -> Vec<GrpcTabletConfig> {
        if tablets.is_empty() && !self.faults.has(&section.key("tablets")) {
            let what = "has no entry, and replica.kind = \"grpc\" needs one";
            self.faults.push(&section.key("tablets"), what, "write [[replica.tablets]] with name and url");
        }
        let mut names = BTreeMap::new();
        let mut below: Option<&str> = None;
        let by_range = tablets.iter().any(|tablet| tablet.get("from_key").is_some());
        let mut out = Vec::new();
        for (i, tablet) in tablets.iter().enumerate() {
            let name = self.required(tablet, "name", "name the tablet as its server does");
            self.name(&name, &tablet.key("name"), &mut names);
            let from_key = tablet.text("from_key");
            let key = tablet.key("from_key");
            if by_range && i > 0 && !self.faults.has(&key) {
                match from_key {
                    None => {
                        self.faults.push(&key, "is missing, and other tablets have one", "give it to all but the first")
                    }
                    Some(from) if below.is_some_and(|below| below >= from) => {
                        self.faults.push(&key, "does not rise", "order the tablets by their lowest key");
                    }
                    Some(_) => {}
                }
            }
            below = from_key.or(below);
            out.push(GrpcTabletConfig { name, url: self.http_url(tablet), from_key: from_key.map(str::to_owned) });
        }
        out
    }

    fn leader(&mut self, root: &Section<'_>, replica: &ReplicaConfig, data_dir: &std::path::Path) -> LeaderConfig {
        let section = root.section("leader");
        if section.table.is_some() && matches!(replica, ReplicaConfig::Embedded { .. }) {
            let what = "several processes cannot share tablets that are embedded in one";
            self.faults.push("leader", what, "set replica.kind = \"grpc\"");
        }
        if let Some(url) = section.text("url") {
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
            let _ = self.http_url(&section);
            return LeaderConfig::At(url.to_owned());
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

    /// A key that must be there; empty, with a fault, when it is not.
    fn required(&mut self, section: &Section<'_>, name: &str, mend: &str) -> String {
        let key = section.key(name);
        match section.text(name) {
            Some("") => self.faults.push(&key, "is empty", mend),
            Some(text) => return text.to_owned(),
            None if self.faults.has(&key) => {}
            None => self.faults.push(&key, "is missing", mend),
        }
        String::new()
    }

    /// Names label metrics and stand before the colon of `tablet:xid`, so they are short, plain and unique.
    fn name(&mut self, name: &str, key: &str, seen: &mut BTreeMap<String, String>) {
        if name.is_empty() {
            return;
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) || name.len() > 63 {
            self.faults.push(key, format!("{name:?} is no name"), "use at most 63 letters, digits, `_`, `-` and `.`");
        }
        if let Some(other) = seen.insert(name.to_owned(), key.to_owned()) {
            self.faults.push(key, format!("{name:?} is the name of {other} too"), "give each its own name");
        }
    }

    /// Keys that mean something only under another kind.
    fn foreign(&mut self, section: &Section<'_>, names: &[&str], needs: &str) {
        for name in names.iter().filter(|name| section.get(name).is_some()) {
            self.faults.push(&section.key(name), format!("needs {needs}"), "set that, or remove the key");
        }
    }

    /// One of a few words; the first when absent.
    fn one_of<T: Copy>(&mut self, section: &Section<'_>, name: &str, choices: &[(&str, T)]) -> T {
        let text = section.text(name).unwrap_or(choices[0].0);
        choices.iter().find(|(word, _)| *word == text).map_or_else(
            || {
                let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
                self.faults.push(
                    &section.key(name),
                    format!("{text:?} is unknown"),
                    format!("write {}", words.join(" or ")),
                );
                choices[0].1
            },
            |(_, choice)| *choice,
        )
    }

    fn size(&mut self, section: &Section<'_>, name: &str, default: u64) -> u64 {
        let Some(text) = section.text(name) else { return default };
        value::size(text).unwrap_or_else(|| {
            let what = format!("{text:?} is no size");
            self.faults.push(&section.key(name), what, "write a whole number with B, KiB, MiB, GiB or TiB: \"512MiB\"");
            default
        })
    }

    fn duration(&mut self, section: &Section<'_>, name: &str, default: Duration) -> Duration {
        let Some(text) = section.text(name) else { return default };
        value::duration(text).unwrap_or_else(|| {
            let what = format!("{text:?} is no duration");
            self.faults.push(&section.key(name), what, "write a whole number with ms, s, m, h or d: \"500ms\"");
            default
        })
    }

    /// The section's `listen`; required when there is no default.
    fn listen(&mut self, section: &Section<'_>, default: Option<&str>) -> SocketAddr {
        let key = section.key("listen");
        let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
        let text = match (section.text("listen"), default) {
            (Some(text), _) => text.to_owned(),
            (None, Some(default)) => default.to_owned(),
            (None, None) => self.required(section, "listen", "write \"127.0.0.1:7200\""),
        };
        if text.is_empty() {
            return fallback;
        }
        let Some(address) = value::listen(&text) else {
            let what = format!("{text:?} is no address to listen on");
            self.faults.push(&key, what, "write an IP address and a port: \"127.0.0.1:7200\", \"[::1]:7200\"");
            return fallback;
        };
        if !address.ip().is_loopback() && !section.flag("insecure") {
            let mend = format!("listen on 127.0.0.1, or set {} = true", section.key("insecure"));
            self.faults.push(&key, LOOPBACK_ONLY, mend);
        }
        address
    }

    /// The section's `url` of a gRPC server.
    fn http_url(&mut self, section: &Section<'_>) -> String {
        let key = section.key("url");
        let url = self.required(section, "url", "write http://host:port");
        if url.is_empty() {
            return url;
        }
        match value::http_host(&url) {
            Err(what) => self.faults.push(&key, what, "write http://host:port"),
            Ok(host) if !value::is_loopback(&host) && !section.flag("insecure") => {
                self.faults.push(
                    &key,
                    LOOPBACK_ONLY,
                    format!("set {} = true if that is meant", section.key("insecure")),
                );
            }
            Ok(_) => {}
        }
        url
    }
}

impl SourceConfig {
    /// No source tablets at all are legal, whatever the kind says.
    fn none_without_tablets(self) -> Self {
        if self.names().is_empty() { Self::None } else { self }
    }
}
