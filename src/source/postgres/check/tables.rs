//! What is published: which changes, which tables, and whether each can be copied and its rows be told apart.

use super::super::relation::{self, Published};
use super::super::rules::TableRules;
use super::Findings;
use crate::postgres::{Failure, Sql, Target, quote};

/// Names of tables that a summary spells out.
const NAMED: usize = 10;

/// A publication that leaves out some kind of change makes a replica that differs; one without tables makes none.
pub(super) async fn publication(sql: &mut Sql, publication: &str, findings: &mut Findings) -> Result<(), Failure> {
    let question = "SELECT FROM pg_catalog.pg_publication
         WHERE pubname = $1 AND NOT (pubinsert AND pubupdate AND pubdelete AND pubtruncate)";
    if !sql.query(question, &[&publication]).await?.is_empty() {
        let set =
            format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", quote(publication));
        findings.mention(format!("publication {publication:?} leaves out some kinds of changes"), set);
    }
    let question = "SELECT FROM pg_catalog.pg_publication p WHERE pubname = $1 AND NOT puballtables
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname)";
    if !sql.query(question, &[&publication]).await?.is_empty() {
        let add = format!("ALTER PUBLICATION {} ADD TABLES IN SCHEMA public;", quote(publication));
        findings.mention(format!("publication {publication:?} publishes no table"), add);
    }
    Ok(())
}

/// Leaves the tables that are replicated; a rule that fits none is most likely misspelt.
pub(super) fn rules(published: &mut Vec<Published>, rules: &TableRules, findings: &mut Findings) {
    let names: Vec<(&str, &str)> =
        published.iter().map(|table| (table.relation.namespace.as_str(), table.relation.name.as_str())).collect();
    for (key, rule) in rules.unused(&names) {
        findings.mention(format!("`{key}` has {rule:?}, which fits no published table"), "");
    }
    if let Err(clash) = relation::keep(published, rules) {
        findings.fault(clash, "");
    }
}

/// The tables, in words.
pub(super) fn list(tables: &[Published]) -> String {
    let names = tables.iter().take(NAMED).map(|table| table.relation.quoted()).collect::<Vec<_>>().join(", ");
    match tables.len() {
        0 => "no tables".to_owned(),
        1 => format!("1 table: {names}"),
        count if count > NAMED => format!("{count} tables: {names}, …"),
        count => format!("{count} tables: {names}"),
    }
}

/// Whether a table can be copied, and its rows be told apart.
pub(super) async fn check(
    sql: &mut Sql,
    target: &Target,
    table: &Published,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let relation = &table.relation;
    let name = relation.quoted();
    let user = quote(target.user());
    let may = "SELECT has_schema_privilege(relnamespace, 'USAGE'),
                      has_table_privilege(oid, 'SELECT') OR (SELECT bool_and(has_column_privilege(c.oid, attname, 'SELECT'))
                          FROM unnest($2::text[]) attname),
                      row_security_active(oid)
         FROM pg_catalog.pg_class c WHERE oid = $1";
    let columns: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
    if let Some(row) = sql.query(may, &[&relation.id, &columns]).await?.first() {
        let (usage, select, hidden): (bool, Option<bool>, bool) = (row.get(0), row.get(1), row.get(2));
        let mut grants = Vec::new();
        if !usage {
            grants.push(format!("GRANT USAGE ON SCHEMA {} TO {user};", quote(&relation.namespace)));
        }
        if select == Some(false) {
            grants.push(format!("GRANT SELECT ON {name} TO {user};"));
        }
        if !grants.is_empty() {
            let text = format!("user {:?} may not read table {name}, so it cannot be copied", target.user());
            findings.fault(text, grants.join("\n"));
        }
        if hidden {
            let text = format!("row security hides rows of table {name} from user {:?}", target.user());
            findings.fault(text, format!("ALTER ROLE {user} BYPASSRLS;"));
        }
    }
    identity(sql, table, findings).await
}

/// What tells rows apart in updates and deletes.
async fn identity(sql: &mut Sql, table: &Published, findings: &mut Findings) -> Result<(), Failure> {
    let relation = &table.relation;
    let name = relation.quoted();
    let keyless = !relation.columns.iter().any(|column| column.key);
    match relation.identity {
        b'f' if keyless => findings.mention(
            format!(
                "table {name} has no primary key: it is copied when its server joins and not again, and none of its \
                 columns may be dropped, renamed or retyped"
            ),
            another_key(sql, table).await?,
        ),
        b'n' => findings.mention(
            format!("table {name} has REPLICA IDENTITY NOTHING: the server refuses its updates and deletes"),
            format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"),
        ),
        _ if keyless => findings.mention(
            format!("table {name} has no primary key: the server refuses its updates and deletes"),
            format!(
                "{}\nALTER TABLE {name} REPLICA IDENTITY FULL; -- or this, where rows may be identical",
                another_key(sql, table).await?
            ),
        ),
        _ => {}
    }
    Ok(())
}

/// A unique index that can stand for the primary key, or a column that can be one.
async fn another_key(sql: &mut Sql, table: &Published) -> Result<String, Failure> {
    let name = table.relation.quoted();
    let question = "SELECT c.relname::text FROM pg_catalog.pg_index i
         JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
         WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid AND NOT a.attnotnull
                           AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
         ORDER BY i.indnkeyatts, 1 LIMIT 1";
    Ok(match sql.query(question, &[&table.relation.id]).await?.first() {
        Some(row) => {
            format!("ALTER TABLE {name} REPLICA IDENTITY USING INDEX {};", quote(row.get(0)))
        }
        None => format!("ALTER TABLE {name} ADD COLUMN row_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;"),
    })
}
