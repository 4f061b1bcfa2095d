//! `crashpoints` and `io`: the daemon works through a fixed load while one of its system calls on the data folder, the
//! so-manyth of a thread since its start, kills it, fails, is slow, or writes less than it should. `strace` does it to the ordinary binary. After
//! one restart at most, everything is there; an error is final, and is said with the folder's name.

use super::oracle::Oracle;
use super::postgres_e2e::bank;
use super::report::{Options, Report};
use super::support::daemon::{Daemon, PATIENCE, source_of};
use super::support::postgres::Postgres;
use super::support::tables::until_equal;
use super::trial::{self, Counts, count};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Crash points in CI: every fifth of the load's calls.
const CRASHES: u64 = 20;
/// Failing calls in CI.
const FAILURES: u64 = 60;
/// Points of one folder. A thread makes about a hundred calls for the load: five seeds in a row crash it at every one, and
/// twenty let each of them fail in each way.
const OF_ONE: u64 = 20;
/// Every so-manyth call of a seed.
const STEP: u64 = 5;
/// Transfers of the load.
const TRANSFERS: u64 = 8;
/// The calls that change what a folder holds.
const CALLS: &str = "write,pwrite64,writev,pwritev,fsync,fdatasync,sync_file_range,ftruncate,fallocate,rename,renameat,\
                     renameat2,unlink,unlinkat,mkdir";

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Killed,
    Eio,
    Enospc,
    Slow,
    Short,
}

/// Runs `crashpoints`.
pub fn crashpoints(options: &Options) -> Report {
    trial::each(options, options.n.unwrap_or(CRASHES), OF_ONE, async |seed, points, counts| {
        one_folder(seed, points, &[Fault::Killed], counts).await;
    })
}

/// Runs `io`.
pub fn io(options: &Options) -> Report {
    trial::each(options, options.n.unwrap_or(FAILURES), OF_ONE, async |seed, points, counts| {
        one_folder(seed, points, &[Fault::Eio, Fault::Enospc, Fault::Slow, Fault::Short], counts).await;
    })
}

async fn one_folder(seed: u64, points: u64, faults: &[Fault], counts: &mut Counts) {
    let bank = bank(2, 500).await;
    let log = ["sled", "sqlite"][seed as usize % 2];
    let mut daemon = Daemon::new(&format!("{}[log]\nkind = \"{log}\"\n", source_of(&bank)));
    daemon.start();
    daemon.until_ready().await;
    assert!(daemon.terminate().success(), "it does not drain");
    let mut oracle = Oracle::default();
    for point in 0..points {
        let fault = faults[((point + seed / STEP) % faults.len() as u64) as usize];
        let call = 1 + seed % STEP + point * STEP;
        let said = daemon.log().len();
        let before = format!("{fault:?} at call {call}");
        daemon.start_under(&wrapper(fault, call, &daemon.data()));
        let transfer = format!("{seed}-{point}");
        let ended = load(&mut daemon, &bank, &transfer).await;
        let told = daemon.log().split_off(said);
        assert!(!told.contains("panicked at"), "{before}: a panic\n{told}");
        let what = match ended.map(|ended| ended.code()) {
            Some(None) if fault == Fault::Killed => "killed",
            Some(Some(1)) if fault != Fault::Killed => {
                let last = told.lines().last().unwrap_or_default();
                let named = last.contains(&daemon.data().display().to_string());
                assert!(named, "{before}: it does not name the folder: {last}\n{told}");
                "ended_by_name"
            }
            Some(code) => panic!("{before}: it ended with {code:?}\n{told}"),
            None => {
                daemon.kill();
                "went_on"
            }
        };
        count(counts, what);
        let kind = match fault {
            Fault::Killed => "kills",
            Fault::Eio => "EIO",
            Fault::Enospc => "ENOSPC",
            Fault::Slow => "slow",
            Fault::Short => "short_writes",
        };
        count(counts, kind);
        daemon.start();
        daemon.until(&format!("{transfer} after {before}"), || shows(&daemon, &transfer)).await;
        oracle.look(&daemon, bank.len(), counts);
        daemon.kill();
    }
    daemon.start();
    for table in ["public.accounts", "public.legs", "public.filler"] {
        until_equal(&daemon, &bank, table).await;
    }
}

/// Moves money, and waits until all of it is shown or the daemon has ended.
async fn load(daemon: &mut Daemon, bank: &[Postgres], transfer: &str) -> Option<std::process::ExitStatus> {
    for number in 0..=TRANSFERS {
        let name = if number == TRANSFERS { transfer.to_owned() } else { format!("{transfer}.{number}") };
        for (server, postgres) in bank.iter().enumerate() {
            let (account, amount) = (server * 1000 + number as usize + 1, [-1, 1][server]);
            postgres
                .execute(&format!(
                    "BEGIN; UPDATE accounts SET balance = balance + {amount} WHERE id = {account};
                     INSERT INTO legs VALUES ('{name}', {server}, 2); PREPARE TRANSACTION '{name}'"
                ))
                .await;
        }
        for postgres in bank {
            postgres.execute(&format!("COMMIT PREPARED '{name}'")).await;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(ended) = daemon.has_ended() {
            return Some(ended);
        }
        if shows(daemon, transfer).is_some() {
            return None;
        }
        assert!(Instant::now() < deadline, "neither shown nor ended\n{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
}

fn shows(daemon: &Daemon, transfer: &str) -> Option<()> {
    let rows = daemon.scan("public.legs", "safe", "csv").ok()?;
    (rows.lines().filter(|row| row.starts_with(&format!("{transfer},"))).count() == 2).then_some(())
}

/// What runs the daemon so that this call of it on its folder fails.
fn wrapper(fault: Fault, call: u64, data: &Path) -> Vec<String> {
    let inject = match fault {
        Fault::Killed => format!("signal=KILL:when={call}"),
        Fault::Eio => format!("error=EIO:when={call}"),
        Fault::Enospc => format!("error=ENOSPC:when={call}..{}", call + 3),
        Fault::Slow => format!("delay_enter=500000:when={call}..{}", call + 5),
        Fault::Short => {
            // Writes behind this place are cut short, then refused.
            let largest = paths(data).iter().filter_map(|path| path.metadata().ok()).map(|of| of.blocks() * 512).max();
            let limit = largest.unwrap_or_default() + call * 97;
            return ["env", "--ignore-signal=XFSZ", "prlimit", &format!("--fsize={limit}")].map(str::to_owned).into();
        }
    };
    let mut strace: Vec<String> =
        ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={CALLS}")].map(str::to_owned).into();
    strace.extend(["-e".to_owned(), format!("inject={CALLS}:{inject}")]);
    strace.extend(paths(data).into_iter().flat_map(|path| ["-P".to_owned(), path.display().to_string()]));
    strace
}

/// Everything in a folder, itself included.
fn paths(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        found.extend(if path.is_dir() { paths(&path) } else { vec![path] });
    }
    found
}
