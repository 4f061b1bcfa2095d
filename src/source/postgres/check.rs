//! What `untorn check --connect` asks a server: every fault at once, each with the SQL that mends it. Nothing is changed
//! there.

mod clock;
mod rights;
mod slots;
mod tables;

pub use clock::Clock;

use super::PostgresSource;
use super::failover::Identity;
use super::relation;
use super::slot::{self, VERSION_MIN};
use crate::limits::SLOT_LOCK_TIMEOUT;
use crate::postgres::{Failure, Finding, Sql, quote};
use crate::source::SourceError;
use crate::wal::TableSchema;

/// What `check` learned of a server, for comparison with the others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checked {
    /// What is the matter with it.
    pub findings: Vec<Finding>,
    /// What it is and what it publishes, one line.
    pub summary: String,
    /// The cluster's system identifier; empty where it was not told.
    pub system: String,
    /// The database's name.
    pub database: String,
    /// When the server was started: clusters that were cloned from each other have one system identifier, but this
    /// differs. Microseconds since the epoch.
    pub started: i64,
    /// Its clock against ours.
    pub clock: Option<Clock>,
    /// The tables that are replicated, as the replica is to have them.
    pub tables: Vec<TableSchema>,
}

impl PostgresSource {
    /// Asks the server whether its stream can be read, and changes nothing there.
    ///
    /// # Errors
    /// The server cannot be asked at all.
    pub async fn check(&self) -> Result<Checked, SourceError> {
        let label = self.target.label();
        let mut sql = self.target.session().await?;
        let mut findings = Findings { server: label.clone(), all: Vec::new() };
        let mut checked = Checked { database: self.target.database().to_owned(), ..Checked::default() };
        self.replicates(&mut findings, &mut checked).await;
        let asked = self.inspect(&mut sql, &mut findings, &mut checked).await;
        asked.map_err(|failure| failure.at(&label))?;
        if !findings.all.iter().any(|finding| finding.fault) {
            checked.tables = self.shapes(&mut sql).await?;
        }
        checked.findings = findings.all;
        Ok(checked)
    }

    /// A replication session is let in by rules of its own (`pg_hba.conf`), and tells which cluster this is.
    async fn replicates(&self, findings: &mut Findings, checked: &mut Checked) {
        let mut session = match self.target.replication(SLOT_LOCK_TIMEOUT).await {
            Ok(session) => session,
            // Without the right to replicate there is no such session, and that is told below with what grants it.
            Err(_) if !self.may_replicate().await => return,
            Err(error) => return findings.unlabelled(format!("{error} (a replication connection)")),
        };
        match Identity::ask(&mut session).await {
            Ok(identity) => identity.system.clone_into(&mut checked.system),
            Err(failure) => findings.unlabelled(failure.at(&self.target.label()).to_string()),
        }
    }

    async fn may_replicate(&self) -> bool {
        let asked = self.ask(async |sql| rights::replicates(sql).await).await;
        asked.unwrap_or(true)
    }

    async fn inspect(&self, sql: &mut Sql, findings: &mut Findings, checked: &mut Checked) -> Result<(), Failure> {
        let (target, publication, slot) = (&self.target, &self.options.publication, &self.options.slot);
        let server = slot::inspect(sql, publication, slot).await?;
        if server.version < VERSION_MIN {
            findings.fault(format!("the server's version is {}; PostgreSQL 15 or newer is needed", server.version), "");
            return Ok(());
        }
        if server.standby {
            findings.fault("the server is a standby; name the primary in the URL", "");
            return Ok(());
        }
        checked.clock = Some(Clock::ask(sql).await?);
        let started = "SELECT (EXTRACT(EPOCH FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8::text";
        checked.started = sql.text(started).await?.and_then(|text| text.parse().ok()).unwrap_or_default();
        settings(sql, &server, findings).await?;
        rights::check(sql, target, findings).await?;
        slots::check(sql, slot, target, &server, findings).await?;
        let published = if server.publication {
            tables::publication(sql, publication, findings).await?;
            let mut published = relation::published(sql, publication).await?;
            tables::rules(&mut published, &self.options.tables, findings);
            published
        } else {
            let create = format!("CREATE PUBLICATION {} FOR ALL TABLES;", quote(publication));
            findings.fault(format!("publication {publication:?} does not exist"), create);
            Vec::new()
        };
        for table in &published {
            tables::check(sql, target, table, findings).await?;
        }
        let version = sql.text("SHOW server_version").await?.unwrap_or_default();
        let stands = if server.slot.is_some() { "stands" } else { "does not exist yet" };
        let names = tables::list(&published);
        checked.summary = format!(
            "{}: PostgreSQL {version}; publication {publication:?} publishes {names}; slot {slot:?} {stands}",
            findings.server
        );
        Ok(())
    }
}

/// What is found, each under the server's name.
struct Findings {
    server: String,
    all: Vec<Finding>,
}

impl Findings {
    fn fault(&mut self, text: impl AsRef<str>, sql: impl Into<String>) {
        self.all.push(Finding { fault: true, text: format!("{}: {}", self.server, text.as_ref()), sql: sql.into() });
    }

    fn mention(&mut self, text: impl AsRef<str>, sql: impl Into<String>) {
        self.all.push(Finding { fault: false, text: format!("{}: {}", self.server, text.as_ref()), sql: sql.into() });
    }

    /// A fault whose text names the server already.
    fn unlabelled(&mut self, text: String) {
        self.all.push(Finding { fault: true, text, sql: String::new() });
    }
}

/// The server's settings that rule whether and how a stream can be read.
async fn settings(sql: &mut Sql, server: &slot::Server, findings: &mut Findings) -> Result<(), Failure> {
    if server.wal_level != "logical" {
        findings.fault(
            format!("wal_level is {}, not logical (needs a restart of the server)", server.wal_level),
            "ALTER SYSTEM SET wal_level = 'logical';",
        );
    }
    let read = server.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
    let senders = "SELECT count(*) >= current_setting('max_wal_senders')::int FROM pg_catalog.pg_stat_replication";
    if !read && sql.text(senders).await?.as_deref() == Some("t") {
        let mend = raise(sql, "max_wal_senders").await?;
        findings.fault("every one of max_wal_senders is in use (raising it needs a restart)", mend);
    }
    if sql.text("SHOW max_prepared_transactions").await?.as_deref() == Some("0") {
        findings.mention(
            "max_prepared_transactions is 0: fine as long as no transaction spans several servers (needs a restart)",
            "ALTER SYSTEM SET max_prepared_transactions = 100;",
        );
    }
    if sql.text("SHOW wal_sender_timeout").await?.as_deref() == Some("0") {
        findings.mention(
            "wal_sender_timeout is 0: a connection that died without a word keeps its slot in use for hours",
            "ALTER SYSTEM SET wal_sender_timeout = '60s';\nSELECT pg_reload_conf();",
        );
    }
    if sql.text("SHOW max_slot_wal_keep_size").await?.as_deref() == Some("-1") {
        findings.mention(
            "max_slot_wal_keep_size is -1: while untorn is away, WAL grows until the server's disk is full; with a limit \
             the slot is lost instead, and its tables are copied again. Choose one below the disk's free space",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '64GB';\nSELECT pg_reload_conf();",
        );
    }
    Ok(())
}

/// The statement that doubles a limit.
async fn raise(sql: &mut Sql, setting: &str) -> Result<String, Failure> {
    let held = sql.text(&format!("SHOW {setting}")).await?.and_then(|text| text.parse().ok()).unwrap_or(10_u32);
    Ok(format!("ALTER SYSTEM SET {setting} = {};", held.saturating_mul(2).max(20)))
}
