//! How fast the embedded log engines append, and how large they stay: `cargo bench --bench txn_log [FOLDER]`.
//!
//! An entry of a group of transactions is taken as 100 bytes each: ids, counts and times.

use bytes::Bytes;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use untorn::txn_log::{EngineConfig, Snapshot, engine};
use untorn::wal::LogPosition;

const TRANSACTION_BYTES: usize = 100;
const GROUPS: [usize; 5] = [1, 8, 64, 512, 4_096];
const MEASURED: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let folder = match parent {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    for (name, config) in [
        ("sled", EngineConfig::Sled { dir: folder.path().join("sled") }),
        ("sqlite", EngineConfig::Sqlite { file: folder.path().join("sqlite/log") }),
    ] {
        appends(name, &config).await?;
        outstanding(name, &config, &folder.path().join(name)).await?;
        large_snapshot(name, &config).await?;
    }
    Ok(())
}

/// Entries of pseudo-random bytes, which no file system can compress.
fn noise(length: usize) -> Bytes {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn appends(name: &str, config: &EngineConfig) -> Result<(), Box<dyn Error>> {
    let mut log = engine(config.clone())?;
    let opened = log.open("bench").await?;
    let mut last = opened.last;
    for group in GROUPS {
        let entry = noise(group * TRANSACTION_BYTES);
        let mut times = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < MEASURED {
            let call = Instant::now();
            last = log.append(last.next(), opened.epoch, entry.clone()).await?;
            times.push(call.elapsed());
        }
        let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
        times.sort();
        println!(
            "{name:>6}: groups of {group:>4}: {rate:>7.0} appends/s, {:>9.0} transactions/s, p50 {:>6} µs, p99 {:>6} µs",
            rate * group as f64,
            times[times.len() / 2].as_micros(),
            times[times.len() * 99 / 100].as_micros(),
        );
        log.write_snapshot(opened.epoch, Snapshot { position: last, state: Bytes::new() }).await?;
        log.trim(opened.epoch, last).await?;
    }
    Ok(())
}

async fn large_snapshot(name: &str, config: &EngineConfig) -> Result<(), Box<dyn Error>> {
    let mut log = engine(config.clone())?;
    let opened = log.open("bench").await?;
    let state = noise(100 << 20);
    let begun = Instant::now();
    log.write_snapshot(opened.epoch, Snapshot { position: opened.last, state: state.clone() }).await?;
    let written = begun.elapsed();
    let read = log.read_snapshot().await?.is_some_and(|held| held.state == state);
    println!("{name:>6}: a snapshot of 100 MiB: written in {written:.1?}, read back {read} by {:.1?}", begun.elapsed());
    log.write_snapshot(opened.epoch, Snapshot { position: opened.last, state: Bytes::new() }).await?;
    Ok(())
}

/// 100,000 entries of 16 KiB, 512 of them (8 MiB) between two snapshots.
async fn outstanding(name: &str, config: &EngineConfig, folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut log = engine(config.clone())?;
    let opened = log.open("bench").await?;
    let (bytes, state) = (noise(16 << 10), noise(1 << 20));
    let mut last = opened.last;
    let begun = Instant::now();
    for entry in 1..=100_000 {
        last = log.append(last.next(), opened.epoch, bytes.clone()).await?;
        if entry % 512 == 0 {
            log.write_snapshot(opened.epoch, Snapshot { position: last, state: state.clone() }).await?;
            log.trim(opened.epoch, LogPosition(last.0)).await?;
        }
        if entry % 10_000 == 0 {
            println!("{name:>6}: {entry:>6} entries of 16 KiB in {:.0?}: {} MiB", begun.elapsed(), size(folder)? >> 20);
        }
    }
    Ok(())
}

fn size(folder: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { total += entry.metadata()?.len() }
        }
    }
    Ok(total)
}
