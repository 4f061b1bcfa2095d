//! The configuration: a TOML file, each key also as `UNTORN__SECTION__KEY` in the environment.
//!
//! Types in files are strict, an unknown key is a fault, and all faults are told at once, each with its dotted key and
//! how to mend it ([`Faults`]). [`keys::KEYS`] is the one list of keys; [`Configuration::load`] makes the typed
//! configuration below from a file, and what it hands out needs no further check of its own shape.

mod build;
mod fault;
pub mod keys;
mod tree;
pub mod value;

pub use fault::{Fault, Faults};
pub use tree::Vars;
pub use value::Secret;

use crate::access::{ClientFiles, Grant, ServerFiles};
use crate::coordinator::Release;
use crate::source::postgres::TableRules;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a file configures.
#[derive(Clone, PartialEq, Debug)]
pub enum Configuration {
    /// `untorn run`.
    Daemon(Box<DaemonConfig>),
    /// `untorn tablet`: the file has a `[tablet]` section.
    TabletServer(Box<TabletServerConfig>),
}

/// The daemon.
#[derive(Clone, PartialEq, Debug)]
pub struct DaemonConfig {
    /// Folder of the log and of embedded tablets.
    pub data_dir: PathBuf,
    /// Bound, in bytes, on what batches in work may take.
    pub memory_budget: u64,
    /// Where streams come from.
    pub source: SourceConfig,
    /// The streams that this process pulls, by name; each stands in `source`.
    pub poll: Vec<String>,
    /// Where rows go.
    pub replica: ReplicaConfig,
    /// How a source without a common clock is decided.
    pub release: ReleaseConfig,
    /// Who owns the transaction records.
    pub leader: LeaderConfig,
    /// Where status, explain and scan are served.
    pub admin: Listen,
    /// Where metrics are served.
    pub metrics: Listen,
    /// What is logged, and how.
    pub tracing: TracingConfig,
}

/// A tablet server.
#[derive(Clone, PartialEq, Debug)]
pub struct TabletServerConfig {
    /// Folder of its tablets.
    pub data_dir: PathBuf,
    /// Bound, in bytes, on what its tablets may take in memory.
    pub memory_budget: u64,
    /// Where TabletService and CdcService are served.
    pub listen: Listen,
    /// The tablets that it holds; at least one, each once.
    pub names: Vec<String>,
    /// Bytes of WAL kept at most, per tablet, for readers that have not acknowledged.
    pub wal_retention: u64,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<Listen>,
    /// What is logged, and how.
    pub tracing: TracingConfig,
}

/// A listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listen {
    /// Its address.
    pub address: SocketAddr,
    /// Its TLS, and who may call; without it the listener is open.
    pub tls: Option<ListenTls>,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.address, f)
    }
}

/// A listener's TLS, and who may call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenTls {
    /// Its files; they were of use when the configuration was read.
    pub files: ServerFiles,
    /// Who may call; at least one.
    pub grants: Vec<Grant>,
}

/// Where streams come from.
#[derive(Clone, PartialEq, Debug)]
pub enum SourceConfig {
    /// Nowhere: a replica without a source, or the transaction leader of pollers that name their streams themselves.
    None,
    /// PostgreSQL servers.
    Postgres(PostgresSourceConfig),
    /// CDC services.
    Cdc(Vec<CdcTabletConfig>),
}

impl SourceConfig {
    /// The streams' names, in the file's order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::None => Vec::new(),
            Self::Postgres(source) => source.tablets.iter().map(|tablet| tablet.name.as_str()).collect(),
            Self::Cdc(tablets) => tablets.iter().map(|tablet| tablet.name.as_str()).collect(),
        }
    }
}

/// PostgreSQL servers as a source.
#[derive(Clone, PartialEq, Debug)]
pub struct PostgresSourceConfig {
    /// Which part of a gid names the transaction: `citus`, `xa`, or a regular expression with a group `txn`, which
    /// compiles. `None` is the whole gid.
    pub gid_pattern: Option<String>,
    /// How far the servers' clocks may differ.
    pub clock_skew: Duration,
    /// Bytes a second that a copy reads from one server at most; `None`: as many as it gives.
    pub copy_rate: Option<u64>,
    /// Tables of one server that are copied at once; at least 1.
    pub copy_parallel: usize,
    /// The databases, one a stream; at least one.
    pub tablets: Vec<PostgresTabletConfig>,
}

/// One PostgreSQL database as a source tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PostgresTabletConfig {
    /// The stream's name.
    pub name: String,
    /// `postgres://…`, perhaps with a password.
    pub url: Secret,
    /// The file that holds its password; readable and not empty when the configuration was read.
    pub password_file: Option<PathBuf>,
    /// The publication.
    pub publication: String,
    /// The replication slot.
    pub slot: String,
    /// Which published tables are replicated, and under which names.
    pub tables: Arc<TableRules>,
}

/// One tablet of a CDC service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CdcTabletConfig {
    /// The stream's name.
    pub name: String,
    /// `http://host:port`, or `https://host:port`.
    pub url: String,
    /// The certificates to reach it with; there with `https`.
    pub tls: Option<ClientFiles>,
    /// The tablet's name at the service.
    pub tablet: String,
}

/// Where rows go.
#[derive(Clone, PartialEq, Debug)]
pub enum ReplicaConfig {
    /// Tablets in this process.
    Embedded {
        /// How many; at least one.
        tablet_count: u32,
    },
    /// Tablet servers; at least one tablet.
    Grpc(Vec<GrpcTabletConfig>),
    /// A PostgreSQL server.
    Postgres(PostgresReplicaConfig),
}

/// A PostgreSQL database as the replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PostgresReplicaConfig {
    /// The servers; at least one, where there is no fault.
    pub servers: Vec<PostgresServerConfig>,
    /// Whether a commit waits until the server has it on disk.
    pub synchronous_commit: bool,
    /// Whether tables that it lacks are created.
    pub create_tables: bool,
    /// Whether columns that it lacks are added.
    pub add_columns: bool,
}

/// One server of a PostgreSQL replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PostgresServerConfig {
    /// Its name.
    pub name: String,
    /// `postgres://…`, perhaps with a password.
    pub url: Secret,
    /// The file that holds its password; readable and not empty when the configuration was read.
    pub password_file: Option<PathBuf>,
    /// `schema.table` or `schema.*` of what it is to have. Empty: every table that no other server names.
    pub tables: Vec<String>,
}

impl PostgresReplicaConfig {
    /// Its name in the log's map: those of its servers.
    #[must_use]
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.servers.iter().map(|server| server.name.as_str()).collect();
        names.join("+")
    }
}

/// One tablet at a tablet server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GrpcTabletConfig {
    /// Its name at the server, and in the log's map.
    pub name: String,
    /// `http://host:port`, or `https://host:port`.
    pub url: String,
    /// The certificates to reach it with; there with `https`.
    pub tls: Option<ClientFiles>,
    /// The lowest value of the first key column that it holds. Given for every tablet but the first, rising, or for
    /// none: then the map is cut by hash.
    pub from_key: Option<String>,
}

/// How transactions of a source without a common clock are decided; a `cdc` source has one and ignores it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReleaseConfig {
    /// The largest consistent cut, again and again.
    #[default]
    Ordered,
    /// At the gate.
    Atomic,
}

impl DaemonConfig {
    /// How the log of this source decides. Without a source there is nothing to decide: as with a common clock.
    #[must_use]
    pub fn release(&self) -> Release {
        match (&self.source, self.release) {
            (SourceConfig::None | SourceConfig::Cdc(_), _) => Release::CommonClock,
            (SourceConfig::Postgres(_), ReleaseConfig::Ordered) => Release::Ordered,
            (SourceConfig::Postgres(_), ReleaseConfig::Atomic) => Release::Atomic,
        }
    }
}

/// Who owns the transaction records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaderConfig {
    /// This process.
    Here {
        /// Its log.
        log: LogConfig,
        /// Where it is served to pollers in other processes.
        listen: Option<Listen>,
    },
    /// Another process: this one only pulls streams.
    At {
        /// `http://host:port`, or `https://host:port`.
        url: String,
        /// The certificates to reach it with; there with `https`.
        tls: Option<ClientFiles>,
    },
}

/// The transaction log's engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogConfig {
    /// Lost at exit; for tests.
    Memory,
    /// sled in this folder.
    Sled(PathBuf),
    /// SQLite in this file.
    Sqlite(PathBuf),
}

/// What is logged, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TracingConfig {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Directives as tracing-subscriber's `EnvFilter` reads them.
    pub filter: String,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { json: false, filter: keys::DEFAULT_FILTER.into() }
    }
}

impl Configuration {
    /// Reads a file and lays the environment over it.
    ///
    /// # Errors
    /// Every fault of the file, the environment and the password files, at once.
    pub fn load(path: &Path, vars: &Vars) -> Result<Self, Faults> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Faults::one(&path.display().to_string(), format!("cannot be read: {error}"), "name a file with --config")
        })?;
        Self::parse(&text, vars)
    }

    /// Reads a file's text and lays the environment over it. `vars` are all variables: libpq's own (`PGPASSFILE`) count
    /// as credentials.
    ///
    /// # Errors
    /// As [`Configuration::load`].
    pub fn parse(text: &str, vars: &Vars) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let tree = tree::read(text, vars, &mut faults)?;
        build::configuration(&tree, vars, faults)
    }

    /// The daemon's configuration.
    ///
    /// # Errors
    /// A tablet server's file.
    pub fn daemon(self) -> Result<DaemonConfig, Faults> {
        match self {
            Self::Daemon(config) => Ok(*config),
            Self::TabletServer(_) => Err(Faults::one(
                "tablet",
                "belongs to a tablet server",
                "start it with `untorn tablet`, or remove [tablet]",
            )),
        }
    }

    /// The tablet server's configuration.
    ///
    /// # Errors
    /// A daemon's file.
    pub fn tablet_server(self) -> Result<TabletServerConfig, Faults> {
        match self {
            Self::TabletServer(config) => Ok(*config),
            Self::Daemon(_) => Err(Faults::one(
                "tablet",
                "is missing",
                "write [tablet] with listen and names, or start it with `untorn run`",
            )),
        }
    }
}

/// The process's environment. Variables that are not Unicode are left out: no key and no value of ours can be one.
#[must_use]
pub fn process_vars() -> Vars {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests;
