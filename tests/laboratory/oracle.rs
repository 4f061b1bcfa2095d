//! What every read of a replica of the bank must show, whatever happened to it: all accounts with all the money, whole
//! transfers, and at an older time what was shown there before.

use super::postgres_e2e::audit;
use super::support::daemon::Daemon;
use super::trial::{Counts, count};
use std::collections::BTreeMap;

/// Older states that are read again.
const REMEMBERED: usize = 8;

/// What readers have been shown so far.
#[derive(Default)]
pub struct Oracle {
    /// The accounts at a safe time.
    shown: BTreeMap<u64, String>,
}

impl Oracle {
    /// Reads wherever the daemon answers, and judges what it shows.
    pub fn look(&mut self, daemon: &Daemon, servers: usize, counts: &mut Counts) {
        *counts.entry("scans").or_default() += audit(daemon, servers);
        let Some(safe) = daemon.status().and_then(|status| status["safe_time"].as_str()?.parse().ok()) else { return };
        if let Some((newest, _)) = self.shown.last_key_value() {
            assert!(safe >= *newest, "safe time went back from {newest} to {safe}");
        }
        for time in self.shown.keys().copied().chain([safe]).collect::<Vec<_>>() {
            match daemon.scan("public.accounts", &time.to_string(), "csv") {
                Ok(rows) => {
                    let before = self.shown.entry(time).or_insert_with(|| rows.clone());
                    assert_eq!(*before, rows, "at {time} another state is shown than before");
                    count(counts, "scans_of_older_times");
                }
                // It is starting or ending.
                Err(_) if self.shown.contains_key(&time) => count(counts, "older_times_not_shown"),
                Err(_) => {}
            }
        }
        while self.shown.len() > REMEMBERED {
            self.shown.pop_first();
        }
    }
}
