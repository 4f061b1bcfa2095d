//! What untorn keeps: any bytes are read or refused, and what was read is written and read again as it was.

use bytes::Bytes;
use untorn::coordinator::{
    ApplyingFact, Coordinator, Entry, Fact, InvolvedStream, Involvement, Item, MappedTablet, Outcome, Release, Report,
    Settings, TabletMap,
};
use untorn::tablet::format::{
    self, AppliedThrough, Binding, Chunk, Copying, Mark, ProvisionalRecord, Raw, StoredOp, StoredTurn, StoredVersion,
    StoredWal, StoredWrite, Unfilled,
};
use untorn::tablet::keys::{VersionKey, version};
use untorn::wal::{
    BranchId, Cell, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row, SourceTabletId,
    SourceTransactionId, TableId, TransactionId, Write, WriteOp,
};

/// An input as the codec's envelope: the first byte is the version, and the checksum is right, or nothing behind it would be
/// reached.
pub fn enveloped(data: &[u8]) -> Vec<u8> {
    let (version, payload) = data.split_at(data.len().min(1));
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(version);
    hasher.update(payload);
    [version, &hasher.finalize().to_le_bytes(), payload].concat()
}

/// The input that [`enveloped`] makes these bytes of.
pub fn opened(bytes: &[u8]) -> Vec<u8> {
    [&bytes[..1], &bytes[5..]].concat()
}

/// An entry of the transaction log.
pub fn log_entry(data: &[u8]) {
    let _ = Entry::decode(data);
    let Ok(entry) = Entry::decode(&enveloped(data)) else { return };
    let bytes = entry.encode().unwrap();
    assert_eq!(Entry::decode(&bytes).unwrap(), entry);
}

/// What streams report, a kind of life of a transaction each.
pub fn reported() -> Vec<Vec<Fact>> {
    let Report { facts, .. } = report();
    let without = |left_out: usize| {
        let kept = facts.iter().enumerate().filter(|(place, _)| *place != left_out);
        kept.map(|(_, fact)| fact.clone()).collect()
    };
    vec![facts.clone(), without(2), without(1)]
}

fn report() -> Report {
    let transaction = SourceTransactionId::first(b"transfer");
    let stream = SourceTabletId(0);
    let branch = Fact::Branch {
        transaction: transaction.clone(),
        opened: OpId::new(1, 1),
        records: 2,
        tablets: vec![ReplicaTabletId(0)],
        after: vec![BranchId { stream, opened: OpId::new(1, 0) }],
        applying: Some(ApplyingFact { at: OpId::new(1, 3), records: Some(2), ..ApplyingFact::default() }),
    };
    let involved = Involvement::Listed(vec![InvolvedStream { stream, records: Some(2) }]);
    let time = HybridTime::from_micros(1_000);
    let commit = Fact::Commit { transaction: transaction.clone(), branch: None, at: OpId::new(1, 4), time, involved };
    let facts = vec![
        Fact::Created { transaction: transaction.clone(), at: OpId::new(1, 1) },
        branch,
        commit,
        Fact::Aborted { transaction: SourceTransactionId::first(b"other"), branch: None, at: OpId::new(1, 5) },
        Fact::SafeTime { time },
        Fact::NotRunning { transactions: vec![transaction] },
    ];
    let stored = vec![(ReplicaTabletId(0), OpId::new(1, 9))];
    Report { stream, puller: Epoch(1), upto: OpId::new(1, 9), stored, facts, ..Report::default() }
}

fn map() -> TabletMap {
    let tablet = |id, from_key| MappedTablet { id: ReplicaTabletId(id), name: format!("r{id}"), from_key };
    TabletMap { version: 1, tablets: vec![tablet(0, None), tablet(1, Some(b"m".to_vec()))] }
}

/// Valid entries, of both versions.
pub fn log_entries() -> Vec<Vec<u8>> {
    let items = vec![
        vec![Item::Created { release: Release::Ordered }, Item::Map(map())],
        vec![Item::Opened { epoch: Epoch(1), owner: "a".into(), clock_skew_micros: 5 }],
        vec![Item::Report(report())],
        vec![Item::Decision {
            transaction: TransactionId(1),
            outcome: Outcome::Commit(HybridTime::from_micros(1_000)),
        }],
    ];
    let entry = |items| Entry { epoch: Epoch(1), position: LogPosition(1), time: HybridTime::from_micros(1), items };
    let current = items.into_iter().map(|items| opened(&entry(items).encode().unwrap()));
    let first = |mut bytes: Vec<u8>| {
        bytes[0] = 1;
        bytes
    };
    current.flat_map(|bytes| [bytes.clone(), first(bytes)]).collect()
}

/// A snapshot of the transaction log.
pub fn log_snapshot(data: &[u8]) {
    let payload = data.get(1..).unwrap_or_default();
    // Where it says that it was taken: whoever restores it knows that from the log.
    let Ok((.., position)) = postcard::from_bytes::<(Release, Epoch, u64, LogPosition)>(payload) else { return };
    let restored = |bytes: &[u8]| {
        let mut coordinator = Coordinator::restore(Settings::default(), Some((position, bytes))).ok()?;
        let (at, bytes) = coordinator.snapshot().unwrap();
        assert_eq!(at, position);
        Some(bytes)
    };
    let Some(bytes) = restored(&enveloped(data)) else { return };
    let again = restored(&bytes).expect("what was written is read");
    assert_eq!(bytes, again);
}

/// Snapshots along a small log.
pub fn log_snapshots() -> Vec<Vec<u8>> {
    let now = HybridTime::from_micros(5_000);
    let mut coordinator = Coordinator::restore(Settings::default(), None).unwrap();
    let tablets = [("r0".to_owned(), None), ("r1".to_owned(), None)];
    coordinator.handle_opened(now, Epoch(1), "a", &tablets).unwrap();
    let mut all = vec![coordinator.snapshot().unwrap().1];
    coordinator.handle_configured(now, &["a", "b"]);
    for name in ["a", "b"] {
        coordinator.handle_open_stream(now, name).unwrap();
        all.push(coordinator.snapshot().unwrap().1);
    }
    coordinator.handle_report(now, report()).unwrap();
    all.push(coordinator.snapshot().unwrap().1);
    all.iter().map(|bytes| opened(bytes)).collect()
}

/// Reads a value of a tablet's storage and writes it; what was written must be written so again.
macro_rules! settles {
    ($bytes:expr, $value:ty) => {{
        let written = |bytes: &[u8]| {
            let value = format::decode::<$value>("a value", bytes).ok()?;
            Some(format::encode(&value).unwrap())
        };
        if let Some(first) = written($bytes) {
            assert_eq!(written(&first).as_ref(), Some(&first));
        }
    }};
}

/// Every value of a tablet's storage; the first byte says which kind.
pub fn tablet_store(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let bytes = enveloped(data);
    match kind % 12 {
        0 => settles!(&bytes, Binding),
        1 => settles!(&bytes, Mark),
        2 => settles!(&bytes, AppliedThrough),
        3 => settles!(&bytes, ProvisionalRecord<'_>),
        4 => settles!(&bytes, Chunk<'_>),
        5 => settles!(&bytes, StoredVersion<'_>),
        6 => settles!(&bytes, StoredTurn),
        7 => settles!(&bytes, Copying),
        8 => settles!(&bytes, Unfilled<'_>),
        9 => settles!(&bytes, StoredWal<'_>),
        10 => settles!(&bytes, Write),
        _ => {
            if let Ok(row) = format::decode_row(data) {
                assert_eq!(format::decode_row(&format::encode_row(&row).unwrap()).unwrap(), row);
            }
        }
    }
}

/// A value of each kind.
pub fn tablet_values() -> Vec<Vec<u8>> {
    let row = Row { schema_version: 1, cells: vec![Cell::Null, Cell::Text(Bytes::from_static(b"x")), Cell::Unchanged] };
    let bytes = format::encode_row(&row).unwrap();
    let raw = Raw(&bytes);
    let time = HybridTime::from_micros(9);
    let write = |op| StoredWrite { table: TableId(3), key: Raw(b"k\0\x01"), op };
    let filled = StoredOp::Fill { row: raw, from: Some(Raw(b"o\0\x01")) };
    let writes = vec![write(StoredOp::Put(raw)), write(filled), write(StoredOp::Delete), write(StoredOp::Truncate)];
    let put = WriteOp::Put { row, fill_from: Some(Key::default()) };
    let whole = Write { at: OpId::new(1, 1), table: TableId(1), key: Key::default(), op: put };
    let values = [
        format::encode(&Binding { log_id: "log".into(), tablet: ReplicaTabletId(1), owner: Epoch(2) }),
        format::encode(&Mark { stored: OpId::new(1, 2), puller: Epoch(3) }),
        format::encode(&AppliedThrough { position: LogPosition(4), safe_time: time }),
        format::encode(&ProvisionalRecord::Writes(writes.clone())),
        format::encode(&Chunk { sub_xid: 9, writes }),
        format::encode(&StoredVersion { position: LogPosition(7), row: Some(raw) }),
        format::encode(&StoredTurn { time, base: Some(time) }),
        format::encode(&Copying { base: time, complete: true }),
        format::encode(&Unfilled { position: LogPosition(7), row: raw, from: Some(Raw(b"o")) }),
        format::encode(&StoredWal { before: 300, record: raw }),
        format::encode(&whole),
    ];
    let kinds = values.into_iter().zip(0u8..).map(|(value, kind)| [vec![kind], opened(&value.unwrap())].concat());
    let adopted = format::encode(&ProvisionalRecord::Adopted { connection: 5, xid: 6, chunks: vec![1, 2] });
    kinds.chain([[vec![3], opened(&adopted.unwrap())].concat(), [vec![11], bytes.clone()].concat()]).collect()
}

/// Keys: a row's, and those of a tablet's storage.
pub fn keys(data: &[u8]) {
    let key = Key(Bytes::copy_from_slice(data));
    if let Some(columns) = key.columns() {
        assert_eq!(Key::from_columns(columns.iter().map(Vec::as_slice)), key);
    }
    let columns: Vec<&[u8]> = data.split(|byte| *byte == b',').collect();
    let made = Key::from_columns(columns.iter().copied());
    assert_eq!(made.columns().unwrap(), columns);
    if let Some(VersionKey { table, row, time, stream }) = VersionKey::parse(data) {
        assert_eq!(version(table, row, time, stream), data);
    }
}

/// Keys of each kind.
pub fn all_keys() -> Vec<Vec<u8>> {
    let row = Key::from_columns([&b"1"[..], b"a\0b"]).0;
    let stored = version(TableId(1), &row, HybridTime::from_micros(9), SourceTabletId(2));
    vec![row.to_vec(), stored, b"1,two,\0\xff".to_vec()]
}
