//! The product as several processes: a leader served over gRPC, pollers, and tablet servers on both sides, each killed
//! at any moment. Whatever happens, readers see whole transactions, and in the end everything is there once.

use crate::support::constellation::Constellation;
use crate::support::upstream::{ACCOUNTS, History, TABLE, TOTAL};
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use untorn::admin::client::{AdminClient, ClientError};
use untorn::admin::scan::ScanAt;
use untorn::wal::HybridTime;

/// For each account its balance, and when that was committed.
type Seen = BTreeMap<usize, (i64, HybridTime)>;

async fn scan(url: &str, at: ScanAt) -> Result<Seen, ClientError> {
    let mut rows = AdminClient::connect(url).await?.scan(TABLE, at).await?;
    let mut seen = Seen::new();
    while let Some(page) = rows.next().await? {
        for row in page {
            let number =
                |cell: usize| std::str::from_utf8(row.cells[cell].as_ref().unwrap()).unwrap().parse::<i64>().unwrap();
            assert!(seen.insert(number(0) as usize, (number(1), row.time)).is_none(), "a row is there twice");
        }
    }
    Ok(seen)
}

/// `safe` shows the source as it was after some transaction, and never an earlier one than before.
fn check_safe(seen: &Seen, before: &mut HybridTime, history: &History) {
    let newest = seen.values().map(|(_, time)| *time).max().unwrap_or(HybridTime::MIN);
    assert!(newest >= *before, "safe goes back from {before} to {newest}");
    *before = newest;
    let balances: BTreeMap<_, _> = seen.iter().map(|(account, (balance, _))| (*account, *balance)).collect();
    assert_eq!(balances, history.at(newest), "safe shows what the source never was");
    assert!(seen.is_empty() || (seen.len() == ACCOUNTS && balances.values().sum::<i64>() == TOTAL));
}

/// `latest` promises no order, but whole transactions: where one write of a transaction is seen, no account that it
/// wrote shows anything older. And what was seen once is never unseen.
fn check_latest(seen: &Seen, before: &mut Seen, history: &History) {
    for (account, (_, time)) in seen {
        let Some(written) = history.written_at(*time) else { panic!("nothing was committed at {time}") };
        for other in written {
            let shown = seen.get(&other).map_or(HybridTime::MIN, |(_, time)| *time);
            assert!(shown >= *time, "torn: account {account} shows {time}, account {other} {shown}");
        }
    }
    for (account, (_, time)) in &*before {
        let shown = seen.get(account).map_or(HybridTime::MIN, |(_, time)| *time);
        assert!(shown >= *time, "latest goes back: account {account} showed {time}, now {shown}");
    }
    before.clone_from(seen);
}

/// Reads again and again. The count says how many reads were answered.
fn audit(url: String, history: Arc<History>) -> (JoinHandle<()>, Arc<AtomicU64>) {
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let auditor = tokio::spawn(async move {
        let (mut safe, mut latest) = (HybridTime::MIN, Seen::new());
        loop {
            if let Ok(seen) = scan(&url, ScanAt::Safe).await {
                check_safe(&seen, &mut safe, &history);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            if let Ok(seen) = scan(&url, ScanAt::Latest).await {
                check_latest(&seen, &mut latest, &history);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    (auditor, reads)
}

/// Nothing is lost, nothing is there twice, and the last state is the source's.
async fn assert_equal(world: &Constellation) {
    let versions = world.upstream.history.versions();
    assert!(world.upstream.stored().await == versions, "the source's tablets do not hold what was committed");
    let replicated = world.replicated().await;
    let lost: Vec<_> = versions.iter().filter(|(at, balance)| replicated.get(at) != Some(balance)).collect();
    let made_up: Vec<_> = replicated.iter().filter(|(at, balance)| versions.get(at) != Some(balance)).collect();
    assert!(lost.is_empty() && made_up.is_empty(), "lost: {lost:?}\nmade up: {made_up:?}");
    let seen = scan(&world.at.admin_url(), ScanAt::Safe).await.unwrap();
    let balances: BTreeMap<_, _> = seen.iter().map(|(account, (balance, _))| (*account, *balance)).collect();
    assert_eq!(balances, world.upstream.history.at(HybridTime::MAX));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_may_be_killed_and_nothing_is_torn_lost_or_repeated() {
    let mut world = Constellation::start();
    world.all_run().await;
    world.caught_up().await;
    let (auditor, reads) = audit(world.at.admin_url(), Arc::clone(&world.upstream.history));
    let lasts = |most: u64| Duration::from_millis(rand::rng().random_range(0..most));
    for killed in 0..world.processes.len() {
        world.processes[killed].kill();
        sleep(lasts(800)).await;
        world.processes[killed].start();
        sleep(lasts(1_500)).await;
        assert!(!auditor.is_finished(), "the auditor found something\n{}", world.told());
    }
    // Two at once, a side each and across.
    for pair in [[0, 8], [1, 4], [0, 2], [6, 9], [0, 1]] {
        pair.iter().for_each(|killed| world.processes[*killed].kill());
        sleep(lasts(400)).await;
        pair.iter().for_each(|killed| world.processes[*killed].start());
        sleep(lasts(1_500)).await;
    }
    world.upstream.pause(true);
    sleep(Duration::from_millis(50)).await;
    world.caught_up().await;
    world.all_run().await;
    assert!(!auditor.is_finished(), "the auditor found something\n{}", world.told());
    auditor.abort();
    assert!(reads.load(Ordering::Relaxed) > 0, "nothing could be read");
    assert_equal(&world).await;
}
