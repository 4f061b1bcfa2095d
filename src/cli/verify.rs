//! `untorn verify`.

use super::{Failure, Format, VerifyArgs};
use crate::admin::client::AdminClient;
use crate::admin::verify::report::{Report, TableReport};
use crate::admin::verify::{Event, Progress};
use crate::config::{self, Configuration};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Compares the replica with its sources, table by table, and prints how they compare; whether they are equal.
///
/// # Errors
/// When no verdict was reached on some table.
pub async fn verify(args: &VerifyArgs, out: &mut (impl Write + Send)) -> Result<bool, Failure> {
    let mut admin = args.admin.clone();
    if let Some(file) = &args.config {
        let listen = Configuration::load(file, &config::process_vars())?.daemon()?.admin;
        let scheme = if listen.tls.is_some() { "https" } else { "http" };
        admin.admin = format!("{scheme}://{}", reached(listen.address));
    }
    let mut client = AdminClient::connect(admin.address()?).await?;
    let tables = if args.table.is_empty() { client.verify_tables().await? } else { args.table.clone() };
    let before = args.resume.as_deref().map(finished).transpose()?.unwrap_or_default();
    let mut reports = Vec::new();
    for table in tables {
        if let Some(report) = before.iter().find(|report| report.table == table && report.equal) {
            reports.push(report.clone());
            continue;
        }
        let report = compare(&mut client, table).await?;
        if let Some(file) = &args.resume {
            note(file, &report)?;
        }
        if args.format == Format::Text {
            write!(out, "{report}")?;
            out.flush()?;
        }
        reports.push(report);
    }
    let report = Report::new(reports);
    match args.format {
        Format::Text => writeln!(out, "{}", report.summary())?,
        Format::Json => writeln!(out, "{}", serde_json::to_string(&report)?)?,
    }
    out.flush()?;
    Ok(report.equal)
}

/// Where this machine reaches what listens there: every address is loopback, too.
fn reached(listens: SocketAddr) -> SocketAddr {
    match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listens.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listens.port()).into(),
        _ => listens,
    }
}

async fn compare(client: &mut AdminClient, table: String) -> Result<TableReport, Failure> {
    let mut events = client.verify(&table).await?;
    let mut differences = Vec::new();
    let verdict = loop {
        match events.next().await? {
            Event::Progress(progress) => say(&table, &progress),
            Event::Difference(difference) => differences.push(difference),
            Event::Verdict(verdict) => break verdict,
        }
    };
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    differences.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(TableReport::new(table, verdict, differences))
}

/// Progress, for whoever looks at a terminal.
fn say(table: &str, progress: &Progress) {
    if !io::stderr().is_terminal() {
        return;
    }
    let Progress { phase, source_rows, replica_rows, total } = progress;
    let of = total.filter(|total| *total > 0).map(|total| format!(", {}%", (source_rows * 100 / total).min(100)));
    let rows = if source_rows + replica_rows == 0 {
        String::new()
    } else {
        format!(": source {source_rows} rows, replica {replica_rows}{}", of.unwrap_or_default())
    };
    eprint!("\r\x1b[K{table}: {phase}{rows}");
}

/// The tables that an earlier run came to a verdict on.
fn finished(file: &Path) -> Result<Vec<TableReport>, Failure> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|error| failed(file, &error))?,
    };
    // The last line may have been cut off by what ended that run.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Adds a table to the file, one line each.
fn note(file: &Path, report: &TableReport) -> Result<(), Failure> {
    let mut line = serde_json::to_string(report)?;
    line.push('\n');
    let opened = OpenOptions::new().create(true).append(true).open(file);
    let written = opened.and_then(|mut opened| opened.write_all(line.as_bytes()).and_then(|()| opened.sync_data()));
    written.map_err(|error| failed(file, &error))
}

fn failed(file: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("--resume {}: {error}", file.display()))
}
