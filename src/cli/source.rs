//! `untorn source drop`: the end of slots, also when the daemon is gone for good.

use super::run::postgres;
use super::{Failure, Format, SourceDropArgs};
use crate::config::{self, Configuration, SourceConfig};
use crate::source::SourceError;
use crate::source::postgres::Dropped;
use serde::Serialize;
use std::io::Write;

/// What became of one slot.
#[derive(Serialize)]
struct Slot<'a> {
    tablet: &'a str,
    slot: &'a str,
    outcome: &'static str,
    error: Option<String>,
}

/// Drops the slots of a configuration's source tablets, all of them or one, and says what became of each.
///
/// # Errors
/// Bad configuration, no such tablet, or slots that still stand; every slot was tried.
pub async fn drop_slots(args: &SourceDropArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let config = Configuration::load(&args.config, &config::process_vars())?.daemon()?;
    let SourceConfig::Postgres(source) = &config.source else {
        return Err(Failure::Failed("only sources of the kind \"postgres\" have slots".into()));
    };
    let mut sources = postgres(source)?;
    if let Some(tablet) = &args.tablet {
        sources.retain(|source| crate::source::Source::name(source) == tablet);
        if sources.is_empty() {
            let names = source.tablets.iter().map(|tablet| tablet.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Failure::Failed(format!("no source tablet {tablet:?}; there are {names}")));
        }
    }
    let mut failed = 0;
    for source in &sources {
        let tablet = crate::source::Source::name(source);
        let outcome = source.drop_slot(args.force).await;
        audit(tablet, source.slot(), &outcome);
        let told = match &outcome {
            Ok(Dropped::Gone) => "dropped",
            Ok(Dropped::NotThere) => "not there",
            Err(_) => "stands",
        };
        failed += usize::from(outcome.is_err());
        let slot = Slot { tablet, slot: source.slot(), outcome: told, error: outcome.err().map(|e| e.to_string()) };
        match args.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string(&slot)?)?,
            Format::Text => match &slot.error {
                None => writeln!(out, "{tablet}: slot {:?}: {told}", slot.slot)?,
                Some(error) => eprintln!("{error}"),
            },
        }
    }
    out.flush()?;
    if failed > 0 { Err(Failure::Failed(format!("{failed} of {} slots still stand", sources.len()))) } else { Ok(()) }
}

/// What an operator did to a server outlives the terminal in which it was done.
fn audit(tablet: &str, slot: &str, outcome: &Result<Dropped, SourceError>) {
    match outcome {
        Ok(_) => tracing::info!(target: "untorn::audit", what = "source drop", tablet, slot, outcome = "done"),
        Err(error) => {
            tracing::info!(target: "untorn::audit", what = "source drop", tablet, slot, outcome = "failed", %error);
        }
    }
}
