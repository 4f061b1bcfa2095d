//! The power goes off while a log is appended to: nothing that was acknowledged is missing afterwards.
//!
//! A process appends to a log on a small ext4 of its own and reports each acknowledgement over a pipe. Then the file
//! system is shut down as a power cut leaves it (`EXT4_IOC_SHUTDOWN` without a flush of its journal), the process is
//! killed, the file system is mounted again, and what is found is compared with what was acknowledged. What a disk
//! with a lying cache would lose on top of that is not shown here.
//!
//! What counts is what was acknowledged before the file system was told to shut down. Unlike a power cut, a shutdown
//! leaves the processes running, and an `fdatasync` that it overtakes may still return success: acknowledgements that
//! come later are counted, and prove nothing.
//!
//! `UNTORN_POWER_CUTS` sets the number of cuts.

use super::log_owners::log;
use super::loop_disk::{Cut, LoopDisk};
use bytes::Bytes;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use untorn::txn_log::Snapshot;
use untorn::wal::{Epoch, LogPosition};

const CUTS: u64 = 6;
/// Set for the process that appends: the engine's name and its folder.
const ENGINE: &str = "UNTORN_POWER_CUT_ENGINE";
const FOLDER: &str = "UNTORN_POWER_CUT_FOLDER";

#[tokio::test]
async fn sled_keeps_what_it_acknowledged() {
    cut_power("sled", 0, cuts()).await;
}

#[tokio::test]
async fn sqlite_keeps_what_it_acknowledged() {
    cut_power("sqlite", 0, cuts()).await;
}

/// The process that appends until the power goes off. Not a test by itself.
#[tokio::test]
#[ignore = "runs as the child of the other tests"]
async fn appender() {
    append().await;
}

fn cuts() -> u64 {
    std::env::var("UNTORN_POWER_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap())
}

/// How the process that appends is asked for, as one of this program's tests.
pub(crate) const APPENDER: &str = "power_cut::appender";

/// Appends until the power goes off.
pub(crate) async fn append() {
    let mut log = log(&std::env::var(ENGINE).unwrap(), Path::new(&std::env::var(FOLDER).unwrap()));
    let opened = log.open("appender").await.unwrap();
    let say = |what: &str, number: u64| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{what} {number}").and_then(|()| out.flush()).unwrap();
    };
    say("entry", opened.last.0);
    say("epoch", opened.epoch.0);
    let mut position = opened.last;
    let mut snapshot = log.read_snapshot().await.unwrap().map_or(0, |held| held.position.0);
    loop {
        position = log.append(position.next(), opened.epoch, entry(position.next())).await.unwrap();
        say("entry", position.0);
        if position.0 % 40 == 0 {
            let state = entry(position).repeat(10).into();
            log.write_snapshot(opened.epoch, Snapshot { position, state }).await.unwrap();
            snapshot = position.0;
            say("snapshot", snapshot);
        }
        if position.0 % 80 == 60 {
            log.trim(opened.epoch, LogPosition(snapshot.saturating_sub(10))).await.unwrap();
            say("trim", snapshot.saturating_sub(10));
        }
    }
}

/// The bytes that stand at a position: of many lengths, so that some entries span several of an engine's pages.
fn entry(position: LogPosition) -> Bytes {
    let length = position.0 * 7_919 % 20_000;
    (0..length).map(|i| (i + position.0) as u8).collect()
}

/// What the appender said before the power went off.
#[derive(Clone, Default, Debug)]
struct Acknowledged {
    epoch: u64,
    entry: u64,
    snapshot: u64,
    trim: u64,
}

/// Cuts the power so often; the seed says when.
pub(crate) async fn cut_power(name: &str, seed: u64, cuts: u64) {
    let disk = LoopDisk::new(256 << 20);
    let mut overtaken = 0;
    for cut in seed * cuts + 1..=(seed + 1) * cuts {
        let (before, after) = append_until_cut(name, &disk, cut);
        disk.mount_again();
        let last = check(name, &disk.mounted, &before, &after).await;
        overtaken += after.entry.saturating_sub(last);
        println!("{name}: cut {cut}, {last} entries, nothing lost of {before:?}");
    }
    println!("{name}: {cuts} cuts, nothing lost; {overtaken} acknowledgements were overtaken by the shutdown");
}

/// Lets the appender run, and cuts the power after a number of acknowledgements that differs from cut to cut. Answers
/// what was acknowledged before, and what in the end.
fn append_until_cut(name: &str, disk: &LoopDisk, cut: u64) -> (Acknowledged, Acknowledged) {
    let mut power = disk.power_switch(Cut::NothingFlushed);
    let mut appender = Command::new(std::env::current_exe().unwrap())
        .args([APPENDER, "--exact", "--ignored", "--nocapture"])
        .env(ENGINE, name)
        .env(FOLDER, &disk.mounted)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut said, mut before, mut heard) = (Acknowledged::default(), None, 0);
    for line in BufReader::new(appender.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((what, number)) = line.split_once(' ') else { continue };
        let Ok(number) = number.parse() else { continue };
        match what {
            "epoch" => said.epoch = number,
            "entry" => said.entry = number,
            "snapshot" => said.snapshot = number,
            "trim" => said.trim = number,
            _ => continue,
        }
        heard += 1;
        if heard > cut * 37 % 150 && before.is_none() {
            before = Some(said.clone());
            power.begin();
        }
    }
    power.cut();
    // It has met an I/O error, which is final for a log; SQLite takes what it reads from a dead disk for damage.
    let ended = appender.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&ended.stderr);
    let is_final = why.contains("Poisoned") || why.contains("Damaged");
    assert!(!ended.status.success() && is_final, "it ended otherwise: {why}");
    (before.unwrap_or_else(|| panic!("the appender ended by itself: {why}")), said)
}

async fn check(name: &str, folder: &Path, before: &Acknowledged, after: &Acknowledged) -> u64 {
    let mut log = log(name, folder);
    let opened = log.open("check").await.unwrap();
    assert!(opened.epoch > Epoch(before.epoch), "the epoch went back: {opened:?}, {before:?}");
    let last = opened.last.0;
    assert!(last >= before.entry, "entries up to {last}, {before:?}, {after:?}");
    assert!(last <= after.entry.max(before.entry) + 1, "entries that were not asked for: {last}, {after:?}");
    let held = log.read_snapshot().await.unwrap();
    let at = held.as_ref().map_or(0, |held| held.position.0);
    assert!(at >= before.snapshot, "the snapshot is of {at}, {before:?}");
    if let Some(held) = held {
        assert!(held.state == entry(held.position).repeat(10), "the snapshot is another");
    }
    // The next trim may have happened already; it leaves what is above its snapshot less ten.
    let mut from = at.saturating_sub(10) + 1;
    while from <= last {
        for record in log.read(LogPosition(from), 1 << 20).await.unwrap() {
            assert_eq!(record.position.0, from);
            assert!(record.entry == entry(record.position), "entry {from} is another");
            from += 1;
        }
    }
    last
}
