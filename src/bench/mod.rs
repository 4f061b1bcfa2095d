//! `untorn bench`: measurements that anybody can repeat, each with its baseline in the same run.
//!
//! [`race`] drains one history into a PostgreSQL server by PostgreSQL's own subscription and by untorn. Figures of two
//! competitors are comparable within one run only: the machine is the same, and nothing else is. [`torn`] has both follow
//! two-phase transfers between several servers, and adds up at the replica what a transfer must not change.

pub mod daemon;
pub mod history;
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
