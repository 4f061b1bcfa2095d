//! The auditor: reads all accounts, again and again, and knows what they must add up to.
//!
//! It reads the replica as any reader would, through read points. At `safe` and at older times the sum must be right,
//! and every row must be the source's at that time. At `latest` no order between transactions is promised: a transfer
//! may be seen before an earlier one of the same account, and then the sum is off although every transfer is whole. So
//! there the auditor looks at each transfer: seen on one of its accounts, it must be seen on all.

use super::bank::Bank;
use super::history::Difference;
use super::progress::Progress;
use super::replica::Replica;
use super::workload::OPENING_BALANCE;
use crate::limits::PAGE_BYTES;
use crate::tablet::{ReadPoint, ReadRequest, TabletError, VersionedRow};
use crate::wal::{Cell, HybridTime, Key, TableId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often each of the two readers takes a snapshot: together somewhat above the 50 a second that are promised, and
/// below half a core at about 6 ms of processor time for each. Two, so that waiting for a tablet costs no snapshots.
const EVERY: Duration = Duration::from_millis(32);
/// How far back older times reach, in microseconds.
const OLDER_MICROS: u64 = 2_000_000;

/// What a read point is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Safe time.
    Safe,
    /// Everything decided.
    Latest,
    /// A hybrid time below safe time.
    Older,
}

/// All accounts as one read point shows them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The balance of each account and since when, `None` where there is no row.
    pub accounts: Vec<Option<(i64, HybridTime)>>,
    /// Rows that are no account, or an account's second row.
    pub strange: u64,
}

impl Snapshot {
    fn empty(accounts: usize) -> Self {
        Self { accounts: vec![None; accounts], strange: 0 }
    }

    fn take(&mut self, row: &VersionedRow) {
        match (account(&row.key).and_then(|account| self.accounts.get_mut(account)), balance(row)) {
            (Some(held @ None), Some(balance)) => *held = Some((balance, row.time)),
            _ => self.strange += 1,
        }
    }

    /// Whether any account is there.
    fn is_open(&self) -> bool {
        self.accounts.iter().any(Option::is_some)
    }

    /// Says why no reader may see this: accounts are opened all at once, and nobody else writes rows.
    fn wrong(&self) -> Option<String> {
        if self.strange > 0 {
            return Some(format!("{} rows that the source never had", self.strange));
        }
        let (held, all) = (self.accounts.iter().flatten().count(), self.accounts.len());
        (held != 0 && held != all).then(|| format!("{held} of {all} accounts"))
    }

    /// Says why this is not what the source held at any time: no transfer changes the sum.
    fn wrong_sum(&self) -> Option<String> {
        let expected = self.accounts.len() as i64 * OPENING_BALANCE;
        let sum: i64 = self.accounts.iter().flatten().map(|(balance, _)| balance).sum();
        (self.is_open() && sum != expected).then(|| format!("the accounts hold {sum}, not {expected}"))
    }

    /// Says how this differs from the source's books.
    fn wrong_books(&self, books: &[Option<i64>]) -> Option<String> {
        let ours = self.accounts.iter().map(|account| account.map(|(balance, _)| balance));
        let differ = ours.zip(books).filter(|(ours, books)| ours != *books).count();
        (differ > 0).then(|| format!("{differ} accounts are not as the source had them then"))
    }
}

/// Reads all accounts at a read point, one replica tablet after another, as any reader with a read point may.
///
/// # Errors
/// The first that a tablet answers.
pub async fn read_accounts(
    replica: &dyn Replica,
    table: TableId,
    at: ReadPoint,
    accounts: usize,
) -> Result<Snapshot, TabletError> {
    let mut snapshot = Snapshot::empty(accounts);
    for tablet in 0..replica.tablets() {
        let mut after = None;
        loop {
            let request = ReadRequest { table, at, key: None, after, history: false, max_bytes: PAGE_BYTES };
            let page = replica.read(tablet, request).await?;
            page.rows.iter().for_each(|row| snapshot.take(row));
            after = page.more_after;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(snapshot)
}

/// What a reader must remember between snapshots.
#[derive(Debug, Default)]
pub struct Auditor {
    /// The highest safe time seen: it never goes back.
    safe: HybridTime,
    /// Whether the accounts were seen at `latest`: they never go away again.
    opened: bool,
}

impl Auditor {
    /// Says what is wrong with a snapshot, if anything is.
    pub fn judge(&mut self, kind: Kind, at: ReadPoint, snapshot: &Snapshot, bank: &Mutex<Bank>) -> Option<String> {
        let bank = || bank.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wrong = snapshot.wrong();
        match kind {
            Kind::Latest => {
                let gone = self.opened && !snapshot.is_open();
                self.opened |= snapshot.is_open();
                wrong = wrong.or_else(|| gone.then(|| "the accounts are gone".into()));
                wrong = wrong.or_else(|| bank().seen_in_part(&snapshot.accounts));
            }
            Kind::Safe | Kind::Older => {
                wrong = wrong.or_else(|| snapshot.wrong_sum());
                wrong = wrong.or_else(|| snapshot.wrong_books(&bank().at(at.time)?));
            }
        }
        if kind == Kind::Safe {
            wrong = wrong.or_else(|| (at.time < self.safe).then(|| "safe time went back".into()));
            self.safe = self.safe.max(at.time);
        }
        let place = match kind {
            Kind::Safe => "safe",
            Kind::Latest => "latest",
            Kind::Older => "an older time",
        };
        wrong.map(|wrong| format!("at {place}: {wrong}"))
    }

    /// Reads one snapshot after another, for ever.
    async fn read(mut self, replica: &dyn Replica, table: &str, bank: &Mutex<Bank>, progress: &Progress, seed: u64) {
        let accounts = bank.lock().unwrap_or_else(PoisonError::into_inner).accounts();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for kind in [Kind::Safe, Kind::Latest, Kind::Older, Kind::Latest].into_iter().cycle() {
            ticks.tick().await;
            let (Some(table), Some(latest), Some(safe)) = (replica.table(table), replica.latest(), replica.safe())
            else {
                continue;
            };
            let at = match kind {
                Kind::Safe => safe,
                Kind::Latest => latest,
                Kind::Older => ReadPoint { time: older(safe.time, &mut random), ..safe },
            };
            match read_accounts(replica, table, at, accounts).await {
                Ok(snapshot) => progress.snapshot(self.judge(kind, at, &snapshot, bank)),
                Err(error) => {
                    tracing::debug!(%error, ?kind, "the replica did not answer the auditor");
                    progress.refused();
                }
            }
        }
    }
}

/// Audits for ever.
pub async fn audit(replica: &dyn Replica, table: &str, bank: &Mutex<Bank>, progress: &Progress, seed: u64) {
    tokio::join!(
        Auditor::default().read(replica, table, bank, progress, seed),
        Auditor::default().read(replica, table, bank, progress, !seed),
    );
}

/// A time somewhat below safe time.
fn older(safe: HybridTime, random: &mut SmallRng) -> HybridTime {
    let back = random.random_range(0..OLDER_MICROS).min(safe.micros());
    HybridTime::from_u64(safe.to_u64() - HybridTime::from_micros(back).to_u64())
}

/// Compares the full version history of the replica at a read point with the source's, and the newest rows with the
/// source's books. The second part is whether those rows are equal.
///
/// # Errors
/// The first that a tablet answers.
pub async fn compare(
    replica: &dyn Replica,
    table: Option<TableId>,
    at: ReadPoint,
    bank: &Mutex<Bank>,
) -> Result<(Difference, bool), TabletError> {
    // The source is at rest; its books are not going to change while this reads.
    let accounts = bank.lock().unwrap_or_else(PoisonError::into_inner).accounts();
    let mut compared = vec![false; accounts];
    let mut difference = Difference::default();
    let mut finish = |key: Option<Key>, versions: Vec<(HybridTime, Option<i64>)>| {
        let Some(key) = key else { return };
        match account(&key).filter(|&account| compared.get(account) == Some(&false)) {
            Some(account) => {
                compared[account] = true;
                let bank = bank.lock().unwrap_or_else(PoisonError::into_inner);
                bank.compare(account, versions, &mut difference);
            }
            None => difference.duplicated += versions.len() as u64,
        }
    };
    let mut newest = Snapshot::empty(accounts);
    if let Some(table) = table {
        for tablet in 0..replica.tablets() {
            let (mut after, mut key, mut versions) = (None, None, Vec::new());
            loop {
                let request = ReadRequest { table, at, key: None, after, history: true, max_bytes: PAGE_BYTES };
                let page = replica.read(tablet, request).await?;
                for row in page.rows {
                    if key.as_ref() != Some(&row.key) {
                        finish(key.replace(row.key.clone()), std::mem::take(&mut versions));
                    }
                    versions.push((row.time, balance(&row)));
                }
                after = page.more_after;
                if after.is_none() {
                    break;
                }
            }
            finish(key, versions);
        }
        newest = read_accounts(replica, table, at, accounts).await?;
    }
    let bank = bank.lock().unwrap_or_else(PoisonError::into_inner);
    for account in (0..accounts).filter(|&account| !compared[account]) {
        bank.compare(account, Vec::new(), &mut difference);
    }
    let equal = newest.wrong().is_none() && bank.at(bank.committed()).is_some_and(|b| newest.wrong_books(&b).is_none());
    Ok((difference, equal))
}

/// The account that a key names.
fn account(key: &Key) -> Option<usize> {
    let columns = key.columns()?;
    let [column] = &columns[..] else { return None };
    std::str::from_utf8(column).ok()?.parse().ok()
}

/// The balance in a row of the bank's table.
fn balance(row: &VersionedRow) -> Option<i64> {
    match row.row.as_ref()?.cells.get(1)? {
        Cell::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        Cell::Null | Cell::Unchanged => None,
    }
}
