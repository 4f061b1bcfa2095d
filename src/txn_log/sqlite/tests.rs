use super::*;
use crate::txn_log::Faults;
use crate::txn_log::conformance::{self, Storage};

struct Folder(tempfile::TempDir);

impl Folder {
    fn file(&self) -> PathBuf {
        self.0.path().join("log/log.sqlite")
    }
}

impl Storage for Folder {
    fn log(&self) -> Box<dyn TransactionLog> {
        Box::new(SqliteLog::new(self.file()))
    }

    fn shared(&self) -> bool {
        true
    }
}

fn folder() -> Folder {
    Folder(tempfile::tempdir().unwrap())
}

#[tokio::test]
async fn conforms() {
    conformance::run_all(folder, Faults::NONE, 0).await;
}

#[tokio::test]
async fn conforms_behind_a_bad_network() {
    for seed in 1..=3 {
        conformance::run_all(folder, Faults::MANY, seed).await;
    }
}

#[test]
fn golden_bytes() {
    let entry = EntryRecord { epoch: Epoch(300), bytes: Bytes::from_static(b"ab") };
    let head =
        HeadRecord { log_id: "id".into(), epoch: Epoch(7), trimmed: LogPosition(2), snapshot: Some(LogPosition(300)) };
    let state = StateRecord { parts: 1, bytes: Bytes::from_static(b"s") };
    assert_eq!(codec::encode(FORMAT_VERSION, &entry).unwrap(), [1, 230, 70, 158, 185, 172, 2, 2, 97, 98]);
    assert_eq!(codec::encode(FORMAT_VERSION, &head).unwrap(), [1, 143, 175, 75, 203, 2, 105, 100, 7, 2, 1, 172, 2]);
    assert_eq!(codec::encode(FORMAT_VERSION, &state).unwrap(), [1, 137, 195, 45, 72, 1, 1, 115]);
}

async fn five(folder: &Folder) {
    let mut log = folder.log();
    let epoch = log.open("first").await.unwrap().epoch;
    for at in 1..=5 {
        log.append(LogPosition(at), epoch, Bytes::from(vec![at as u8; 10])).await.unwrap();
    }
    log.write_snapshot(epoch, Snapshot { position: LogPosition(2), state: vec![1; 3 << 20].into() }).await.unwrap();
}

#[tokio::test]
async fn a_hole_and_damage_are_refused() {
    for (words, change) in [
        ("entry p2 is missing", "DELETE FROM entry WHERE position = 2"),
        ("entry p5: damaged: checksum", "UPDATE entry SET value = x'010000000002' WHERE position = 5"),
        ("its head is missing", "DELETE FROM head"),
        ("below its snapshot", "DELETE FROM entry"),
        ("part 1 of its snapshot is missing", "DELETE FROM state WHERE part = 1"),
        ("part 2 of its snapshot is missing", "DELETE FROM state WHERE part = 2"),
        ("format version 2", "PRAGMA user_version = 2"),
        ("not a transaction log", "PRAGMA application_id = 7"),
    ] {
        let folder = folder();
        five(&folder).await;
        Connection::open(folder.file()).unwrap().execute_batch(change).unwrap();
        let answer = folder.log().open("second").await;
        assert!(matches!(&answer, Err(LogError::Damaged(what)) if what.contains(words)), "{words}: {answer:?}");
    }
}

#[tokio::test]
async fn another_kind_of_file_is_refused() {
    let folder = folder();
    std::fs::create_dir_all(folder.file().parent().unwrap()).unwrap();
    std::fs::write(folder.file(), "no database at all, but long enough to have a header of one, were it one").unwrap();
    assert!(matches!(folder.log().open("first").await, Err(LogError::Damaged(_))));
    std::fs::remove_file(folder.file()).unwrap();
    Connection::open(folder.file()).unwrap().execute_batch("CREATE TABLE accounts (id INTEGER)").unwrap();
    assert!(
        matches!(folder.log().open("first").await, Err(LogError::Damaged(what)) if what.contains("not a transaction log"))
    );
}

#[tokio::test]
async fn the_file_stays_as_small_as_the_outstanding_work() {
    let folder = folder();
    let mut log = folder.log();
    let epoch = log.open("first").await.unwrap().epoch;
    for at in 1..=2_000 {
        let position = LogPosition(at);
        log.append(position, epoch, Bytes::from(vec![at as u8; 16 << 10])).await.unwrap();
        if at % 200 == 0 {
            log.write_snapshot(epoch, Snapshot { position, state: vec![at as u8; 1 << 20].into() }).await.unwrap();
            log.trim(epoch, position).await.unwrap();
        }
    }
    let files = std::fs::read_dir(folder.file().parent().unwrap()).unwrap();
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size < 8 << 20, "31 MiB were written, 1 MiB is outstanding, and {size} bytes are kept");
}

/// SQLite takes a damaged frame of its write-ahead file for the end of it.
#[tokio::test]
async fn a_flipped_bit_in_the_journal_is_refused() {
    let folder = folder();
    let mut log = folder.log();
    let epoch = log.open("first").await.unwrap().epoch;
    for at in 1..=5 {
        log.append(LogPosition(at), epoch, Bytes::from(vec![at as u8; 5_000])).await.unwrap();
    }
    // A copy of the files as a killed process leaves them.
    let copy = self::folder();
    std::fs::create_dir_all(copy.file().parent().unwrap()).unwrap();
    for file in std::fs::read_dir(folder.file().parent().unwrap()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.file().with_file_name(file.file_name())).unwrap();
    }
    let journal = copy.0.path().join("log/log.sqlite-wal");
    let mut data = std::fs::read(&journal).unwrap();
    let middle = data.len() * 3 / 4;
    data[middle] ^= 1;
    std::fs::write(&journal, data).unwrap();
    let answer = copy.log().open("second").await;
    assert!(matches!(&answer, Err(LogError::Damaged(what)) if what.contains("acknowledged is missing")), "{answer:?}");
}
