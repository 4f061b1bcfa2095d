//! Two replicas in a few lines, to show that the auditor sees what it must: one applies whole transactions, one applies
//! what it has as soon as it knows the commit time.

use super::auditor;
use super::bank::Bank;
use super::change::TABLE;
use super::history::Difference;
use super::progress::{Numbers, Progress};
use super::replica::Replica;
use super::universe::Universe;
use super::users;
use super::workload::Workload;
use crate::admin::Inspect;
use crate::admin::explain::Explanation;
use crate::admin::status::Status;
use crate::proto::cdc::{CdcRecord, cdc_record::Record, write::Operation};
use crate::tablet::change_log::{ChangeLog, ReadChanges};
use crate::tablet::{ReadPage, ReadPoint, ReadRequest, TabletError, VersionedRow};
use crate::wal::{Cell, HybridTime, Key, LogPosition, OpId, Row, SourceTabletId, TableId};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

const TABLETS: usize = 3;

#[derive(Default)]
struct Transaction {
    /// By stream, in order.
    writes: Vec<(String, Bytes, Bytes)>,
    /// How many of them were made versions.
    shown: usize,
    applying: HashSet<String>,
    commit: Option<(HybridTime, Vec<String>)>,
}

/// When, decided where, and the balance.
type Version = (HybridTime, LogPosition, Bytes);

#[derive(Default)]
struct Held {
    open: HashMap<Bytes, Transaction>,
    /// By tablet and key.
    versions: [BTreeMap<Bytes, Vec<Version>>; TABLETS],
    safe: BTreeMap<String, HybridTime>,
    position: LogPosition,
}

struct Naive {
    gate: bool,
    held: Mutex<Held>,
    safe_time: watch::Sender<HybridTime>,
}

impl Naive {
    fn take(&self, stream: &str, record: CdcRecord) {
        let mut held = self.held.lock().unwrap();
        let id = match record.record.unwrap() {
            Record::Created(r) => r.transaction,
            Record::Write(r) => {
                let Some(Operation::Put(row)) = r.operation else { panic!("the bank only writes rows") };
                let id = r.transaction.unwrap();
                let transaction = held.open.entry(id.id.clone()).or_default();
                assert!(!transaction.applying.contains(stream), "a write after its Applying record");
                transaction.writes.push((stream.into(), r.key[0].clone(), row.values[1].clone()));
                return;
            }
            Record::Applying(r) => {
                let transaction = held.open.entry(r.transaction.clone().unwrap().id).or_default();
                let written = transaction.writes.iter().filter(|write| write.0 == stream).count() as u64;
                assert_eq!(r.records, Some(written));
                assert!(transaction.applying.insert(stream.into()));
                r.transaction
            }
            Record::Commit(r) => {
                let involved = r.involved.iter().map(|tablet| tablet.tablet.clone()).collect();
                let time = HybridTime::from_u64(r.commit_hybrid_time);
                assert!(held.safe.get(stream).is_none_or(|&safe| time > safe), "a commit below SafeTime");
                held.open.entry(r.transaction.clone().unwrap().id).or_default().commit = Some((time, involved));
                r.transaction
            }
            Record::Aborted(r) => {
                held.open.remove(&r.transaction.unwrap().id);
                return;
            }
            Record::SafeTime(r) => {
                held.safe.insert(stream.into(), HybridTime::from_u64(r.hybrid_time));
                return;
            }
            _ => return,
        };
        self.decide(&mut held, &id.unwrap().id);
    }

    fn decide(&self, held: &mut Held, id: &Bytes) {
        let Some(transaction) = held.open.get_mut(id) else { return };
        let Some((time, involved)) = transaction.commit.clone() else { return };
        let whole = involved.iter().all(|tablet| transaction.applying.contains(tablet));
        if self.gate && !whole {
            return;
        }
        held.position = held.position.next();
        let shown = std::mem::replace(&mut transaction.shown, transaction.writes.len());
        for (_, key, balance) in transaction.writes[shown..].iter().cloned() {
            let tablet = key.last().map_or(0, |&digit| digit as usize) % TABLETS;
            let versions = held.versions[tablet].entry(key).or_default();
            versions.retain(|version| version.0 != time);
            versions.push((time, held.position, balance));
        }
        if whole {
            held.open.remove(id);
        }
    }

    async fn follow(&self, universe: &Universe, streams: usize, stream: &str) {
        let mut after = OpId::ZERO;
        loop {
            let request = ReadChanges {
                tablet: stream.into(),
                reader: "naive".into(),
                after,
                acknowledged: Some(after),
                max_bytes: 1 << 16,
                wait: Duration::from_millis(500),
                need_schemas: false,
            };
            let page = universe.read(request).await.unwrap();
            after = page.upto;
            for record in page.records {
                self.take(stream, record);
            }
            let held = self.held.lock().unwrap();
            if held.safe.len() == streams {
                let safe = held.safe.values().copied().min().unwrap_or_default();
                self.safe_time.send_if_modified(|held| std::mem::replace(held, safe) != safe);
            }
        }
    }
}

#[async_trait]
impl Replica for Naive {
    fn tablets(&self) -> usize {
        TABLETS
    }

    fn table(&self, _: &str) -> Option<TableId> {
        Some(TableId(1))
    }

    fn latest(&self) -> Option<ReadPoint> {
        Some(ReadPoint { position: self.held.lock().unwrap().position, time: HybridTime::MAX })
    }

    fn safe(&self) -> Option<ReadPoint> {
        let time = *self.safe_time.borrow();
        self.latest().filter(|_| time > HybridTime::MIN).map(|latest| ReadPoint { time, ..latest })
    }

    async fn safe_above(&self, time: HybridTime) -> Option<HybridTime> {
        self.safe_time.subscribe().wait_for(|safe| *safe > time).await.ok().map(|safe| *safe)
    }

    async fn read(&self, tablet: usize, request: ReadRequest) -> Result<ReadPage, TabletError> {
        tokio::task::yield_now().await;
        let held = self.held.lock().unwrap();
        let mut rows = Vec::new();
        for (key, versions) in &held.versions[tablet] {
            let mut seen: Vec<_> =
                versions.iter().filter(|v| v.0 <= request.at.time && v.1 <= request.at.position).collect();
            seen.sort_by_key(|version| std::cmp::Reverse(version.0));
            let most = if request.history { usize::MAX } else { 1 };
            rows.extend(seen.into_iter().take(most).map(|(time, position, balance)| VersionedRow {
                key: Key::from_columns([&key[..]]),
                row: Some(Row { schema_version: 1, cells: vec![Cell::Text(key.clone()), Cell::Text(balance.clone())] }),
                time: *time,
                position: *position,
                stream: SourceTabletId(0),
            }));
        }
        Ok(ReadPage { rows, more_after: None })
    }

    async fn status(&self) -> Option<Status> {
        None
    }

    async fn oldest_waiting(&self) -> Option<Explanation> {
        None
    }

    fn inspect(&self) -> Option<Arc<dyn Inspect>> {
        None
    }

    async fn failed(&self) -> String {
        std::future::pending().await
    }

    async fn stop(self) {}
}

/// Runs the bank against a naive replica until enough was seen, and compares the histories at the end.
async fn run(gate: bool) -> (Numbers, Difference, bool) {
    let universe = Universe::new(4, 200, 7);
    let bank = Mutex::new(Bank::new(200));
    let progress = Progress::new().unwrap();
    let naive = Naive { gate, held: Mutex::default(), safe_time: watch::Sender::default() };
    let (stop, stopped) = watch::channel(false);
    let names = universe.names().to_vec();
    let follow = futures::future::join_all(names.iter().map(|name| naive.follow(&universe, 4, name)));
    let main = async {
        let offer = users::offer(Workload::new(4, 200, 7), &universe, &bank, &progress, stopped);
        let enough = async {
            loop {
                let numbers = progress.numbers(false);
                if numbers.visible > 3_000 && numbers.snapshots > 30 && (gate || numbers.torn > 0) {
                    stop.send_replace(true);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::join!(offer, enough);
        let last = bank.lock().unwrap().committed();
        naive.safe_above(last.previous()).await.unwrap();
    };
    tokio::select! {
        () = main => {}
        _ = follow => {}
        () = super::follow(&naive, &progress) => {}
        () = auditor::audit(&naive, TABLE, &bank, &progress, 7) => {}
    }
    let at = naive.safe().unwrap();
    let (difference, equal) = auditor::compare(&naive, naive.table(TABLE), at, &bank).await.unwrap();
    (progress.numbers(false), difference, equal)
}

#[tokio::test]
async fn a_replica_that_applies_whole_transactions_is_never_torn() {
    let (numbers, difference, equal) = run(true).await;
    assert_eq!((numbers.torn, numbers.last_torn), (0, None));
    assert!(difference.is_none() && equal, "{difference:?}");
}

#[tokio::test]
async fn a_replica_that_applies_what_it_has_is_caught() {
    let (numbers, difference, equal) = run(false).await;
    assert!(numbers.torn > 0);
    // It gets there in the end: only readers in between saw parts.
    assert!(difference.is_none() && equal, "{difference:?}");
}

#[tokio::test]
async fn a_lost_and_a_repeated_version_are_found() {
    let universe = Arc::new(Universe::new(1, 3, 1));
    let mut bank = Bank::new(3);
    for (time, account) in [(10, 0), (10, 1), (10, 2), (20, 2)] {
        if bank.lock(account).is_some() {
            bank.commit(HybridTime::from_u64(time + u64::from(account)), [(account, 5)]);
        }
    }
    let naive = Naive { gate: true, held: Mutex::default(), safe_time: watch::Sender::new(HybridTime::MAX) };
    {
        let mut held = naive.held.lock().unwrap();
        for (time, key) in [(10, "0"), (12, "2"), (22, "2"), (22, "2"), (30, "9")] {
            let version = (HybridTime::from_u64(time), LogPosition(0), Bytes::from("5"));
            held.versions[0].entry(Bytes::from(key)).or_default().push(version);
        }
    }
    let bank = Mutex::new(bank);
    let (difference, equal) = auditor::compare(&naive, Some(TableId(1)), naive.safe().unwrap(), &bank).await.unwrap();
    assert_eq!(difference, Difference { lost: 1, duplicated: 2, differing: 0 });
    assert!(!equal);
    drop(universe);
}
