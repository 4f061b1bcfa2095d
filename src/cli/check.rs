//! `untorn check`.

use super::{CheckArgs, Failure};
use crate::admin::connect;
use crate::config::{self, Configuration, LeaderConfig, ReplicaConfig};

/// Checks a configuration, and with `--connect` the servers that it names; answers one line on what it describes.
///
/// # Errors
/// [`Failure::Configuration`] with every fault.
pub async fn check(args: &CheckArgs) -> Result<String, Failure> {
    let config = match Configuration::load(&args.config, &config::process_vars())? {
        Configuration::Daemon(config) => config,
        Configuration::TabletServer(config) => {
            return Ok(format!("no faults: a tablet server of {} on {}", config.names.join(", "), config.listen));
        }
    };
    if args.connect {
        connect::ask(&config).await?;
    }
    let replica = match &config.replica {
        ReplicaConfig::Embedded { tablet_count } => format!("{tablet_count} embedded tablets"),
        ReplicaConfig::Grpc(tablets) => format!("{} tablets at tablet servers", tablets.len()),
    };
    let leader = match &config.leader {
        LeaderConfig::Here { .. } => "the transaction leader is here".to_owned(),
        LeaderConfig::At(url) => format!("the transaction leader is at {url}"),
    };
    Ok(format!(
        "no faults: {} streams, {} of them pulled here, into {replica}; {leader}",
        config.source.names().len(),
        config.poll.len()
    ))
}
