//! `damage`: one file of a state folder is truncated, zeroed in part, written over with another part of itself, has a bit
//! flipped, or is gone. The daemon then either comes to exactly what the source holds, or refuses by name; what it shows
//! meanwhile is whole. Never a wrong row, a panic, or silence.

use super::oracle::Oracle;
use super::postgres_e2e::{Tellers, bank};
use super::report::{Options, Report};
use super::support::daemon::{Daemon, source_of};
use super::support::tables::{shows, source_rows, until_equal};
use super::trial::{self, Counts, count};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Damaged folders in CI.
const FOLDERS: u64 = 300;
/// Damages to copies of one folder.
const OF_ONE: u64 = 20;
/// How long a daemon may take to come to an end, right or refused: no property, only a bound.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows beside the accounts.
const FILLER: u32 = 500;
/// Bytes of a file that holds more than a marker does.
const LARGE: u64 = 1000;
/// The tables that are compared.
const TABLES: [&str; 3] = ["public.accounts", "public.legs", "public.filler"];

/// Runs it.
pub fn run(options: &Options) -> Report {
    trial::each(options, options.n.unwrap_or(FOLDERS), OF_ONE, one_folder)
}

async fn one_folder(seed: u64, damages: u64, counts: &mut Counts) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let bank = bank(2, FILLER).await;
    let log = ["sled", "sqlite"][seed as usize % 2];
    let mut daemon = Daemon::new(&format!("{}[log]\nkind = \"{log}\"\n", source_of(&bank)));
    let tellers = Tellers::start(&bank, 2);
    for _ in 0..2 {
        daemon.start();
        daemon.until_ready().await;
        sleep(Duration::from_millis(rng.random_range(200..800))).await;
        daemon.kill();
    }
    tellers.stop().await;
    daemon.start();
    for table in TABLES {
        until_equal(&daemon, &bank, table).await;
    }
    // Half of the folders are left as a crash leaves them.
    if seed % 4 < 2 {
        daemon.kill();
    } else {
        assert!(daemon.terminate().success(), "it does not drain");
    }
    let whole = daemon.data().with_extension("whole");
    fs::rename(daemon.data(), &whole).unwrap();
    for _ in 0..damages {
        copy(&whole, &daemon.data());
        let what = damage(&daemon.data(), &mut rng, counts);
        eprintln!("{what}");
        let said = daemon.log().len();
        daemon.start();
        let outcome = outcome(&mut daemon, &bank, said, &what, counts).await;
        count(counts, outcome);
        fs::remove_dir_all(daemon.data()).unwrap();
    }
    fs::rename(&whole, daemon.data()).unwrap();
    daemon.start();
    for table in TABLES {
        until_equal(&daemon, &bank, table).await;
    }
}

/// What becomes of a daemon over a damaged folder; the process is gone afterwards.
async fn outcome(
    daemon: &mut Daemon,
    bank: &[super::support::postgres::Postgres],
    said: usize,
    what: &str,
    counts: &mut Counts,
) -> &'static str {
    let folder = daemon.data().display().to_string();
    let deadline = Instant::now() + PATIENCE;
    let mut oracle = Oracle::default();
    let mut expected = Vec::new();
    for table in TABLES {
        expected.push((table, source_rows(bank, table).await));
    }
    loop {
        if let Some(ended) = daemon.has_ended() {
            let log = daemon.log().split_off(said);
            let last = log.lines().last().unwrap_or_default();
            assert!(matches!(ended.code(), Some(1 | 64)), "{what}: {ended}\n{log}");
            assert!(last.contains(&folder), "{what}: it does not name the folder: {last}\n{log}");
            return "refused_at_start";
        }
        let status = daemon.status();
        let streams = status.as_ref().and_then(|status| status["streams"].as_array().cloned()).unwrap_or_default();
        let log = daemon.log().split_off(said);
        // What the store says of a damaged journal before it is refused by name.
        let panics = log.lines().filter(|line| line.contains("panicked at") && !line.contains("/fjall-"));
        assert_eq!(panics.count(), 0, "{what}: a panic\n{log}");
        if streams.iter().any(|stream| stream["state"] == "stopped") {
            // Whoever reads now waits for what will not come.
            daemon.kill();
            return "stopped_by_name";
        }
        if !streams.is_empty() && streams.iter().all(|stream| stream["state"] == "running") {
            oracle.look(daemon, bank.len(), counts);
            let all = |at: &str| expected.iter().all(|(table, rows)| shows(daemon, table, at, rows));
            if all("safe") && all("latest") {
                daemon.kill();
                return "recovered";
            }
        }
        assert!(Instant::now() < deadline, "{what}: neither right nor refused: {status:?}\n{log}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Every file below a folder that holds something, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.metadata().unwrap().len() > 0 && !path.ends_with("reserve") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Damages one file, and says how.
fn damage(folder: &Path, rng: &mut SmallRng, counts: &mut Counts) -> String {
    let mut files = files(folder);
    if rng.random_bool(0.6) {
        // Where the data is: the log, the journal, table files.
        files.retain(|file| file.metadata().unwrap().len() > LARGE);
    }
    let path = &files[rng.random_range(0..files.len())];
    let name = path.strip_prefix(folder).unwrap().display();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    // A sparse file holds something only where blocks are: mostly at its start.
    let used = length.min(file_blocks(&file) * 512).max(1);
    let at = if rng.random_bool(0.8) { rng.random_range(0..used) } else { rng.random_range(0..length) };
    let some = rng.random_range(1..=4096.min(length - at));
    match rng.random_range(0..5) {
        0 => {
            let to = if rng.random_bool(0.5) { at } else { length - some };
            file.set_len(to).unwrap();
            count(counts, "truncated");
            format!("{name} of {length} bytes truncated to {to}")
        }
        1 => {
            file.write_all_at(&vec![0; some as usize], at).unwrap();
            count(counts, "zeroed");
            format!("{name} of {length} bytes zeroed from {at} on, {some} bytes")
        }
        2 => {
            let mut bytes = vec![0; some as usize];
            file.read_exact_at(&mut bytes, at).unwrap();
            let to = if rng.random_bool(0.5) { length } else { rng.random_range(0..used) };
            file.write_all_at(&bytes, to).unwrap();
            count(counts, "duplicated");
            format!("{name} of {length} bytes: {some} bytes at {at} written again at {to}")
        }
        3 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            let bit = rng.random_range(0..8);
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
            count(counts, "bit_flipped");
            format!("{name} of {length} bytes: bit {bit} of byte {at} flipped")
        }
        _ => {
            fs::remove_file(path).unwrap();
            count(counts, "removed");
            format!("{name} of {length} bytes removed")
        }
    }
}

fn file_blocks(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap())
}
