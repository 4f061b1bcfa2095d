//! The source's users: transfers between accounts, as many as the pipeline takes.
//!
//! Most transfers touch four accounts on two to four tablets. Some stay on one tablet, some write an account twice,
//! some are aborted, and some stay open for a good part of a second while the others go on around them. All records of
//! a step go to the WALs together, so a step is also what a SafeTime record closes.

use super::bank::Bank;
use super::change::{Change, Number};
use super::universe::{HybridClock, Step};
use crate::wal::HybridTime;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use smallvec::SmallVec;

/// What every account is opened with.
pub const OPENING_BALANCE: i64 = 1_000;
/// Transfers that are open at once besides the long ones, so that records of several interleave in every stream.
const OPEN: usize = 8;
/// Long transfers at once. They hold locks, and safe time does not wait for them.
const LONG_MAX: usize = 8;
/// Of a thousand transfers: how many are aborted, are long, write one account twice, or stay on one tablet.
const ABORTED: u32 = 30;
const LONG: u32 = 2;
const TWICE: u32 = 10;
const ONE_TABLET: u32 = 200;

/// One write of a transfer.
#[derive(Clone, Copy, Debug)]
struct Planned {
    account: u32,
    balance: i64,
}

/// A transfer that is not decided.
#[derive(Debug)]
struct Open {
    number: Number,
    /// The tablet that carries its Created and its Commit or Aborted record: that of its first write.
    home: usize,
    /// All its writes in order; an account may stand here twice.
    writes: SmallVec<[Planned; 5]>,
    /// How many of them are in the WALs.
    written: usize,
    aborts: bool,
    /// Tablets that carried their Applying record early, before the commit.
    applying: SmallVec<[usize; 4]>,
}

/// The generator: pure, seeded, and cheap. It changes the bank and fills steps.
pub struct Workload {
    random: SmallRng,
    clock: HybridClock,
    tablets: usize,
    accounts: u32,
    next: Number,
    open: Vec<Open>,
    /// Long transfers, each with when it ends.
    long: Vec<(HybridTime, Open)>,
}

/// A transaction that a step committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// When.
    pub time: HybridTime,
    /// How many writes its Commit record counts.
    pub rows: u32,
}

impl Workload {
    /// A workload over a universe of so many tablets and accounts.
    #[must_use]
    pub fn new(tablets: u16, accounts: u32, seed: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            clock: HybridClock::default(),
            tablets: tablets.into(),
            accounts,
            next: 0,
            open: Vec::with_capacity(OPEN),
            long: Vec::with_capacity(LONG_MAX),
        }
    }

    /// The first transaction: it opens every account. One transaction, so that a replica shows all accounts or none.
    pub fn opening(&mut self, bank: &mut Bank, step: &mut Step) -> Committed {
        let writes: SmallVec<[Planned; 5]> = (0..self.accounts)
            .filter(|&account| bank.lock(account).is_some())
            .map(|account| Planned { account, balance: OPENING_BALANCE })
            .collect();
        let open = self.begin(writes, false, step);
        let committed = self.commit(open, bank, step);
        self.safe_time(step);
        committed
    }

    /// One step: about `commits` transfers commit, long ones end whose time has come, and every tablet gets a SafeTime
    /// record. With `commits` at 0 it is the sign of life of an idle source.
    pub fn step(&mut self, commits: usize, bank: &mut Bank, step: &mut Step, committed: &mut Vec<Committed>) {
        let now = self.clock.tick();
        while let Some(index) = self.long.iter().position(|(until, _)| *until <= now) {
            let (_, open) = self.long.swap_remove(index);
            committed.extend(self.end(open, bank, step));
        }
        for _ in 0..commits {
            self.begin_transfer(bank, step, now);
            if self.open.len() >= OPEN {
                let open = self.open.swap_remove(self.random.random_range(0..OPEN));
                committed.extend(self.end(open, bank, step));
            }
        }
        self.safe_time(step);
    }

    /// Ends everything that is open.
    pub fn finish(&mut self, bank: &mut Bank, step: &mut Step, committed: &mut Vec<Committed>) {
        let long = self.long.drain(..).map(|(_, open)| open);
        let open: Vec<_> = self.open.drain(..).chain(long).collect();
        for open in open {
            committed.extend(self.end(open, bank, step));
        }
        self.safe_time(step);
    }

    /// Every tablet has carried all that was committed up to now: true, because a step's records go to the WALs together
    /// and the clock never gives this time again.
    fn safe_time(&mut self, step: &mut Step) {
        let time = self.clock.tick();
        for records in &mut step.records {
            records.push(Change::SafeTime(time));
        }
    }

    fn tablet(&self, account: u32) -> usize {
        account as usize % self.tablets
    }

    fn chance(&mut self, of_a_thousand: u32) -> bool {
        self.random.random_range(0..1_000) < of_a_thousand
    }

    /// Locks accounts, moves money between them, and begins the transfer. Accounts that others hold are passed over; a
    /// transfer that finds fewer than two does not begin.
    fn begin_transfer(&mut self, bank: &mut Bank, step: &mut Step, now: HybridTime) {
        let wanted = if self.chance(ONE_TABLET) { 2 } else { 4 };
        let mut home: Option<usize> = None;
        let mut held: SmallVec<[(u32, i64); 4]> = SmallVec::new();
        for _ in 0..wanted * 2 {
            let mut account = self.random.random_range(0..self.accounts);
            if wanted == 2
                && let Some(home) = home
            {
                // The nearest account below on the same tablet.
                account = account - account % self.tablets as u32 + home as u32;
            }
            if account < self.accounts
                && let Some(balance) = bank.lock(account)
            {
                home.get_or_insert(self.tablet(account));
                held.push((account, balance));
            }
            if held.len() == wanted {
                break;
            }
        }
        let (pairs, spare) = held.as_chunks_mut::<2>();
        for (account, _) in spare {
            bank.unlock(*account);
        }
        if pairs.is_empty() {
            return;
        }
        let mut writes: SmallVec<[Planned; 5]> = SmallVec::new();
        for [from, to] in pairs {
            let amount = self.random.random_range(0..=from.1.min(100));
            from.1 -= amount;
            to.1 += amount;
            writes.extend([from, to].map(|&mut (account, balance)| Planned { account, balance }));
        }
        if self.chance(TWICE) {
            // Its first write is not what stands in the end.
            let first = Planned { balance: writes[0].balance + 1, ..writes[0] };
            writes.insert(0, first);
        }
        let long = self.long.len() < LONG_MAX && self.chance(LONG);
        let aborts = self.chance(ABORTED);
        let mut open = self.begin(writes, aborts, step);
        if long {
            self.write(&mut open, usize::MAX, step);
            let last = self.tablet(open.writes[open.writes.len() - 1].account);
            if last != open.home {
                self.applying(&mut open, last, step);
            }
            step.records[open.home].push(Change::Pending(open.number));
            let until = HybridTime::from_micros(now.micros() + self.random.random_range(50_000..500_000));
            self.long.push((until, open));
        } else {
            self.open.push(open);
        }
    }

    /// Writes a Created record and the first half of the writes.
    fn begin(&mut self, writes: SmallVec<[Planned; 5]>, aborts: bool, step: &mut Step) -> Open {
        self.next += 1;
        let home = writes.first().map_or(0, |write| self.tablet(write.account));
        step.records[home].push(Change::Created(self.next));
        step.began.push(self.next);
        let half = writes.len() / 2;
        let mut open = Open { number: self.next, home, writes, written: 0, aborts, applying: SmallVec::new() };
        self.write(&mut open, half, step);
        open
    }

    /// Writes up to so many of the outstanding writes.
    fn write(&self, open: &mut Open, most: usize, step: &mut Step) {
        for write in open.writes.iter().skip(open.written).take(most) {
            step.records[self.tablet(write.account)].push(Change::Write {
                transaction: open.number,
                account: write.account,
                balance: write.balance,
            });
            open.written += 1;
        }
    }

    /// Writes a tablet's Applying record, once.
    fn applying(&self, open: &mut Open, tablet: usize, step: &mut Step) {
        if open.applying.contains(&tablet) {
            return;
        }
        let records = open.writes.iter().filter(|write| self.tablet(write.account) == tablet).count() as u32;
        step.records[tablet].push(Change::Applying { transaction: open.number, records });
        open.applying.push(tablet);
    }

    fn end(&mut self, mut open: Open, bank: &mut Bank, step: &mut Step) -> Option<Committed> {
        if !open.aborts {
            return Some(self.commit(open, bank, step));
        }
        // An aborted transfer may leave writes out.
        let most = self.random.random_range(0..=open.writes.len());
        self.write(&mut open, most, step);
        step.records[open.home].push(Change::Aborted(open.number));
        step.ended.push(open.number);
        open.writes.iter().for_each(|write| bank.unlock(write.account));
        None
    }

    /// Writes what is outstanding, then the Commit record and the Applying records in any order.
    fn commit(&mut self, mut open: Open, bank: &mut Bank, step: &mut Step) -> Committed {
        self.write(&mut open, usize::MAX, step);
        let mut involved: SmallVec<[(u16, u16); 4]> = SmallVec::new();
        let mut last: SmallVec<[(u32, i64); 5]> = SmallVec::new();
        for write in &open.writes {
            let tablet = self.tablet(write.account) as u16;
            match involved.iter_mut().find(|(held, _)| *held == tablet) {
                Some((_, records)) => *records += 1,
                None => involved.push((tablet, 1)),
            }
            // Only the first account of a transfer is ever written twice, and then at once.
            match last.last_mut().filter(|(account, _)| *account == write.account) {
                Some((_, balance)) => *balance = write.balance,
                None => last.push((write.account, write.balance)),
            }
        }
        involved.shuffle(&mut self.random);
        let time = self.clock.tick();
        let commit_after = self.random.random_range(0..=involved.len());
        for index in 0..=involved.len() {
            if index == commit_after {
                let (transaction, involved) = (open.number, involved.clone());
                step.records[open.home].push(Change::Commit { transaction, time, involved });
            }
            if let Some(&(tablet, _)) = involved.get(index) {
                self.applying(&mut open, tablet.into(), step);
            }
        }
        step.ended.push(open.number);
        bank.commit(time, last);
        Committed { time, rows: open.writes.len() as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn every_kind_of_transfer_ends_once_and_leaves_the_sum() {
        let (mut bank, mut workload, mut step) = (Bank::new(400), Workload::new(4, 400, 3), Step::new(4));
        let mut committed = vec![workload.opening(&mut bank, &mut step)];
        for _ in 0..200 {
            workload.step(64, &mut bank, &mut step, &mut committed);
        }
        workload.finish(&mut bank, &mut step, &mut committed);

        let (mut began, mut ended, mut widths) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::<usize, u32>::new());
        let (mut aborted, mut long, mut rows) = (0, 0, 0);
        for change in step.records.iter().flatten() {
            match change {
                Change::Created(number) => assert!(began.insert(*number), "{number} begins once"),
                Change::Pending(_) => long += 1,
                Change::Aborted(number) => {
                    aborted += 1;
                    assert_eq!(ended.insert(*number, false), None, "{number} ends once");
                }
                Change::Commit { transaction, involved, .. } => {
                    *widths.entry(involved.len()).or_default() += 1;
                    rows += involved.iter().map(|(_, records)| u32::from(*records)).sum::<u32>();
                    assert_eq!(ended.insert(*transaction, true), None, "{transaction} ends once");
                }
                _ => {}
            }
        }
        assert_eq!(began, ended.keys().copied().collect());
        assert_eq!(committed.len(), ended.values().filter(|&&commits| commits).count());
        assert_eq!(rows, committed.iter().map(|transaction| transaction.rows).sum::<u32>());
        assert_eq!(widths.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(aborted > 0 && long > 0, "{aborted} aborted, {long} long");
        assert!(committed.is_sorted_by(|a, b| a.time < b.time), "commit times rise");

        let balances = bank.at(bank.committed()).unwrap();
        assert_eq!(balances.iter().flatten().sum::<i64>(), 400 * OPENING_BALANCE);
        assert!(balances.iter().flatten().all(|&balance| balance >= 0));
        assert!((0..400).all(|account| bank.lock(account).is_some()), "no lock is left");
    }
}
