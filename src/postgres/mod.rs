//! How a PostgreSQL server is reached: by libpq's words, over TLS where asked for, with a session that moves its own
//! bytes. Sources and replicas share it; what a failure means to each stands with them.

pub mod connect;
pub mod error;
pub mod sql;
pub mod tls;

pub use connect::Target;
pub use error::Failure;
pub use sql::Sql;

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
