//! A position in one stream.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A position in one stream, ordered first by `term`, then by `index`.
///
/// For PostgreSQL, `term` is the *end* position, in stream order, of the message that ends the transaction (commit or
/// PREPARE), and `index` the record's number in that transaction: the LSN of a change is no position, because a
/// transaction is sent when it commits (trace 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct OpId {
    /// The leader's term; for PostgreSQL the end position of the ending message.
    pub term: u64,
    /// The place within the term.
    pub index: u64,
}

impl OpId {
    /// Before the first record of every stream.
    pub const ZERO: Self = Self { term: 0, index: 0 };
    /// After the last record of every stream.
    pub const MAX: Self = Self { term: u64::MAX, index: u64::MAX };

    /// A position from its parts.
    #[must_use]
    pub const fn new(term: u64, index: u64) -> Self {
        Self { term, index }
    }

    /// The last position of a term: everything of the PostgreSQL transaction that ends at `term` lies at or below it.
    #[must_use]
    pub const fn end_of_term(term: u64) -> Self {
        Self { term, index: u64::MAX }
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no position.
#[derive(Debug, thiserror::Error)]
#[error("not a position of the form `term.index`: {0:?}")]
pub struct BadOpId(String);

impl FromStr for OpId {
    type Err = BadOpId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (term, index) = text.split_once('.')?;
            Some(Self { term: term.parse().ok()?, index: index.parse().ok()? })
        };
        parse().ok_or_else(|| BadOpId(text.to_owned()))
    }
}
