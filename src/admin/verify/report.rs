//! What `untorn verify` prints: a table that people read, or one JSON object.

use super::settle::Kind;
use super::{Difference, Verdict};
use crate::wal::HybridTime;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How one table compares, with every difference that was told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableReport {
    /// The table.
    pub table: String,
    /// Whether source and replica are equal.
    pub equal: bool,
    /// Rows that the servers had.
    pub source_rows: u64,
    /// Rows that the replica had.
    pub replica_rows: u64,
    /// The rows that differ.
    pub differences: Vec<Difference>,
    /// There are more that were not told.
    pub more: bool,
    /// Rows that could not be settled, each with why.
    pub unsettled: Vec<String>,
    /// The hybrid time at which the replica was read, a decimal string.
    pub at: String,
}

impl TableReport {
    /// From what was said of a table.
    #[must_use]
    pub fn new(table: String, verdict: Verdict, differences: Vec<Difference>) -> Self {
        Self {
            equal: verdict.equal(),
            table,
            source_rows: verdict.source_rows,
            replica_rows: verdict.replica_rows,
            differences,
            more: verdict.more,
            unsettled: verdict.unsettled,
            at: HybridTime::to_u64(verdict.at).to_string(),
        }
    }
}

/// How everything compares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Whether every table is equal.
    pub equal: bool,
    /// The tables, in the order in which they were compared.
    pub tables: Vec<TableReport>,
}

impl Report {
    /// Of these tables.
    #[must_use]
    pub fn new(tables: Vec<TableReport>) -> Self {
        Self { equal: tables.iter().all(|table| table.equal), tables }
    }

    /// All of it in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let (count, differ) = (self.tables.len(), self.tables.iter().filter(|table| !table.equal).count());
        if self.equal { format!("equal: {count} tables") } else { format!("{differ} of {count} tables differ") }
    }
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, source_rows, replica_rows, .. } = self;
        if self.equal {
            return writeln!(f, "{table}: equal, {source_rows} rows");
        }
        let count = self.differences.len();
        let more = if self.more { ", and there are more" } else { "" };
        writeln!(f, "{table}: {count} rows differ{more} (source {source_rows} rows, replica {replica_rows})")?;
        for difference in &self.differences {
            writeln!(f, "  {difference}")?;
        }
        for row in &self.unsettled {
            writeln!(f, "  not settled: {row}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<String> = self.key.iter().map(|(column, value)| format!("{column} {value}")).collect();
        let (key, servers, columns) = (key.join(", "), self.servers.join(", "), self.columns.join(", "));
        let on = if servers.is_empty() { String::new() } else { format!(" ({servers})") };
        match self.kind {
            Kind::Missing => write!(f, "missing: {key}{on}: the source has it, the replica does not"),
            Kind::Extra => write!(f, "extra: {key}: the replica has it, the source does not"),
            Kind::Changed => write!(f, "changed: {key}{on}: {columns} differ"),
            Kind::Twice => write!(f, "twice: {key}: several servers have it: {servers}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_every_row() {
        let difference = |kind, id: &str| Difference {
            kind,
            key: vec![("id".into(), id.into())],
            servers: vec!["shard-a".into()],
            columns: vec!["balance".into()],
        };
        let told = vec![difference(Kind::Missing, "1"), difference(Kind::Changed, "2"), difference(Kind::Extra, "3")];
        let verdict = Verdict { source_rows: 9, replica_rows: 9, differing: 3, ..Verdict::default() };
        let equal = TableReport::new("public.b".into(), Verdict { differing: 0, ..verdict.clone() }, Vec::new());
        let report = Report::new(vec![TableReport::new("public.a".into(), verdict, told), equal]);
        assert_eq!(
            report.tables.iter().map(ToString::to_string).collect::<String>(),
            "public.a: 3 rows differ (source 9 rows, replica 9)\n\
             \x20 missing: id 1 (shard-a): the source has it, the replica does not\n\
             \x20 changed: id 2 (shard-a): balance differ\n\
             \x20 extra: id 3: the replica has it, the source does not\n\
             public.b: equal, 9 rows\n"
        );
        assert_eq!(report.summary(), "1 of 2 tables differ");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["tables"][0]["differences"][0]["kind"], "missing");
        assert_eq!((&json["equal"], &json["tables"][0]["at"]), (&false.into(), &"0".into()));
    }
}
