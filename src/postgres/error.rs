//! What a server, or the way to it, said.

use std::fmt;

/// What a server or the way to it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The SQLSTATE; empty where the connection failed instead.
    pub code: String,
    /// The message, with detail and hint.
    pub message: String,
}

impl Failure {
    /// A connection that failed.
    pub fn lost(what: impl fmt::Display) -> Self {
        Self { code: String::new(), message: what.to_string() }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            let extra = [server.detail(), server.hint()].into_iter().flatten();
            let message = extra.fold(server.message().to_owned(), |all, more| format!("{all} ({more})"));
            return Self { code: server.code().code().to_owned(), message };
        }
        // tokio-postgres says what it was doing; the cause behind it says why it failed.
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Self::lost(cause)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::lost(error)
    }
}
