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
pub use ask::{explain, recopy, scan, status};
pub use check::check;
pub use run::run;
pub use source::drop_slots;
pub use tablet::tablet;
pub use verify::verify;

use crate::admin::scan::ScanAt;
use crate::config::Faults;
use crate::demo::DemoArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

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
    /// Why a transaction waits, and for whom
    Explain(ExplainArgs),
    /// Print all rows of a table at one read point
    Scan(ScanArgs),
    /// Copy tables again from their servers, while everything else goes on
    Recopy(RecopyArgs),
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
#[derive(Args, Debug)]
pub struct AdminArgs {
    /// The daemon's admin address
    #[arg(long, value_name = "URL", env = "UNTORN_ADMIN", default_value = "http://127.0.0.1:7100")]
    pub admin: String,
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

/// `untorn status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// A table, or one JSON object
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
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
    /// Add each row's commit time, `_hybrid_time`
    #[arg(long)]
    pub with_time: bool,
    /// Where the daemon is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// JSON objects, or CSV as PostgreSQL's COPY writes it
    #[arg(long, value_enum, default_value = "json")]
    pub format: RowFormat,
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
