//! Faults of a configuration: each names its key and how to mend it, and all are told at once.

use serde::Serialize;
use std::fmt;

/// One fault.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fault {
    /// The dotted key, `source.tablets[1].url`.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub mend: String,
    /// The SQL that mends it on a server, one statement a line; empty where none does.
    pub sql: String,
}

impl fmt::Display for Fault {
    /// One line; the SQL follows on lines of its own, as it can be run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.what, self.mend)?;
        if self.sql.is_empty() { Ok(()) } else { write!(f, "\n{}", self.sql) }
    }
}

/// All faults of one configuration, in the order in which they were found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// A configuration with one fault.
    #[must_use]
    pub fn one(key: &str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        let mut faults = Self::default();
        faults.push(key, what, mend);
        faults
    }

    /// Adds a fault.
    pub fn push(&mut self, key: &str, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Fault { key: key.to_owned(), what: what.into(), mend: mend.into(), sql: String::new() });
    }

    /// Adds a fault.
    pub fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Whether this key has a fault already: what is wrong is not reported as missing too.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|fault| fault.key == key)
    }

    /// The faults.
    #[must_use]
    pub fn list(&self) -> &[Fault] {
        &self.0
    }

    /// The value if there is no fault.
    ///
    /// # Errors
    /// These faults, if there are any.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Faults {
    /// One line a fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}
