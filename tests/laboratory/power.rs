//! `power`: the power goes off (`EXT4_IOC_SHUTDOWN` on a loop-mounted ext4, both flags) while a log is appended to, while
//! tablets store and apply, and while the whole daemon replicates, in a fifth of the cuts right after a `kill -9`. Nothing
//! that was acknowledged, to whomever, is missing afterwards.

use super::loop_disk::{Cut, LoopDisk};
use super::oracle::Oracle;
use super::postgres_e2e::{Tellers, bank};
use super::report::{Options, Report};
use super::support::daemon::{Daemon, source_of};
use super::support::tables::until_equal;
use super::trial::{self, Counts, count};
use super::{power_cut, power_cut_tablet};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use tokio::time::sleep;

/// Cuts in CI.
const CUTS: u64 = 40;
/// Cuts of one disk.
const OF_ONE: u64 = 10;

/// Runs it.
pub fn run(options: &Options) -> Report {
    trial::each(options, options.n.unwrap_or(CUTS), OF_ONE, one_disk)
}

async fn one_disk(seed: u64, cuts: u64, counts: &mut Counts) {
    let what = ["cuts_of_sled", "cuts_of_sqlite", "cuts_of_tablets", "cuts_of_the_daemon"][(seed % 4) as usize];
    match seed % 4 {
        0 => power_cut::cut_power("sled", seed, cuts).await,
        1 => power_cut::cut_power("sqlite", seed, cuts).await,
        2 => power_cut_tablet::cut_power(seed, cuts).await,
        _ => the_daemon(seed, cuts, counts).await,
    }
    *counts.entry(what).or_default() += cuts;
}

async fn the_daemon(seed: u64, cuts: u64, counts: &mut Counts) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let bank = bank(2, 500).await;
    let disk = LoopDisk::new(512 << 20);
    let log = ["sled", "sqlite"][(seed / 4 % 2) as usize];
    let mut daemon = Daemon::new(&format!("{}[log]\nkind = \"{log}\"\n", source_of(&bank)));
    let data = disk.mounted.join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(&data, daemon.data()).unwrap();
    let tellers = Tellers::start(&bank, 2);
    let mut oracle = Oracle::default();
    for cut in 0..cuts {
        daemon.start();
        daemon.until_ready().await;
        oracle.look(&daemon, bank.len(), counts);
        let switch = disk.power_switch(if cut % 2 == 0 { Cut::NothingFlushed } else { Cut::JournalFlushed });
        if rng.random_bool(0.2) {
            // What it recovers stands in the kernel's memory only, unless it sees to it.
            daemon.kill();
            daemon.start();
            count(counts, "cuts_after_a_kill");
        }
        sleep(Duration::from_millis(rng.random_range(0..500))).await;
        switch.cut();
        let ended = daemon.ended().await;
        assert_eq!(ended.code(), Some(1), "an I/O error is final: {}", daemon.log());
        disk.mount_again();
    }
    daemon.start();
    daemon.until_ready().await;
    tellers.stop().await;
    for table in ["public.accounts", "public.legs", "public.filler"] {
        until_equal(&daemon, &bank, table).await;
    }
    oracle.look(&daemon, bank.len(), counts);
    assert!(daemon.terminate().success(), "it does not drain");
}
