//! The command line: what people and scripts call.
//!
//! Exit codes: 0 done; 1 failed, differs, unknown transaction or not ready; 2 usage; 64 bad configuration. With
//! `--format json` standard output carries JSON and nothing else; everything else goes to standard error.

mod ask;
mod check;
mod data_dir;
mod run;
mod signals;
mod source;
mod tablet;
mod verify;

pub use crate::admin::Format;
pub use ask::{explain, log_level, recopy, retry, scan, skip, status, top};
pub use check::check;
pub use run::run;
pub use source::drop_slots;
pub use tablet::tablet;
pub use verify::verify;

use crate::access::{Address, ClientFiles, ClientKeys};
use crate::admin::scan::ScanAt;
use crate::bench::Bench;
use crate::config::Faults;
use crate::demo::DemoArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;

/// The exit code of a configuration with faults (sysexits' EX_USAGE; 2 is a wrong command line).
pub const BAD_CONFIGURATION: u8 = 64;

/// Keeps a replica universe in step with a source universe, and never shows a torn transaction.
#[derive(Parser, Debug)]
#[command(name = "untorn", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show whole transactions arriving, in one process and without set-up
    Demo(DemoArgs),
    /// Run the daemon. SIGTERM drains and exits 0; a second one exits at once
    Run(ConfigArgs),
    /// Run a tablet server: serves TabletService and CdcService
    Tablet(ConfigArgs),
    /// Check a configuration: every fault at once
    Check(CheckArgs),
    /// What a daemon does right now
    Status(StatusArgs),
    /// What a daemon does, as it goes on
    Top(StatusArgs),
    /// Why a transaction waits, and for whom
    Explain(ExplainArgs),
    /// Print all rows of a table at one read point
    Scan(ScanArgs),
    /// Copy tables again from their servers, while everything else goes on
    Recopy(RecopyArgs),
    /// Give up the transaction that the replica refuses
    Skip(SkipArgs),
    /// Try again at once what the replica refused or could not take
    Retry(AdminArgs),
    /// Measure: each figure beside its baseline, in one run
    #[command(subcommand)]
    Bench(Bench),
    /// Show or change what a running daemon logs
    LogLevel(LogLevelArgs),
    /// Compare the replica with its sources, row by row, while the load goes on
    Verify(VerifyArgs),
    /// The source's servers
    #[command(subcommand)]
    Source(SourceCommand),
}

/// What to do at the source's servers.
#[derive(Subcommand, Debug)]
pub enum SourceCommand {
    /// Drop the slots: untorn is not to come back, or a source tablet is removed. What they held is lost to it
    Drop(SourceDropArgs),
}

/// Where the daemon is.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// The daemon's admin address
    #[arg(long, value_name = "URL", env = "UNTORN_ADMIN", default_value = "http://127.0.0.1:7100")]
    pub admin: String,
    /// Authorities of the daemon's certificate (PEM), for an https address
    #[arg(long, value_name = "FILE", env = "UNTORN_TLS_CA", requires_all = ["tls_cert", "tls_key"])]
    pub tls_ca: Option<PathBuf>,
    /// The certificate to show to it (PEM)
    #[arg(long, value_name = "FILE", env = "UNTORN_TLS_CERT", requires = "tls_ca")]
    pub tls_cert: Option<PathBuf>,
    /// That certificate's private key (PEM)
    #[arg(long, value_name = "FILE", env = "UNTORN_TLS_KEY", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,
    /// The name that the daemon's certificate must have; the address' host by default
    #[arg(long, value_name = "NAME", env = "UNTORN_TLS_SERVER_NAME")]
    pub tls_server_name: Option<String>,
}

impl AdminArgs {
    /// Where the daemon is, with the certificates to reach it. Those in the environment do not get into the way of a
    /// daemon that is reached without.
    fn address(&self) -> Result<Address, Failure> {
        let https = self.admin.starts_with("https://");
        let keys = match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (Some(ca), Some(cert), Some(key)) if https => Some(ClientFiles {
                section: "--tls".into(),
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
                server_name: self.tls_server_name.clone(),
            }),
            _ if https => {
                let what = "needs --tls-ca, --tls-cert and --tls-key (or UNTORN_TLS_CA, …)";
                return Err(Failure::Failed(format!("{} {what}", self.admin)));
            }
            _ => None,
        };
        let keys = keys.map(ClientKeys::load).transpose().map_err(|error| Failure::Failed(error.to_string()))?;
        Ok(Address::new(&self.admin, keys.map(Arc::new)))
    }
}

/// A command that a configuration rules.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// `untorn check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Also ask the servers that it names
    #[arg(long)]
    pub connect: bool,
    /// Lines, or one JSON object
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `untorn status` and `untorn top`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// A table, or one JSON object
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `untorn log-level`.
#[derive(Args, Debug)]
pub struct LogLevelArgs {
    /// What is logged until the daemon ends, as in info,untorn::source=debug; without it, what is logged is printed
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// `untorn explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// untorn's id, the source's id (a gid), or tablet:xid; what fits several prints them all
    #[arg(value_name = "TXN")]
    pub transaction: String,
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Sentences, or one JSON object a line
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `untorn recopy`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["tablet", "table"])))]
pub struct RecopyArgs {
    /// Only from this source tablet; without --table all of its tables
    #[arg(long, value_name = "T")]
    pub tablet: Option<String>,
    /// Only this table; without --tablet from every source tablet that has it
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub table: Option<String>,
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Lines, or one JSON object a line
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// How rows are printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowFormat {
    /// One JSON object a line.
    Json,
    /// As COPY writes it.
    Csv,
}

/// `untorn scan`.
#[derive(Args, Debug)]
pub struct ScanArgs {
    /// The table
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub table: String,
    /// The read point: safe (complete in the source's order), latest, or a hybrid time
    #[arg(long, default_value = "safe", value_name = "safe|latest|HYBRID_TIME")]
    pub at: ScanAt,
    /// Add each row's commit time, `_hybrid_time`; null at a PostgreSQL replica, which keeps none
    #[arg(long)]
    pub with_time: bool,
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// JSON objects, or CSV as PostgreSQL's COPY writes it
    #[arg(long, value_enum, default_value = "json")]
    pub format: RowFormat,
}

/// `untorn skip`.
#[derive(Args, Debug)]
pub struct SkipArgs {
    /// untorn's id, the source's id (a gid), or tablet:xid of the transaction that is refused
    #[arg(value_name = "TXN")]
    pub transaction: String,
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// `untorn source drop`.
#[derive(Args, Debug)]
pub struct SourceDropArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only this source tablet's slot
    #[arg(long, value_name = "NAME")]
    pub tablet: Option<String>,
    /// Drop a slot although it is being read: its reader is ended
    #[arg(long)]
    pub force: bool,
    /// Lines, or a JSON object a line
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `untorn verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Only this table; may be given several times
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub table: Vec<String>,
    /// Keep each table's result in this file, and skip those that it says are equal
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// The daemon's configuration file, in place of its admin address
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Lines, or one JSON object
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration has faults.
    #[error(transparent)]
    Configuration(#[from] Faults),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// What the process exits with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) => BAD_CONFIGURATION,
            Self::Failed(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_read_point_is_checked_before_anything_is_asked() {
        let cli = |at: &str| Cli::try_parse_from(["untorn", "scan", "--table", "public.t", "--at", at]);
        assert!(cli("latest").is_ok() && cli("7").is_ok());
        assert_eq!(cli("noon").unwrap_err().exit_code(), 2);
    }
}
