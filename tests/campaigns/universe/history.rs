//! The source's history: the model that every read is held against.

use super::cdc::home;
use std::collections::{BTreeMap, BTreeSet};
use untorn::wal::HybridTime;

/// A transaction's number in the history.
pub type Number = u32;
/// A table's place in [`TABLES`], and a row's key.
pub type RowKey = (usize, String);
/// The columns beside the key.
pub type Value = [String; 2];

/// The tables, by what their rows are for.
pub const TABLES: [&str; 7] = [
    "public.accounts",
    "public.markers",
    "public.sequence",
    "public.counters",
    "public.lists",
    "public.documents",
    "public.scratch",
];
/// Balances, whose sum never changes.
pub const ACCOUNTS: usize = 0;
/// One row a transaction and branch, with how many there are: who is visible, and whether whole.
pub const MARKERS: usize = 1;
/// Numbers without a gap, one sequence a source tablet.
pub const SEQUENCE: usize = 2;
/// Raised by one.
pub const COUNTERS: usize = 3;
/// The numbers of the transactions that appended to them.
pub const LISTS: usize = 4;
/// Rows with a large value that most updates leave unchanged.
pub const DOCUMENTS: usize = 5;
/// Rows that are emptied by TRUNCATE now and then.
pub const SCRATCH: usize = 6;

/// Where a transaction stands in one source tablet's order: from its PREPARE, or its ordinary commit, to its commit.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The source tablet.
    pub server: usize,
    /// Where it begins.
    pub from: u64,
    /// Where it ends; none while that branch is prepared.
    pub to: Option<u64>,
}

/// What a transaction came to.
#[derive(Clone, Debug)]
pub struct Txn {
    /// How many markers it wrote, by source tablet.
    pub markers: BTreeMap<usize, u32>,
    /// Whether it was committed.
    pub committed: bool,
    /// Its commit time at the source.
    pub time: HybridTime,
    /// Where it stands.
    pub spans: Vec<Span>,
}

/// Which source tablets' parts of which tables readers see: streams come and go, and tables are added.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parts {
    /// Every one.
    All,
    /// These, of so many source tablets: rows stand where their key says.
    Only(usize, BTreeSet<(usize, usize)>),
}

impl Parts {
    /// Whether a source tablet's part of a table is seen.
    pub fn has(&self, server: usize, table: usize) -> bool {
        match self {
            Self::All => true,
            Self::Only(_, parts) => parts.contains(&(server, table)),
        }
    }

    /// Whether a row is seen, if it is there.
    pub fn shows(&self, key: &RowKey) -> bool {
        match self {
            Self::All => true,
            Self::Only(servers, _) => self.has(home(key, *servers), key.0),
        }
    }
}

/// Everything that the source did, as it is known to nobody but the oracle.
#[derive(Default)]
pub struct History {
    /// Every transaction, by number.
    pub txns: Vec<Txn>,
    /// What each key held after whose commit, in order.
    pub keys: BTreeMap<RowKey, Vec<(Number, Option<Value>)>>,
    /// What it holds now.
    pub current: BTreeMap<RowKey, Value>,
    /// Where a row lives, for those that may move.
    pub home: BTreeMap<RowKey, usize>,
    /// Whose rows are being changed.
    pub locked: BTreeSet<RowKey>,
    /// How many have committed.
    pub committed: u64,
}

impl History {
    /// The next transaction's number.
    pub fn begin(&mut self) -> Number {
        self.txns.push(Txn { markers: BTreeMap::new(), committed: false, time: HybridTime::MIN, spans: Vec::new() });
        self.txns.len() as Number - 1
    }

    /// Locks all of these keys, or none.
    pub fn lock(&mut self, keys: &[RowKey]) -> bool {
        if keys.iter().any(|key| self.locked.contains(key)) {
            return false;
        }
        self.locked.extend(keys.iter().cloned());
        true
    }

    /// Gives keys free.
    pub fn unlock(&mut self, keys: &[RowKey]) {
        self.locked.retain(|key| !keys.contains(key));
    }

    /// The transaction is committed: from here on its effects are what its keys hold.
    pub fn commit(&mut self, number: Number, time: HybridTime, effects: &BTreeMap<RowKey, Option<Value>>) {
        let txn = &mut self.txns[number as usize];
        (txn.committed, txn.time) = (true, time);
        self.committed += 1;
        for (key, value) in effects {
            self.keys.entry(key.clone()).or_default().push((number, value.clone()));
            match value {
                Some(value) => self.current.insert(key.clone(), value.clone()),
                None => self.current.remove(key),
            };
        }
    }

    /// What a replica shows that has exactly these transactions.
    pub fn rows_after(&self, visible: &BTreeSet<Number>) -> impl Iterator<Item = (&RowKey, &Value)> {
        self.keys.iter().filter_map(|(key, versions)| {
            let (_, value) = versions.iter().rev().find(|(number, _)| visible.contains(number))?;
            Some((key, value.as_ref()?))
        })
    }

    /// A transaction outside `visible` that stands before one inside, in the order of some source tablet that takes part.
    pub fn hole(&self, visible: &BTreeSet<Number>, parts: &Parts) -> Option<(Number, Number, usize)> {
        let mut newest: BTreeMap<usize, (u64, Number)> = BTreeMap::new();
        for &number in visible {
            for span in self.txns[number as usize].spans.iter().filter(|span| parts.has(span.server, MARKERS)) {
                let held = newest.entry(span.server).or_insert((span.from, number));
                *held = (*held).max((span.from, number));
            }
        }
        self.txns.iter().enumerate().filter(|(_, txn)| txn.committed).find_map(|(number, txn)| {
            let number = number as Number;
            let before = txn.spans.iter().find_map(|span| {
                let (from, inside) = newest.get(&span.server)?;
                span.to.is_some_and(|to| to < *from).then_some((*inside, span.server))
            });
            before.filter(|_| !visible.contains(&number)).map(|(inside, server)| (number, inside, server))
        })
    }

    /// A transaction outside `visible` that wrote a key before one inside did.
    pub fn overtaken(&self, visible: &BTreeSet<Number>, parts: &Parts) -> Option<(Number, Number)> {
        self.keys.iter().filter(|(key, _)| parts.shows(key)).find_map(|(_, versions)| {
            let last = versions.iter().rposition(|(number, _)| visible.contains(number))?;
            let missing = versions[..last].iter().find(|(number, _)| !visible.contains(number))?;
            Some((missing.0, versions[last].0))
        })
    }
}
