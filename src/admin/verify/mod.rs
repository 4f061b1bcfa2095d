//! Source against replica, table by table, while the load goes on.
//!
//! # How
//!
//! 1. **Checksums.** Every server reads its rows in one statement, and so at one moment; the replica is read at one read
//!    point, the first that shows everything the servers showed. Both sides go into keyed sums of ranges ([`digest`]),
//!    in any order, so memory does not grow with the table.
//! 2. **Narrowing.** Where ranges differ, both sides are read again, and only the rows of those ranges are kept, a bounded
//!    number at once: which keys differ?
//! 3. **Settling.** Under load these are mostly rows that somebody wrote between the two moments. Each is judged by its
//!    own history in a window around one more reading of its server ([`settle`], which has the argument why this never
//!    calls a false alarm and never misses a difference that stays), and again until it is the same or differs twice.
//!
//! Because the third step stands alone, the first two need no common cut to be right, only to have little left to settle:
//! a row that differs and stays so differs in each of them. That is why a table that takes longer to read than tablets
//! keep old versions is no trouble: its next page is read at a newer read point.
//!
//! Tables without a key have no history to be asked for. Their rows are compared as a bag, and what differs is compared
//! three times, each at a new moment, with what the replica held before it and after it: what one side has more of than
//! the other had at both, every time, the same way, differs.

pub mod digest;
mod keyless;
mod pass;
pub mod report;
mod run;
pub mod settle;
mod window;
mod wire;

pub use run::{Verifier, VerifyError};

use crate::wal::HybridTime;
use settle::Kind;

/// What a running verification of one table says.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// How far it is.
    Progress(Progress),
    /// A row that differs.
    Difference(Difference),
    /// The end.
    Verdict(Verdict),
}

/// How far the verification of a table is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// What it does, in words.
    pub phase: String,
    /// Rows read from the servers in this phase.
    pub source_rows: u64,
    /// Rows read from the replica in this phase.
    pub replica_rows: u64,
    /// Rows of the servers in all, about, where known.
    pub total: Option<u64>,
}

/// A row that differs.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// How.
    pub kind: Kind,
    /// Its key, by column; all of its values where the table has no key.
    pub key: Vec<(String, String)>,
    /// The source tablets that have it.
    pub servers: Vec<String>,
    /// The columns whose values differ, of a changed row.
    pub columns: Vec<String>,
}

/// How a table compares.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// Rows that the servers had.
    pub source_rows: u64,
    /// Rows that the replica had.
    pub replica_rows: u64,
    /// Rows that differ, as far as they were told.
    pub differing: u64,
    /// There are more that were not told.
    pub more: bool,
    /// Rows that could not be settled, each with why.
    pub unsettled: Vec<String>,
    /// The hybrid time at which the replica was read.
    pub at: HybridTime,
}

impl Verdict {
    /// Whether source and replica were found equal.
    #[must_use]
    pub fn equal(&self) -> bool {
        self.differing == 0 && !self.more && self.unsettled.is_empty()
    }
}
