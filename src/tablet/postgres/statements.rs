//! The statements that carry a run to the server, each over arrays of many rows.

use super::changes::{MovedRow, Rows, TableChanges};
use super::session::Session;
use super::shape::Shape;
use crate::postgres::Failure;
use crate::wal::SourceTabletId;
use std::collections::BTreeSet;
use tokio_postgres::types::ToSql;

/// How whole rows reach a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Puts {
    /// As upserts.
    Merge,
    /// Every key of the run is deleted first, then all rows are inserted: right where values of another unique index
    /// move between rows, because then no two rows ever hold the same.
    Replace,
}

/// What the server said, and to which statement.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What it said.
    pub failure: Failure,
    /// The statement.
    pub statement: String,
}

impl Session {
    /// Carries what is done to one table to the server, within the transaction that is open.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(super) async fn change_table(&mut self, table: TableChanges, puts: Puts) -> Result<(), Refusal> {
        let TableChanges { shape, streams, truncated, mut moved, deletes, puts: mut rows, mut patches } = table;
        self.write_by(&shape, &streams, truncated).await?;
        for row in &mut moved {
            self.complete(row).await?;
        }
        if let Some(first) = moved.first() {
            rows.extend(Rows::of_moved(&first.shape, &moved));
        }
        if truncated {
            self.run(&format!("TRUNCATE {}", shape.quoted), &[]).await?;
        }
        if puts == Puts::Replace {
            let mut whole = Vec::with_capacity(patches.len());
            for patch in patches.drain(..) {
                whole.push(self.merge_patch(patch).await?);
            }
            rows.extend(whole);
            for rows in rows.iter().filter(|rows| !rows.shape.key.is_empty()) {
                self.run(&delete(&rows.shape), &keys(rows)).await?;
            }
        }
        if let Some(deletes) = &deletes {
            self.run(&delete(&shape), &parameters(deletes)).await?;
        }
        for rows in &rows {
            let merge = puts == Puts::Merge && !rows.shape.key.is_empty();
            if puts == Puts::Merge && self.copied(rows).await? {
                continue;
            }
            self.run(&insert(&rows.shape, merge), &parameters(rows)).await?;
        }
        for patch in &patches {
            let statement = update(patch);
            let found = self.run(&statement, &parameters(patch)).await?;
            if found != patch.count {
                return Err(self.missing_row(patch, statement).await);
            }
        }
        Ok(())
    }

    /// Keeps which streams write to a table. A TRUNCATE means the rows of its own server, and the replica's rows do not say
    /// whose they are.
    pub(super) async fn write_by(
        &mut self,
        shape: &Shape,
        streams: &BTreeSet<SourceTabletId>,
        truncated: bool,
    ) -> Result<(), Refusal> {
        let table = shape.schema.table;
        let refused = |failure| Refusal { failure, statement: "untorn.writers".to_owned() };
        for &stream in streams {
            if self.is_writer(table, stream).await.map_err(refused)? {
                continue;
            }
            self.add_writer(table, stream).await.map_err(refused)?;
        }
        if truncated && self.writers_of(table) > 1 {
            return Err(Refusal {
                failure: Failure {
                    code: "0A000".into(),
                    message:
                        "several source servers write to this table, and one of them emptied it: which rows were its \
                              is not known here; delete them by hand, and skip the transaction"
                            .into(),
                },
                statement: format!("TRUNCATE {}", shape.quoted),
            });
        }
        Ok(())
    }

    async fn run(&mut self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Refusal> {
        let ran = self.execute(statement, parameters).await;
        ran.map_err(|failure| Refusal { failure, statement: statement.to_owned() })
    }

    /// Takes a moved row's unchanged cells from where the server holds it now.
    async fn complete(&mut self, row: &mut MovedRow) -> Result<(), Refusal> {
        let statement = select(&row.shape);
        let texts: Vec<String> = row.from.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        let given: Vec<&(dyn ToSql + Sync)> = texts.iter().map(|text| text as &(dyn ToSql + Sync)).collect();
        let found = self.query(&statement, &given).await;
        let found = found.map_err(|failure| Refusal { failure, statement: statement.clone() })?;
        let Some(found) = found.first() else {
            return Err(Refusal { failure: no_row(&row.shape, &texts.join(",")), statement });
        };
        for (place, cell) in row.cells.iter_mut().enumerate() {
            if cell.is_none() {
                let text: Option<String> = found.get(place);
                *cell = Some(text.map(String::into_bytes));
            }
        }
        Ok(())
    }

    /// Makes whole rows of a patch's, with what the server holds.
    async fn merge_patch(&mut self, patch: Rows) -> Result<Rows, Refusal> {
        let mut rows = Vec::with_capacity(patch.keys.len());
        for (number, key) in patch.keys.iter().enumerate() {
            let from = key.columns().unwrap_or_default();
            let given = patch.given.iter().scan(0, |next, given| {
                let column = given.then(|| patch.columns[*next].get(number).map(<[u8]>::to_vec));
                *next += usize::from(*given);
                Some(column)
            });
            let mut row = MovedRow { shape: patch.shape.clone(), cells: given.collect(), from };
            self.complete(&mut row).await?;
            rows.push(row);
        }
        Rows::of_moved(&patch.shape, &rows)
            .ok_or_else(|| Refusal { failure: Failure::lost("a row is too long"), statement: String::new() })
    }

    /// Which row of a patch the server does not hold.
    async fn missing_row(&mut self, patch: &Rows, statement: String) -> Refusal {
        let select = select(&patch.shape);
        for key in &patch.keys {
            let texts = key.columns().unwrap_or_default();
            let texts: Vec<String> = texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
            let given: Vec<&(dyn ToSql + Sync)> = texts.iter().map(|text| text as &(dyn ToSql + Sync)).collect();
            match self.query(&select, &given).await {
                Ok(found) if found.is_empty() => {
                    return Refusal { failure: no_row(&patch.shape, &texts.join(",")), statement };
                }
                Ok(_) => {}
                Err(failure) => return Refusal { failure, statement },
            }
        }
        Refusal { failure: no_row(&patch.shape, "?"), statement }
    }
}

/// A row that an update leaves cells unchanged in is not there: PostgreSQL's code for "no data".
fn no_row(shape: &Shape, key: &str) -> Failure {
    Failure {
        code: "02000".into(),
        message: format!("the row ({key}) of {} is not there, and its unchanged cells were not sent", shape.quoted),
    }
}

fn parameters(rows: &Rows) -> Vec<&(dyn ToSql + Sync)> {
    rows.columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect()
}

/// The key columns of whole rows.
fn keys(rows: &Rows) -> Vec<&(dyn ToSql + Sync)> {
    rows.shape
        .key
        .iter()
        .filter_map(|&place| rows.columns.get(place))
        .map(|column| column as &(dyn ToSql + Sync))
        .collect()
}

/// `unnest($1::text[], $2::text[]) AS u(c0, c1)`, and each column of it as its type.
struct Unnested {
    from: String,
    columns: Vec<(usize, String)>,
}

fn unnested(shape: &Shape, places: impl Iterator<Item = usize>) -> Unnested {
    let columns: Vec<(usize, String)> =
        places.map(|place| (place, format!("u.c{place}::{}", shape.columns[place].1))).collect();
    let arrays: Vec<String> = (1..=columns.len()).map(|number| format!("${number}::text[]")).collect();
    let names: Vec<String> = columns.iter().map(|(place, _)| format!("c{place}")).collect();
    Unnested { from: format!("unnest({}) AS u({})", arrays.join(", "), names.join(", ")), columns }
}

fn is_key(shape: &Shape, columns: &[(usize, String)]) -> String {
    let equal = columns.iter().filter(|(place, _)| shape.key.contains(place));
    let equal = equal.map(|(place, value)| format!("t.{} = {value}", shape.columns[*place].0));
    equal.collect::<Vec<_>>().join(" AND ")
}

fn delete(shape: &Shape) -> String {
    let Unnested { from, columns } = unnested(shape, shape.key.iter().copied());
    format!("DELETE FROM {} AS t USING {from} WHERE {}", shape.quoted, is_key(shape, &columns))
}

fn insert(shape: &Shape, merge: bool) -> String {
    let Unnested { from, columns } = unnested(shape, 0..shape.columns.len());
    let names: Vec<&str> = shape.columns.iter().map(|(name, _)| name.as_str()).collect();
    let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
    let conflict = if merge {
        let key: Vec<&str> = shape.key.iter().map(|&place| names[place]).collect();
        let others = names.iter().enumerate().filter(|(place, _)| !shape.key.contains(place));
        let set: Vec<String> = others.map(|(_, name)| format!("{name} = excluded.{name}")).collect();
        let action = if set.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", set.join(", ")) };
        format!(" ON CONFLICT ({}) DO {action}", key.join(", "))
    } else {
        String::new()
    };
    format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {from}{conflict}",
        shape.quoted,
        names.join(", "),
        values.join(", ")
    )
}

fn update(rows: &Rows) -> String {
    let shape = &rows.shape;
    let given = rows.given.iter().enumerate().filter(|(_, given)| **given).map(|(place, _)| place);
    let Unnested { from, columns } = unnested(shape, given);
    let set: Vec<String> = columns
        .iter()
        .filter(|(place, _)| !shape.key.contains(place))
        .map(|(place, value)| format!("{} = {value}", shape.columns[*place].0))
        .collect();
    // A patch of nothing still says that the row is there.
    let set = if set.is_empty() {
        let name = &shape.columns[shape.key[0]].0;
        format!("{name} = t.{name}")
    } else {
        set.join(", ")
    };
    format!("UPDATE {} AS t SET {set} FROM {from} WHERE {}", shape.quoted, is_key(shape, &columns))
}

/// One row's columns as text, by its key.
fn select(shape: &Shape) -> String {
    let columns: Vec<String> = shape.columns.iter().map(|(name, _)| format!("t.{name}::text")).collect();
    let key = shape.key.iter().enumerate().map(|(number, &place)| {
        let (name, as_type) = &shape.columns[place];
        format!("t.{name} = ${}::text::{as_type}", number + 1)
    });
    format!("SELECT {} FROM {} AS t WHERE {}", columns.join(", "), shape.quoted, key.collect::<Vec<_>>().join(" AND "))
}
