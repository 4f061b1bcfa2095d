//! Commands that ask a running daemon: `status`, `top`, `explain`, `scan`, `recopy`, `log-level`.

use super::{
    AdminArgs, ExplainArgs, Failure, Format, LogLevelArgs, RecopyArgs, RowFormat, ScanArgs, SkipArgs, StatusArgs,
};
use crate::admin::client::{AdminClient, ClientError};
use crate::admin::scan::{JsonRows, csv_row};
use crate::admin::top::Top;
use std::io::{self, Write};

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("standard output: {error}"))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(format!("standard output: {error}"))
    }
}

/// Prints what the daemon does.
///
/// # Errors
/// When it does not answer. A daemon that is not ready is an answer.
pub async fn status(args: &StatusArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let status = AdminClient::connect(args.admin.address()?).await?.status().await?;
    match args.format {
        Format::Text => write!(out, "{status}")?,
        Format::Json => writeln!(out, "{}", serde_json::to_string(&status)?)?,
    }
    Ok(out.flush()?)
}

/// Shows what the daemon does, once a second, until somebody quits or reads no more.
///
/// # Errors
/// When the daemon does not answer; the screen then waits for it.
pub async fn top(args: &StatusArgs) -> Result<(), Failure> {
    Ok(Top::new(args.admin.address()?, args.format).run().await?)
}

/// Prints what is logged, after a change where one is asked for.
///
/// # Errors
/// When it is no filter, or the daemon does not answer.
pub async fn log_level(args: &LogLevelArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let mut client = AdminClient::connect(args.admin.address()?).await?;
    writeln!(out, "{}", client.log_filter(args.filter.as_deref()).await?)?;
    Ok(out.flush()?)
}

/// Prints every transaction that fits.
///
/// # Errors
/// When none fits, or the daemon does not answer.
pub async fn explain(args: &ExplainArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let explanations = AdminClient::connect(args.admin.address()?).await?.explain(&args.transaction).await?;
    for (i, explanation) in explanations.iter().enumerate() {
        match args.format {
            Format::Text if i > 0 => write!(out, "\n{explanation}")?,
            Format::Text => write!(out, "{explanation}")?,
            Format::Json => writeln!(out, "{}", serde_json::to_string(explanation)?)?,
        }
    }
    Ok(out.flush()?)
}

/// Gives up the transaction that the replica refuses, and prints which depend on it.
///
/// # Errors
/// When it refuses no such transaction, or the daemon does not answer.
pub async fn skip(args: &SkipArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let skipped = AdminClient::connect(args.admin.address()?).await?.skip(&args.transaction).await?;
    for (number, given) in skipped.transaction.iter().chain(&skipped.dependents).enumerate() {
        let what = if number == 0 { "skipped" } else { "depends on it" };
        writeln!(out, "{what}: {} ({})", given.transaction, given.source_id)?;
    }
    Ok(out.flush()?)
}

/// Has what the replica refused, and streams that stopped, tried again at once.
///
/// # Errors
/// When the daemon does not answer.
pub async fn retry(args: &AdminArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let retried = AdminClient::connect(args.address()?).await?.retry().await?;
    if retried.tablets.is_empty() && retried.streams.is_empty() {
        writeln!(out, "nothing is refused, nothing waits for the replica, and no stream has stopped")?;
    }
    for name in retried.tablets.iter().chain(&retried.streams) {
        writeln!(out, "tries again: {name}")?;
    }
    Ok(out.flush()?)
}

/// Asks for new copies, and prints of what.
///
/// # Errors
/// When there is nothing of that name, or the daemon does not answer.
pub async fn recopy(args: &RecopyArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let mut client = AdminClient::connect(&args.admin.admin).await?;
    for (tablet, table) in client.recopy(args.tablet.as_deref(), args.table.as_deref()).await? {
        match args.format {
            Format::Text => writeln!(out, "{table} of {tablet} is copied again; untorn status shows how far it is")?,
            Format::Json => writeln!(out, "{}", serde_json::json!({ "tablet": tablet, "table": table }))?,
        }
    }
    Ok(out.flush()?)
}

/// Prints all rows of a table. What was printed counts only if this succeeds.
///
/// # Errors
/// When the daemon is not ready, does not answer, or stops answering before the last row.
pub async fn scan(args: &ScanArgs, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let mut rows = AdminClient::connect(args.admin.address()?).await?.scan(&args.table, args.at).await?;
    let json = JsonRows::new(&rows.columns, args.with_time);
    while let Some(page) = rows.next().await? {
        match args.format {
            RowFormat::Json => {
                let mut text = String::new();
                for row in &page {
                    json.row(row, &mut text).map_err(|error| Failure::Failed(error.to_string()))?;
                }
                out.write_all(text.as_bytes())?;
            }
            RowFormat::Csv => {
                let mut bytes = Vec::new();
                for row in &page {
                    csv_row(row, args.with_time, &mut bytes);
                }
                out.write_all(&bytes)?;
            }
        }
    }
    Ok(out.flush()?)
}
