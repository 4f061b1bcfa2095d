//! A source universe of any size that is nowhere: each tablet's change records are made when they are read.
//!
//! Transaction `n` writes to up to four tablets, from tablet `n` modulo their number on. Before the first one stand those that
//! wait: each has said all that it has to say but its Commit record. What comes after them is shown once the source is opened.

use crate::proto::cdc::{
    Applying, CdcRecord, Column, Commit, Created, InvolvedTablet, OpId as WireOpId, Row, SafeTime, Schema,
    SourceTransactionId as WireTransactionId, Write, cdc_record::Record, write::Operation,
};
use crate::tablet::change_log::{ChangeLog, ChangeLogError, ChangePage, NotRunning, ReadChanges};
use crate::wal::{HybridTime, OpId, SourceTransactionId};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::time::timeout;

/// The table that every transaction writes to.
pub const TABLE: &str = "public.items";
/// Tablets that one transaction writes to, where there are as many.
pub const TABLETS_EACH: u64 = 4;
/// Bytes of a row's value.
pub const VALUE_BYTES: usize = 128;
/// Transactions of a tablet between its SafeTime records.
const SAFE_TIME_EVERY: u64 = 64;
/// The WALs never change leaders, so every position has this term.
const TERM: u64 = 1;

/// What the universe holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct History {
    /// Source tablets.
    pub tablets: u64,
    /// Transactions that wait, from before the first that commits.
    pub waiting: u64,
    /// Transactions that commit.
    pub transactions: u64,
    /// Rows that each of them writes.
    pub rows: u64,
}

impl History {
    /// How many tablets one transaction writes to.
    fn branches(&self) -> u64 {
        TABLETS_EACH.min(self.tablets).min(self.rows)
    }

    /// When transaction `n` commits. Those that wait come before the first.
    fn time(n: u64) -> HybridTime {
        HybridTime::from_micros(1_000 + n)
    }

    /// When everything before the first transaction that commits is shown.
    #[must_use]
    pub fn begin() -> HybridTime {
        Self::time(0).previous()
    }

    /// When the last one commits.
    #[must_use]
    pub fn end(&self) -> HybridTime {
        Self::time(self.transactions)
    }

    /// The keys of transaction `n`: no two transactions write the same row.
    pub fn keys(&self, n: u64) -> impl Iterator<Item = String> {
        let first = n * self.rows;
        (first..first + self.rows).map(|key| format!("{:016x}", key.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// A tablet's name.
    fn name(tablet: u64) -> String {
        format!("source-{tablet}")
    }

    /// Records of a tablet before the first transaction that commits: a Created, a Write and an Applying record of each
    /// that waits there, and a SafeTime record.
    fn records_before(&self, tablet: u64) -> u64 {
        3 * self.waiting_at(tablet) + 1
    }

    fn waiting_at(&self, tablet: u64) -> u64 {
        self.waiting / self.tablets + u64::from(tablet < self.waiting % self.tablets)
    }

    /// All records of a tablet, in order.
    fn records(self, tablet: u64) -> impl Iterator<Item = Record> {
        let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
        let held = value.clone();
        let waiting = (0..self.waiting_at(tablet)).flat_map(move |number| {
            let name = format!("waiting-{tablet}-{number}");
            let id = || Some(WireTransactionId { id: name.clone().into(), incarnation: 0 });
            let applying = Record::Applying(Applying { transaction: id(), records: Some(1) });
            [Record::Created(Created { transaction: id() }), write(id(), name.clone(), &held), applying]
        });
        let begin = Record::SafeTime(SafeTime { hybrid_time: Self::begin().to_u64() });
        let branches = self.branches();
        let here = (0..self.transactions)
            .filter(move |n| (tablet + self.tablets - n % self.tablets) % self.tablets < branches);
        let committed = here.enumerate().flat_map(move |(place, n)| {
            let id = || Some(WireTransactionId { id: n.to_string().into(), incarnation: 0 });
            let branch = (tablet + self.tablets - n % self.tablets) % self.tablets;
            let home = branch == 0;
            let mut records = Vec::with_capacity(8);
            if home {
                records.push(Record::Created(Created { transaction: id() }));
            }
            let keys = self.keys(n).skip(branch as usize).step_by(branches as usize);
            records.extend(keys.map(|key| write(id(), key, &value)));
            let writes = records.len() as u64 - u64::from(home);
            records.push(Record::Applying(Applying { transaction: id(), records: Some(writes) }));
            if home {
                let involved = |branch: u64| InvolvedTablet {
                    tablet: Self::name((n + branch) % self.tablets),
                    records: Some((self.rows - branch).div_ceil(branches)),
                };
                records.push(Record::Commit(Commit {
                    transaction: id(),
                    commit_hybrid_time: Self::time(n).to_u64(),
                    involved: (0..branches).map(involved).collect(),
                }));
            }
            if place as u64 % SAFE_TIME_EVERY == SAFE_TIME_EVERY - 1 {
                records.push(Record::SafeTime(SafeTime { hybrid_time: Self::time(n).to_u64() }));
            }
            records
        });
        let end = Record::SafeTime(SafeTime { hybrid_time: self.end().to_u64() });
        waiting.chain([begin]).chain(committed).chain([end])
    }
}

fn write(transaction: Option<WireTransactionId>, key: String, value: &Bytes) -> Record {
    let key = Bytes::from(key);
    let row = Row { schema_version: 1, values: vec![key.clone(), value.clone()], ..Row::default() };
    Record::Write(Write { transaction, table: TABLE.into(), key: vec![key], operation: Some(Operation::Put(row)) })
}

fn schema() -> Schema {
    let column = |name: &str, key| Column { name: name.into(), type_name: "text".into(), key };
    Schema { table: TABLE.into(), version: 1, columns: vec![column("id", true), column("body", false)] }
}

/// Where a tablet's reader stands.
struct Cursor {
    index: u64,
    records: Box<dyn Iterator<Item = Record> + Send>,
    /// A record that did not fit into the page before.
    next: Option<Record>,
}

/// The universe, as a CDC service serves it.
pub struct Backlog {
    history: History,
    names: Vec<String>,
    cursors: Vec<Mutex<Option<Cursor>>>,
    open: watch::Sender<bool>,
}

impl Backlog {
    /// A universe that shows only what waits.
    #[must_use]
    pub fn new(history: History) -> Arc<Self> {
        let names = (0..history.tablets).map(History::name).collect();
        let cursors = (0..history.tablets).map(|_| Mutex::default()).collect();
        Arc::new(Self { history, names, cursors, open: watch::Sender::new(false) })
    }

    /// The tablets' names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Shows everything else.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    fn tablet(&self, name: &str) -> Result<u64, ChangeLogError> {
        let found = self.names.iter().position(|held| held == name);
        found.map(|tablet| tablet as u64).ok_or_else(|| ChangeLogError::NotFound(name.into()))
    }

    fn page(&self, tablet: u64, after: u64, max_bytes: usize) -> Vec<CdcRecord> {
        let limit = if *self.open.borrow() { u64::MAX } else { self.history.records_before(tablet) };
        let Some(cursor) = self.cursors.get(tablet as usize) else { return Vec::new() };
        let mut held = cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = || {
            let mut records = self.history.records(tablet);
            if after > 0 {
                records.nth(after as usize - 1);
            }
            Cursor { index: after, records: Box::new(records), next: None }
        };
        let mut cursor = held.take().filter(|cursor| cursor.index == after).unwrap_or_else(begun);
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes && cursor.index < limit {
            let Some(record) = cursor.next.take().or_else(|| cursor.records.next()) else { break };
            let size = if matches!(record, Record::Write(_)) { VALUE_BYTES + 80 } else { 48 };
            if bytes + size > max_bytes && !page.is_empty() {
                cursor.next = Some(record);
                break;
            }
            bytes += size;
            cursor.index += 1;
            page.push(CdcRecord { at: Some(WireOpId { term: TERM, index: cursor.index }), record: Some(record) });
        }
        *held = Some(cursor);
        page
    }
}

#[async_trait]
impl ChangeLog for Backlog {
    async fn tablets(&self) -> Result<Vec<String>, ChangeLogError> {
        Ok(self.names.clone())
    }

    async fn read(&self, request: ReadChanges) -> Result<ChangePage, ChangeLogError> {
        let tablet = self.tablet(&request.tablet)?;
        let mut opened = self.open.subscribe();
        let mut records = self.page(tablet, request.after.index, request.max_bytes);
        // After the last record there is nothing to wait for but the end of the wait.
        if records.is_empty() && timeout(request.wait, opened.changed()).await.is_ok() {
            records = self.page(tablet, request.after.index, request.max_bytes);
        }
        let upto = OpId::new(TERM, request.after.index + records.len() as u64);
        let schemas = if request.need_schemas { vec![schema()] } else { Vec::new() };
        Ok(ChangePage { records, upto, schemas })
    }

    async fn check_transactions(&self, _: &str, _: Vec<SourceTransactionId>) -> Result<NotRunning, ChangeLogError> {
        // Whoever waits still runs, and the others end by their Commit records.
        Ok(NotRunning { transactions: Vec::new(), as_of: OpId::new(TERM, 0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_transaction_is_whole_over_its_tablets() {
        for (tablets, rows) in [(1, 4), (2, 3), (4, 4), (7, 10), (64, 1)] {
            let history = History { tablets, waiting: 9, transactions: 300, rows };
            let (mut told, mut counted) = (BTreeMap::new(), BTreeMap::<_, u64>::new());
            for tablet in 0..tablets {
                let records: Vec<_> = history.records(tablet).collect();
                let before = &records[..history.records_before(tablet) as usize];
                assert!(matches!(before.last(), Some(Record::SafeTime(_))));
                assert!(!before.iter().any(|record| matches!(record, Record::Commit(_))));
                for record in records {
                    match record {
                        Record::Write(write) if write.transaction.as_ref().unwrap().id[0] != b'w' => {
                            *counted.entry((write.transaction.unwrap().id, History::name(tablet))).or_default() += 1;
                        }
                        Record::Commit(commit) => {
                            let id = commit.transaction.unwrap().id;
                            for involved in commit.involved {
                                told.insert((id.clone(), involved.tablet), involved.records.unwrap());
                            }
                        }
                        _ => {}
                    }
                }
            }
            assert_eq!(told, counted, "{history:?}");
            assert_eq!(told.values().sum::<u64>(), 300 * rows);
        }
    }

    #[tokio::test]
    async fn a_reader_that_begins_anew_is_told_the_same() {
        let universe = Backlog::new(History { tablets: 2, waiting: 3, transactions: 50, rows: 4 });
        assert_eq!(universe.page(0, 0, usize::MAX).len() as u64, universe.history.records_before(0));
        universe.open();
        let whole = universe.page(0, 0, usize::MAX);
        let mut parts = Vec::new();
        while parts.len() < whole.len() {
            parts.extend(universe.page(0, parts.len() as u64, 500));
        }
        assert_eq!(parts, whole);
    }
}
