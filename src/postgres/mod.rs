//! How a PostgreSQL server is reached: by libpq's words, over TLS where asked for, with a session that moves its own
//! bytes. Sources and replicas share it; what a failure means to each stands with them.

pub mod connect;
pub mod error;
pub mod sql;
pub mod tls;

pub use connect::Target;
pub use error::Failure;
pub use sql::Sql;

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
