//! What `untorn check --connect` asks a server: every fault at once, each with the SQL that mends it.

use super::PostgresSource;
use super::relation::{self, Published};
use super::slot::{self, VERSION_MIN};
use crate::postgres::{Failure, Sql, Target, quote};
use crate::source::SourceError;

/// What `check` found on a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whether a stream cannot be read until it is mended; otherwise it is only worth a mention.
    pub fault: bool,
    /// The server and what is the matter with it, one line.
    pub text: String,
    /// The SQL that mends it, one statement a line; empty where SQL does not.
    pub sql: String,
}

impl PostgresSource {
    /// Asks the server whether its stream can be read, and changes nothing there.
    ///
    /// # Errors
    /// The server cannot be asked at all.
    pub async fn check(&self) -> Result<Vec<Finding>, SourceError> {
        let label = self.target.label();
        let mut sql = self.target.session().await?;
        let mut findings = Findings { server: label.clone(), all: Vec::new() };
        let (publication, slot) = (&self.options.publication, &self.options.slot);
        let asked = inspect(&mut sql, &self.target, publication, slot, &mut findings).await;
        asked.map_err(|failure| failure.at(&label))?;
        Ok(findings.all)
    }
}

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
}

async fn inspect(
    sql: &mut Sql,
    target: &Target,
    publication: &str,
    slot: &str,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let server = slot::inspect(sql, publication, slot).await?;
    if server.version < VERSION_MIN {
        findings.fault(format!("the server's version is {}; PostgreSQL 15 or newer is needed", server.version), "");
        return Ok(());
    }
    if server.standby {
        findings.fault("the server is a standby; name the primary in the URL", "");
        return Ok(());
    }
    if server.wal_level != "logical" {
        findings.fault(
            format!("wal_level is {}, not logical (needs a restart of the server)", server.wal_level),
            "ALTER SYSTEM SET wal_level = 'logical';",
        );
    }
    if sql.text("SHOW max_prepared_transactions").await?.as_deref() == Some("0") {
        findings.mention(
            "max_prepared_transactions is 0: fine as long as no transaction spans several servers (needs a restart)",
            "ALTER SYSTEM SET max_prepared_transactions = 100;",
        );
    }
    rights(sql, target, findings).await?;
    match &server.slot {
        Some(found) if found.wal_status == "lost" => findings.fault(
            format!("slot {slot:?} was invalidated: it held more WAL than max_slot_wal_keep_size; it needs a new copy"),
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1;\nSELECT pg_reload_conf();",
        ),
        Some(found) if found.plugin != "pgoutput" || !found.two_phase => findings.fault(
            format!("slot {slot:?} was not created by untorn (plugin {:?}); choose another name", found.plugin),
            "",
        ),
        Some(found) => {
            if let Some(pid) = found.active_pid {
                findings.mention(format!("slot {slot:?} is being read by process {pid}"), "");
            }
        }
        None => missing_slot(sql, slot, findings).await?,
    }
    if !server.publication {
        let create = format!("CREATE PUBLICATION {} FOR ALL TABLES;", quote(publication));
        findings.fault(format!("publication {publication:?} does not exist"), create);
        return Ok(());
    }
    actions(sql, publication, findings).await?;
    for table in relation::published(sql, publication).await? {
        published(sql, target, &table, findings).await?;
    }
    Ok(())
}

/// A slot is created when it is missing: is there room for it, and does anything block it?
async fn missing_slot(sql: &mut Sql, slot: &str, findings: &mut Findings) -> Result<(), Failure> {
    let full = "SELECT count(*) >= current_setting('max_replication_slots')::int FROM pg_catalog.pg_replication_slots";
    if sql.text(full).await?.as_deref() == Some("t") {
        findings.fault(
            format!("slot {slot:?} is missing and there is no room for it (raising the limit needs a restart)"),
            "ALTER SYSTEM SET max_replication_slots = 20;",
        );
    }
    for orphan in slot::prepared(sql).await? {
        let text = format!("slot {slot:?} is missing, and creating it would wait for {}", orphan.text);
        findings.mention(text, orphan.sql);
    }
    Ok(())
}

/// The user's right to replicate.
async fn rights(sql: &mut Sql, target: &Target, findings: &mut Findings) -> Result<(), Failure> {
    let may = "SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
    if sql.text(may).await?.as_deref() != Some("t") {
        let grant = format!("ALTER ROLE {} REPLICATION;", quote(target.user()));
        findings.fault(format!("user {:?} may not replicate", target.user()), grant);
    }
    Ok(())
}

/// A publication that leaves out some kind of change makes a replica that differs.
async fn actions(sql: &mut Sql, publication: &str, findings: &mut Findings) -> Result<(), Failure> {
    let question = "SELECT FROM pg_catalog.pg_publication
         WHERE pubname = $1 AND NOT (pubinsert AND pubupdate AND pubdelete AND pubtruncate)";
    if !sql.query(question, &[&publication]).await?.is_empty() {
        let set =
            format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", quote(publication));
        findings.mention(format!("publication {publication:?} leaves out some kinds of changes"), set);
    }
    Ok(())
}

/// Whether a table can be copied, and its rows be told apart.
async fn published(sql: &mut Sql, target: &Target, table: &Published, findings: &mut Findings) -> Result<(), Failure> {
    let relation = &table.relation;
    let name = relation.quoted();
    let may = "SELECT FROM pg_catalog.pg_class WHERE oid = $1 AND has_table_privilege(oid, 'SELECT')
         AND has_schema_privilege(relnamespace, 'USAGE')";
    if sql.query(may, &[&relation.id]).await?.is_empty() {
        let user = quote(target.user());
        findings.fault(
            format!("user {:?} may not read table {name}, so it cannot be copied", target.user()),
            format!(
                "GRANT USAGE ON SCHEMA {} TO {user};\nGRANT SELECT ON {name} TO {user};",
                quote(&relation.namespace)
            ),
        );
    }
    let keyless = !relation.columns.iter().any(|column| column.key);
    match relation.identity {
        b'f' if keyless => findings.fault(
            format!("table {name} has REPLICA IDENTITY FULL and no primary key: its rows cannot be told apart"),
            format!("ALTER TABLE {name} ADD PRIMARY KEY (...);"),
        ),
        b'n' => findings.mention(
            format!("table {name} has REPLICA IDENTITY NOTHING: the server refuses its updates and deletes"),
            format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"),
        ),
        _ if keyless => findings.mention(
            format!("table {name} has no primary key: the server refuses its updates and deletes"),
            format!("ALTER TABLE {name} ADD PRIMARY KEY (...);"),
        ),
        _ => {}
    }
    Ok(())
}
