//! The product as several processes: a leader served over gRPC, pollers, and tablet servers on both sides, each killed
//! at any moment. Whatever happens, readers see whole transactions, and in the end everything is there once.

use crate::support::constellation::Constellation;
use crate::support::process::Process;
use crate::support::upstream::{ACCOUNTS, History, TABLE, TOTAL, Transaction, home};
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use untorn::admin::client::{AdminClient, ClientError};
use untorn::admin::explain::Cause;
use untorn::admin::scan::ScanAt;
use untorn::admin::status::{State, Status, StreamStatus};
use untorn::limits::GRPC_KEEPALIVE_MS;
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
    assert_shows_all(world, &world.at.admin_url()).await;
}

/// Row for row with the times of commit, `safe` and `latest` are the source's last state.
async fn assert_shows_all(world: &Constellation, url: &str) {
    let mut newest = Seen::new();
    for ((account, time), balance) in world.upstream.history.versions() {
        newest.insert(account, (balance, time));
    }
    assert_eq!(scan(url, ScanAt::Safe).await.unwrap(), newest);
    assert_eq!(scan(url, ScanAt::Latest).await.unwrap(), newest);
}

/// Waits until the transaction of this number waits for this, and answers for which tablet.
async fn until_waits_for(url: &str, number: u64, cause: Cause) -> Option<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut client = AdminClient::connect(url).await.unwrap();
        // The source names its transactions by their number, in eight bytes.
        let found = client.explain(&format!("{number:016x}")).await;
        if let Ok(found) = &found
            && let Some(waits_for) =
                found.iter().find_map(|known| known.waits_for.as_ref().filter(|waits| waits.cause == cause))
        {
            return waits_for.tablet.clone();
        }
        assert!(Instant::now() < deadline, "it never waits for {cause:?}: {found:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

fn lasts(most: u64) -> Duration {
    Duration::from_millis(rand::rng().random_range(0..most))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_may_be_killed_and_nothing_is_torn_lost_or_repeated() {
    let mut world = Constellation::start();
    world.chain();
    let (first, second) = (world.at.admin_url(), world.at.chained_url());
    world.caught_up(&first).await;
    let auditors = [&first, &second].map(|url| audit(url.clone(), Arc::clone(&world.upstream.history)));
    let check = |world: &Constellation| {
        assert!(auditors.iter().all(|(task, _)| !task.is_finished()), "an auditor found something\n{}", world.told());
    };
    for killed in 0..world.processes.len() {
        world.processes[killed].kill();
        sleep(lasts(800)).await;
        world.processes[killed].start();
        sleep(lasts(1_500)).await;
        check(&world);
    }
    // Two at once: the leader and a replica tablet, a poller and its source, …
    for pair in [[0, 8], [1, 4], [0, 2], [6, 9], [0, 1], [7, 10]] {
        pair.iter().for_each(|killed| world.processes[*killed].kill());
        sleep(lasts(400)).await;
        pair.iter().for_each(|killed| world.processes[*killed].start());
        sleep(lasts(1_500)).await;
        check(&world);
    }
    world.upstream.pause(true);
    for url in [&first, &second] {
        world.caught_up(url).await;
        world.all_run(url).await;
    }
    check(&world);
    for (auditor, reads) in auditors {
        auditor.abort();
        assert!(reads.load(Ordering::Relaxed) > 0, "nothing could be read");
    }
    assert_equal(&world).await;
    assert_shows_all(&world, &second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_source_does_not_hide_who_pulls_it_and_lets_everything_be_forgotten() {
    let mut world = Constellation::start();
    let url = world.at.admin_url();
    world.all_run(&url).await;
    world.upstream.pause(true);
    world.caught_up(&url).await;

    // What every stream has acknowledged is forgotten, although nothing follows it.
    let last = world.upstream.history.committed().len();
    let deadline = Instant::now() + Duration::from_secs(60);
    for number in last.saturating_sub(20)..=last {
        let mut client = AdminClient::connect(&url).await.unwrap();
        while let Ok(known) = client.explain(&format!("x{number}")).await {
            assert!(Instant::now() < deadline, "still known: {known:?}\n{}", world.told());
            sleep(Duration::from_millis(100)).await;
        }
    }

    // A leader that starts again hears of pullers that have nothing to report.
    world.processes[0].kill();
    world.processes[0].start();
    world.all_run(&url).await;

    // Nobody pulls what a dead process pulled.
    world.processes[2].kill();
    let unheard = |status: &Status| {
        status.streams.iter().map(|stream| stream.state == State::Waiting).eq([false, false, true, true])
    };
    world.status(&url, "a dead puller is told of", unheard).await;
    world.upstream.pause(false);
    let held = |status: &Status| matches!(status.held_by.as_deref(), Some("shard-2" | "shard-3"));
    world.status(&url, "the streams that nobody pulls hold safe time", held).await;
    let committed = world.upstream.history.committed();
    let half_pulled = |one: &&Transaction| {
        let pulled = |account: &usize| home(*account) < 2;
        one.writes.keys().any(pulled) && !one.writes.keys().all(pulled)
    };
    let waits = committed[last..].iter().find(half_pulled).expect("some transaction is written on both sides");
    let tablet = until_waits_for(&url, waits.number, Cause::NotPolled).await;
    assert!(matches!(tablet.as_deref(), Some("shard-2" | "shard-3")), "{tablet:?}");
    world.processes[2].start();
    world.upstream.pause(true);
    world.caught_up(&url).await;
    world.all_run(&url).await;
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_slept_through_a_takeover_changes_nothing_and_ends() {
    let mut world = Constellation::start();
    world.all_run(&world.at.admin_url()).await;
    // Whoever is stopped in the middle of a write keeps SQLite's lock: stop it between two.
    world.upstream.pause(true);
    world.caught_up(&world.at.admin_url()).await;
    sleep(Duration::from_secs(3)).await;
    world.processes[0].signal("STOP");
    world.processes[1].kill();
    world.processes[2].kill();

    world.at = world.at.other_leader();
    let url = world.at.admin_url();
    let home = world.home.path();
    let others = [
        Process::new(home, "other-leader", "run", &world.at.leading(&home.join("log.sqlite"))),
        Process::new(home, "other-poller-0", "run", &world.at.polling(&[0, 1])),
        Process::new(home, "other-poller-1", "run", &world.at.polling(&[2, 3])),
    ];
    world.processes.extend(others);
    world.upstream.pause(false);
    world.all_run(&url).await;
    let (auditor, _) = audit(url.clone(), Arc::clone(&world.upstream.history));
    // Longer than what the sleeper itself waits for others.
    sleep(Duration::from_millis(GRPC_KEEPALIVE_MS * 2 + 2_000)).await;

    world.processes[0].signal("CONT");
    let ended = world.processes[0].ended().await;
    let told = world.processes[0].told();
    assert_eq!(ended.code(), Some(1), "{told}");
    assert!(told.lines().last().unwrap().starts_with("another process has taken over: "), "{told}");

    world.upstream.pause(true);
    world.caught_up(&url).await;
    assert!(!auditor.is_finished(), "the auditor found something\n{}", world.told());
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_hangs_is_named_and_what_does_not_need_it_goes_on() {
    let world = Constellation::start();
    let url = world.at.admin_url();
    world.all_run(&url).await;
    let (auditor, _) = audit(url.clone(), Arc::clone(&world.upstream.history));

    // A replica tablet: the streams that write to it name it.
    world.processes[8].signal("STOP");
    let named = |status: &Status| {
        let waits = |stream: &StreamStatus| stream.cause.as_ref().is_some_and(|cause| cause.contains("replica-1"));
        status.streams.iter().any(waits)
    };
    world.status(&url, "the hung replica tablet is named", named).await;
    world.processes[8].signal("CONT");
    let end = world.upstream.history.end();
    world.status(&url, "it goes on", |status| status.safe_time.is_some_and(|safe| safe >= end)).await;

    // A source tablet: it holds safe time, and the other streams come on.
    world.processes[5].signal("STOP");
    let named = |status: &Status| {
        let cause = status.streams[2].cause.as_ref().is_some_and(|cause| cause.contains("shard-2"));
        cause && status.held_by.as_deref() == Some("shard-2")
    };
    let before = world.status(&url, "the hung source tablet is named", named).await;
    let index = |status: &Status, stream: usize| status.streams[stream].durable.gauge();
    let others = |status: &Status| [0, 1, 3].iter().all(|other| index(status, *other) > index(&before, *other));
    world.status(&url, "the other streams go on", others).await;
    let committed = world.upstream.history.committed();
    let half_arrived = |one: &&Transaction| {
        let hung = |account: &usize| home(*account) == 2;
        let after = before.safe_time.is_some_and(|safe| one.time > safe);
        after && one.writes.keys().any(hung) && !one.writes.keys().all(hung)
    };
    let waits = committed.iter().rfind(half_arrived).expect("some transaction is written on the hung tablet too");
    assert_eq!(until_waits_for(&url, waits.number, Cause::Applying).await.as_deref(), Some("shard-2"));
    world.processes[5].signal("CONT");

    world.upstream.pause(true);
    world.caught_up(&url).await;
    world.all_run(&url).await;
    assert!(!auditor.is_finished(), "the auditor found something\n{}", world.told());
    assert_equal(&world).await;
}
