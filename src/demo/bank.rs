//! The source's own books: what every account holds, held, and holds at any time. This is the oracle of the auditor.

use super::history::{Difference, History};
use crate::limits::DEMO_UNDO_VERSIONS;
use crate::wal::HybridTime;
use std::collections::VecDeque;

/// One account.
#[derive(Clone, Debug, Default)]
struct Account {
    /// Its balance; `None` until the account is opened.
    balance: Option<i64>,
    /// Held by a transaction that is not decided.
    locked: bool,
    history: History,
}

/// What one committed write replaced, and by what.
#[derive(Clone, Copy, Debug)]
struct Undo {
    time: HybridTime,
    account: u32,
    before: Option<i64>,
    after: i64,
}

/// A bank under strict two-phase locking: a transaction locks every account before it reads it and keeps the locks until
/// it is decided, so the order of commit times is a serial order, and the sum never changes after the opening.
#[derive(Debug)]
pub struct Bank {
    accounts: Vec<Account>,
    undo: VecDeque<Undo>,
    /// Everything newer than this time can be undone.
    undo_from: HybridTime,
    committed: HybridTime,
    history_bytes: usize,
}

impl Bank {
    /// A bank of so many accounts, none of them opened.
    #[must_use]
    pub fn new(accounts: u32) -> Self {
        Self {
            accounts: vec![Account::default(); accounts as usize],
            undo: VecDeque::new(),
            undo_from: HybridTime::MIN,
            committed: HybridTime::MIN,
            history_bytes: 0,
        }
    }

    /// Locks an account and says what it holds (0 before it is opened), or `None` if another transaction holds it.
    pub fn lock(&mut self, account: u32) -> Option<i64> {
        let account = self.accounts.get_mut(account as usize)?;
        if std::mem::replace(&mut account.locked, true) {
            return None;
        }
        Some(account.balance.unwrap_or(0))
    }

    /// Gives a lock back without a change.
    pub fn unlock(&mut self, account: u32) {
        if let Some(account) = self.accounts.get_mut(account as usize) {
            account.locked = false;
        }
    }

    /// Commits new balances at a time above every earlier one, and gives the locks back. One entry an account.
    pub fn commit(&mut self, time: HybridTime, balances: impl IntoIterator<Item = (u32, i64)>) {
        debug_assert!(time > self.committed, "commit times rise");
        for (number, balance) in balances {
            let Some(account) = self.accounts.get_mut(number as usize) else { continue };
            debug_assert!(account.locked, "a write without its lock");
            let before = account.balance.replace(balance);
            account.locked = false;
            let bytes = account.history.bytes();
            account.history.push(time, balance);
            self.history_bytes += account.history.bytes() - bytes;
            self.undo.push_back(Undo { time, account: number, before, after: balance });
        }
        self.committed = time;
        while self.undo.len() > DEMO_UNDO_VERSIONS {
            if let Some(undo) = self.undo.pop_front() {
                self.undo_from = undo.time;
            }
        }
    }

    /// The newest commit time.
    #[must_use]
    pub fn committed(&self) -> HybridTime {
        self.committed
    }

    /// What every account held at a time, or `None` if that is too long ago to be told.
    #[must_use]
    pub fn at(&self, time: HybridTime) -> Option<Vec<Option<i64>>> {
        if time < self.undo_from {
            return None;
        }
        let mut balances: Vec<_> = self.accounts.iter().map(|account| account.balance).collect();
        for undo in self.undo.iter().rev().take_while(|undo| undo.time > time) {
            balances[undo.account as usize] = undo.before;
        }
        Some(balances)
    }

    /// Says which transaction a reader sees in part, of accounts that it sees at these balances and times.
    ///
    /// A transaction that is seen on one account must be seen on each of its accounts, or be hidden there by a newer
    /// one. That holds whichever transactions the reader sees, and in whichever order it came to see them.
    #[must_use]
    pub fn seen_in_part(&self, seen: &[Option<(i64, HybridTime)>]) -> Option<String> {
        for (account, version) in seen.iter().enumerate() {
            let Some((balance, time)) = version.filter(|&(_, time)| time > self.undo_from) else { continue };
            let first = self.undo.partition_point(|undo| undo.time < time);
            let writes = || self.undo.range(first..).take_while(|undo| undo.time == time);
            if !writes().any(|write| write.account as usize == account && write.after == balance) {
                return Some(format!("account {account} holds {balance}, which it never did"));
            }
            let misses = |write: &&Undo| seen.get(write.account as usize).is_some_and(|s| s.is_none_or(|s| s.1 < time));
            let (missing, all) = (writes().filter(misses).count(), writes().count());
            if missing > 0 {
                return Some(format!("{} of a transfer's {all} accounts", all - missing));
            }
        }
        None
    }

    /// Bytes that the history takes.
    #[must_use]
    pub fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// Compares an account's history with what the replica holds of it, in any order.
    pub fn compare(&self, account: usize, replica: Vec<(HybridTime, Option<i64>)>, difference: &mut Difference) {
        match self.accounts.get(account) {
            Some(account) => difference.compare(&account.history, replica),
            None => difference.duplicated += replica.len() as u64,
        }
    }

    /// How many accounts there are.
    #[must_use]
    pub fn accounts(&self) -> usize {
        self.accounts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_at_any_time_come_back() {
        let mut bank = Bank::new(3);
        let at = HybridTime::from_u64;
        let mut commit = |time: u64, balances: &[(u32, i64)]| {
            for &(account, _) in balances {
                bank.lock(account).unwrap();
            }
            bank.commit(at(time), balances.iter().copied());
        };
        commit(10, &[(0, 5), (1, 5), (2, 5)]);
        commit(20, &[(0, 4), (1, 6)]);
        commit(30, &[(1, 1), (2, 10)]);
        assert_eq!(bank.at(at(9)), Some(vec![None; 3]));
        assert_eq!(bank.at(at(10)), Some(vec![Some(5); 3]));
        assert_eq!(bank.at(at(29)), Some(vec![Some(4), Some(6), Some(5)]));
        assert_eq!(bank.at(HybridTime::MAX), Some(vec![Some(4), Some(1), Some(10)]));
    }

    #[test]
    fn a_transaction_is_seen_in_part_where_an_account_is_older_than_it() {
        let mut bank = Bank::new(3);
        let at = HybridTime::from_u64;
        for (time, balances) in [(10, &[(0, 5), (1, 5), (2, 5)][..]), (20, &[(0, 4), (1, 6)]), (30, &[(1, 1), (2, 10)])]
        {
            balances.iter().for_each(|&(account, _)| assert!(bank.lock(account).is_some()));
            bank.commit(at(time), balances.iter().copied());
        }
        let part = |seen: [(i64, u64); 3]| bank.seen_in_part(&seen.map(|(balance, time)| Some((balance, at(time)))));
        assert_eq!(part([(5, 10), (5, 10), (5, 10)]), None);
        assert_eq!(part([(4, 20), (1, 30), (10, 30)]), None);
        // The second transaction is not there yet, the third is: whole transactions, although the sum is off.
        assert_eq!(part([(5, 10), (1, 30), (10, 30)]), None);
        assert_eq!(part([(4, 20), (5, 10), (5, 10)]).unwrap(), "1 of a transfer's 2 accounts");
        assert_eq!(part([(4, 20), (1, 30), (5, 10)]).unwrap(), "1 of a transfer's 2 accounts");
        assert_eq!(part([(7, 10), (5, 10), (5, 10)]).unwrap(), "account 0 holds 7, which it never did");
    }

    #[test]
    fn a_locked_account_is_nobody_elses() {
        let mut bank = Bank::new(1);
        assert_eq!(bank.lock(0), Some(0));
        assert_eq!(bank.lock(0), None);
        bank.unlock(0);
        assert_eq!(bank.lock(0), Some(0));
    }

    #[test]
    fn what_was_undone_too_long_ago_is_not_guessed() {
        let mut bank = Bank::new(1);
        for time in 1..=DEMO_UNDO_VERSIONS as u64 + 1 {
            bank.lock(0).unwrap();
            bank.commit(HybridTime::from_u64(time), [(0, time as i64)]);
        }
        assert_eq!(bank.at(HybridTime::from_u64(0)), None);
        assert_eq!(bank.at(HybridTime::from_u64(1)), Some(vec![Some(1)]));
    }
}
