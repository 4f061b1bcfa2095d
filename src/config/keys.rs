//! Every key of a configuration: its type, its default and what it is for. The check of a file's shape, the reading of
//! environment variables and the table in the documentation all come from this one list.

use std::fmt::Write;

/// What is logged where nobody says otherwise. The storage engine tells of every file that it opens.
pub const DEFAULT_FILTER: &str = "info,fjall=warn,lsm_tree=warn";

/// The TOML type of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A string.
    Text,
    /// An integer.
    Integer,
    /// `true` or `false`.
    Flag,
    /// An array of strings; names separated by commas in the environment.
    Names,
}

impl Kind {
    /// As people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Integer => "an integer",
            Self::Flag => "true or false",
            Self::Names => "an array of strings",
        }
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted, `[]` standing for the number of an array's entry: `source.tablets[].url`.
    pub path: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What stands when it is absent, as people read it.
    pub default: &'static str,
    /// What it is for.
    pub about: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { path, kind, default, about }
}

use Kind::{Flag, Integer, Names, Text};

const INSECURE: &str = "Stands for: plain and open beyond loopback is meant here";
const CERT: &str = "File of its certificate, in PEM, with the intermediate ones below it; read again when it changes";
const KEY: &str = "File of the certificate's private key, in PEM";
const CLIENT_CA: &str =
    "File of the authorities of the callers' certificates, in PEM: without one of theirs nobody calls";
const CA: &str = "File of the authorities of the server's certificate, in PEM";
const CONNECT_CERT: &str = "File of the certificate to show to the server, in PEM";
const SERVER_NAME: &str = "The name that the server's certificate must have";
const IDENTITY: &str = "A name in a caller's certificate: DNS, URI or mail; the common name where it has none of these";
const ROLE: &str = "What it may do: `viewer`, `operator` or `admin`";

/// Every key.
pub const KEYS: &[Key] = &[
    key("data_dir", Text, "required", "Folder of the log and of embedded tablets"),
    key("memory_budget", Text, "512MiB", "Bound on what batches in work may take: `256MiB`, `2GiB`"),
    key("source.kind", Text, "required with tablets", "`postgres` or `cdc`"),
    key(
        "source.gid_pattern",
        Text,
        "the whole gid",
        "Which part of a gid names the transaction: a regular expression with a group `txn`, or `citus`, `xa` (postgres)",
    ),
    key("source.clock_skew", Text, "500ms", "How far the servers' clocks may differ (postgres)"),
    key(
        "source.include",
        Names,
        "all",
        "Of the published tables only these: `schema.table`, a `*` in either part for anything (postgres)",
    ),
    key("source.exclude", Names, "none", "Not these tables, whatever is included (postgres)"),
    key(
        "source.rename",
        Names,
        "none",
        "Names at the replica: `shop.* -> public.*`; the first that fits a table counts (postgres)",
    ),
    key(
        "source.copy_rate",
        Text,
        "no limit",
        "Bytes a second that copies read from one server at most: `20MiB` (postgres)",
    ),
    key("source.copy_parallel", Integer, "2", "Tables of one server that are copied at once (postgres)"),
    key("source.poll", Names, "all", "The streams that this process pulls, by name"),
    key("source.tablets[].name", Text, "required", "The stream's name: letters, digits, `_`, `-`, `.`"),
    key(
        "source.tablets[].url",
        Text,
        "required",
        "`postgres://user@host:5432/database?sslmode=…`, or `http://host:port`, `https://host:port` (cdc)",
    ),
    key("source.tablets[].publication", Text, "required", "The publication, which must exist (postgres)"),
    key("source.tablets[].slot", Text, "required", "The replication slot, created when missing (postgres)"),
    key("source.tablets[].password_file", Text, "none", "File that holds the password (postgres)"),
    key("source.tablets[].include", Names, "source.include", "Instead of it, for this server (postgres)"),
    key("source.tablets[].exclude", Names, "source.exclude", "Instead of it, for this server (postgres)"),
    key("source.tablets[].rename", Names, "source.rename", "Instead of it, for this server (postgres)"),
    key("source.tablets[].tablet", Text, "the stream's name", "The tablet's name at its server (cdc)"),
    key("source.tablets[].tls.ca", Text, "required with https", CA),
    key("source.tablets[].tls.cert", Text, "required with https", CONNECT_CERT),
    key("source.tablets[].tls.key", Text, "required with https", KEY),
    key("source.tablets[].tls.server_name", Text, "the URL's host", SERVER_NAME),
    key("source.tablets[].insecure", Flag, "false", INSECURE),
    key(
        "replica.kind",
        Text,
        "embedded",
        "`embedded` (tablets in this process), `grpc` (tablet servers) or `postgres` (a PostgreSQL server)",
    ),
    key("replica.tablet_count", Integer, "3", "How many embedded tablets; fixed when the log is made"),
    key(
        "replica.release",
        Text,
        "ordered",
        "`ordered`: readers see a consistent cut of the servers; `atomic`: whole transactions, in no promised order (postgres)",
    ),
    key(
        "replica.synchronous_commit",
        Flag,
        "true",
        "Whether a commit waits for the server's disk; without, a crash of the server shows its readers the past again (postgres)",
    ),
    key(
        "replica.missing_tables",
        Text,
        "stop",
        "Tables that the server lacks: `stop`, and list their SQL, or `create` (postgres)",
    ),
    key(
        "replica.missing_columns",
        Text,
        "stop",
        "Columns that the server lacks: `stop`, and list their SQL, or `add` (postgres)",
    ),
    key(
        "replica.tablets[].name",
        Text,
        "required",
        "The tablet's name at its server (grpc), or the server's (postgres)",
    ),
    key(
        "replica.tablets[].url",
        Text,
        "required",
        "`http://host:port` of the tablet server, or `https://host:port` (grpc); `postgres://user@host:5432/database?sslmode=…` (postgres)",
    ),
    key("replica.tablets[].password_file", Text, "none", "File that holds the password (postgres)"),
    key(
        "replica.tablets[].tables",
        Names,
        "every table that no other server names",
        "The tables that this server has, where there are several: `schema.table`, or `schema.*`; all servers but one name theirs (postgres)",
    ),
    key(
        "replica.tablets[].from_key",
        Text,
        "cut by hash",
        "The lowest value of the first key column that it holds; given for all tablets but the first, in rising order (grpc)",
    ),
    key("replica.tablets[].tls.ca", Text, "required with https", CA),
    key("replica.tablets[].tls.cert", Text, "required with https", CONNECT_CERT),
    key("replica.tablets[].tls.key", Text, "required with https", KEY),
    key("replica.tablets[].tls.server_name", Text, "the URL's host", SERVER_NAME),
    key("replica.tablets[].insecure", Flag, "false", INSECURE),
    key(
        "log.kind",
        Text,
        "sled",
        "The transaction log's engine: `sled`, `sqlite`, or `memory` (lost at exit; for tests)",
    ),
    key("log.path", Text, "`log` or `log.sqlite` in data_dir", "Where the log is kept (sled, sqlite)"),
    key("leader.listen", Text, "off", "`host:port` that serves the transaction leader to pollers in other processes"),
    key(
        "leader.url",
        Text,
        "in this process",
        "`http://host:port` or `https://host:port` of the transaction leader: this process only pulls streams",
    ),
    key(
        "leader.tls.cert",
        Text,
        "no TLS",
        "With `leader.listen` its certificate, with `leader.url` the one to show, in PEM",
    ),
    key("leader.tls.key", Text, "required with TLS", KEY),
    key(
        "leader.tls.client_ca",
        Text,
        "required with TLS",
        "With `leader.listen`: file of the authorities of the callers' certificates",
    ),
    key(
        "leader.tls.ca",
        Text,
        "required with https",
        "With `leader.url`: file of the authorities of the leader's certificate",
    ),
    key(
        "leader.tls.server_name",
        Text,
        "the URL's host",
        "With `leader.url`: the name that the leader's certificate must have",
    ),
    key("leader.access[].identity", Text, "required", IDENTITY),
    key("leader.access[].role", Text, "required", ROLE),
    key("leader.insecure", Flag, "false", INSECURE),
    key("admin.listen", Text, "127.0.0.1:7100", "gRPC and HTTP: status, explain, scan, `/livez`, `/readyz`"),
    key("admin.tls.cert", Text, "no TLS", CERT),
    key("admin.tls.key", Text, "required with TLS", KEY),
    key("admin.tls.client_ca", Text, "required with TLS", CLIENT_CA),
    key("admin.access[].identity", Text, "required", IDENTITY),
    key("admin.access[].role", Text, "required", ROLE),
    key("admin.insecure", Flag, "false", INSECURE),
    key(
        "metrics.listen",
        Text,
        "127.0.0.1:9464; off for a tablet server",
        "`/metrics`, with `/livez` and `/readyz` beside it",
    ),
    key("metrics.tls.cert", Text, "no TLS", CERT),
    key("metrics.tls.key", Text, "required with TLS", KEY),
    key("metrics.tls.client_ca", Text, "required with TLS", CLIENT_CA),
    key("metrics.access[].identity", Text, "required", IDENTITY),
    key("metrics.access[].role", Text, "required", ROLE),
    key("metrics.insecure", Flag, "false", INSECURE),
    key("console.listen", Text, "off", "PostgreSQL protocol (refused: not in this version)"),
    key("console.http", Text, "off", "HTTP and WebSocket (refused: not in this version)"),
    key("console.insecure", Flag, "false", INSECURE),
    key(
        "tablet.listen",
        Text,
        "required",
        "A tablet server's file: `host:port` that serves TabletService and CdcService",
    ),
    key("tablet.names", Names, "required", "A tablet server's file: the tablets that it holds"),
    key(
        "tablet.wal_retention",
        Text,
        "1GiB",
        "A tablet server's file: WAL kept at most, per tablet, for readers that lag",
    ),
    key("tablet.tls.cert", Text, "no TLS", CERT),
    key("tablet.tls.key", Text, "required with TLS", KEY),
    key("tablet.tls.client_ca", Text, "required with TLS", CLIENT_CA),
    key("tablet.access[].identity", Text, "required", IDENTITY),
    key("tablet.access[].role", Text, "required", ROLE),
    key("tablet.insecure", Flag, "false", INSECURE),
    key("tracing.format", Text, "text", "Logs on standard error as `text` or `json`"),
    key("tracing.filter", Text, DEFAULT_FILTER, "What is logged, as in `info,untorn::source=debug`"),
];

/// The key of this path, `[]` standing for an entry's number.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether keys lie below this path.
#[must_use]
pub fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The names that may stand directly below a section (`""` is the file itself).
#[must_use]
pub fn names_below(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for key in KEYS {
        let below = if section.is_empty() {
            Some(key.path)
        } else {
            key.path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'))
        };
        let name = below.map(|rest| rest.split(['.', '[']).next().unwrap_or(rest));
        if let Some(name) = name.filter(|name| !names.contains(name)) {
            names.push(name);
        }
    }
    names
}

/// The keys as a Markdown table, for the documentation.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from("| key | type | default | what it is for |\n|---|---|---|---|\n");
    for key in KEYS {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| `{}` | {} | {} | {} |", key.path, key.kind.name(), key.default, key.about);
    }
    out
}
