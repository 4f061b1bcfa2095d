//! A service that misbehaves in each way must stop its stream by name; one that does not must be taken as it is.

use super::decode::Decoder;
use super::fault::Faults;
use super::{CdcSource, CdcTablet, StreamNames};
use crate::limits::{CDC_RECORD_BYTES_MAX, SOURCE_TRANSACTION_ID_BYTES_MAX};
use crate::proto::cdc as pb;
use crate::proto::cdc::cdc_record::Record as PbRecord;
use crate::proto::cdc::cdc_service_server::{CdcService, CdcServiceServer};
use crate::proto::cdc::write::Operation;
use crate::source::{Catalog, Resume, Source, SourceError, Stream, StreamEvent};
use crate::wal::{
    Cell, Column, HybridTime, Involved, InvolvedTablet, Key, OpId, Record, Row, SourceBatch, SourceTransactionId,
    TableId, TableSchema, Write, WriteOp,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

/// The position that streams are opened after.
const AFTER: OpId = OpId::new(1, 5);

/// A catalog that numbers tables from 7 and their versions from 1.
#[derive(Default)]
struct Numbering(Mutex<Vec<TableSchema>>);

#[async_trait]
impl Catalog for Numbering {
    async fn table(&self, name: &str, columns: Vec<Column>, _: Option<u32>) -> Result<TableSchema, SourceError> {
        let mut tables = self.0.lock().unwrap();
        let of_name = || tables.iter().filter(|known| known.name == name);
        if let Some(known) = of_name().find(|known| known.columns == columns) {
            return Ok(known.clone());
        }
        let others = || tables.iter().map(|known| known.table.0).max().map_or(7, |highest| highest + 1);
        let table = TableId(of_name().next().map_or_else(others, |known| known.table.0));
        let version = of_name().count() as u32 + 1;
        tables.push(TableSchema { table, name: name.to_owned(), version, columns });
        Ok(tables.last().unwrap().clone())
    }
}

type Page = pb::GetCdcRecordsResponse;

/// A service that gives these answers one after another, and then none.
#[derive(Default)]
struct Scripted {
    pages: Mutex<VecDeque<Result<Page, Status>>>,
    requests: Mutex<Vec<pb::GetCdcRecordsRequest>>,
    check: Mutex<VecDeque<pb::CheckTransactionsResponse>>,
}

#[tonic::async_trait]
impl CdcService for Arc<Scripted> {
    async fn list_tablets(
        &self,
        _: Request<pb::ListTabletsRequest>,
    ) -> Result<Response<pb::ListTabletsResponse>, Status> {
        Ok(Response::new(pb::ListTabletsResponse { tablets: vec!["t1".to_owned()] }))
    }

    async fn get_cdc_records(&self, request: Request<pb::GetCdcRecordsRequest>) -> Result<Response<Page>, Status> {
        self.requests.lock().unwrap().push(request.into_inner());
        let page = self.pages.lock().unwrap().pop_front();
        match page {
            Some(page) => page.map(Response::new),
            None => std::future::pending().await,
        }
    }

    async fn check_transactions(
        &self,
        _: Request<pb::CheckTransactionsRequest>,
    ) -> Result<Response<pb::CheckTransactionsResponse>, Status> {
        let answer = self.check.lock().unwrap().pop_front();
        answer.map(Response::new).ok_or_else(|| Status::unavailable("no more answers"))
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn source_tablet(url: &str) -> CdcTablet {
    CdcTablet { name: "shard-a".to_owned(), url: url.to_owned(), tablet: "t1".to_owned() }
}

fn stream_names() -> Arc<StreamNames> {
    let streams = [("t1", "shard-a"), ("t2", "shard-b")].map(|(tablet, name)| (tablet.to_owned(), name.to_owned()));
    Arc::new(streams.into())
}

fn source_at(url: &str) -> CdcSource {
    CdcSource::new(source_tablet(url), None, stream_names()).unwrap()
}

/// A source whose service gives these answers.
async fn scripted(pages: Vec<Result<Page, Status>>) -> (CdcSource, Arc<Scripted>) {
    let service = Arc::new(Scripted { pages: Mutex::new(pages.into()), ..Scripted::default() });
    let (listener, url) = listen().await;
    let server = tonic::transport::Server::builder()
        .add_service(CdcServiceServer::new(service.clone()).max_encoding_message_size(usize::MAX))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    (source_at(&url), service)
}

async fn open(source: &CdcSource) -> Box<dyn Stream> {
    let resume = Resume { after: AFTER, identity: "replica-1".into(), ..Resume::default() };
    let (stream, keeper) = source.open(resume, Arc::new(Numbering::default())).await.unwrap();
    tokio::spawn(keeper);
    stream
}

async fn next_batch(stream: &mut Box<dyn Stream>) -> SourceBatch {
    match stream.next().await {
        Ok(StreamEvent::Batch(batch)) => batch,
        other => panic!("not a batch: {other:?}"),
    }
}

/// How a stream with these answers ends.
async fn ends(source: &CdcSource) -> SourceError {
    let mut stream = open(source).await;
    loop {
        if let Err(error) = stream.next().await {
            assert_eq!(stream.next().await, Err(error.clone()), "a stream that ended stays so");
            return error;
        }
    }
}

/// The text of a stop; every stop names its stream and service.
fn stop_text(error: SourceError) -> String {
    match error {
        SourceError::Stop(text) if text.contains("stream shard-a") && text.contains("http://127.0.0.1") => text,
        other => panic!("not a stop that names its stream and service: {other:?}"),
    }
}

fn transaction(id: &[u8]) -> Option<pb::SourceTransactionId> {
    Some(pb::SourceTransactionId { id: Bytes::copy_from_slice(id), incarnation: 0 })
}

fn at(index: u64, record: PbRecord) -> pb::CdcRecord {
    pb::CdcRecord { at: Some(pb::OpId { term: 1, index }), record: Some(record) }
}

fn created(index: u64) -> pb::CdcRecord {
    at(index, PbRecord::Created(pb::Created { transaction: transaction(b"x1") }))
}

fn column(name: &str, key: bool) -> pb::Column {
    pb::Column { name: name.to_owned(), type_name: "text".to_owned(), key }
}

fn schema(version: u32) -> pb::Schema {
    let columns = vec![column("id", true), column("balance", false), column("note", false)];
    pb::Schema { table: "public.accounts".to_owned(), version, columns }
}

fn row() -> pb::Row {
    let values = vec![Bytes::from_static(b"42"), Bytes::from_static(b"100"), Bytes::new()];
    pb::Row { schema_version: 3, values, null_columns: vec![2], ..pb::Row::default() }
}

fn write(index: u64, key: &[&'static [u8]], operation: Operation) -> pb::CdcRecord {
    let key = key.iter().map(|column| Bytes::from_static(column)).collect();
    let table = "public.accounts".to_owned();
    at(index, PbRecord::Write(pb::Write { transaction: transaction(b"x1"), table, key, operation: Some(operation) }))
}

fn commit(index: u64, time: u64, tablets: &[&str]) -> pb::CdcRecord {
    let involved = tablets.iter().map(|tablet| pb::InvolvedTablet { tablet: (*tablet).to_owned(), records: Some(2) });
    at(
        index,
        PbRecord::Commit(pb::Commit {
            transaction: transaction(b"x1"),
            commit_hybrid_time: time,
            involved: involved.collect(),
        }),
    )
}

fn page(records: Vec<pb::CdcRecord>) -> Page {
    let upto = records.last().and_then(|record| record.at).or(Some(AFTER.into()));
    Page { records, upto, sent_at_micros: 17, schemas: Vec::new() }
}

#[tokio::test]
async fn records_arrive_as_they_were_sent() {
    let put = Operation::Put(pb::Row {
        unchanged_columns: vec![1],
        values: vec![Bytes::from_static(b"42"), Bytes::new(), Bytes::new()],
        old_key: vec![Bytes::from_static(b"41")],
        ..row()
    });
    let first = page(vec![
        created(6),
        at(7, PbRecord::Schema(schema(3))),
        write(8, &[b"42"], put),
        write(9, &[b"41"], Operation::Delete(pb::Delete {})),
        write(10, &[], Operation::Truncate(pb::Truncate {})),
        at(11, PbRecord::Applying(pb::Applying { transaction: transaction(b"x1"), records: Some(3) })),
    ]);
    let second = page(vec![
        commit(12, 4096, &["t1", "t2"]),
        at(13, PbRecord::SafeTime(pb::SafeTime { hybrid_time: 4097 })),
        at(14, PbRecord::Split(pb::Split { children: vec!["t2".to_owned()] })),
    ]);
    let (source, service) = scripted(vec![Ok(first), Ok(second)]).await;
    let mut stream = open(&source).await;

    let batch = next_batch(&mut stream).await;
    let x1 = SourceTransactionId::first(b"x1");
    let write_at = |index, key: &[u8], op| Record::Write {
        transaction: x1.clone(),
        write: Write { at: OpId::new(1, index), table: TableId(7), key: Key::from_columns([key]), op },
    };
    let cells = vec![Cell::Text(Bytes::from_static(b"42")), Cell::Unchanged, Cell::Null];
    let op =
        WriteOp::Put { row: Row { schema_version: 1, cells }, fill_from: Some(Key::from_columns([b"41".as_slice()])) };
    let records: Vec<Record> = batch.records.into_iter().map(|(_, record)| record).collect();
    assert_eq!(records[2], write_at(8, b"42", op), "numbered by the catalog");
    assert_eq!(records[3], write_at(9, b"41", WriteOp::Delete));
    assert!(matches!(&records[4], Record::Write { write, .. } if write.key == Key::default()));
    assert_eq!((batch.upto, batch.sent_at), (OpId::new(1, 11), HybridTime::from_micros(17)));

    stream.acknowledge(OpId::new(1, 9));
    let batch = next_batch(&mut stream).await;
    let involved = ["shard-a", "shard-b"].map(|name| InvolvedTablet { tablet: name.to_owned(), records: Some(2) });
    let involved = Involved::Listed(involved.to_vec());
    let committed = Record::Commit { transaction: x1, branch: None, time: HybridTime::from_u64(4096), involved };
    assert_eq!(batch.records[0].1, committed, "tablets by their streams' names");
    assert_eq!(batch.records[2].1, Record::Split { children: vec!["shard-b".to_owned()] });

    let requests = service.requests.lock().unwrap().clone();
    assert_eq!(requests[0].after, Some(AFTER.into()));
    assert!(requests[0].need_schemas && !requests[1].need_schemas, "asked for once");
    assert_eq!(requests[1].after, Some(OpId::new(1, 11).into()));
}

#[tokio::test]
async fn what_is_acknowledged_goes_with_a_later_poll() {
    let (source, service) = scripted((6..40).map(|index| Ok(page(vec![created(index)]))).collect()).await;
    let mut stream = open(&source).await;
    assert_eq!(stream.acknowledged(), OpId::ZERO);
    next_batch(&mut stream).await;
    stream.acknowledge(OpId::new(1, 6));
    stream.acknowledge(OpId::new(1, 4));
    while stream.acknowledged() == OpId::ZERO {
        next_batch(&mut stream).await;
    }
    assert_eq!(stream.acknowledged(), OpId::new(1, 6));
    let told = service.requests.lock().unwrap().iter().filter_map(|request| request.acknowledged).next_back();
    assert_eq!(told, Some(OpId::new(1, 6).into()));
}

#[tokio::test]
async fn one_batch_is_prefetched_and_no_more() {
    let (source, service) = scripted((6..40).map(|index| Ok(page(vec![created(index)]))).collect()).await;
    let mut stream = open(&source).await;
    next_batch(&mut stream).await;
    let polls = || service.requests.lock().unwrap().len();
    while polls() < 2 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(polls(), 2);
}

/// Whoever pulls the stream next has another folder and the same log.
#[tokio::test]
async fn the_readers_name_is_the_slots_and_every_slot_has_its_own() {
    let (source, service) = scripted(Vec::new()).await;
    let made = |source: CdcSource| async move {
        let slot = source.create_slot().await.unwrap();
        assert!(slot.snapshot.is_none());
        (slot.start, slot.identity)
    };
    let another = source_at("http://127.0.0.1:1");
    let ((start, identity), (_, other)) = (made(source_at("http://127.0.0.1:1")).await, made(another).await);
    assert_eq!(start, OpId::ZERO);
    assert_ne!(identity, other);
    let resume = Resume { identity: identity.clone(), ..Resume::default() };
    let (_stream, keeper) = source.open(resume, Arc::new(Numbering::default())).await.unwrap();
    tokio::spawn(keeper);
    while service.requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(service.requests.lock().unwrap()[0].reader, identity);
}

#[tokio::test]
async fn a_reader_that_resumes_learns_the_schemas_in_force() {
    let empty = Page { schemas: vec![schema(3)], ..page(vec![]) };
    let put = write(6, &[b"42"], Operation::Put(row()));
    let (source, _) = scripted(vec![Ok(empty), Ok(page(vec![put, created(7)]))]).await;
    let mut stream = open(&source).await;
    assert_eq!(next_batch(&mut stream).await.records, []);
    let records = next_batch(&mut stream).await.records;
    let places: Vec<u64> = records.iter().map(|(at, _)| at.index).collect();
    assert_eq!(places, [6, 6, 7], "the schema takes the place of the record that follows");
    assert!(matches!(&records[0].1, Record::Schema(schema) if schema.table == TableId(7)));
    assert!(matches!(&records[1].1, Record::Write { write, .. } if write.table == TableId(7)));
}

#[tokio::test]
async fn bad_input_stops_the_stream_by_name() {
    let described = at(6, PbRecord::Schema(schema(3)));
    let after_schema = |record: pb::CdcRecord| page(vec![described.clone(), record]);
    let put = |row: pb::Row| after_schema(write(7, &[b"42"], Operation::Put(row)));
    let safe_time = |index, hybrid_time| at(index, PbRecord::SafeTime(pb::SafeTime { hybrid_time }));
    let of = |id: &[u8]| page(vec![at(6, PbRecord::Pending(pb::Pending { transaction: transaction(id) }))]);
    let other_columns = pb::Schema { columns: vec![column("id", true)], ..schema(3) };
    let split = |child: &str| at(6, PbRecord::Split(pb::Split { children: vec![child.to_owned()] }));
    let huge = pb::Row { values: vec![Bytes::from(vec![b'x'; CDC_RECORD_BYTES_MAX])], ..pb::Row::default() };
    let cases: Vec<(&str, &str, Page)> = vec![
        ("at 1.5: the record lies at or below 1.5", "a record at the checkpoint", page(vec![created(5)])),
        ("at 0.9: the record lies at or below 1.5", "a record below the checkpoint", {
            page(vec![pb::CdcRecord { at: Some(pb::OpId { term: 0, index: 9 }), ..created(9) }])
        }),
        ("at 1.7: two records have this position", "a repeated position", page(vec![created(7), created(7)])),
        ("at 1.7: the positions go back from 1.8", "a position going back", page(vec![created(8), created(7)])),
        ("at 1.7: `upto` is 1.6, below 1.7", "an upto below the last record", {
            Page { upto: Some(pb::OpId { term: 1, index: 6 }), ..page(vec![created(7)]) }
        }),
        ("at 1.5: `upto` is 0.0, below 1.5", "an empty page that goes back", {
            Page { upto: Some(pb::OpId::default()), ..page(vec![]) }
        }),
        ("field `upto` is missing", "no upto", Page { upto: None, ..page(vec![created(7)]) }),
        ("field `records.at` is missing", "no position", page(vec![pb::CdcRecord { at: None, ..created(6) }])),
        ("of no kind that", "an unknown kind", page(vec![pb::CdcRecord { record: None, ..created(6) }])),
        ("at most 33554432 are taken", "an oversized record", page(vec![write(6, &[b"1"], Operation::Put(huge))])),
        ("no Schema record of table \"public.accounts\"", "an unknown table", {
            page(vec![write(6, &[b"42"], Operation::Put(row()))])
        }),
        ("no Schema record of version 9", "an unknown version", put(pb::Row { schema_version: 9, ..row() })),
        ("has 2 values, table", "too few values", put(pb::Row { values: row().values[..2].to_vec(), ..row() })),
        (
            "names column 9, which the row has not",
            "a null out of range",
            put(pb::Row { null_columns: vec![9], ..row() }),
        ),
        ("names column 1, which has a value", "a null with a value", put(pb::Row { null_columns: vec![1], ..row() })),
        (
            "names column 2, which has a value",
            "null and unchanged",
            put(pb::Row { unchanged_columns: vec![2], ..row() }),
        ),
        ("a key of 2 columns is not that of", "an old key that is none", {
            put(pb::Row { old_key: vec![Bytes::new(), Bytes::new()], ..row() })
        }),
        (
            "a key of 0 columns is not that of",
            "a put without a key",
            after_schema(write(7, &[], Operation::Put(row()))),
        ),
        ("a key of 2 columns is not that of", "a delete of another key", {
            after_schema(write(7, &[b"4", b"2"], Operation::Delete(pb::Delete {})))
        }),
        ("must be empty for a truncate", "a truncate of a key", {
            after_schema(write(7, &[b"42"], Operation::Truncate(pb::Truncate {})))
        }),
        ("has other columns than before", "a schema that contradicts itself", {
            after_schema(at(7, PbRecord::Schema(other_columns)))
        }),
        ("has an empty id", "a transaction without an id", of(b"")),
        ("has an id of 1025 bytes", "an endless id", of(&[b'x'; SOURCE_TRANSACTION_ID_BYTES_MAX + 1])),
        ("`pending.transaction` is missing", "a record of no transaction", {
            page(vec![at(6, PbRecord::Pending(pb::Pending { transaction: None }))])
        }),
        ("names tablet \"t1\" twice", "a tablet involved twice", page(vec![commit(6, 9, &["t1", "t1"])])),
        ("follows a Split record", "a record after the end", page(vec![split("t2"), created(7)])),
        ("is no time that something commits at", "a commit without a time", page(vec![commit(6, 0, &["t1"])])),
        ("promises that nothing ever comes", "the end of all times", page(vec![safe_time(6, u64::MAX)])),
    ];
    for (expected, what, page) in cases {
        let (source, _) = scripted(vec![Ok(page)]).await;
        let text = stop_text(ends(&source).await);
        assert!(text.contains(expected), "{what}: {text}");
        assert!(text.contains("nothing of that answer was taken; mend"), "{what}: {text}");
    }
}

#[tokio::test]
async fn a_tablet_that_nobody_reads_stops_the_stream_until_it_is_configured() {
    let split = at(6, PbRecord::Split(pb::Split { children: vec!["t9".to_owned()] }));
    for record in [commit(6, 9, &["t1", "t9"]), split] {
        let (source, _) = scripted(vec![Ok(page(vec![record]))]).await;
        let text = stop_text(ends(&source).await);
        assert!(text.contains("at 1.6") && text.contains("names tablet \"t9\", which no [[source.tablets]]"), "{text}");
    }
}

#[tokio::test]
async fn a_good_page_before_a_bad_one_is_handed_over_first() {
    let (source, _) = scripted(vec![Ok(page(vec![created(6)])), Ok(page(vec![created(6)]))]).await;
    let mut stream = open(&source).await;
    assert_eq!(next_batch(&mut stream).await.upto, OpId::new(1, 6));
    stop_text(stream.next().await.unwrap_err());
}

#[tokio::test]
async fn statuses_stop_or_are_tried_again() {
    let stops = [
        (Code::OutOfRange, "the checkpoint is gone"),
        (Code::NotFound, "has no tablet \"t1\""),
        (Code::InvalidArgument, "refuses GetCdcRecords after 1.5"),
        (Code::Unimplemented, "refuses"),
        (Code::DataLoss, "breaks the protocol"),
    ];
    for (code, expected) in stops {
        let (source, _) = scripted(vec![Err(Status::new(code, "because"))]).await;
        let text = stop_text(ends(&source).await);
        assert!(text.contains(expected) && text.contains("because"), "{text}");
    }
    for code in [Code::Unavailable, Code::Aborted, Code::ResourceExhausted, Code::Internal, Code::Unknown] {
        let (source, _) = scripted(vec![Err(Status::new(code, "because"))]).await;
        let error = ends(&source).await;
        assert!(matches!(&error, SourceError::Retry(text) if text.contains("stream shard-a")), "{error:?}");
    }
}

#[tokio::test]
async fn a_service_that_is_down_is_tried_again() {
    let (listener, url) = listen().await;
    drop(listener);
    let error = ends(&source_at(&url)).await;
    assert!(matches!(&error, SourceError::Retry(text) if text.contains(&url) && text.contains("refused")), "{error:?}");
}

/// A server that answers every call with these bytes.
async fn raw(answer: &'static [u8]) -> CdcSource {
    let (listener, url) = listen().await;
    let respond = move || async move { ([("content-type", "application/grpc")], answer) };
    let router = axum::Router::new().fallback(respond);
    tokio::spawn(async move { axum::serve(listener, router).await });
    source_at(&url)
}

#[tokio::test]
async fn bytes_that_are_no_answer_stop_the_stream() {
    let text = stop_text(ends(&raw(b"\0\0\0\0\x03\x0a\xff\xff").await).await);
    assert!(text.contains("failed to decode"), "{text}");
    let text = stop_text(ends(&raw(b"\0\x0f\xff\xff\xff").await).await);
    assert!(text.contains("message length too large"), "{text}");
}

#[tokio::test]
async fn transactions_that_do_not_run_are_asked_for() {
    let (source, service) = scripted(Vec::new()).await;
    let asked: Vec<_> = [b"x1", b"x2"].map(|id| SourceTransactionId::first(id)).into();
    let answer =
        |id: &[u8], as_of| pb::CheckTransactionsResponse { not_running: transaction(id).into_iter().collect(), as_of };
    let as_of = Some(pb::OpId { term: 2, index: 9 });
    service.check.lock().unwrap().extend([answer(b"x2", as_of), answer(b"x3", as_of), answer(b"x1", None)]);
    let answered = source.not_running(asked.clone()).await;
    assert_eq!(answered, Ok((vec![SourceTransactionId::first(b"x2")], OpId::new(2, 9))));
    assert!(stop_text(source.not_running(asked.clone()).await.unwrap_err()).contains("was not asked for"));
    assert!(stop_text(source.not_running(asked.clone()).await.unwrap_err()).contains("`as_of` is missing"));
    assert!(matches!(source.not_running(asked).await, Err(SourceError::Retry(_))));
}

proptest! {
    #[test]
    fn no_bytes_do_harm(noise in vec(any::<u8>(), 0..64), flip: Index, with: u8) {
        let put = write(8, &[b"42"], Operation::Put(row()));
        let whole = page(vec![created(6), at(7, PbRecord::Schema(schema(3))), put, commit(9, 4096, &["t1", "t2"])]);
        let mut damaged = whole.encode_to_vec();
        let place = flip.index(damaged.len());
        damaged[place] = with;
        let faults = Faults { tablet: source_tablet("http://127.0.0.1:1") };
        for bytes in [noise, damaged] {
            if let Ok(response) = Page::decode(bytes.as_slice()) {
                let mut decoder = Decoder::new(stream_names(), Arc::new(Numbering::default()));
                match decoder.decode(&faults, AFTER, response).now_or_never().unwrap() {
                    Ok(batch) => prop_assert!(batch.upto >= AFTER),
                    Err(error) => prop_assert!(matches!(error, SourceError::Stop(_))),
                }
            }
        }
    }
}
