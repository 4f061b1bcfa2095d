//! A source universe for `untorn tablet` processes: a little leader that decides transactions of its own and carries
//! them to four tablets over `TabletService`, as an applier's executors do. Their WALs are then what is replicated.

use rand::Rng;
use rand::seq::index;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use untorn::access::Address;
use untorn::tablet::grpc::GrpcTablet;
use untorn::tablet::{
    ApplyBatch, BranchWrites, Decided, ProvisionalBatch, ReadPoint, ReadRequest, TabletError, TabletLeader, Work,
};
use untorn::wal::{
    BranchId, Cell, Column, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row, SourceTabletId, TableId,
    TableSchema, TransactionId, Write, WriteOp,
};

pub const TABLE: &str = "public.accounts";
pub const ACCOUNTS: usize = 60;
pub const TABLETS: usize = 4;
const OPENING_BALANCE: i64 = 1_000;
/// The sum of all balances, at every point of the history.
pub const TOTAL: i64 = ACCOUNTS as i64 * OPENING_BALANCE;
/// The one stream by which the leader writes to its tablets, and its epochs.
const STREAM: SourceTabletId = SourceTabletId(0);
const EPOCH: Epoch = Epoch(1);
/// Positions that a transaction may use.
const POSITIONS: u64 = 1_000;
/// Transactions in one batch.
const BATCH: usize = 32;

/// Which tablet holds an account.
pub fn home(account: usize) -> usize {
    account % TABLETS
}

/// A committed transaction. Its number, from 1, is its position in the source's log.
#[derive(Clone)]
pub struct Transaction {
    pub number: u64,
    pub time: HybridTime,
    /// The balances after it.
    pub writes: BTreeMap<usize, i64>,
}

impl Transaction {
    fn tablets(&self) -> Vec<ReplicaTabletId> {
        let homes: BTreeSet<_> = self.writes.keys().map(|account| home(*account)).collect();
        homes.into_iter().map(|tablet| ReplicaTabletId(tablet as u32)).collect()
    }

    fn branch(&self) -> BranchId {
        BranchId { stream: STREAM, opened: OpId::new(1, self.number * POSITIONS) }
    }

    /// Its writes to one tablet.
    fn writes_to(&self, tablet: usize) -> Vec<Write> {
        let here = self.writes.iter().filter(|(account, _)| home(**account) == tablet);
        let text = |value: i64| Cell::Text(value.to_string().into());
        let write = |(place, (account, balance)): (u64, (&usize, &i64))| Write {
            at: OpId::new(1, self.number * POSITIONS + place),
            table: TableId(1),
            key: key(*account),
            op: WriteOp::Put {
                row: Row { schema_version: 1, cells: vec![text(*account as i64), text(*balance)] },
                fill_from: None,
            },
        };
        (0..).zip(here).map(write).collect()
    }
}

fn key(account: usize) -> Key {
    Key::from_columns([account.to_string().as_bytes()])
}

fn schema() -> TableSchema {
    let column = |name: &str, key: bool| Column { name: name.into(), type_name: "int8".into(), key };
    TableSchema {
        table: TableId(1),
        name: TABLE.into(),
        version: 1,
        columns: vec![column("id", true), column("balance", false)],
    }
}

/// Everything that the source ever committed.
pub struct History {
    committed: Mutex<Vec<Transaction>>,
    grown: watch::Sender<usize>,
}

impl History {
    /// The transactions so far.
    pub fn committed(&self) -> Vec<Transaction> {
        self.committed.lock().unwrap().clone()
    }

    /// When the newest was committed.
    pub fn end(&self) -> HybridTime {
        self.committed.lock().unwrap().last().map_or(HybridTime::MIN, |last| last.time)
    }

    /// The balances at a time.
    pub fn at(&self, time: HybridTime) -> BTreeMap<usize, i64> {
        let committed = self.committed.lock().unwrap();
        let mut balances = BTreeMap::new();
        committed.iter().take_while(|one| one.time <= time).for_each(|one| balances.extend(one.writes.clone()));
        balances
    }

    /// The accounts that the transaction of this time wrote.
    pub fn written_at(&self, time: HybridTime) -> Option<Vec<usize>> {
        let committed = self.committed.lock().unwrap();
        let place = committed.binary_search_by_key(&time, |one| one.time).ok()?;
        Some(committed[place].writes.keys().copied().collect())
    }

    /// Every version of every account.
    pub fn versions(&self) -> BTreeMap<(usize, HybridTime), i64> {
        let committed = self.committed.lock().unwrap();
        let versions = |one: &Transaction| {
            let time = one.time;
            one.writes.iter().map(move |(account, balance)| ((*account, time), *balance)).collect::<Vec<_>>()
        };
        committed.iter().flat_map(versions).collect()
    }

    fn commit(&self, writes: BTreeMap<usize, i64>) {
        let mut committed = self.committed.lock().unwrap();
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        let last = committed.last().map_or(HybridTime::MIN, |last| last.time);
        let time = HybridTime::from_micros(micros).max(last.next());
        let number = committed.len() as u64 + 1;
        committed.push(Transaction { number, time, writes });
        self.grown.send_replace(committed.len());
    }

    fn after(&self, position: LogPosition) -> Vec<Transaction> {
        let committed = self.committed.lock().unwrap();
        committed.iter().skip(position.0 as usize).take(BATCH).cloned().collect()
    }
}

/// The running source universe.
pub struct Upstream {
    pub history: Arc<History>,
    paused: Arc<Mutex<bool>>,
    addresses: Vec<Address>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    /// Starts to commit, and to carry what is committed to the tablets, the one called `tablet-N` to address N.
    pub fn start(addresses: Vec<Address>) -> Self {
        let history = Arc::new(History { committed: Mutex::default(), grown: watch::Sender::new(0) });
        history.commit((0..ACCOUNTS).map(|account| (account, OPENING_BALANCE)).collect());
        let paused = Arc::new(Mutex::new(false));
        let mut tasks = JoinSet::new();
        tasks.spawn(work(Arc::clone(&history), Arc::clone(&paused)));
        for (tablet, address) in addresses.iter().enumerate() {
            tasks.spawn(carry(Arc::clone(&history), tablet, address.clone()));
        }
        Self { history, paused, addresses, _tasks: tasks }
    }

    /// Commits nothing more from here on until it is called with `false`.
    pub fn pause(&self, paused: bool) {
        *self.paused.lock().unwrap() = paused;
    }

    /// Every version that the source's tablets hold, once they have heard everything that was committed.
    pub async fn stored(&self) -> BTreeMap<(usize, HybridTime), i64> {
        let mut versions = BTreeMap::new();
        let end = LogPosition(self.history.committed().len() as u64);
        for (tablet, address) in self.addresses.iter().enumerate() {
            let reached = GrpcTablet::new(address.clone(), &name(tablet)).unwrap();
            let at = ReadPoint { position: end, time: HybridTime::MAX };
            for (account, time, balance) in history_of(&reached, TableId(1), at).await {
                assert_eq!(versions.insert((account, time), balance), None, "a version is there twice");
            }
        }
        versions
    }
}

/// The source tablet's name at its server.
pub fn name(tablet: usize) -> String {
    format!("tablet-{tablet}")
}

/// Every version of a table's rows at one tablet: account, time, balance.
pub async fn history_of(tablet: &GrpcTablet, table: TableId, at: ReadPoint) -> Vec<(usize, HybridTime, i64)> {
    let mut versions = Vec::new();
    let mut after = None;
    loop {
        let request = ReadRequest { table, at, key: None, after, history: true, max_bytes: 1 << 20 };
        let page = tablet.read(request).await.unwrap();
        for row in page.rows {
            let cells = row.row.expect("nothing is deleted").cells;
            let number = |cell: &Cell| match cell {
                Cell::Text(text) => std::str::from_utf8(text).unwrap().parse::<i64>().unwrap(),
                other => panic!("{other:?} is no number"),
            };
            versions.push((number(&cells[0]) as usize, row.time, number(&cells[1])));
        }
        after = page.more_after;
        if after.is_none() {
            return versions;
        }
    }
}

/// Moves money between two to four accounts, which live on one to four tablets, again and again.
async fn work(history: Arc<History>, paused: Arc<Mutex<bool>>) {
    let mut balances = history.at(HybridTime::MAX);
    loop {
        let rest = {
            let mut rng = rand::rng();
            // Held while it commits: nothing is committed once `pause` has returned.
            let paused = paused.lock().unwrap();
            if !*paused {
                let count = rng.random_range(2..=4);
                let accounts = index::sample(&mut rng, ACCOUNTS, count).into_vec();
                let mut writes = BTreeMap::new();
                for pair in accounts.windows(2) {
                    let amount = rng.random_range(1..50);
                    for (account, change) in [(pair[0], -amount), (pair[1], amount)] {
                        let balance = balances.get_mut(&account).unwrap();
                        *balance += change;
                        writes.insert(account, *balance);
                    }
                }
                history.commit(writes);
            }
            Duration::from_millis(rng.random_range(4..16))
        };
        sleep(rest).await;
    }
}

/// Carries everything to one tablet, whatever happens to it.
async fn carry(history: Arc<History>, tablet: usize, address: Address) {
    let leader = GrpcTablet::new(address, &name(tablet)).unwrap();
    loop {
        match session(&history, tablet, &leader).await {
            Ok(()) => unreachable!("a session ends only by an error"),
            Err(TabletError::Indeterminate(_)) => sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("source tablet {tablet}: {error}"),
        }
    }
}

async fn session(history: &History, tablet: usize, leader: &GrpcTablet) -> Result<(), TabletError> {
    let mut heard = leader.announce("upstream", ReplicaTabletId(tablet as u32), EPOCH).await?.heard;
    let mut mark = leader.announce_puller(STREAM, EPOCH, EPOCH).await?.stored;
    let mut grown = history.grown.subscribe();
    loop {
        let run = history.after(heard);
        let Some(last) = run.last() else {
            let _ = grown.changed().await;
            continue;
        };
        let upto = OpId::new(1, last.number * POSITIONS + POSITIONS - 1);
        let here: Vec<_> = run.iter().filter(|one| !one.writes_to(tablet).is_empty()).collect();
        let branches = here.iter().filter(|one| one.branch().opened > mark);
        let branches: Vec<_> = branches
            .map(|one| BranchWrites { branch: one.branch(), writes: one.writes_to(tablet), adopt: None })
            .collect();
        if upto > mark {
            let batch = ProvisionalBatch {
                stream: STREAM,
                owner: EPOCH,
                puller: EPOCH,
                follows: mark,
                upto,
                schemas: vec![schema()],
                branches,
                rolled_back: Vec::new(),
                report_conflicts: false,
            };
            match leader.write_provisional(batch).await {
                Ok(stored) => mark = stored.mark,
                Err(TabletError::OutOfOrder { held, .. }) => {
                    mark = held;
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        let work = here.iter().map(|one| Decided {
            position: LogPosition(one.number),
            work: Work::Commit {
                transaction: TransactionId(one.number),
                time: one.time,
                branches: vec![one.branch()],
                tablets: one.tablets(),
            },
        });
        let batch = ApplyBatch {
            owner: EPOCH,
            follows: heard,
            through: LogPosition(last.number),
            safe: Some(ReadPoint { position: LogPosition(last.number), time: last.time }),
            one_writer: false,
            work: work.collect(),
        };
        match leader.apply(batch).await {
            Ok(applied) => heard = applied.heard,
            Err(TabletError::HeardOther { heard: held, .. }) => heard = held,
            Err(error) => return Err(error),
        }
    }
}
