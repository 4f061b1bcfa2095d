//! Two processes and one log: the newer owner fences the older, or is told who holds the log.

use bytes::Bytes;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use untorn::txn_log::{EngineConfig, LogError, TransactionLog, engine};
use untorn::wal::Epoch;

/// Set for the process that appends: the engine's name and its folder.
const ENGINE: &str = "UNTORN_LOG_OWNER_ENGINE";
const FOLDER: &str = "UNTORN_LOG_OWNER_FOLDER";

/// The engine of that name in a folder.
pub(super) fn log(name: &str, folder: &Path) -> Box<dyn TransactionLog> {
    let config = match name {
        "sled" => EngineConfig::Sled { dir: folder.join("log") },
        "sqlite" => EngineConfig::Sqlite { file: folder.join("log.sqlite") },
        other => panic!("no engine {other}"),
    };
    engine(config).unwrap()
}

/// The first owner. It appends until it is fenced. Not a test by itself.
#[tokio::test]
#[ignore = "runs as the child of the other tests"]
async fn first_owner() {
    let mut log = log(&std::env::var(ENGINE).unwrap(), Path::new(&std::env::var(FOLDER).unwrap()));
    let opened = log.open("the first").await.unwrap();
    let mut last = opened.last;
    loop {
        match log.append(last.next(), opened.epoch, Bytes::from_static(b"the first's")).await {
            Ok(position) => last = position,
            Err(LogError::Fenced { held }) => return println!("\nfenced {}", held.0),
            Err(error) => panic!("{error}"),
        }
        println!("\nentry {}", last.0);
    }
}

/// Starts the first owner, and waits until it has appended a little.
fn start(name: &str, folder: &Path) -> (Child, impl Iterator<Item = (String, u64)> + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["log_owners::first_owner", "--exact", "--ignored", "--nocapture"])
        .env(ENGINE, name)
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().filter_map(|line| {
        let line = line.unwrap();
        let (what, number) = line.split_once(' ')?;
        Some((what.to_owned(), number.parse().ok()?))
    });
    assert!(said.any(|(what, number)| what == "entry" && number >= 5), "the first owner never appended");
    (child, said)
}

#[tokio::test]
async fn a_second_process_fences_the_first_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut said) = start("sqlite", folder.path());
    let mut log = log("sqlite", folder.path());
    // The first one writes without a pause, and may hold the file's lock for as long as anybody waits for it.
    let opened = loop {
        match log.open("the second").await {
            Err(LogError::Unavailable(_)) => {}
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(opened.epoch, Epoch(2));
    log.append(opened.last.next(), opened.epoch, Bytes::from_static(b"the second's")).await.unwrap();
    let last = said.by_ref().take_while(|(what, _)| what != "fenced").last();
    assert!(last.is_none_or(|(_, entry)| entry <= opened.last.0), "the first owner went on after the takeover");
    assert!(first.wait().unwrap().success());
    let epochs: Vec<_> = log.read(opened.last, usize::MAX).await.unwrap().iter().map(|record| record.epoch.0).collect();
    assert_eq!(epochs, [1, 2]);
}

#[tokio::test]
async fn sled_says_who_holds_it_and_is_free_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut said) = start("sled", folder.path());
    // The pipe is read on, so that the first owner goes on appending.
    let reader = std::thread::spawn(move || said.by_ref().last());
    let mut log = log("sled", folder.path());
    let answer = log.open("the second").await;
    let holder = format!("the first (process {})", first.id());
    assert!(matches!(&answer, Err(LogError::Unavailable(what)) if what.contains(&holder)), "{answer:?}");
    first.kill().unwrap();
    let opened = log.open("the second").await.unwrap();
    first.wait().unwrap();
    let (_, acknowledged) = reader.join().unwrap().unwrap();
    assert!(opened.last.0 >= acknowledged, "{opened:?} after {acknowledged} entries");
    assert_eq!(opened.epoch, Epoch(2));
}
