//! What the user may do: replicate, and no more than it takes.

use super::super::connect::Target;
use super::super::error::Failure;
use super::super::relation::quote;
use super::super::sql::Sql;
use super::Findings;

/// Whether the user may open a replication connection.
pub(super) async fn replicates(sql: &mut Sql) -> Result<bool, Failure> {
    let may = "SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
    Ok(sql.text(may).await?.as_deref() == Some("t"))
}

/// The user's right to replicate. Rights on tables are asked for table by table.
pub(super) async fn check(sql: &mut Sql, target: &Target, findings: &mut Findings) -> Result<(), Failure> {
    let user = target.user();
    if !replicates(sql).await? {
        let grant = format!("ALTER ROLE {} REPLICATION;", quote(user));
        findings.fault(format!("user {user:?} may not replicate"), grant);
    }
    let superuser = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
    if sql.text(superuser).await?.as_deref() == Some("t") {
        findings.mention(
            format!(
                "user {user:?} is a superuser; one with REPLICATION, and SELECT on the published tables, is enough"
            ),
            "",
        );
    }
    Ok(())
}
