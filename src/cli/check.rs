//! `untorn check`.

use super::{CheckArgs, Failure};
use crate::admin::connect;
use crate::config::{self, Configuration, LeaderConfig, ReplicaConfig};
use std::io::Write;

/// Checks a configuration, and with `--connect` the servers that it names; prints one line on what it describes.
///
/// # Errors
/// [`Failure::Configuration`] with every fault.
pub async fn check(args: &CheckArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let config = match Configuration::load(&args.config, &config::process_vars())? {
        Configuration::Daemon(config) => config,
        Configuration::TabletServer(config) => {
            writeln!(out, "no faults: a tablet server of {} on {}", config.names.join(", "), config.listen)?;
            return Ok(out.flush()?);
        }
    };
    let mut told = Vec::new();
    if args.connect {
        let asked = connect::ask(&config, &mut told).await;
        for mention in &told {
            eprintln!("{mention}");
        }
        asked?;
    }
    let replica = match &config.replica {
        ReplicaConfig::Embedded { tablet_count } => format!("{tablet_count} embedded tablets"),
        ReplicaConfig::Postgres(server) => format!("the PostgreSQL server {}", server.name),
        ReplicaConfig::Grpc(tablets) => format!("{} tablets at tablet servers", tablets.len()),
    };
    let leader = match &config.leader {
        LeaderConfig::Here { .. } => "the transaction leader is here".to_owned(),
        LeaderConfig::At(url) => format!("the transaction leader is at {url}"),
    };
    let (streams, pulled) = (config.source.names().len(), config.poll.len());
    writeln!(out, "no faults: {streams} streams, {pulled} of them pulled here, into {replica}; {leader}")?;
    Ok(out.flush()?)
}
