//! The power goes off while tablets store and apply: nothing that they acknowledged is missing afterwards.
//!
//! What counts is what was acknowledged *before* the file system was told to shut down. A shutdown is not quite a power
//! cut: it leaves the processes running, and an `fdatasync` that it overtakes may still return success although the
//! blocks that it allocated never reached the disk. (A plain file shows the same: of 600 cuts, 26 lost the last record
//! that `fdatasync` had returned for, none of them one from before the shutdown; with blocks that were written before,
//! none of 300.) What a disk with a lying cache would lose on top of that is not shown here.
//!
//! `UNTORN_POWER_CUTS` sets the number of cuts.

use super::loop_disk::{Cut, LoopDisk};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use untorn::tablet::{
    ApplyBatch, BranchWrites, Decided, ProvisionalBatch, ReadPoint, ReadRequest, TabletError, TabletLeader, Work,
    embedded, engine::TabletOptions,
};
use untorn::wal::{
    BranchId, Cell, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row, SourceTabletId, TableId,
    TransactionId, Write, WriteOp,
};

const CUTS: u64 = 10;
const TABLETS: [&str; 3] = ["r1", "r2", "r3"];
const STREAMS: u64 = 2;
const OWNER: Epoch = Epoch(1);
const TABLE: TableId = TableId(1);

/// What one tablet acknowledged.
#[derive(Default)]
struct Acknowledged {
    /// The last batch of each stream that is durable.
    stored: [AtomicU64; STREAMS as usize],
    /// The log position up to which decisions are applied durably.
    applied: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Counts {
    stored: [u64; STREAMS as usize],
    applied: u64,
}

impl Acknowledged {
    fn now(&self) -> Counts {
        let stored = [0, 1].map(|stream: usize| self.stored[stream].load(Ordering::SeqCst));
        Counts { stored, applied: self.applied.load(Ordering::SeqCst) }
    }
}

fn stream(number: u64) -> SourceTabletId {
    SourceTabletId(number as u32 + 1)
}

fn branch(of: u64, number: u64) -> BranchId {
    BranchId { stream: stream(of), opened: OpId::new(number, 0) }
}

/// The rows of one batch: of many sizes, so that some span several pages of the journal.
fn rows(of: u64, number: u64) -> Vec<(Key, Row)> {
    let row = |n: u64| {
        let key = Key::from_columns([format!("{of}.{number:08}.{n}").as_bytes()]);
        let value = vec![b'a' + (number % 26) as u8; (number * 7_919 % 9_000) as usize];
        (key, Row { schema_version: 1, cells: vec![Cell::Text(value.into())] })
    };
    (0..number % 4 + 1).map(row).collect()
}

fn batch(of: u64, number: u64) -> ProvisionalBatch {
    let write = |(n, (key, row)): (usize, (Key, Row))| Write {
        at: OpId::new(number, n as u64),
        table: TABLE,
        key,
        op: WriteOp::Put { row, fill_from: None },
    };
    let writes = rows(of, number).into_iter().enumerate().map(write).collect();
    ProvisionalBatch {
        stream: stream(of),
        owner: OWNER,
        puller: Epoch(1),
        follows: if number == 1 { OpId::ZERO } else { OpId::end_of_term(number - 1) },
        upto: OpId::end_of_term(number),
        schemas: vec![],
        branches: vec![BranchWrites { branch: branch(of, number), writes, adopt: None }],
        rolled_back: Vec::new(),
        report_conflicts: false,
    }
}

/// Position `p` decides batch `(p + 1) / 2` of stream `(p + 1) % 2`.
fn decided(position: u64) -> (u64, u64) {
    ((position + 1) % STREAMS, position.div_ceil(STREAMS))
}

fn decisions(follows: u64, through: u64) -> ApplyBatch {
    let commit = |position| {
        let (of, number) = decided(position);
        let (transaction, time) = (TransactionId(position), HybridTime::from_u64(position));
        let work = Work::Commit { transaction, time, branches: vec![branch(of, number)], tablets: vec![] };
        Decided { position: LogPosition(position), work }
    };
    ApplyBatch {
        owner: OWNER,
        follows: LogPosition(follows),
        through: LogPosition(through),
        safe: Some(ReadPoint { position: LogPosition(follows), time: HybridTime::from_u64(follows) }),
        one_writer: false,
        work: (follows + 1..=through).map(commit).collect(),
    }
}

/// Stores batches of one stream until the storage fails.
async fn store(tablet: Arc<dyn TabletLeader>, of: u64, acknowledged: Arc<Acknowledged>) {
    let stored = &acknowledged.stored[of as usize];
    loop {
        let next = stored.load(Ordering::SeqCst) + 1;
        match tablet.write_provisional(batch(of, next)).await {
            Ok(_) => stored.store(next, Ordering::SeqCst),
            Err(TabletError::Poisoned(_)) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Applies what both streams have stored until the storage fails.
async fn apply(tablet: Arc<dyn TabletLeader>, acknowledged: Arc<Acknowledged>) {
    let mut heard = acknowledged.applied.load(Ordering::SeqCst);
    loop {
        let stored = acknowledged.now().stored;
        let through = stored[0].min(stored[1]) * STREAMS;
        let result = match tablet.apply(decisions(heard, through.max(heard))).await {
            Ok(_) => tablet.sync().await,
            Err(error) => Err(error),
        };
        match result {
            Ok(applied) => acknowledged.applied.store(applied.applied.0, Ordering::SeqCst),
            Err(TabletError::Poisoned(_)) => return,
            Err(other) => panic!("{other}"),
        }
        heard = through.max(heard);
    }
}

/// What a tablet holds after the power came back, every row of it checked.
async fn found(tablet: &dyn TabletLeader, number: u32) -> Counts {
    let announced = tablet.announce("log", ReplicaTabletId(number), OWNER).await.unwrap();
    let mut stored = [0; STREAMS as usize];
    for mark in announced.marks {
        stored[mark.stream.0 as usize - 1] = mark.stored.term;
    }
    let counts = Counts { stored, applied: announced.applied.0 };
    // The rest is decided now, so that every write that is held becomes a row.
    let through = stored[0].min(stored[1]) * STREAMS;
    assert!(through >= counts.applied, "decisions were applied whose writes are gone: {counts:?}");
    tablet.apply(decisions(counts.applied, through)).await.unwrap();
    let at = ReadPoint { position: LogPosition(through), time: HybridTime::MAX };
    let mut request = ReadRequest { table: TABLE, at, key: None, after: None, history: true, max_bytes: 1 << 20 };
    let mut held = Vec::new();
    loop {
        let page = tablet.read(request.clone()).await.unwrap();
        held.extend(page.rows.into_iter().map(|row| (row.key, row.row.unwrap())));
        request.after = page.more_after;
        if request.after.is_none() {
            break;
        }
    }
    let mut expected: Vec<_> =
        (1..=through).flat_map(|position| rows(decided(position).0, decided(position).1)).collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(held == expected, "{} rows are held, {} were stored", held.len(), expected.len());
    counts
}

fn opened(folder: &Path) -> (Vec<Arc<dyn TabletLeader>>, Vec<std::thread::JoinHandle<()>>) {
    let (engines, workers) = embedded::open(folder, &TABLETS, TabletOptions::default()).unwrap();
    let threads = workers.into_iter().map(|worker| std::thread::spawn(|| worker.run())).collect();
    (engines.into_iter().map(|engine| Arc::new(engine) as Arc<dyn TabletLeader>).collect(), threads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tablets_keep_what_they_acknowledged() {
    cut_power(0, std::env::var("UNTORN_POWER_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap())).await;
}

/// Cuts the power so often; the seed says when.
pub(crate) async fn cut_power(seed: u64, cuts: u64) {
    let disk = LoopDisk::new(2 << 30);
    let folder = disk.mounted.join("tablets");
    let mut before = Vec::new();
    let overtaken = Mutex::new(0);
    let mut all_before: Vec<Counts> = vec![Counts { stored: [0; 2], applied: 0 }; TABLETS.len()];
    let mut all_after = all_before.clone();
    for cut in 0..=cuts {
        let (tablets, threads) = opened(&folder);
        let mut acknowledged = Vec::new();
        for (number, tablet) in tablets.iter().enumerate() {
            let counts = found(tablet.as_ref(), number as u32).await;
            let (old, late) = (all_before[number], all_after[number]);
            for of in 0..STREAMS as usize {
                assert!(counts.stored[of] >= old.stored[of], "cut {cut}: {counts:?}, acknowledged {old:?}");
            }
            assert!(counts.applied >= old.applied, "cut {cut}: {counts:?}, acknowledged {old:?}");
            let lost_late = (0..2).any(|of| counts.stored[of] < late.stored[of]) || counts.applied < late.applied;
            *overtaken.lock().unwrap() += u64::from(lost_late);
            let now = Acknowledged::default();
            (0..2).for_each(|of| now.stored[of].store(counts.stored[of], Ordering::SeqCst));
            let heard = tablet.sync().await.unwrap().heard;
            now.applied.store(heard.0, Ordering::SeqCst);
            acknowledged.push(Arc::new(now));
        }
        if cut == cuts {
            break;
        }
        let switch = disk.power_switch(if cut % 2 == 0 { Cut::NothingFlushed } else { Cut::JournalFlushed });
        let mut tasks = tokio::task::JoinSet::new();
        for (tablet, acknowledged) in tablets.into_iter().zip(&acknowledged) {
            (0..STREAMS).for_each(|of| drop(tasks.spawn(store(Arc::clone(&tablet), of, Arc::clone(acknowledged)))));
            tasks.spawn(apply(tablet, Arc::clone(acknowledged)));
        }
        tokio::time::sleep(Duration::from_millis((seed + cut) * 37 % 90)).await;
        before.clear();
        before.extend(acknowledged.iter().map(|acknowledged| acknowledged.now()));
        switch.cut();
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        all_before.clone_from(&before);
        all_after = acknowledged.iter().map(|acknowledged| acknowledged.now()).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        disk.mount_again();
    }
    let overtaken = overtaken.into_inner().unwrap();
    println!("{cuts} cuts, nothing lost of {all_before:?}; {overtaken} tablets had acknowledged more during a cut");
}
