//! Tables without a key against a bag that counts.

use super::crash_tests::{Recorder, S1, TABLE, batch, running, schema};
use crate::tablet::memory::MemoryStore;
use crate::tablet::store::Store;
use crate::tablet::{ApplyBatch, CopyBatch, Decided, ReadPoint, ReadRequest, TabletError, TabletLeader, Turn, Work};
use crate::wal::{
    BranchId, Cell, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row, TableSchema, TransactionId, Write,
    WriteOp,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// How often each row is there.
type Bag = BTreeMap<u8, usize>;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u8),
    /// Left out where no such row is there.
    Remove(u8),
    Truncate,
}

/// What the source held before, and what it committed since.
#[derive(Clone, Debug)]
struct Story {
    copied: Vec<u8>,
    transactions: Vec<Vec<Step>>,
}

fn keyless() -> TableSchema {
    let mut schema = schema();
    schema.columns.iter_mut().for_each(|column| column.key = false);
    schema
}

fn cells(content: u8) -> Vec<Cell> {
    vec![Cell::Text(vec![b'a' + content].into()), Cell::Null]
}

fn content(content: u8) -> Key {
    Key::of_content("a", &keyless().columns, &cells(content))
}

fn row(of: u8) -> Row {
    Row { schema_version: 1, cells: cells(of) }
}

impl Story {
    /// The bag after each transaction, the copied rows first; and the writes of each.
    fn told(&self) -> (Vec<Bag>, Vec<Vec<Write>>) {
        let mut bag = Bag::new();
        self.copied.iter().for_each(|row| *bag.entry(*row).or_default() += 1);
        let (mut bags, mut all) = (vec![bag.clone()], Vec::new());
        for (term, steps) in (1..).zip(&self.transactions) {
            let mut writes = Vec::new();
            for (index, step) in (0..).zip(steps) {
                let (key, op) = match *step {
                    Step::Insert(of) => {
                        *bag.entry(of).or_default() += 1;
                        (content(of).at_place(term, index), WriteOp::Put { row: row(of), fill_from: None })
                    }
                    Step::Remove(of) => match bag.get_mut(&of).filter(|count| **count > 0) {
                        Some(count) => {
                            *count -= 1;
                            (content(of), WriteOp::Delete)
                        }
                        None => continue,
                    },
                    Step::Truncate => {
                        bag.clear();
                        (Key::default(), WriteOp::Truncate)
                    }
                };
                writes.push(Write { at: OpId::new(term, index), table: TABLE, key, op });
            }
            all.push(writes);
            bag.retain(|_, count| *count > 0);
            bags.push(bag.clone());
        }
        (bags, all)
    }

    fn end(&self) -> LogPosition {
        LogPosition(self.transactions.len() as u64 + 1)
    }

    /// Stores what was not stored, decides what was not decided, and copies: whatever a crash left.
    async fn go_on(&self, tablet: &dyn TabletLeader) -> Result<(), TabletError> {
        let held = tablet.announce("log", ReplicaTabletId(1), Epoch(1)).await?;
        let stored = held.marks.first().map_or(0, |mark| mark.stored.term);
        for (term, writes) in (1..).zip(self.told().1).skip(stored as usize) {
            let mut batch = batch(S1, term, writes, None);
            batch.schemas = vec![keyless()];
            tablet.write_provisional(batch).await?;
        }
        let begun = Turn::Begun { base: HybridTime::from_u64(1) };
        let mut work = vec![(1, Work::Turn { stream: S1, table: TABLE, turn: begun })];
        work.extend((1..=self.transactions.len() as u64).map(|term| {
            let branches = vec![BranchId { stream: S1, opened: OpId::new(term, 0) }];
            let (transaction, time) = (TransactionId(term), HybridTime::from_u64(term + 1));
            (term + 1, Work::Commit { transaction, time, branches, tablets: vec![ReplicaTabletId(1)] })
        }));
        apply(tablet, held.heard, self.end(), work).await?;
        let rows: Vec<_> = (0..).zip(&self.copied).map(|(n, of)| (content(*of).at_place(0, n), row(*of))).collect();
        let half = rows.len() / 2;
        for (rows, last) in [(rows[..half].to_vec(), false), (rows[half..].to_vec(), true)] {
            let (stream, owner, base) = (S1, Epoch(1), HybridTime::from_u64(1));
            tablet.copy_rows(CopyBatch { stream, owner, base, last, schema: keyless(), rows }).await?;
        }
        let turn = Turn::Shown { base: HybridTime::from_u64(1), time: HybridTime::from_u64(1) };
        let shown = vec![(self.end().0 + 1, Work::Turn { stream: S1, table: TABLE, turn })];
        apply(tablet, held.heard.max(self.end()), self.end().next(), shown).await
    }
}

async fn apply(
    tablet: &dyn TabletLeader,
    follows: LogPosition,
    through: LogPosition,
    work: Vec<(u64, Work)>,
) -> Result<(), TabletError> {
    if follows >= through {
        return Ok(());
    }
    let decided = |(position, work)| Decided { position: LogPosition(position), work };
    let work = work.into_iter().map(decided).filter(|decided| decided.position > follows).collect();
    let owner = Epoch(1);
    tablet.apply(ApplyBatch { owner, follows, through, safe: None, one_writer: true, work }).await.map(|_| ())
}

async fn bag(tablet: &dyn TabletLeader, position: LogPosition, time: u64) -> Bag {
    let at = ReadPoint { position, time: HybridTime::from_u64(time) };
    let request = ReadRequest { table: TABLE, at, key: None, after: None, history: false, max_bytes: usize::MAX };
    let mut bag = Bag::new();
    for row in tablet.read(request).await.unwrap().rows {
        let Some(Cell::Text(text)) = row.row.unwrap().cells.first().cloned() else { panic!("a text") };
        *bag.entry(text[0] - b'a').or_default() += 1;
    }
    bag
}

fn stories() -> impl Strategy<Value = Story> {
    let step = prop_oneof![
        6 => (0..3_u8).prop_map(Step::Insert),
        6 => (0..3_u8).prop_map(Step::Remove),
        1 => Just(Step::Truncate),
    ];
    let transactions = prop::collection::vec(prop::collection::vec(step, 0..6), 1..7);
    (prop::collection::vec(0..3_u8, 0..8), transactions)
        .prop_map(|(copied, transactions)| Story { copied, transactions })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn every_time_shows_the_bag_of_then(story in stories(), crash in any::<prop::sample::Index>()) {
        let (bags, _) = story.told();
        block_on(async {
            let recorder = Recorder::default();
            story.go_on(&running(recorder.clone())).await.unwrap();
            let batches = recorder.batches.lock().unwrap().clone();
            // The process died after one of its writes, and goes on.
            let store = MemoryStore::default();
            batches[..crash.index(batches.len() + 1)].iter().for_each(|batch| store.write(batch.clone()).unwrap());
            let tablet = running(store);
            story.go_on(&tablet).await.unwrap();
            for (time, expected) in (1..).zip(&bags) {
                assert_eq!(&bag(&tablet, story.end().next(), time).await, expected, "at {time}");
            }
        });
    }
}

#[test]
fn a_removed_row_that_is_not_here_stops_its_stream_until_the_table_is_copied_anew() {
    let story = Story { copied: vec![0], transactions: vec![vec![Step::Remove(0)], vec![]] };
    block_on(async {
        let tablet = running(MemoryStore::default());
        let lacking = Story { copied: vec![], ..story.clone() };
        // The stream removes a row that the copy did not have.
        let (_, writes) = story.told();
        tablet.announce("log", ReplicaTabletId(1), Epoch(1)).await.unwrap();
        let provisional = |term: u64, writes: Vec<Write>| {
            let mut batch = batch(S1, term, writes, None);
            batch.schemas = vec![keyless()];
            tablet.write_provisional(batch)
        };
        provisional(1, writes[0].clone()).await.unwrap();
        provisional(2, writes[1].clone()).await.unwrap();
        lacking.go_on(&tablet).await.unwrap();
        let refused = provisional(3, vec![]).await.unwrap_err().to_string();
        assert!(refused.contains("public.t") && refused.contains("ADD PRIMARY KEY"), "{refused}");
        let begun = Turn::Begun { base: HybridTime::from_u64(9) };
        let (from, upto) = (story.end().next(), story.end().next().next());
        let work = vec![(upto.0, Work::Turn { stream: S1, table: TABLE, turn: begun })];
        apply(&tablet, from, upto, work).await.unwrap();
        provisional(3, vec![]).await.unwrap();
    });
}
