//! A leader behind the service and its client is the leader itself, its errors included.

use super::super::leader::{
    Copied, LeaderError, PullerId, Reported, StandingSlot, StreamOpened, StreamState, Taker, TransactionLeader, Wanted,
};
use super::convert::{report_bytes, report_from};
use super::error::from_status;
use super::{GrpcLeader, ReportOrder, transaction_service};
use crate::coordinator::{Fact, MappedTablet, PublishedColumn, PublishedTable, Release, Report, TabletMap};
use crate::proto::transaction as pb;
use crate::source::{OpenBranch, Resume};
use crate::wal::{
    Column, Epoch, HybridTime, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TableId, TableSchema,
    TransactionId,
};
use async_trait::async_trait;
use futures::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};

/// Answers what it was made with, and remembers what it was told.
#[derive(Default)]
struct Told {
    refuses_with: Option<LeaderError>,
    reports: Mutex<Vec<Report>>,
    states: Mutex<Vec<StreamState>>,
    copies: Mutex<Vec<Copied>>,
    published: Mutex<Vec<PublishedTable>>,
}

impl Told {
    fn answer<T>(&self, value: T) -> Result<T, LeaderError> {
        self.refuses_with.clone().map_or(Ok(value), Err)
    }
}

const PULLER: PullerId = PullerId { stream: SourceTabletId(3), epoch: Epoch(8) };

fn standing() -> StandingSlot {
    let column = PublishedColumn { number: 3, name: "id".to_owned(), type_id: 20, filled: true };
    let table = PublishedTable { name: "public.a".to_owned(), relation: 16_384, columns: vec![column] };
    StandingSlot { start: OpId::new(1, 1), identity: "7340".to_owned(), tables: vec![table] }
}

fn opened() -> StreamOpened {
    let tablet = |id, from_key| MappedTablet { id: ReplicaTabletId(id), name: format!("tablet-{id}"), from_key };
    let branch = OpenBranch {
        transaction: SourceTransactionId { id: Arc::from(*b"gid\0"), incarnation: 2 },
        label: Some("gid_1".to_owned()),
        opened: OpId::new(3, 1),
        records: 4,
        applying: true,
    };
    StreamOpened {
        stream: SourceTabletId(3),
        puller: Epoch(8),
        owner: Epoch(2),
        log_id: "log-1".to_owned(),
        map: TabletMap { version: 1, tablets: vec![tablet(0, None), tablet(1, Some(b"m".to_vec()))] },
        streams: vec![("shard-a".into(), SourceTabletId(3)), ("shard-b".into(), SourceTabletId(4))],
        release: Release::Ordered,
        slot_stands: true,
        resume: Resume {
            stream: SourceTabletId(3),
            identity: "7340".to_owned(),
            after: OpId::new(4, 0),
            open_branches: vec![branch],
        },
        stored: vec![(ReplicaTabletId(1), OpId::new(4, 0))],
    }
}

fn wanted() -> Wanted {
    let check_running = vec![SourceTransactionId { id: Arc::from(&b"orphan"[..]), incarnation: 1 }];
    Wanted { pause_for: Some("replica-2".to_owned()), check_running }
}

fn record() -> pb::TransactionRecord {
    pb::TransactionRecord {
        transaction_id: 5,
        status: pb::TransactionStatus::WaitingToCommit.into(),
        tablets_received_applying_record: vec!["shard-a".to_owned()],
        ..pb::TransactionRecord::default()
    }
}

fn taker() -> Taker {
    Taker { puller: "here".into(), held: Some(Epoch(7)), found: Ok(Some("slot \"a\"".into())) }
}

#[async_trait]
impl TransactionLeader for Told {
    async fn open_stream(&self, _: &str, taken: Taker) -> Result<StreamOpened, LeaderError> {
        assert_eq!(taken, taker());
        self.answer(opened())
    }

    async fn report(&self, report: Report) -> Result<Reported, LeaderError> {
        let reported = Reported { checkpoint: report.upto, acknowledge: report.follows };
        self.reports.lock().unwrap().push(report);
        self.answer(reported)
    }

    async fn table(
        &self,
        _: SourceTabletId,
        name: &str,
        columns: Vec<Column>,
        relation: Option<u32>,
    ) -> Result<TableSchema, LeaderError> {
        self.answer(TableSchema { table: TableId(1), name: name.to_owned(), version: relation.unwrap_or(2), columns })
    }

    async fn slot(&self, puller: PullerId, slot: StandingSlot) -> Result<HybridTime, LeaderError> {
        assert_eq!((puller, slot), (PULLER, standing()));
        self.answer(HybridTime::from_u64(7))
    }

    async fn published(&self, _: PullerId, _: OpId, tables: Vec<PublishedTable>) -> Result<Vec<String>, LeaderError> {
        let names = tables.iter().map(|table| table.name.clone()).collect();
        self.published.lock().unwrap().extend(tables);
        self.answer(names)
    }

    async fn copy_begun(&self, _: PullerId, tables: Vec<String>) -> Result<HybridTime, LeaderError> {
        self.answer(HybridTime::from_u64(tables.len() as u64))
    }

    async fn copied(&self, _: PullerId, copied: Copied) -> Result<(), LeaderError> {
        self.copies.lock().unwrap().push(copied);
        self.answer(())
    }

    async fn stream_state(&self, _: SourceTabletId, _: Epoch, state: StreamState) -> Result<Wanted, LeaderError> {
        self.states.lock().unwrap().push(state);
        self.answer(wanted())
    }

    async fn transaction_record(
        &self,
        transaction: TransactionId,
    ) -> Result<Option<pb::TransactionRecord>, LeaderError> {
        self.answer((transaction.0 == 5).then(record))
    }
}

async fn behind_grpc(leader: Arc<Told>) -> GrpcLeader {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = crate::proto::transport::server().add_service(transaction_service(leader));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    GrpcLeader::new(&url).unwrap()
}

fn report(number: u64) -> Report {
    Report {
        stream: opened().stream,
        puller: opened().puller,
        follows: OpId::new(4, number),
        upto: OpId::new(4, number + 1),
        facts: vec![Fact::SafeTime { time: HybridTime::from_u64(number) }],
        ..Report::default()
    }
}

#[tokio::test]
async fn everything_comes_through() {
    let told = Arc::new(Told::default());
    let leader = behind_grpc(told.clone()).await;
    assert_eq!(leader.open_stream("shard-a", taker()).await, Ok(opened()));
    let reported = Reported { checkpoint: OpId::new(4, 1), acknowledge: OpId::new(4, 0) };
    assert_eq!(leader.report(report(0)).await, Ok(reported));
    assert_eq!(*told.reports.lock().unwrap(), [report(0)]);
    let columns = vec![Column { name: "id".to_owned(), type_name: "int8".to_owned(), key: true }];
    for (relation, version) in [(None, 2), (Some(7), 7)] {
        let table = leader.table(SourceTabletId(3), "public.a", columns.clone(), relation).await.unwrap();
        assert_eq!((table.name, table.version, table.columns), ("public.a".to_owned(), version, columns.clone()));
    }
    assert_eq!(leader.slot(PULLER, standing()).await, Ok(HybridTime::from_u64(7)));
    let StandingSlot { tables, .. } = standing();
    assert_eq!(leader.published(PULLER, OpId::new(9, 9), tables.clone()).await, Ok(vec!["public.a".to_owned()]));
    assert_eq!(*told.published.lock().unwrap(), tables);
    assert_eq!(leader.copy_begun(PULLER, vec!["public.a".to_owned()]).await, Ok(HybridTime::from_u64(1)));
    let states = [
        StreamState::NotPolled,
        StreamState::Copying { rows: 1, total: None },
        StreamState::Copying { rows: 1, total: Some(2) },
        StreamState::Running,
        StreamState::Waiting { cause: "down".to_owned() },
        StreamState::BackPressure { tablet: "tablet-1".to_owned() },
        StreamState::Stopped { cause: "damage".to_owned() },
    ];
    for state in states.clone() {
        assert_eq!(leader.stream_state(SourceTabletId(3), Epoch(8), state).await, Ok(wanted()));
    }
    assert_eq!(*told.states.lock().unwrap(), states);
    let snapshot = OpId::new(9, 9);
    let copied = Copied { table: "public.a".to_owned(), base: HybridTime::from_u64(1), snapshot, rows: 7 };
    leader.copied(PULLER, copied.clone()).await.unwrap();
    assert_eq!(*told.copies.lock().unwrap(), [copied]);
    assert_eq!(leader.transaction_record(TransactionId(5)).await, Ok(Some(record())));
    assert_eq!(leader.transaction_record(TransactionId(6)).await, Ok(None));
}

#[tokio::test]
async fn errors_come_through_as_they_are() {
    let errors = [
        LeaderError::OutOfOrder { held: OpId::new(1, 2), follows: OpId::new(3, 4) },
        LeaderError::Fenced("another puller".to_owned()),
        LeaderError::Stop("a Commit with different content".to_owned()),
        LeaderError::Refused("a replica tablet refuses it".to_owned()),
    ];
    for error in errors {
        let told = Told { refuses_with: Some(error.clone()), ..Told::default() };
        let leader = behind_grpc(Arc::new(told)).await;
        assert_eq!(leader.open_stream("shard-a", taker()).await, Err(error.clone()));
        assert_eq!(leader.report(report(0)).await, Err(error.clone()));
        assert_eq!(leader.transaction_record(TransactionId(5)).await, Err(error));
    }
}

#[tokio::test]
async fn a_leader_that_is_gone_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = GrpcLeader::new(&url).unwrap().report(report(0)).await.unwrap_err();
    assert!(matches!(&error, LeaderError::Unavailable(why) if why.contains(&url)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reports_that_overtake_each_other_are_handed_in_in_order() {
    let told = Arc::new(Told::default());
    let leader = behind_grpc(told.clone()).await;
    leader.open_stream("shard-a", taker()).await.unwrap();
    let answers = join_all((0..100).rev().map(|number| leader.report(report(number)))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(*told.reports.lock().unwrap(), (0..100).map(report).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_report_that_comes_twice_does_not_put_back_the_turn_of_the_next() {
    let (told, order, began) = (Told::default(), ReportOrder::default(), tokio::time::Instant::now());
    let first = report(0);
    order.opened(first.stream, first.puller, first.follows);
    for number in [0, 1, 0, 2] {
        order.hand_in(&told, report(number)).await.unwrap();
    }
    assert_eq!(began.elapsed(), std::time::Duration::ZERO);
}

proptest! {
    #[test]
    fn no_bytes_do_harm(noise in vec(any::<u8>(), 0..64), flip: Index, with: u8) {
        let damage = |mut bytes: Vec<u8>| {
            let place = flip.index(bytes.len());
            bytes[place] = with;
            bytes
        };
        let answer = damage(pb::OpenStreamResponse::from(opened()).encode_to_vec());
        let sent = report_bytes(&report(0)).unwrap();
        let reported = damage(sent.clone());
        prop_assert!(reported == sent || report_from(&reported).is_err(), "the checksum finds every change");
        for bytes in [noise, answer, reported] {
            let _ = report_from(&bytes);
            let _ = pb::OpenStreamResponse::decode(&bytes[..]).map(StreamOpened::try_from);
            let _ = pb::ReportResponse::decode(&bytes[..]).map(Reported::try_from);
            let _ = pb::PublishedTable::decode(&bytes[..]).map(PublishedTable::try_from);
            let _ = pb::StreamState::decode(&bytes[..]).map(StreamState::try_from);
            from_status(&Status::with_details(Code::Aborted, "", bytes.into()));
        }
    }
}
