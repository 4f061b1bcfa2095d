//! What `untorn check --connect` asks a replica server: rights, what untorn keeps there, and the tables. Nothing is changed
//! there.

use super::Missing;
use super::error::Lost;
use super::session::{FORMAT, NO_PREPARED};
use super::shape::{self, ShapeError};
use crate::postgres::{Failure, Finding, Sql, Target, quote};
use crate::wal::TableSchema;

/// The oldest version, as `server_version_num` says it: rights to set a parameter came with it.
const VERSION_MIN: u32 = 150_000;

/// Asks a server, one of several or the only one, whether these tables can be written to, and answers what is the matter and
/// what the server is, one line.
///
/// # Errors
/// The server cannot be asked at all, for people.
pub async fn check(
    target: &Target,
    tables: &[TableSchema],
    missing: Missing,
    several: bool,
) -> Result<(Vec<Finding>, String), String> {
    let label = target.label();
    let failed = |failure: Failure| Lost::of(&failure).at(&label, target.user()).to_string();
    let mut sql = target.sql().await.map_err(failed)?;
    let mut checking = Checking { server: &label, role: target.user(), findings: Vec::new() };
    let summary = checking.ask(&mut sql, tables, missing).await.map_err(failed)?;
    if several && sql.text("SHOW max_prepared_transactions").await.map_err(failed)?.as_deref() == Some("0") {
        let (text, mend) = NO_PREPARED.split_once('\n').unwrap_or((NO_PREPARED, ""));
        checking.fault(text, mend);
    }
    Ok((checking.findings, summary))
}

struct Checking<'a> {
    server: &'a str,
    role: &'a str,
    findings: Vec<Finding>,
}

impl Checking<'_> {
    fn fault(&mut self, text: impl AsRef<str>, sql: impl Into<String>) {
        let text = format!("{}: {}", self.server, text.as_ref());
        self.findings.push(Finding { fault: true, text, sql: sql.into() });
    }

    async fn ask(&mut self, sql: &mut Sql, tables: &[TableSchema], missing: Missing) -> Result<String, Failure> {
        let version: u32 =
            sql.text("SHOW server_version_num").await?.and_then(|text| text.parse().ok()).unwrap_or_default();
        if version < VERSION_MIN {
            self.fault("PostgreSQL 15 or newer is needed", "");
            return Ok(format!("{}: a replica server of version {version}", self.server));
        }
        if sql.text("SELECT pg_catalog.pg_is_in_recovery()").await?.as_deref() == Some("t") {
            self.fault("the server is a standby; name the primary in the URL", "");
        } else if sql.text("SHOW transaction_read_only").await?.as_deref() == Some("on") {
            self.fault(
                "the server is read-only",
                "ALTER SYSTEM SET default_transaction_read_only = off;\nSELECT pg_reload_conf();",
            );
        }
        let may_set = "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";
        if sql.text(may_set).await?.as_deref() == Some("f") {
            let grant = format!("GRANT SET ON PARAMETER session_replication_role TO {};", quote(self.role));
            self.fault("the role may not set session_replication_role: triggers would act twice", grant);
        }
        let progress = self.progress(sql).await?;
        let mut there = 0;
        // What is asked of the catalog here must not make anything.
        sql.text("BEGIN READ ONLY").await?;
        for table in tables {
            there += usize::from(self.table(sql, table, missing, progress.is_none()).await?);
        }
        sql.text("ROLLBACK").await?;
        let version = sql.text("SHOW server_version").await?.unwrap_or_default();
        let progress = progress.unwrap_or_else(|| "nothing was replicated here yet".into());
        Ok(format!("{}: PostgreSQL {version}; {there} of {} tables stand; {progress}", self.server, tables.len()))
    }

    /// What untorn keeps there: how far the server is, where it has begun.
    async fn progress(&mut self, sql: &mut Sql) -> Result<Option<String>, Failure> {
        let schema = "SELECT CASE WHEN pg_catalog.to_regnamespace('untorn') IS NOT NULL
                                  THEN pg_catalog.has_schema_privilege('untorn', 'USAGE')
                                       AND pg_catalog.has_schema_privilege('untorn', 'CREATE')
                                  ELSE pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') END";
        if sql.text(schema).await?.as_deref() == Some("f") {
            let stands =
                sql.text("SELECT pg_catalog.to_regnamespace('untorn') IS NOT NULL").await?.as_deref() == Some("t");
            let role = quote(self.role);
            let mend = if stands {
                format!("ALTER SCHEMA untorn OWNER TO {role};")
            } else {
                format!("CREATE SCHEMA untorn AUTHORIZATION {role};")
            };
            self.fault("the role may not keep its progress in schema untorn", mend);
            return Ok(None);
        }
        if sql.text("SELECT pg_catalog.to_regclass('untorn.progress') IS NULL").await?.as_deref() == Some("t") {
            return Ok(None);
        }
        let rows = sql.query("SELECT format, log_id, epoch, started, position FROM untorn.progress", &[]).await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(failure) if failure.code == "42501" => {
                let owner = format!("ALTER TABLE untorn.progress OWNER TO {};", quote(self.role));
                self.fault("the role may not read untorn.progress", owner);
                return Ok(None);
            }
            Err(failure) => return Err(failure),
        };
        let Some(row) = rows.first() else { return Ok(None) };
        let (format, log, epoch): (i32, String, i64) = (row.get(0), row.get(1), row.get(2));
        let (started, position): (bool, i64) = (row.get(3), row.get(4));
        if format != FORMAT {
            self.fault(format!("untorn.progress is of format {format}, and this untorn reads {FORMAT}"), "");
        }
        let shown = if started { format!("shows it up to {position}") } else { "shows nothing of it yet".into() };
        Ok(Some(format!("it belongs to log {log}, epoch {epoch}, and {shown}")))
    }

    /// Looks at one table; whether it is there.
    async fn table(
        &mut self,
        sql: &mut Sql,
        table: &TableSchema,
        missing: Missing,
        new: bool,
    ) -> Result<bool, Failure> {
        let quoted = shape::quoted(&table.name);
        let stands =
            sql.query("SELECT FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)", &[&quoted]).await?;
        if stands.is_empty() && missing.create_tables {
            return Ok(false);
        }
        match shape::find(sql, table, Missing::default()).await {
            Ok(_) => {}
            Err(ShapeError::Server(failure)) => return Err(failure),
            Err(ShapeError::Lacks(what)) => {
                let (text, mend) = what.split_once("; run there:\n").unwrap_or((&what, ""));
                if !(missing.add_columns && text.contains("lacks columns")) {
                    self.fault(text, mend);
                }
                return Ok(!stands.is_empty());
            }
        }
        let lacks = "SELECT pg_catalog.string_agg(p, ', ')
                     FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) p
                     WHERE NOT pg_catalog.has_table_privilege($1, p)";
        let lacks: Option<String> = sql.query(lacks, &[&quoted]).await?.first().and_then(|row| row.get(0));
        if let Some(lacks) = lacks {
            let grant = format!("GRANT {lacks} ON {quoted} TO {};", quote(self.role));
            self.fault(format!("the role lacks {lacks} on table {quoted}"), grant);
        } else if new && !sql.query(&format!("SELECT FROM {quoted} LIMIT 1"), &[]).await?.is_empty() {
            let text = format!("table {quoted} holds rows already, and the initial copy brings all of them");
            self.fault(text, format!("TRUNCATE {quoted};"));
        }
        Ok(true)
    }
}
