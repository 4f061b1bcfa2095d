//! `untorn check`.

use super::{CheckArgs, Failure, Format};
use crate::admin::connect::{self, Asked};
use crate::config::{self, Configuration, DaemonConfig, Faults, LeaderConfig, ReplicaConfig};
use serde::Serialize;
use std::io::Write;

/// What was found, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    faults: &'a Faults,
    warnings: &'a Faults,
    servers: &'a [String],
    /// What the configuration describes; null where it cannot be read.
    summary: Option<&'a str>,
}

/// Checks a configuration, and with `--connect` the servers that it names; prints what it describes.
///
/// # Errors
/// [`Failure::Configuration`] with every fault; the report as JSON is then on `out` all the same.
pub async fn check(args: &CheckArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let (asked, summary) = match Configuration::load(&args.config, &config::process_vars()) {
        Ok(Configuration::Daemon(config)) => {
            let asked = if args.connect { connect::ask(&config).await } else { Asked::default() };
            (asked, Some(summary(&config)))
        }
        Ok(Configuration::TabletServer(config)) => {
            let summary = format!("a tablet server of {} on {}", config.names.join(", "), config.listen);
            (Asked::default(), Some(summary))
        }
        Err(faults) => (Asked { faults, ..Asked::default() }, None),
    };
    let Asked { faults, warnings, servers } = asked;
    let ok = faults.list().is_empty();
    match args.format {
        Format::Json => {
            let summary = summary.as_deref();
            let report = Report { ok, faults: &faults, warnings: &warnings, servers: &servers, summary };
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        }
        Format::Text => {
            warnings.list().iter().for_each(|warning| eprintln!("{warning}"));
            for server in &servers {
                writeln!(out, "{server}")?;
            }
            if let Some(summary) = summary.filter(|_| ok) {
                writeln!(out, "no faults: {summary}")?;
            }
        }
    }
    out.flush()?;
    Ok(faults.or(())?)
}

/// What a configuration describes, in one line.
fn summary(config: &DaemonConfig) -> String {
    let replica = match &config.replica {
        ReplicaConfig::Embedded { tablet_count } => format!("{tablet_count} embedded tablets"),
        ReplicaConfig::Postgres(server) => format!("the PostgreSQL server {}", server.name()),
        ReplicaConfig::Grpc(tablets) => format!("{} tablets at tablet servers", tablets.len()),
    };
    let leader = match &config.leader {
        LeaderConfig::Here { .. } => "the transaction leader is here".to_owned(),
        LeaderConfig::At { url, .. } => format!("the transaction leader is at {url}"),
    };
    let (streams, pulled) = (config.source.names().len(), config.poll.len());
    format!("{streams} streams, {pulled} of them pulled here, into {replica}; {leader}")
}
