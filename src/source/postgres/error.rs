//! What a server refuses, as one line that says what, where and how to mend it.

use crate::postgres::Failure;
use crate::source::SourceError;

impl Failure {
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
