//! The server's tables, as statements need them: which columns it has, of which types, and what tells its rows apart.

use crate::postgres::{Failure, Sql, quote};
use crate::wal::{TableId, TableSchema};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Integer types: their keys are sorted as numbers, as the server's index is.
const INTEGERS: [&str; 3] = ["int2", "int4", "int8"];

/// A table of the server under one version of the source's shape.
#[derive(Debug)]
pub struct Shape {
    /// The source's shape.
    pub schema: TableSchema,
    /// Its name as SQL takes it.
    pub quoted: String,
    /// The schema's key columns, in the order of a row's key; empty for a table whose rows cannot be told apart.
    pub key: Vec<usize>,
    /// Each column's name as SQL takes it, and the type that its text is read as.
    pub columns: Vec<(String, String)>,
    /// The first key column holds whole numbers.
    pub integer_key: bool,
    /// The server keeps other columns unique as well.
    pub other_unique: bool,
}

/// The shapes known so far, by table and version.
pub type Shapes = Arc<BTreeMap<(TableId, u32), Arc<Shape>>>;

/// What is done about tables and columns that the server lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Missing {
    /// Create tables.
    pub create_tables: bool,
    /// Add columns.
    pub add_columns: bool,
}

/// Why there is no shape.
#[derive(Debug)]
pub enum ShapeError {
    /// The server or the way to it said so.
    Server(Failure),
    /// The server lacks something; the text says what, and the SQL that mends it.
    Lacks(String),
}

impl From<Failure> for ShapeError {
    fn from(failure: Failure) -> Self {
        Self::Server(failure)
    }
}

/// A column of the server's table.
struct Found {
    type_name: String,
    /// The type below, where that is a domain, without its schema.
    base: String,
    number: i16,
    /// Its collation takes different texts for equal.
    blind: bool,
}

/// The server's table, as its catalog describes it.
struct Catalogued {
    columns: HashMap<String, Found>,
    /// The columns of each unique index that can tell rows apart for an upsert.
    arbiters: Vec<BTreeSet<i16>>,
    /// Every unique index and exclusion constraint.
    uniques: Vec<BTreeSet<i16>>,
}

/// `schema.table` in its two parts.
fn parts(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}

/// A table's name as SQL takes it.
#[must_use]
pub fn quoted(name: &str) -> String {
    let (schema, table) = parts(name);
    format!("{}.{}", quote(schema), quote(table))
}

/// A type as SQL takes it. Quoted, a type without a length has none: `"bpchar"` is not `char(1)`.
fn type_in_sql(name: &str) -> String {
    quote(name)
}

/// Finds a table at the server; makes what is missing, where that is wanted.
///
/// # Errors
/// See [`ShapeError`].
pub async fn find(sql: &mut Sql, schema: &TableSchema, missing: Missing) -> Result<Shape, ShapeError> {
    let quoted = quoted(&schema.name);
    let mut found = catalogued(sql, &quoted).await?;
    if found.is_none() {
        let create = create_table(schema);
        if !missing.create_tables {
            return Err(ShapeError::Lacks(format!("table {quoted} does not exist; run there:\n{create}")));
        }
        sql.text(&create).await?;
        found = catalogued(sql, &quoted).await?;
    }
    let Some(mut table) = found else {
        return Err(ShapeError::Lacks(format!("table {quoted} does not exist")));
    };
    let lacks: Vec<String> = schema
        .columns
        .iter()
        .filter(|column| !table.columns.contains_key(&column.name))
        .map(|column| {
            format!("ALTER TABLE {quoted} ADD COLUMN {} {};", quote(&column.name), type_in_sql(&column.type_name))
        })
        .collect();
    if !lacks.is_empty() {
        let add = lacks.join("\n");
        if !missing.add_columns {
            return Err(ShapeError::Lacks(format!(
                "table {quoted} lacks columns that the source has; run there:\n{add}"
            )));
        }
        sql.text(&add).await?;
        table = catalogued(sql, &quoted).await?.unwrap_or(table);
    }
    shape(schema, quoted, &table)
}

fn shape(schema: &TableSchema, quoted: String, table: &Catalogued) -> Result<Shape, ShapeError> {
    let mut columns = Vec::with_capacity(schema.columns.len());
    for column in &schema.columns {
        let Some(found) = table.columns.get(&column.name) else {
            return Err(ShapeError::Lacks(format!("table {quoted} lacks column {}", quote(&column.name))));
        };
        columns.push((quote(&column.name), found.type_name.clone()));
    }
    let key: Vec<usize> = (0..schema.columns.len()).filter(|&place| schema.columns[place].key).collect();
    let numbers: BTreeSet<i16> = key
        .iter()
        .filter_map(|&place| table.columns.get(&schema.columns[place].name))
        .map(|found| found.number)
        .collect();
    for &place in &key {
        let column = &schema.columns[place];
        let held = table.columns.get(&column.name).map_or("", |found| found.base.as_str());
        if table.columns.get(&column.name).is_some_and(|found| found.blind) {
            let name = quote(&column.name);
            return Err(ShapeError::Lacks(format!(
                "table {quoted} has a collation at its key column {name} that takes different texts for equal, so rows of the \
                 source could become one; run there:\nALTER TABLE {quoted} ALTER COLUMN {name} TYPE {} COLLATE \"C\";",
                type_in_sql(held)
            )));
        }
        if !keeps_apart(&column.type_name, held) {
            let (name, wanted) = (quote(&column.name), type_in_sql(&column.type_name));
            return Err(ShapeError::Lacks(format!(
                "table {quoted} has {held} in its key column {name} and the source has {}, whose values it may not keep \
                 apart; run there:\nALTER TABLE {quoted} ALTER COLUMN {name} TYPE {wanted} USING {name}::text::{wanted};",
                column.type_name
            )));
        }
    }
    if !key.is_empty() && !table.arbiters.contains(&numbers) {
        let names: Vec<&str> = key.iter().map(|&place| columns[place].0.as_str()).collect();
        return Err(ShapeError::Lacks(format!(
            "table {quoted} has no unique index over its key; run there:\nCREATE UNIQUE INDEX ON {quoted} ({});",
            names.join(", ")
        )));
    }
    let integer_key = key.first().is_some_and(|&place| INTEGERS.contains(&schema.columns[place].type_name.as_str()));
    let other_unique = table.uniques.iter().any(|unique| *unique != numbers);
    Ok(Shape { schema: schema.clone(), quoted, key, columns, integer_key, other_unique })
}

/// Whether different values of a source's type stay different in a column of another.
fn keeps_apart(source: &str, held: &str) -> bool {
    match held {
        "text" | "varchar" => true,
        "numeric" | "int8" if matches!(source, "int2" | "int4" | "int8") => true,
        "int4" if source == "int2" => true,
        held => held == source,
    }
}

async fn catalogued(sql: &mut Sql, quoted: &str) -> Result<Option<Catalogued>, Failure> {
    let columns = sql
        .query(
            "SELECT a.attname::text, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname), a.attnum,
                    (WITH RECURSIVE based(base) AS (
                        SELECT t.oid
                        UNION ALL SELECT d.typbasetype FROM based JOIN pg_catalog.pg_type d ON d.oid = base
                        WHERE d.typtype = 'd')
                     SELECT b.typname::text FROM based JOIN pg_catalog.pg_type b ON b.oid = base WHERE b.typtype <> 'd'),
                    EXISTS (SELECT FROM pg_catalog.pg_collation c WHERE c.oid = a.attcollation AND NOT c.collisdeterministic)
             FROM pg_catalog.pg_attribute a
             JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
             JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
             WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
            &[&quoted],
        )
        .await?;
    if columns.is_empty() {
        let exists = "SELECT FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)";
        if sql.query(exists, &[&quoted]).await?.is_empty() {
            return Ok(None);
        }
    }
    let found = |row: &tokio_postgres::Row| Found {
        type_name: row.get(1),
        number: row.get(2),
        base: row.get(3),
        blind: row.get(4),
    };
    let columns = columns.iter().map(|row| (row.get(0), found(row))).collect();
    let indexes = sql
        .query(
            "SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1],
                    i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
             FROM pg_catalog.pg_index i
             WHERE i.indrelid = pg_catalog.to_regclass($1) AND (i.indisunique OR i.indisexclusion)",
            &[&quoted],
        )
        .await?;
    let (mut arbiters, mut uniques) = (Vec::new(), Vec::new());
    for row in indexes {
        let numbers: Vec<i16> = row.get(0);
        let numbers: BTreeSet<i16> = numbers.into_iter().collect();
        if row.get(1) {
            arbiters.push(numbers.clone());
        }
        uniques.push(numbers);
    }
    Ok(Some(Catalogued { columns, arbiters, uniques }))
}

/// The SQL that creates a table like the source's, as far as its stream describes it.
#[must_use]
pub fn create_table(schema: &TableSchema) -> String {
    let column = |column: &crate::wal::Column| format!("{} {}", quote(&column.name), type_in_sql(&column.type_name));
    let mut columns: Vec<String> = schema.columns.iter().map(column).collect();
    let key: Vec<String> =
        schema.columns.iter().filter(|column| column.key).map(|column| quote(&column.name)).collect();
    if !key.is_empty() {
        columns.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    let (namespace, _) = parts(&schema.name);
    let created = if namespace == "public" {
        String::new()
    } else {
        format!("CREATE SCHEMA IF NOT EXISTS {};\n", quote(namespace))
    };
    format!("{created}CREATE TABLE {} ({});", quoted(&schema.name), columns.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Column;

    #[test]
    fn a_key_s_type_keeps_the_source_s_values_apart() {
        assert!(keeps_apart("int4", "int8") && keeps_apart("uuid", "uuid") && keeps_apart("bpchar", "text"));
        assert!(!keeps_apart("int8", "int4") && !keeps_apart("text", "int4") && !keeps_apart("text", "citext"));
    }

    #[test]
    fn a_missing_table_is_listed_with_its_sql() {
        let column = |name: &str, type_name: &str, key| Column { name: name.into(), type_name: type_name.into(), key };
        let columns = vec![column("id", "int8", true), column("a \"b\"", "_text", false)];
        let schema = TableSchema { table: TableId(1), name: "s.t".into(), version: 1, columns };
        assert_eq!(
            create_table(&schema),
            "CREATE SCHEMA IF NOT EXISTS \"s\";\n\
             CREATE TABLE \"s\".\"t\" (\"id\" \"int8\", \"a \"\"b\"\"\" \"_text\", PRIMARY KEY (\"id\"));"
        );
    }
}
