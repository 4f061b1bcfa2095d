//! How a PostgreSQL server is reached: by libpq's words, over TLS where asked for, with a session that moves its own
//! bytes. Sources and replicas share it; what a failure means to each stands with them.

pub mod connect;
pub mod error;
pub mod sql;
pub mod tls;

pub use connect::Target;
pub use error::Failure;
pub use sql::Sql;

use crate::wal::Key;

/// What `untorn check --connect` found on a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whether nothing works until it is mended; otherwise it is only worth a mention.
    pub fault: bool,
    /// The server and what is the matter with it, one line.
    pub text: String,
    /// The SQL that mends it, statements that can be run as they stand, one a line; empty where SQL does not.
    pub sql: String,
}

/// An identifier as SQL takes it.
#[must_use]
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A text literal as SQL takes it, whatever `standard_conforming_strings` says.
#[must_use]
pub fn literal(text: &str) -> String {
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A condition that holds for the rows with these keys, in these quoted columns. The values are literals of no type yet,
/// which take the columns'.
#[must_use]
pub fn one_of(columns: &[String], keys: &[Key]) -> String {
    let row = |key: &Key| {
        let texts = key.columns()?;
        let values: Vec<String> = texts.iter().map(|text| literal(&String::from_utf8_lossy(text))).collect();
        (values.len() == columns.len()).then(|| format!("({})", values.join(", ")))
    };
    let rows: Vec<String> = keys.iter().filter_map(row).collect();
    match (columns.is_empty(), rows.is_empty()) {
        (_, true) => "false".to_owned(),
        (true, _) => "true".to_owned(),
        _ => format!("({}) IN ({})", columns.join(", "), rows.join(", ")),
    }
}
