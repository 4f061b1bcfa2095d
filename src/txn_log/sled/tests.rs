use super::*;
use crate::txn_log::Faults;
use crate::txn_log::conformance::{self, Storage};

struct Folder(tempfile::TempDir);

impl Storage for Folder {
    fn log(&self) -> Box<dyn TransactionLog> {
        Box::new(SledLog::new(self.0.path().join("log")))
    }

    fn shared(&self) -> bool {
        false
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
    let entry = EntryRecord { epoch: Epoch(300), parts: 1, bytes: Bytes::from_static(b"ab") };
    let head = HeadRecord { log_id: "id".into(), epoch: Epoch(7) };
    let snapshot = SnapshotRecord { number: 2, position: LogPosition(300), parts: 1 };
    assert_eq!(codec::encode(FORMAT_VERSION, &entry).unwrap(), [1, 166, 191, 103, 75, 172, 2, 1, 2, 97, 98]);
    assert_eq!(codec::encode(FORMAT_VERSION, &head).unwrap(), [1, 137, 221, 184, 137, 2, 105, 100, 7]);
    assert_eq!(codec::encode(FORMAT_VERSION, &snapshot).unwrap(), [1, 54, 224, 24, 196, 2, 172, 2, 1]);
    assert_eq!(key(ENTRIES, 258, 3), [b'e', 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]);
}

/// A log of five entries, the third of them in several parts.
async fn five(folder: &Folder) {
    let mut log = folder.log();
    let epoch = log.open("first").await.unwrap().epoch;
    for at in 1..=5 {
        log.append(LogPosition(at), epoch, Bytes::from(vec![at as u8; if at == 3 { 10_000 } else { 10 }]))
            .await
            .unwrap();
    }
}

/// Changes what is on disk behind the log's back, and opens it.
async fn reopened_after(folder: &Folder, change: impl FnOnce(&Db)) -> Result<Opened, LogError> {
    {
        let db = open_sled(&folder.0.path().join("log")).unwrap();
        change(&db);
        db.flush().unwrap();
    }
    folder.log().open("second").await
}

#[tokio::test]
async fn a_torn_tail_is_cut() {
    let folder = folder();
    five(&folder).await;
    let part =
        codec::encode(1, &EntryRecord { epoch: Epoch(1), parts: 3, bytes: Bytes::from_static(b"half") }).unwrap();
    let opened = reopened_after(&folder, |db| drop(db.insert(key(ENTRIES, 6, 2), part).unwrap())).await.unwrap();
    assert_eq!(opened.last, LogPosition(5));
    let mut log = folder.log();
    let epoch = log.open("third").await.unwrap().epoch;
    log.append(LogPosition(6), epoch, Bytes::from_static(b"six")).await.unwrap();
    assert_eq!(log.read(LogPosition(6), 10).await.unwrap()[0].entry, "six");
}

#[tokio::test]
async fn a_hole_and_damage_are_refused() {
    type Change = (&'static str, fn(&Db));
    let changes: [Change; 6] = [
        ("entry p2 is missing", |db| drop(db.remove(key(ENTRIES, 2, 0)).unwrap())),
        ("entry p3 is missing", |db| drop(db.remove(key(ENTRIES, 3, 1)).unwrap())),
        ("checksum does not match", |db| {
            let mut value = db.get(key(ENTRIES, 5, 0)).unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 1;
            db.insert(key(ENTRIES, 5, 0), value).unwrap();
        }),
        ("is newer than 1", |db| {
            let value = codec::encode(2, &"from the future").unwrap();
            db.insert(key(ENTRIES, 4, 0), value).unwrap();
        }),
        ("its head is missing", |db| drop(db.remove(HEAD).unwrap())),
        ("has been at p9", |db| {
            let held = SnapshotRecord { number: 1, position: LogPosition(9), parts: 1 };
            db.insert(SNAPSHOT, codec::encode(1, &held).unwrap()).unwrap();
        }),
    ];
    for (words, change) in changes {
        let folder = folder();
        five(&folder).await;
        let answer = reopened_after(&folder, change).await;
        assert!(matches!(&answer, Err(LogError::Damaged(what)) if what.contains(words)), "{words}: {answer:?}");
    }
}

#[tokio::test]
async fn a_second_owner_is_told_who_holds_the_folder() {
    let folder = folder();
    let mut first = folder.log();
    first.open("applier one").await.unwrap();
    let answer = folder.log().open("applier two").await;
    assert!(
        matches!(&answer, Err(LogError::Unavailable(what)) if what.contains("applier one (process ")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn an_unfinished_file_of_sleds_own_is_no_obstacle() {
    let folder = folder();
    five(&folder).await;
    fs::write(folder.0.path().join("log/snap.00000000000FFFFF.generating"), b"half").unwrap();
    assert_eq!(folder.log().open("second").await.unwrap().last, LogPosition(5));
}

#[tokio::test]
async fn the_folder_stays_as_small_as_the_outstanding_work() {
    let folder = folder();
    let mut log = folder.log();
    let epoch = log.open("first").await.unwrap().epoch;
    let entry =
        Bytes::from((0..16 << 10).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>());
    for at in 1..=4_000 {
        let position = LogPosition(at);
        log.append(position, epoch, entry.clone()).await.unwrap();
        if at % 200 == 0 {
            log.write_snapshot(epoch, Snapshot { position, state: Bytes::from(vec![at as u8; 1 << 20]) })
                .await
                .unwrap();
            log.trim(epoch, position).await.unwrap();
        }
    }
    let dir = folder.0.path().join("log");
    let size = fs::metadata(dir.join("db")).unwrap().len();
    assert!(size < 32 << 20, "62 MiB were written, 4 MiB at a time were outstanding, and {size} bytes are kept");
    assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 0, "sled never syncs these files");
}

#[tokio::test]
async fn a_flipped_bit_is_harmless_or_refused() {
    let original = folder();
    five(&original).await;
    let data = fs::read(original.0.path().join("log/db")).unwrap();
    let used = data.iter().rposition(|byte| *byte != 0).unwrap();
    let mut refused = 0;
    for bit in (0..used * 8).step_by(used * 8 / 30) {
        let damaged = folder();
        five(&damaged).await;
        let path = damaged.0.path().join("log/db");
        let mut data = fs::read(&path).unwrap();
        data[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, data).unwrap();
        let mut log = damaged.log();
        match log.open("second").await {
            Err(LogError::Damaged(_)) => refused += 1,
            other => {
                assert_eq!(other.unwrap().last, LogPosition(5), "bit {bit}");
                let sizes: Vec<_> = log
                    .read(LogPosition(1), usize::MAX)
                    .await
                    .unwrap()
                    .iter()
                    .map(|record| record.entry.len())
                    .collect();
                assert_eq!(sizes, [10, 10, 10_000, 10, 10], "bit {bit}");
            }
        }
    }
    assert!(refused > 0);
}
