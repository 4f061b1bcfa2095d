//! Published tables: what the server calls them and their columns, and the shape that the log gives them.

use super::rules::TableRules;
use super::tuple::{Identity, Shape};
use crate::coordinator::{PublishedColumn, PublishedTable};
use crate::postgres::{Failure, Sql, quote};
use crate::source::{Catalog, SourceError};
use crate::wal::Column;
use pg_walstream::protocol::LogicalReplicationMessage as Message;
use std::collections::{HashMap, HashSet};

/// A column as the server describes it.
#[derive(Clone)]
pub struct Described {
    /// Its number in its table; zero where a RELATION message describes it, which does not say.
    pub number: i16,
    /// Rows from before it was added may have a value in it; not said by a RELATION message either.
    pub filled: bool,
    /// Its name, unquoted.
    pub name: String,
    /// The number of its type.
    pub type_id: u32,
    /// Whether it is part of what identifies a row.
    pub key: bool,
}

/// A table as the server describes it.
#[derive(Clone)]
pub struct Relation {
    /// Its number on the server.
    pub id: u32,
    /// Its schema, unquoted.
    pub namespace: String,
    /// Its name, unquoted.
    pub name: String,
    /// PostgreSQL's letter of its replica identity: `d`, `i`, `f` or `n`.
    pub identity: u8,
    /// Its published columns.
    pub columns: Vec<Described>,
}

impl Relation {
    /// From a RELATION message; `None` for any other.
    #[must_use]
    pub fn from_message(message: &Message) -> Option<Self> {
        let Message::Relation { relation_id, namespace, relation_name, replica_identity, columns } = message else {
            return None;
        };
        let described = |column: &pg_walstream::protocol::ColumnInfo| Described {
            number: 0,
            filled: false,
            name: column.name.to_string(),
            type_id: column.type_id,
            key: column.is_key(),
        };
        // The empty text stands for pg_catalog.
        let namespace = if namespace.is_empty() { "pg_catalog" } else { namespace };
        Some(Self {
            id: *relation_id,
            namespace: namespace.to_owned(),
            name: relation_name.to_string(),
            identity: *replica_identity,
            columns: columns.iter().map(described).collect(),
        })
    }

    /// Under FULL a RELATION flags every column and under NOTHING none: the key is the primary key of now. The columns
    /// of a table that was dropped since stay as they are.
    ///
    /// # Errors
    /// What the server said.
    pub async fn ask_for_key(&mut self, sql: &mut Sql) -> Result<(), Failure> {
        if !matches!(self.identity, b'f' | b'n') {
            return Ok(());
        }
        let rows = sql
            .query(
                "SELECT i.indkey IS NOT NULL, a.attname::text
                 FROM pg_catalog.pg_class c
                 LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
                 LEFT JOIN pg_catalog.pg_attribute a
                    ON a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                 WHERE c.oid = $1",
                &[&self.id],
            )
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        let key: HashSet<Option<String>> = rows.iter().map(|row| row.get(1)).collect();
        for column in &mut self.columns {
            column.key = key.contains(&Some(column.name.clone()));
        }
        Ok(())
    }

    /// The shape that the log gives it; `relation` as [`Catalog::table`] takes it.
    ///
    /// # Errors
    /// What the server or the log said.
    pub async fn shape(
        self,
        sql: &mut Sql,
        server: &str,
        catalog: &dyn Catalog,
        relation: Option<u32>,
    ) -> Result<Shape, SourceError> {
        let identity = match self.identity {
            b'f' => Identity::Full,
            b'n' => Identity::Nothing,
            _ => Identity::Key,
        };
        let types: Vec<u32> = self.columns.iter().map(|column| column.type_id).collect();
        // A domain's values look like those of the type below it.
        let question = "WITH RECURSIVE based(oid, base) AS (
                SELECT oid, oid FROM pg_catalog.pg_type WHERE oid = ANY ($1)
                UNION ALL SELECT b.oid, t.typbasetype FROM based b JOIN pg_catalog.pg_type t ON t.oid = b.base
                WHERE t.typtype = 'd')
             SELECT b.oid, t.typname::text FROM based b JOIN pg_catalog.pg_type t ON t.oid = b.base WHERE t.typtype <> 'd'";
        let rows = sql.query(question, &[&types]).await.map_err(|failure| failure.at(server))?;
        let names: HashMap<u32, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let column = |column: &Described| Column {
            name: column.name.clone(),
            // A type that was dropped since is text like every other.
            type_name: names.get(&column.type_id).cloned().unwrap_or_else(|| "text".into()),
            key: column.key,
        };
        let columns = self.columns.iter().map(column).collect();
        let schema = catalog.table(&self.name(), columns, relation).await?;
        Ok(Shape { schema, identity })
    }

    /// Why it cannot be copied while its stream runs, and what to run.
    #[must_use]
    pub fn uncopied(&self) -> String {
        let table = self.quoted();
        format!(
            "table {table} has no primary key, so its rows cannot be told apart from those that the stream carries \
             meanwhile, and it is not copied while the stream runs; run: ALTER TABLE {table} ADD PRIMARY KEY (...);"
        )
    }

    /// Its name as the log and people write it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    /// Its name as SQL takes it.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.namespace), quote(&self.name))
    }
}

/// A published table and what a copy of it takes.
#[derive(Clone)]
pub struct Published {
    /// Its name at the replica.
    pub name: String,
    /// The table.
    pub relation: Relation,
    /// Whether it is partitioned: then its rows are read with those of its partitions.
    pub partitioned: bool,
    /// About how many rows it has.
    pub estimate: Option<u64>,
    /// The publication's WHERE, if it has one.
    pub filter: Option<String>,
}

impl Published {
    /// As the log keeps it.
    #[must_use]
    pub fn described(&self) -> PublishedTable {
        let column = |column: &Described| PublishedColumn {
            number: column.number,
            name: column.name.clone(),
            type_id: column.type_id,
            filled: column.filled,
        };
        PublishedTable {
            name: self.name.clone(),
            relation: self.relation.id,
            columns: self.relation.columns.iter().map(column).collect(),
        }
    }
}

/// The tables of a publication, by name.
///
/// # Errors
/// What the server said.
pub async fn published(sql: &mut Sql, publication: &str) -> Result<Vec<Published>, Failure> {
    let rows = sql
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident, c.relkind = 'p', c.reltuples::float8,
                    p.rowfilter::text, a.attname::text, a.atttypid,
                    EXISTS (SELECT FROM pg_catalog.pg_index i
                            WHERE i.indrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                              AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END),
                    a.attnum, a.atthasdef OR a.atthasmissing OR a.attidentity <> ''
             FROM pg_catalog.pg_publication_tables p
             JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
             LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY (p.attnames)
             WHERE p.pubname = $1
             ORDER BY 2, 3, a.attnum",
            &[&publication],
        )
        .await?;
    let mut tables: Vec<Published> = Vec::new();
    for row in rows {
        let id: u32 = row.get(0);
        if tables.last().is_none_or(|last| last.relation.id != id) {
            let estimate: f64 = row.get(5);
            let (namespace, name): (String, String) = (row.get(1), row.get(2));
            tables.push(Published {
                name: format!("{namespace}.{name}"),
                relation: Relation {
                    id,
                    namespace,
                    name,
                    identity: row.get::<_, i8>(3).cast_unsigned(),
                    columns: Vec::new(),
                },
                partitioned: row.get(4),
                // -1 means that the table was never analyzed.
                estimate: (estimate >= 0.0).then_some(estimate as u64),
                filter: row.get(6),
            });
        }
        if let (Some(table), Some(name)) = (tables.last_mut(), row.get::<_, Option<String>>(7)) {
            let (number, filled) = (row.get(10), row.get(11));
            table.relation.columns.push(Described { number, filled, name, type_id: row.get(8), key: row.get(9) });
        }
    }
    Ok(tables)
}

/// Leaves the tables that are replicated, under their names at the replica.
///
/// # Errors
/// Two of them would have one name at the replica.
pub fn keep(tables: &mut Vec<Published>, rules: &TableRules) -> Result<(), String> {
    let mut names: HashMap<String, String> = HashMap::new();
    let mut clash = None;
    tables.retain_mut(|table| {
        let relation = &table.relation;
        let Some(name) = rules.name_of(&relation.namespace, &relation.name) else { return false };
        if let Some(other) = names.insert(name.clone(), relation.quoted()) {
            clash.get_or_insert(format!("tables {other} and {} are both to be called {name}", relation.quoted()));
        }
        table.name = name;
        true
    });
    clash.map_or(Ok(()), |clash| Err(format!("{clash}; mend `rename`, or exclude one of them")))
}
