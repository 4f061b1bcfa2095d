//! `untorn bench`: measurements that anybody can repeat, each with its baseline in the same run.
//!
//! [`race`] drains one history into a PostgreSQL server by PostgreSQL's own subscription and by untorn. Figures of two
//! competitors are comparable within one run only: the machine is the same, and nothing else is. [`torn`] has both follow
//! two-phase transfers between several servers, and adds up at the replica what a transfer must not change. [`embedded`]
//! drains transactions over several tablets into embedded ones, beside the bare store that writes the same rows.

pub mod backlog;
pub mod daemon;
pub mod embedded;
pub mod history;
pub mod latency;
pub mod process;
pub mod race;
pub mod report;
pub mod server;
pub mod torn;

use crate::admin::Format;
use clap::{Args, Subcommand};
use history::Point;
use std::path::PathBuf;

/// What to measure.
#[derive(Subcommand, Debug)]
pub enum Bench {
    /// Drain one history into a PostgreSQL server, by its own subscription and by untorn
    Race(RaceArgs),
    /// Follow two-phase transfers between several servers, by PostgreSQL's own subscriptions and by untorn, and count the
    /// reads of the replica that see a part of one
    Torn(TornArgs),
    /// Drain durable transactions over several tablets into embedded ones through gRPC and all, beside the bare store
    Embedded(EmbeddedArgs),
}

/// `untorn bench embedded`.
#[derive(Args, Debug)]
pub struct EmbeddedArgs {
    /// Transactions of a point, of four rows each; fewer where each has more rows
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub transactions: u64,
    /// Source tablets, one point each
    #[arg(long, value_name = "N", value_delimiter = ',', num_args = 0.., default_values_t = [2, 4, 16, 64], value_parser = clap::value_parser!(u16).range(1..=256))]
    pub tablets: Vec<u16>,
    /// Transactions that wait all the while, one point each
    #[arg(long, value_name = "N", value_delimiter = ',', num_args = 0.., default_values_t = [10_000, 100_000, 1_000_000])]
    pub waiting: Vec<u64>,
    /// Rows of a transaction, one point each
    #[arg(long, value_name = "N", value_delimiter = ',', num_args = 0.., default_values_t = [1, 10, 100, 1_000], value_parser = clap::value_parser!(u64).range(1..))]
    pub rows: Vec<u64>,
    /// Keep the stores' folders below this one while it runs [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A table, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `untorn bench torn`.
#[derive(Args, Debug)]
pub struct TornArgs {
    /// How many source servers, one race each
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4], value_parser = clap::value_parser!(u16).range(2..=8))]
    pub servers: Vec<u16>,
    /// How long transfers go on
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Where initdb and postgres are
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/postgresql/15/bin")]
    pub pg_bin: PathBuf,
    /// Keep servers' folders below this one while it runs [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A table, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `untorn bench race`.
#[derive(Args, Debug)]
pub struct RaceArgs {
    /// The histories
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Point::Small, Point::Hot, Point::Rows, Point::Inserts])]
    pub points: Vec<Point>,
    /// Rows that change in each history
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    pub rows: u64,
    /// How long each competitor is then watched, after `small`, under half of the load that it drained; 0: not at all
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub latency_seconds: u64,
    /// Where initdb and postgres are
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/postgresql/15/bin")]
    pub pg_bin: PathBuf,
    /// Keep servers' folders below this one while it runs [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A table, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}
