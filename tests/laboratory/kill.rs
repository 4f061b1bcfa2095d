//! `kill`: `kill -9` of the daemon while money moves between its source's servers: in the initial copy, during recovery,
//! and, biased to the moments after a transfer was committed, under load. Whatever it was doing, no read is torn, none goes
//! back, and in the end the replica is the source.

use super::oracle::Oracle;
use super::postgres_e2e::{Tellers, bank};
use super::report::{Options, Report};
use super::support::daemon::{Daemon, source_of};
use super::support::tables::until_equal;
use super::trial::{self, Counts, count};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use tokio::time::sleep;

/// Kills in CI.
const KILLS: u64 = 30;
/// Kills of one daemon, before everything is compared and the next one begins with a copy.
const OF_ONE: u64 = 30;
/// Rows beside the accounts, so that the copy takes a while.
const FILLER: u32 = 10_000;
/// How long a daemon starts: kills below that are kills in recovery.
const STARTING_MS: u64 = 400;
/// How long a commit takes from the source's servers until it is applied.
const COMMITTING_MS: u64 = 60;

/// Runs it.
pub fn run(options: &Options) -> Report {
    trial::each(options, options.n.unwrap_or(KILLS), OF_ONE, one_daemon)
}

async fn one_daemon(seed: u64, kills: u64, counts: &mut Counts) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let bank = bank(2, FILLER).await;
    let tellers = Tellers::start(&bank, 3);
    let log = ["sled", "sqlite"][seed as usize % 2];
    let mut daemon = Daemon::new(&format!("{}[log]\nkind = \"{log}\"\n", source_of(&bank)));
    let mut oracle = Oracle::default();
    let mut copied = false;
    for kill in 0..kills {
        daemon.start();
        if kill < kills / 6 {
            copied |= in_the_copy(&daemon).await;
            count(counts, if copied { "kills_after_the_copy" } else { "kills_in_the_copy" });
        } else if rng.random_bool(0.2) {
            sleep(Duration::from_millis(rng.random_range(0..STARTING_MS))).await;
            count(counts, "kills_in_recovery");
        } else {
            daemon.until_ready().await;
            oracle.look(&daemon, bank.len(), counts);
            // A transfer has just been committed at the servers: now it is on its way.
            let moved = tellers.moved();
            daemon.until("a transfer is committed", || (tellers.moved() > moved).then_some(())).await;
            sleep(Duration::from_micros(rng.random_range(0..COMMITTING_MS * 1000))).await;
            count(counts, "kills_at_a_commit");
        }
        daemon.kill();
    }
    daemon.start();
    daemon.until_ready().await;
    oracle.look(&daemon, bank.len(), counts);
    *counts.entry("transfers").or_default() += tellers.stop().await;
    for table in ["public.accounts", "public.legs", "public.filler"] {
        until_equal(&daemon, &bank, table).await;
    }
    oracle.look(&daemon, bank.len(), counts);
    let status = daemon.until_status("nothing waits", |s| s["transactions"]["waiting_to_commit"] == 0).await;
    assert_eq!(status["transactions"]["pending"], 0, "provisional records are left");
    assert!(daemon.terminate().success(), "it does not drain");
}

/// Waits until rows were copied; whether the copy was over already.
async fn in_the_copy(daemon: &Daemon) -> bool {
    let under_way = |status: &serde_json::Value| {
        let streams = status["streams"].as_array().unwrap();
        status["ready"] == true || streams.iter().any(|stream| stream["copy"]["rows"].as_u64() > Some(0))
    };
    daemon.until_status("rows are copied", under_way).await["ready"] == true
}
