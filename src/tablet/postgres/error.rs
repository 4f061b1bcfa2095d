//! What a replica server refuses or cannot do now: what it means, and how to mend it.

use crate::postgres::{Failure, quote};
use crate::tablet::TabletError;

/// What the server said, sorted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lost {
    /// It passes, or somebody mends it at the server: tried again and again.
    Passes(String),
    /// The role lacks a right.
    Right(String),
    /// Rows are refused, or something else that the same statement will meet again.
    Refused(String),
}

impl Lost {
    /// Sorts what the server said.
    #[must_use]
    pub fn of(failure: &Failure) -> Self {
        let Failure { code, message } = failure;
        match code.as_str() {
            "" => Self::Passes(format!("no connection: {message}")),
            "25006" => Self::Passes(format!("the server is read-only: {message}")),
            "53100" => Self::Passes(format!("the server's disk is full: {message}")),
            "55P03" => Self::Passes(format!("a session holds a lock that is needed: {message}")),
            "57P01" | "57P02" | "57P03" => Self::Passes(format!("the server restarts: {message}")),
            "28P01" | "28000" => Self::Passes(format!(
                "the server refuses to let us in: {message}; check the user, the password in the URL, password_file or \
                 PGPASSFILE, and pg_hba.conf"
            )),
            "57014" | "40001" | "40P01" | "55006" => Self::Passes(message.clone()),
            code if ["08", "53", "58", "XX"].iter().any(|class| code.starts_with(class)) => {
                Self::Passes(format!("{message} (SQLSTATE {code})"))
            }
            "42501" => Self::Right(message.clone()),
            code => Self::Refused(format!("{message} (SQLSTATE {code})")),
        }
    }

    /// As the tablet answers it.
    #[must_use]
    pub fn at(self, server: &str, role: &str) -> TabletError {
        match self {
            Self::Passes(what) => TabletError::Indeterminate(format!("{server}: {what}")),
            Self::Right(what) => TabletError::Refused(format!("{server}: {what}; run there:\n{}", grants(role))),
            Self::Refused(what) => TabletError::Refused(format!("{server}: {what}")),
        }
    }
}

/// The rights that a role needs at a replica server.
#[must_use]
pub fn grants(role: &str) -> String {
    let role = quote(role);
    format!(
        "CREATE SCHEMA IF NOT EXISTS untorn AUTHORIZATION {role};\n\
         GRANT SET ON PARAMETER session_replication_role TO {role};\n\
         GRANT USAGE ON SCHEMA public TO {role};\n\
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {role};"
    )
}
