//! What a server refuses, as one line that says what, where and how to mend it.

use crate::source::SourceError;
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

    /// The failure of one server, as the stream reports it.
    #[must_use]
    pub fn at(&self, server: &str) -> SourceError {
        let message = &self.message;
        match self.code.as_str() {
            "" => SourceError::Retry(format!("{server}: no connection: {message}")),
            "28P01" | "28000" => SourceError::Retry(format!(
                "{server}: the server refuses to let us in: {message}; check the user, the password in the URL, \
                 password_file or PGPASSFILE, and pg_hba.conf"
            )),
            "3D000" => SourceError::Stop(format!("{server}: {message}; correct the URL")),
            "42501" => SourceError::Stop(format!(
                "{server}: {message}; the user needs REPLICATION and SELECT on the published tables"
            )),
            "53300" => SourceError::Retry(format!("{server}: {message}; raise max_connections or max_wal_senders")),
            "53400" => SourceError::Retry(format!(
                "{server}: {message}; raise max_replication_slots, or drop a slot that nobody reads: SELECT slot_name \
                 FROM pg_replication_slots WHERE NOT active"
            )),
            "55006" => SourceError::Retry(format!("{server}: the slot is in use: {message}")),
            // Starting up, shutting down, killed, or a lock that was not to be had in time: all pass.
            "57P01" | "57P02" | "57P03" | "57014" | "55P03" | "40001" | "40P01" => {
                SourceError::Retry(format!("{server}: {message}"))
            }
            code if code.starts_with("08") || code.starts_with("53") || code.starts_with("58") => {
                SourceError::Retry(format!("{server}: {message}"))
            }
            code => SourceError::Stop(format!("{server}: {message} (SQLSTATE {code})")),
        }
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
