//! The bytes of a log entry: a log that was written must be read by every later build.

use std::fmt::Write;
use untorn::coordinator::{
    ApplyingFact, CopyState, Entry, Fact, Fence, InvolvedStream, Involvement, Item, MappedTablet, Outcome,
    PublishedColumn, PublishedTable, Release, ReleaseId, Report, TabletMap,
};
use untorn::wal::{
    BranchId, Column, Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId,
    TableId, TransactionId,
};

const STREAM: SourceTabletId = SourceTabletId(1);
const TABLET: ReplicaTabletId = ReplicaTabletId(2);

fn at(term: u64) -> OpId {
    OpId::new(term, 3)
}

fn time(time: u64) -> HybridTime {
    HybridTime::from_u64(time)
}

fn source() -> SourceTransactionId {
    SourceTransactionId { incarnation: 4, ..SourceTransactionId::first(b"gid") }
}

/// One fact of every kind, and of every shape of its parts.
fn facts() -> Vec<Fact> {
    let listed = vec![
        InvolvedStream { stream: STREAM, records: Some(5) },
        InvolvedStream { stream: SourceTabletId(0), records: None },
    ];
    let commit = |branch, involved| Fact::Commit { transaction: source(), branch, at: at(6), time: time(7), involved };
    let applying = ApplyingFact { at: at(8), records: Some(9), prepared_at: time(10), label: Some("label".into()) };
    let branch = |applying| Fact::Branch {
        transaction: source(),
        opened: at(11),
        records: 12,
        tablets: vec![TABLET, ReplicaTabletId(0)],
        after: vec![BranchId { stream: STREAM, opened: at(13) }],
        applying,
    };
    vec![
        Fact::Created { transaction: source(), at: at(14) },
        Fact::Pending { transaction: source() },
        branch(None),
        branch(Some(applying)),
        branch(Some(ApplyingFact::default())),
        commit(None, Involvement::Listed(listed)),
        commit(Some(at(15)), Involvement::OnlyThisStream),
        commit(Some(at(15)), Involvement::Discovered),
        Fact::Aborted { transaction: source(), branch: None, at: at(16) },
        Fact::Aborted { transaction: source(), branch: Some(at(17)), at: at(18) },
        Fact::SafeTime { time: time(u64::MAX) },
        Fact::NotRunning { transactions: vec![source()] },
        Fact::Split { children: vec![SourceTabletId(2), SourceTabletId(3)], at: at(19) },
    ]
}

/// One item of every kind.
fn items() -> Vec<Item> {
    let tablet = |id, from_key| MappedTablet { id, name: "tablet".into(), from_key };
    let copy = |state| Item::Copy { stream: STREAM, table: "public.t".into(), state };
    let column = Column { name: "id".into(), type_name: "int8".into(), key: true };
    vec![
        Item::Opened { epoch: Epoch(20), owner: "owner".into(), clock_skew_micros: 500_000 },
        Item::Created { release: Release::CommonClock },
        Item::Created { release: Release::Ordered },
        Item::Created { release: Release::Atomic },
        Item::Map(TabletMap { version: 1, tablets: vec![tablet(TABLET, None), tablet(TABLET, Some(vec![0, 255]))] }),
        Item::StreamJoined { stream: STREAM, name: "shard-a".into(), at: time(21) },
        Item::StreamLeft { stream: STREAM },
        Item::PullerOpened { stream: STREAM, epoch: Epoch(22) },
        Item::Table { table: TableId(23), name: "public.t".into(), version: 24, columns: vec![column] },
        Item::Slot { stream: STREAM, start: at(25), identity: "system".into() },
        copy(CopyState::Pending),
        copy(CopyState::Running { base: time(1), snapshot: at(26) }),
        copy(CopyState::Done { base: time(1), snapshot: at(26), rows: 27 }),
        Item::Fence(Fence {
            before: vec![(STREAM, at(28))],
            prepared: vec![(STREAM, source())],
            positions: vec![(STREAM, at(29))],
        }),
        Item::FenceResolved { stream: STREAM, transactions: vec![source()], position: at(30) },
        Item::Round { begun_after: LogPosition(31), positions: vec![(STREAM, at(32))] },
        Item::Report(Report {
            stream: STREAM,
            puller: Epoch(33),
            follows: at(34),
            upto: at(35),
            head: at(36),
            acknowledged: at(37),
            stored: vec![(TABLET, at(38))],
            facts: facts(),
        }),
        Item::Decision { transaction: TransactionId(39), outcome: Outcome::Commit(time(40)) },
        Item::Decision { transaction: TransactionId(39), outcome: Outcome::Abort },
        Item::Applied { tablet: TABLET, through: LogPosition(41) },
        Item::SafeTime { time: time(42) },
    ]
}

/// One item of every kind that version 2 brought.
fn items_of_copies() -> Vec<Item> {
    let table = || "public.t".to_owned();
    let column = PublishedColumn { number: 1, name: "id".into(), type_id: 20, filled: true };
    let fence = Fence { before: vec![(STREAM, at(46))], prepared: vec![], positions: vec![(STREAM, at(47))] };
    vec![
        Item::CopyAsked { stream: STREAM, table: table(), after: at(48) },
        Item::Published {
            stream: STREAM,
            table: PublishedTable { name: table(), relation: 49, columns: vec![column] },
        },
        Item::Spoken { stream: STREAM, table: table(), relation: 50, version: 51 },
        Item::CopyHidden { stream: STREAM, table: table(), time: time(52), gone: true },
        Item::CopyShown { stream: STREAM, table: table(), base: time(53), time: time(54) },
        Item::StreamCounted { stream: STREAM },
        Item::JoinFence { streams: vec![STREAM], fence },
        Item::StreamShown { stream: STREAM, time: time(55) },
    ]
}

/// One item of every kind that version 3 brought.
fn items_of_releases() -> Vec<Item> {
    let release = ReleaseId { epoch: Epoch(56), number: 57 };
    vec![Item::Released { tablet: TABLET, release, through: LogPosition(58) }]
}

fn golden(name: &str) -> (std::path::PathBuf, Vec<u8>) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let digits = std::fs::read(&path).unwrap_or_default();
    let digits: Vec<u8> = digits.into_iter().filter(u8::is_ascii_hexdigit).collect();
    let bytes = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    (path, bytes.collect())
}

#[test]
fn the_bytes_of_an_entry_stay() {
    let items = [items(), items_of_copies(), items_of_releases()].concat();
    let entry = Entry { epoch: Epoch(43), position: LogPosition(44), time: time(45), items };
    let bytes = entry.encode().unwrap();
    let (path, kept) = golden("entry-3.hex");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let mut hex = String::new();
        for line in bytes.chunks(40) {
            line.iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
            hex.push('\n');
        }
        std::fs::write(path, &hex).unwrap();
        return;
    }
    assert_eq!(bytes, kept, "the format changed: logs that were written cannot be read any more");
    assert_eq!(Entry::decode(&kept).unwrap(), entry);
}

#[test]
fn entries_of_older_versions_are_read() {
    let entry = |items| Entry { epoch: Epoch(43), position: LogPosition(44), time: time(45), items };
    assert_eq!(Entry::decode(&golden("entry-1.hex").1).unwrap(), entry(items()));
    let second = [items(), items_of_copies()].concat();
    assert_eq!(Entry::decode(&golden("entry-2.hex").1).unwrap(), entry(second));
}

#[test]
fn damaged_bytes_are_refused_and_never_panic() {
    let bytes = Entry { items: items(), ..Entry::default() }.encode().unwrap();
    for cut in 0..bytes.len() {
        assert!(Entry::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x40;
        assert!(Entry::decode(&damaged).is_err(), "byte {place}");
    }
}
