//! What goes over the wire comes back as it was; what should never come is refused and harms nothing.

use super::super::{
    Adopt, Announced, Applied, ApplyBatch, BranchWrites, ChunkBatch, CopyBatch, Decided, DropChunks, FillRequest,
    ProvisionalBatch, ReadPage, ReadPoint, ReadRequest, Stored, StreamMark, TabletError, TabletLeader, TabletStats,
    VersionedRow, Work,
};
use super::error::{from_status, to_status};
use super::{GrpcTablet, Tablets};
use crate::limits::{GRPC_MESSAGE_BYTES_MAX, GRPC_ROWS_BYTES_MAX};
use crate::proto::tablet as pb;
use crate::proto::wire::Malformed;
use crate::tablet::server::serve;
use crate::wal::{
    BranchId, Cell, Column, DroppedChunks, Epoch, HybridTime, Key, LogPosition, OpId, ReplicaTabletId, Row,
    SourceTabletId, TableId, TableSchema, TransactionId, Write, WriteOp,
};
use async_trait::async_trait;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use prost::Message;
use std::sync::Arc;
use tokio::net::TcpListener;
use tonic::{Code, Status};

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..5).prop_map(Bytes::from)
}

fn key() -> impl Strategy<Value = Key> {
    bytes().prop_map(Key)
}

fn op_id() -> impl Strategy<Value = OpId> {
    any::<(u64, u64)>().prop_map(|(term, index)| OpId { term, index })
}

fn branch() -> impl Strategy<Value = BranchId> {
    (any::<u32>(), op_id()).prop_map(|(stream, opened)| BranchId { stream: SourceTabletId(stream), opened })
}

fn row() -> impl Strategy<Value = Row> {
    let cell = prop_oneof![Just(Cell::Null), Just(Cell::Unchanged), bytes().prop_map(Cell::Text)];
    (any::<u32>(), vec(cell, 0..5)).prop_map(|(schema_version, cells)| Row { schema_version, cells })
}

fn schema() -> impl Strategy<Value = TableSchema> {
    let column = any::<(String, String, bool)>().prop_map(|(name, type_name, key)| Column { name, type_name, key });
    (any::<(u32, String, u32)>(), vec(column, 0..3)).prop_map(|((table, name, version), columns)| TableSchema {
        table: TableId(table),
        name,
        version,
        columns,
    })
}

fn write() -> impl Strategy<Value = Write> {
    let op = prop_oneof![
        (row(), option::of(key())).prop_map(|(row, fill_from)| WriteOp::Put { row, fill_from }),
        Just(WriteOp::Delete),
        Just(WriteOp::Truncate),
    ];
    (op_id(), any::<u32>(), key(), op).prop_map(|(at, table, key, op)| Write { at, table: TableId(table), key, op })
}

fn branch_writes() -> impl Strategy<Value = BranchWrites> {
    let adopt = any::<(u64, u32, Vec<u32>, u64)>();
    let adopt =
        adopt.prop_map(|(connection, xid, rolled_back, last_chunk)| Adopt { connection, xid, rolled_back, last_chunk });
    (branch(), vec(write(), 0..4), option::of(adopt)).prop_map(|(branch, writes, adopt)| BranchWrites {
        branch,
        writes,
        adopt,
    })
}

fn provisional() -> impl Strategy<Value = ProvisionalBatch> {
    let numbers = any::<(u32, u64, u64, bool)>();
    (numbers, op_id(), op_id(), vec(schema(), 0..2), vec(branch_writes(), 0..3), vec(op_id(), 0..2)).prop_map(
        |((stream, owner, puller, report_conflicts), follows, upto, schemas, branches, rolled_back)| ProvisionalBatch {
            stream: SourceTabletId(stream),
            owner: Epoch(owner),
            puller: Epoch(puller),
            follows,
            upto,
            schemas,
            branches,
            rolled_back,
            report_conflicts,
        },
    )
}

fn dropped() -> impl Strategy<Value = DropChunks> {
    any::<(u32, u64, u64, u64, u32, Option<u32>)>().prop_map(|(stream, owner, puller, connection, xid, sub_xid)| {
        let dropped = DroppedChunks { connection, xid, sub_xid };
        DropChunks { stream: SourceTabletId(stream), owner: Epoch(owner), puller: Epoch(puller), dropped }
    })
}

fn chunk() -> impl Strategy<Value = ChunkBatch> {
    (any::<(u32, u64, u64, u64, u32, u32, u64)>(), vec(schema(), 0..2), vec(write(), 0..4)).prop_map(
        |((stream, owner, puller, connection, xid, sub_xid, number), schemas, writes)| ChunkBatch {
            stream: SourceTabletId(stream),
            owner: Epoch(owner),
            puller: Epoch(puller),
            connection,
            xid,
            sub_xid,
            number,
            schemas,
            writes,
        },
    )
}

fn fill() -> impl Strategy<Value = FillRequest> {
    let numbers = any::<(u32, u64, u64, u64, u32, Vec<u32>, u32)>();
    (numbers, op_id(), vec(schema(), 0..2), key(), row()).prop_map(
        |((stream, owner, puller, connection, xid, rolled_back, table), upto, schemas, from, row)| FillRequest {
            stream: SourceTabletId(stream),
            owner: Epoch(owner),
            puller: Epoch(puller),
            connection,
            xid,
            rolled_back,
            upto,
            schemas,
            table: TableId(table),
            from,
            row,
        },
    )
}

fn copy() -> impl Strategy<Value = CopyBatch> {
    (any::<(u32, u64, u64, bool)>(), schema(), vec((key(), row()), 0..4)).prop_map(
        |((stream, owner, base, last), schema, rows)| CopyBatch {
            stream: SourceTabletId(stream),
            owner: Epoch(owner),
            base: HybridTime::from_u64(base),
            last,
            schema,
            rows,
        },
    )
}

fn apply() -> impl Strategy<Value = ApplyBatch> {
    let commit =
        (any::<(u64, u64, Vec<u32>)>(), vec(branch(), 0..3)).prop_map(|((transaction, time, tablets), branches)| {
            Work::Commit {
                transaction: TransactionId(transaction),
                time: HybridTime::from_u64(time),
                branches,
                tablets: tablets.into_iter().map(ReplicaTabletId).collect(),
            }
        });
    let work = prop_oneof![commit, vec(branch(), 0..3).prop_map(|branches| Work::Discard { branches })];
    let decided = (any::<u64>(), work).prop_map(|(position, work)| Decided { position: LogPosition(position), work });
    let numbers = any::<(u64, u64, u64, u64, bool)>();
    (numbers, vec(decided, 0..3)).prop_map(|((owner, follows, through, safe_time, one_writer), work)| ApplyBatch {
        owner: Epoch(owner),
        follows: LogPosition(follows),
        through: LogPosition(through),
        safe: Some(safe_time)
            .filter(|time| *time > 0)
            .map(|time| ReadPoint { position: LogPosition(through), time: HybridTime::from_u64(time) }),
        one_writer,
        work,
    })
}

fn read() -> impl Strategy<Value = ReadRequest> {
    (any::<(u32, u64, u64, bool, usize)>(), option::of(key()), option::of(key())).prop_map(
        |((table, position, time, history, max_bytes), key, after)| ReadRequest {
            table: TableId(table),
            at: ReadPoint { position: LogPosition(position), time: HybridTime::from_u64(time) },
            key,
            after,
            history,
            max_bytes,
        },
    )
}

fn page() -> impl Strategy<Value = ReadPage> {
    let row = (key(), option::of(row()), any::<(u64, u64, u32)>()).prop_map(|(key, row, (time, position, stream))| {
        VersionedRow {
            key,
            row,
            time: HybridTime::from_u64(time),
            position: LogPosition(position),
            stream: SourceTabletId(stream),
        }
    });
    (vec(row, 0..4), option::of(key())).prop_map(|(rows, more_after)| ReadPage { rows, more_after })
}

fn error() -> impl Strategy<Value = TabletError> {
    prop_oneof![
        (op_id(), op_id()).prop_map(|(held, follows)| TabletError::OutOfOrder { held, follows }),
        any::<(u64, u64)>().prop_map(|(heard, follows)| TabletError::HeardOther {
            heard: LogPosition(heard),
            follows: LogPosition(follows)
        }),
        any::<u64>().prop_map(|held| TabletError::Fenced { held: Epoch(held) }),
        any::<String>().prop_map(TabletError::ChunksLost),
        any::<String>().prop_map(TabletError::Refused),
        any::<(String, String, u32)>().prop_map(|(table, key, first)| TabletError::WrittenTwice {
            table,
            key,
            first: SourceTabletId(first)
        }),
        any::<(String, String)>().prop_map(|(asked, kept)| TabletError::TooOld { asked, kept }),
        any::<String>().prop_map(TabletError::Indeterminate),
        any::<String>().prop_map(TabletError::Poisoned),
    ]
}

/// A value through its message's bytes and back.
fn through<T, M>(value: T) -> T
where
    M: Message + Default + From<T>,
    T: TryFrom<M>,
    T::Error: std::fmt::Debug,
{
    M::decode(M::from(value).encode_to_vec().as_slice()).unwrap().try_into().unwrap()
}

/// Bytes as a message of this type and its meaning, if they are one.
fn read_as<M: Message + Default, T: TryFrom<M>>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let _ = T::try_from(message);
    }
}

proptest! {
    #[test]
    fn messages_come_back_as_they_were(
        (provisional, chunk, dropped, fill, copy, apply) in
            (provisional(), chunk(), dropped(), fill(), copy(), apply()),
        (read, page, error) in (read(), page(), error()),
        (mark, conflicts) in (op_id(), vec((branch(), vec(branch(), 0..3)), 0..3)),
        (heard, applied, stats) in (any::<u64>(), any::<u64>(), any::<[u64; 4]>()),
    ) {
        prop_assert_eq!(through::<_, pb::WriteProvisionalRequest>(provisional.clone()), provisional);
        prop_assert_eq!(through::<_, pb::StageChunkRequest>(chunk.clone()), chunk);
        prop_assert_eq!(through::<_, pb::DropChunksRequest>(dropped), dropped);
        prop_assert_eq!(through::<_, pb::FillResponse>(fill.row.clone()), fill.row.clone());
        prop_assert_eq!(through::<_, pb::FillRequest>(fill.clone()), fill);
        prop_assert_eq!(through::<_, pb::CopyRowsRequest>(copy.clone()), copy);
        prop_assert_eq!(through::<_, pb::ApplyRequest>(apply.clone()), apply);
        prop_assert_eq!(through::<_, pb::ReadRequest>(read.clone()), read);
        prop_assert_eq!(through::<_, pb::ReadResponse>(page.clone()), page);
        let stored = Stored { mark, conflicts };
        prop_assert_eq!(through::<_, pb::WriteProvisionalResponse>(stored.clone()), stored);
        let (heard, applied) = (LogPosition(heard), LogPosition(applied));
        let marks = vec![StreamMark { stream: SourceTabletId(1), stored: mark, puller: Epoch(2) }];
        let announced = Announced { marks, heard, applied };
        prop_assert_eq!(through::<_, pb::AnnounceResponse>(announced.clone()), announced);
        prop_assert_eq!(through::<_, pb::Applied>(Applied { heard, applied }), Applied { heard, applied });
        let [provisional_branches, provisional_records, provisional_bytes, disk_bytes] = stats;
        let stats = TabletStats { provisional_branches, provisional_records, provisional_bytes, disk_bytes };
        prop_assert_eq!(through::<_, pb::StatsResponse>(stats), stats);
        prop_assert_eq!(from_status(&to_status(error.clone())), error);
    }

    #[test]
    fn no_bytes_do_harm(noise in vec(any::<u8>(), 0..64), batch in provisional(), flip: proptest::sample::Index, with: u8) {
        let mut damaged = pb::WriteProvisionalRequest::from(batch).encode_to_vec();
        if !damaged.is_empty() {
            let place = flip.index(damaged.len());
            damaged[place] = with;
        }
        for bytes in [noise, damaged] {
            read_as::<pb::WriteProvisionalRequest, ProvisionalBatch>(&bytes);
            read_as::<pb::StageChunkRequest, ChunkBatch>(&bytes);
            read_as::<pb::DropChunksRequest, DropChunks>(&bytes);
            read_as::<pb::FillRequest, FillRequest>(&bytes);
            read_as::<pb::CopyRowsRequest, CopyBatch>(&bytes);
            read_as::<pb::ApplyRequest, ApplyBatch>(&bytes);
            read_as::<pb::ReadRequest, ReadRequest>(&bytes);
            read_as::<pb::ReadResponse, ReadPage>(&bytes);
            read_as::<pb::WriteProvisionalResponse, Stored>(&bytes);
            read_as::<pb::AnnounceResponse, Announced>(&bytes);
            from_status(&Status::with_details(Code::Aborted, "", bytes.into()));
        }
    }
}

#[test]
fn a_fault_names_its_field() {
    let without = |change: fn(&mut pb::WriteProvisionalRequest)| {
        let write = pb::Write { at: None, operation: None, ..pb::Write::default() };
        let branch = BranchId { stream: SourceTabletId(1), opened: OpId::new(1, 1) };
        let branch = pb::BranchWrites { branch: Some(branch.into()), writes: vec![write], adopt: None };
        let at = Some(OpId::new(1, 1).into());
        let mut request = pb::WriteProvisionalRequest {
            follows: at,
            upto: at,
            branches: vec![branch],
            ..pb::WriteProvisionalRequest::default()
        };
        change(&mut request);
        ProvisionalBatch::try_from(request).unwrap_err()
    };
    let missing = |field| Malformed::new(field, "is missing");
    assert_eq!(without(|request| request.follows = None), missing("follows"));
    assert_eq!(without(|request| request.upto = None), missing("upto"));
    assert_eq!(without(|request| request.branches[0].branch = None), missing("branches.branch"));
    assert_eq!(without(|_| ()), missing("write.operation"));
}

/// A tablet that answers every call with this error.
struct Refusing(TabletError);

#[async_trait]
impl TabletLeader for Refusing {
    async fn announce(&self, _: &str, _: ReplicaTabletId, _: Epoch) -> Result<Announced, TabletError> {
        Err(self.0.clone())
    }
    async fn announce_puller(&self, _: SourceTabletId, _: Epoch, _: Epoch) -> Result<StreamMark, TabletError> {
        Err(self.0.clone())
    }
    async fn write_provisional(&self, _: ProvisionalBatch) -> Result<Stored, TabletError> {
        Err(self.0.clone())
    }
    async fn stage_chunk(&self, _: ChunkBatch) -> Result<(), TabletError> {
        Err(self.0.clone())
    }
    async fn drop_chunks(&self, _: DropChunks) -> Result<(), TabletError> {
        Err(self.0.clone())
    }
    async fn fill(&self, _: FillRequest) -> Result<Row, TabletError> {
        Err(self.0.clone())
    }
    async fn copy_rows(&self, _: CopyBatch) -> Result<(), TabletError> {
        Err(self.0.clone())
    }
    async fn apply(&self, _: ApplyBatch) -> Result<Applied, TabletError> {
        Err(self.0.clone())
    }
    async fn read(&self, _: ReadRequest) -> Result<ReadPage, TabletError> {
        Err(self.0.clone())
    }
    async fn sync(&self) -> Result<Applied, TabletError> {
        Err(self.0.clone())
    }
    async fn stats(&self) -> Result<TabletStats, TabletError> {
        Err(self.0.clone())
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// The address of a server with one tablet, "r0", that answers every call with this error.
async fn refusing(error: TabletError) -> String {
    let (listener, url) = listen().await;
    let tablets = Tablets::from([("r0".to_owned(), Arc::new(Refusing(error)) as Arc<dyn TabletLeader>)]);
    tokio::spawn(serve(listener, tablets, None, std::future::pending()));
    url
}

#[tokio::test]
async fn every_call_gives_the_tablets_own_error_back() {
    let error = TabletError::OutOfOrder { held: OpId::new(1, 2), follows: OpId::new(3, 4) };
    let tablet = GrpcTablet::new(&refusing(error.clone()).await, "r0").unwrap();
    let (stream, epoch) = (SourceTabletId(1), Epoch(1));
    let mut any = proptest::test_runner::TestRunner::deterministic();
    assert_eq!(tablet.announce("log", ReplicaTabletId(0), epoch).await, Err(error.clone()));
    assert_eq!(tablet.announce_puller(stream, epoch, epoch).await, Err(error.clone()));
    let batch = provisional().new_tree(&mut any).unwrap().current();
    assert_eq!(tablet.write_provisional(batch).await, Err(error.clone()));
    assert_eq!(tablet.stage_chunk(chunk().new_tree(&mut any).unwrap().current()).await, Err(error.clone()));
    assert_eq!(tablet.drop_chunks(dropped().new_tree(&mut any).unwrap().current()).await, Err(error.clone()));
    assert_eq!(tablet.fill(fill().new_tree(&mut any).unwrap().current()).await, Err(error.clone()));
    assert_eq!(tablet.copy_rows(copy().new_tree(&mut any).unwrap().current()).await, Err(error.clone()));
    assert_eq!(tablet.apply(apply().new_tree(&mut any).unwrap().current()).await, Err(error.clone()));
    assert_eq!(tablet.read(read().new_tree(&mut any).unwrap().current()).await, Err(error.clone()));
    assert_eq!(tablet.sync().await, Err(error.clone()));
    assert_eq!(tablet.stats().await, Err(error));
}

#[tokio::test]
async fn another_name_is_refused_with_the_names_that_there_are() {
    let url = refusing(TabletError::Fenced { held: Epoch(1) }).await;
    let error = GrpcTablet::new(&url, "r7").unwrap().sync().await.unwrap_err();
    assert_eq!(error, TabletError::Refused("no tablet is named \"r7\" here, only r0".to_owned()));
}

#[tokio::test]
async fn a_server_that_is_gone_leaves_the_outcome_open() {
    let (listener, url) = listen().await;
    drop(listener);
    let error = GrpcTablet::new(&url, "r0").unwrap().sync().await.unwrap_err();
    assert!(matches!(&error, TabletError::Indeterminate(why) if why.contains(&url)), "{error}");
}

/// A copied row with a key of so many bytes.
fn copied_row(bytes: usize) -> CopyBatch {
    CopyBatch {
        stream: SourceTabletId(1),
        owner: Epoch(1),
        base: HybridTime::from_u64(1),
        last: true,
        schema: TableSchema { table: TableId(1), name: "public.a".to_owned(), version: 1, columns: Vec::new() },
        rows: vec![(Key(vec![0; bytes].into()), Row::default())],
    }
}

#[tokio::test]
async fn a_row_above_other_messages_arrives() {
    let fenced = TabletError::Fenced { held: Epoch(1) };
    let tablet = GrpcTablet::new(&refusing(fenced.clone()).await, "r0").unwrap();
    assert_eq!(tablet.copy_rows(copied_row(GRPC_MESSAGE_BYTES_MAX + 1)).await, Err(fenced));
}

#[tokio::test]
async fn a_batch_above_a_message_is_refused_before_it_is_sent() {
    let url = refusing(TabletError::Fenced { held: Epoch(1) }).await;
    let error = GrpcTablet::new(&url, "r0").unwrap().copy_rows(copied_row(GRPC_ROWS_BYTES_MAX)).await.unwrap_err();
    assert!(matches!(&error, TabletError::Refused(why) if why.contains("above the 1140850688")), "{error}");
}

#[tokio::test]
async fn an_address_that_is_none_is_said_at_once() {
    for url in ["10.0.0.1:7000", "https://10.0.0.1:7000", "http://10.0.0.1", "no address"] {
        let error = GrpcTablet::new(url, "r0").unwrap_err().to_string();
        assert!(error.contains(url) && error.contains("http://HOST:PORT"), "{error}");
    }
}

/// A tablet behind the service and its client is a tablet.
mod conformance {
    use super::*;
    use crate::tablet::conformance::{Rig, tablet_conformance};
    use crate::tablet::engine::TabletOptions;
    use crate::tablet::memory::{self, MemoryStore};
    use std::time::Duration;

    /// A server of its own thread and runtime, for as long as the client lives.
    fn rig() -> Rig {
        let store = MemoryStore::default();
        Rig::new(move || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let client = Arc::new(GrpcTablet::new(&url, "r0").unwrap());
            let used = Arc::downgrade(&client);
            let (engine, workers) = memory::open(store.clone(), TabletOptions::default()).unwrap();
            let tablets = Tablets::from([("r0".to_owned(), Arc::new(engine) as Arc<dyn TabletLeader>)]);
            let unused = async move {
                while used.strong_count() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            // The client's runtime waits for this thread, so its connection would not end while the server drains.
            let server = async move {
                tokio::select! {
                    ended = serve(TcpListener::from_std(listener).unwrap(), tablets, None, std::future::pending()) => ended.unwrap(),
                    () = unused => (),
                }
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut threads = vec![std::thread::spawn(move || runtime.block_on(server))];
            threads.extend(workers.into_iter().map(|worker| std::thread::spawn(|| worker.run())));
            (client, threads)
        })
    }

    tablet_conformance!(rig);
}
