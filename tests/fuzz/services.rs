//! Every handler of every gRPC service, as the server routes them: an input is a row of calls on engines in memory, each the
//! number of a method and the bytes of its message. Whatever is asked, each call is answered, and nothing panics: not the
//! handler, and not the tasks behind it.

use super::formats::enveloped;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use prost::Message;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::service::Routes;
use tower::ServiceExt;
use untorn::admin::health::Health;
use untorn::admin::inspected::Inspected;
use untorn::admin::server::admin_routes;
use untorn::applier::leader_grpc::transaction_service;
use untorn::applier::{Applier, Clock, Components, CopyOptions, Host, Leadership, NamedTablet, Tablets};
use untorn::coordinator::{FORMAT_VERSION, Fact, Release, Report, Settings};
use untorn::proto::{admin as admin_pb, cdc as cdc_pb, tablet as pb, transaction as leader_pb};
use untorn::tablet::TabletLeader;
use untorn::tablet::cdc_service::cdc_service;
use untorn::tablet::engine::{Engine, TabletOptions, TabletWals};
use untorn::tablet::grpc::tablet_service;
use untorn::tablet::memory::{self, MemoryStore};
use untorn::txn_log::MemoryLog;
use untorn::wal::{Epoch, HybridTime, OpId, SourceTabletId, codec};

/// Calls of one input: enough to set up what another looks at.
const CALLS: usize = 16;
/// Seconds of the virtual clock within which a call is answered: the longest wait of a handler is a poll of a minute.
const ANSWERED_WITHIN: Duration = Duration::from_secs(300);

/// The parts of an input: a length of two bytes each, then its bytes.
pub fn parts(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk::<2>()?;
        let (part, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*length))));
        data = rest;
        Some(part)
    })
}

/// Bytes as one of an input's parts.
pub fn part(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

const TABLET: [&str; 11] = [
    "untorn.tablet.v1.TabletService/Announce",
    "untorn.tablet.v1.TabletService/AnnouncePuller",
    "untorn.tablet.v1.TabletService/WriteProvisional",
    "untorn.tablet.v1.TabletService/StageChunk",
    "untorn.tablet.v1.TabletService/Fill",
    "untorn.tablet.v1.TabletService/CopyRows",
    "untorn.tablet.v1.TabletService/Apply",
    "untorn.tablet.v1.TabletService/Read",
    "untorn.tablet.v1.TabletService/Sync",
    "untorn.tablet.v1.TabletService/Stats",
    "untorn.tablet.v1.TabletService/DropChunks",
];

const CDC: [&str; 7] = [
    "untorn.cdc.v1.CdcService/ListTablets",
    "untorn.cdc.v1.CdcService/GetCdcRecords",
    "untorn.cdc.v1.CdcService/CheckTransactions",
    TABLET[0],
    TABLET[1],
    TABLET[2],
    TABLET[6],
];

const REPORT: &str = "untorn.transaction.v1.TransactionService/Report";

const TRANSACTION: [&str; 9] = [
    "untorn.transaction.v1.TransactionService/OpenStream",
    REPORT,
    "untorn.transaction.v1.TransactionService/Table",
    "untorn.transaction.v1.TransactionService/Slot",
    "untorn.transaction.v1.TransactionService/Published",
    "untorn.transaction.v1.TransactionService/CopyBegun",
    "untorn.transaction.v1.TransactionService/Copied",
    "untorn.transaction.v1.TransactionService/SetStreamState",
    "untorn.transaction.v1.TransactionService/GetTransactionRecord",
];

const ADMIN: [&str; 14] = [
    "untorn.admin.v1.AdminService/Status",
    "untorn.admin.v1.AdminService/Explain",
    "untorn.admin.v1.AdminService/Waiting",
    "untorn.admin.v1.AdminService/LogFilter",
    "untorn.admin.v1.AdminService/Scan",
    "untorn.admin.v1.AdminService/Skip",
    "untorn.admin.v1.AdminService/Retry",
    "untorn.admin.v1.AdminService/Recopy",
    "untorn.admin.v1.AdminService/VerifyTables",
    "untorn.admin.v1.AdminService/Verify",
    TRANSACTION[0],
    REPORT,
    TRANSACTION[2],
    TRANSACTION[7],
];

/// Calls of the tablet service.
pub fn tablet(data: &[u8]) {
    run(async {
        let (engine, _workers) = engine();
        let tablet: Arc<dyn TabletLeader> = Arc::new(engine);
        let routes = Routes::new(tablet_service([("r1".to_owned(), tablet)].into()));
        answer_all(routes.prepare().into_axum_router(), &TABLET, data).await;
    });
}

/// Calls of the CDC service over a tablet's own WAL, and those that write to it.
pub fn cdc(data: &[u8]) {
    run(async {
        let (engine, _workers) = engine();
        let wals = cdc_service(Arc::new(TabletWals::new(vec![engine.clone()])));
        let tablet: Arc<dyn TabletLeader> = Arc::new(engine);
        let routes = Routes::new(tablet_service([("r1".to_owned(), tablet)].into())).add_service(wals);
        answer_all(routes.prepare().into_axum_router(), &CDC, data).await;
    });
}

/// Calls of the transaction leader's service.
pub fn transaction(data: &[u8]) {
    run(async {
        let (applier, _workers) = applier(data).await;
        let routes = Routes::new(transaction_service(applier.leader()));
        answer_all(routes.prepare().into_axum_router(), &TRANSACTION, data).await;
    });
}

/// Calls of the admin service, and those that give it something to show.
pub fn admin(data: &[u8]) {
    run(async {
        let (applier, _workers) = applier(data).await;
        let inspected = Arc::new(Inspected::new(applier.inspector(), false));
        let health = Health::default();
        health.running(Some(inspected.clone()));
        let leader = Routes::new(transaction_service(applier.leader())).prepare().into_axum_router();
        answer_all(leader.merge(admin_routes(inspected, health).reset_fallback()), &ADMIN, data).await;
    });
}

/// Runs one input on a runtime of its own, whose clock jumps to whatever is waited for.
fn run(input: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(input);
}

fn engine() -> (Engine<MemoryStore>, JoinSet<()>) {
    let options = TabletOptions { wal: true, ..TabletOptions::default() };
    let (engine, workers) = memory::open(MemoryStore::default(), options).unwrap();
    let mut tasks = JoinSet::new();
    workers.into_iter().for_each(|worker| drop(tasks.spawn(worker.into_task())));
    (engine, tasks)
}

/// A leader over a log in memory. How it decides comes from the input's length, so that both are met.
async fn applier(data: &[u8]) -> (Applier, JoinSet<()>) {
    let (engine, workers) = engine();
    let release = if data.len().is_multiple_of(2) { Release::CommonClock } else { Release::Ordered };
    let tablet = NamedTablet { name: "r1".into(), from_key: None, leader: Arc::new(engine) };
    let components = Components {
        leadership: Leadership::Here {
            log: Box::new(MemoryLog::default()),
            settings: Settings { release, ..Settings::default() },
        },
        tablets: Tablets::new([tablet], true),
        sources: Vec::new(),
        pull: None,
        copy: CopyOptions { rate: None, parallel: 1 },
        memory_budget: 1 << 20,
        owner: "fuzz".into(),
    };
    let clock = Clock::new(|| HybridTime::from_micros(1_000_000_000));
    let host = Host { clock, seed: 1, log_blocks: false, ..Host::default() };
    (Applier::start_on(host, components).await.unwrap(), workers)
}

/// Makes the input's calls, one after another.
async fn answer_all(routes: Router, methods: &[&str], data: &[u8]) {
    for call in parts(data).take(CALLS) {
        let Some((method, message)) = call.split_first() else { continue };
        let method = methods[usize::from(*method) % methods.len()];
        // A report travels in the log's envelope, whose checksum no fuzzer guesses.
        let message = match method {
            REPORT => leader_pb::ReportRequest { report: enveloped(message).into() }.encode_to_vec(),
            _ => message.to_vec(),
        };
        let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
        let request = Request::post(format!("http://fuzz/{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Body::from(framed))
            .unwrap();
        let answered = timeout(ANSWERED_WITHIN, async {
            let response = routes.clone().oneshot(request).await.unwrap();
            let status = response.headers().get("grpc-status").cloned();
            if std::env::var_os("UNTORN_FUZZ_TELL").is_some() {
                eprintln!("{method}: {status:?} {:?}", response.headers().get("grpc-message"));
            }
            axum::body::to_bytes(response.into_body(), usize::MAX).await
        });
        assert!(answered.await.is_ok(), "{method} is not answered");
    }
}

/// Calls as an input.
fn calls(calls: &[(u8, Vec<u8>)]) -> Vec<u8> {
    calls.iter().flat_map(|(method, message)| part(&[&[*method][..], message].concat())).collect()
}

fn op_id(index: u64) -> Option<cdc_pb::OpId> {
    Some(cdc_pb::OpId { term: 1, index })
}

fn schema() -> pb::TableSchema {
    let column = |name: &str, key| cdc_pb::Column { name: name.into(), type_name: "int8".into(), key };
    let columns = vec![column("id", true), column("balance", false)];
    pb::TableSchema { table: 1, name: "public.t".into(), version: 1, columns }
}

fn row() -> cdc_pb::Row {
    let values = vec![b"1".to_vec().into(), b"2".to_vec().into()];
    cdc_pb::Row { schema_version: 1, values, ..cdc_pb::Row::default() }
}

fn write(index: u64, operation: pb::write::Operation) -> pb::Write {
    pb::Write { at: op_id(index), table: 1, key: b"1\0\x01".to_vec().into(), operation: Some(operation) }
}

fn branch() -> pb::BranchId {
    pb::BranchId { stream: 0, opened: op_id(1) }
}

fn announce() -> Vec<u8> {
    pb::AnnounceRequest { tablet: "r1".into(), log_id: "log".into(), tablet_id: 0, owner: 1 }.encode_to_vec()
}

fn announce_puller() -> Vec<u8> {
    pb::AnnouncePullerRequest { tablet: "r1".into(), stream: 0, owner: 1, puller: 1 }.encode_to_vec()
}

fn write_provisional() -> Vec<u8> {
    let put = pb::write::Operation::Put(pb::Put { row: Some(row()), fill_from: None });
    let writes = vec![write(1, put), write(2, pb::write::Operation::Delete(cdc_pb::Delete {}))];
    pb::WriteProvisionalRequest {
        tablet: "r1".into(),
        owner: 1,
        puller: 1,
        follows: Some(cdc_pb::OpId::default()),
        upto: op_id(9),
        schemas: vec![schema()],
        branches: vec![pb::BranchWrites { branch: Some(branch()), writes, adopt: None }],
        report_conflicts: true,
        ..pb::WriteProvisionalRequest::default()
    }
    .encode_to_vec()
}

fn apply() -> Vec<u8> {
    let commit =
        pb::CommitWork { transaction_id: 1, commit_hybrid_time: 1 << 20, branches: vec![branch()], tablets: vec![0] };
    let discard = pb::DiscardWork { branches: vec![pb::BranchId { stream: 0, opened: op_id(4) }] };
    let turn = pb::TurnWork { stream: 0, table: 1, base: Some(2 << 20), time: Some(3 << 20) };
    use pb::decided::Work;
    let works = [Work::Commit(commit), Work::Discard(discard), Work::Turn(turn)].into_iter().zip(1..);
    pb::ApplyRequest {
        tablet: "r1".into(),
        owner: 1,
        follows: 0,
        through: 3,
        safe_time: 2 << 20,
        safe_position: 3,
        work: works.map(|(work, position)| pb::Decided { position, work: Some(work) }).collect(),
        one_writer: false,
    }
    .encode_to_vec()
}

/// Calls of an applier on its tablet.
pub fn tablet_calls() -> Vec<Vec<u8>> {
    let tablet = || "r1".to_owned();
    let truncate = pb::write::Operation::Truncate(cdc_pb::Truncate {});
    let chunk = pb::StageChunkRequest {
        tablet: tablet(),
        owner: 1,
        puller: 1,
        connection: 1,
        xid: 7,
        sub_xid: 7,
        number: 1,
        schemas: vec![schema()],
        writes: vec![write(0, truncate)],
        ..pb::StageChunkRequest::default()
    };
    let adopt = pb::Adopt { connection: 1, xid: 7, rolled_back: vec![8], last_chunk: 1 };
    let adopting = pb::WriteProvisionalRequest {
        tablet: tablet(),
        owner: 1,
        puller: 1,
        follows: Some(cdc_pb::OpId::default()),
        upto: op_id(9),
        branches: vec![pb::BranchWrites { branch: Some(branch()), writes: Vec::new(), adopt: Some(adopt) }],
        ..pb::WriteProvisionalRequest::default()
    };
    let fill = pb::FillRequest {
        tablet: tablet(),
        owner: 1,
        puller: 1,
        connection: 1,
        xid: 7,
        upto: op_id(9),
        schemas: vec![schema()],
        table: 1,
        from: b"1\0\x01".to_vec().into(),
        row: Some(cdc_pb::Row { unchanged_columns: vec![1], ..row() }),
        ..pb::FillRequest::default()
    };
    let copy = pb::CopyRowsRequest {
        tablet: tablet(),
        owner: 1,
        base: 2 << 20,
        last: true,
        schema: Some(schema()),
        rows: vec![pb::CopiedRow { key: b"2\0\x01".to_vec().into(), row: Some(row()) }],
        ..pb::CopyRowsRequest::default()
    };
    let read = |position, history| {
        pb::ReadRequest {
            tablet: tablet(),
            table: 1,
            position,
            hybrid_time: 9 << 20,
            history,
            max_bytes: 1 << 16,
            ..pb::ReadRequest::default()
        }
        .encode_to_vec()
    };
    let sync = pb::SyncRequest { tablet: tablet() }.encode_to_vec();
    let stats = pb::StatsRequest { tablet: tablet() }.encode_to_vec();
    let begun = || vec![(0, announce()), (1, announce_puller())];
    let written =
        vec![(2, write_provisional()), (6, apply()), (8, sync), (7, read(3, false)), (7, read(3, true)), (9, stats)];
    let staged =
        vec![(3, chunk.encode_to_vec()), (4, fill.encode_to_vec()), (2, adopting.encode_to_vec()), (6, apply())];
    let drop = |sub_xid| {
        let drop =
            pb::DropChunksRequest { tablet: tablet(), stream: 0, owner: 1, puller: 1, connection: 1, xid: 7, sub_xid };
        drop.encode_to_vec()
    };
    let dropped = vec![(3, chunk.encode_to_vec()), (10, drop(Some(8))), (10, drop(None))];
    let copied = vec![(5, copy.encode_to_vec()), (6, apply()), (7, read(3, false))];
    [written, staged, dropped, copied].map(|rest| calls(&[begun(), rest].concat())).into()
}

/// Calls of a reader of a tablet's WAL.
pub fn cdc_calls() -> Vec<Vec<u8>> {
    let get = |after| {
        cdc_pb::GetCdcRecordsRequest {
            tablet: "r0".into(),
            reader: "next".into(),
            after: op_id(after),
            acknowledged: op_id(after),
            max_bytes: 1 << 16,
            wait_ms: 10,
            need_schemas: true,
        }
        .encode_to_vec()
    };
    let transaction = cdc_pb::SourceTransactionId { id: b"1".to_vec().into(), incarnation: 0 };
    let check = cdc_pb::CheckTransactionsRequest { tablet: "r0".into(), transactions: vec![transaction] };
    let written = [(3, announce()), (4, announce_puller()), (5, write_provisional()), (6, apply())];
    let asked = [(0, Vec::new()), (1, get(0)), (1, get(2)), (2, check.encode_to_vec())];
    vec![calls(&[written, asked].concat())]
}

fn open_stream(name: &str) -> Vec<u8> {
    let (name, puller) = (name.into(), "fuzz".into());
    leader_pb::OpenStreamRequest { name, puller, held: None, found: None, unknown: None }.encode_to_vec()
}

/// A report's part of a call: its bytes without the envelope.
fn report(facts: Vec<Fact>) -> Vec<u8> {
    let (stream, puller) = (SourceTabletId(0), Epoch(1));
    let report = Report { stream, puller, upto: OpId::new(1, 9), facts, ..Report::default() };
    super::formats::opened(&codec::encode(FORMAT_VERSION, &report).unwrap())
}

fn table() -> Vec<u8> {
    leader_pb::TableRequest { stream: 0, name: "public.t".into(), columns: schema().columns, relation: Some(7) }
        .encode_to_vec()
}

fn running() -> Vec<u8> {
    let state = leader_pb::stream_state::State::Running(leader_pb::Running {});
    let state = Some(leader_pb::StreamState { state: Some(state) });
    leader_pb::StreamStateRequest { stream: 0, puller: 1, state }.encode_to_vec()
}

/// Calls of a puller.
pub fn transaction_calls() -> Vec<Vec<u8>> {
    let column = leader_pb::PublishedColumn { number: 1, name: "id".into(), type_id: 20, filled: false };
    let tables =
        || vec![leader_pb::PublishedTable { name: "public.t".into(), relation: 7, columns: vec![column.clone()] }];
    let slot = leader_pb::SlotRequest { stream: 0, puller: 1, start: op_id(1), identity: "7".into(), tables: tables() };
    let published = leader_pb::PublishedRequest { stream: 0, puller: 1, flushed: op_id(2), tables: tables() };
    let begun = leader_pb::CopyBegunRequest { stream: 0, puller: 1, tables: vec!["public.t".into()] };
    let copied = leader_pb::CopiedRequest {
        stream: 0,
        puller: 1,
        table: "public.t".into(),
        base: 1 << 12,
        snapshot: op_id(1),
        rows: 3,
    };
    let record = leader_pb::GetTransactionRecordRequest { transaction_id: 1 };
    let copying = [
        (0, open_stream("a")),
        (3, slot.encode_to_vec()),
        (2, table()),
        (5, begun.encode_to_vec()),
        (6, copied.encode_to_vec()),
        (4, published.encode_to_vec()),
        (7, running()),
    ];
    let mut all = vec![calls(&copying)];
    for entry in super::formats::reported() {
        all.push(calls(&[(0, open_stream("a")), (1, report(entry)), (8, record.encode_to_vec())]));
    }
    // The other release, by the length.
    let longer: Vec<_> = all.iter().map(|calls| [&calls[..], b"\0"].concat()).collect();
    all.extend(longer);
    all
}

/// Calls of people.
pub fn admin_calls() -> Vec<Vec<u8>> {
    let explain = admin_pb::ExplainRequest { transaction: "transfer".into() }.encode_to_vec();
    let scan = |at| admin_pb::ScanRequest { table: "public.t".into(), at }.encode_to_vec();
    use admin_pb::scan_request::At;
    let safe = scan(Some(At::Safe(admin_pb::Safe {})));
    let latest = scan(Some(At::Latest(admin_pb::Latest {})));
    let at = scan(Some(At::HybridTime(1 << 20)));
    let recopy = admin_pb::RecopyRequest { tablet: None, table: Some("public.t".into()) }.encode_to_vec();
    let verify = admin_pb::VerifyRequest { table: "public.t".into() }.encode_to_vec();
    let mut all = Vec::new();
    for entry in super::formats::reported() {
        let begun = [(10, open_stream("a")), (12, table()), (11, report(entry)), (13, running())];
        let shown = [(0, Vec::new()), (1, explain.clone()), (2, Vec::new()), (4, safe.clone())];
        let asked = [(4, latest.clone()), (4, at.clone()), (5, explain.clone()), (6, Vec::new())];
        let done = [(7, recopy.clone()), (8, Vec::new()), (9, verify.clone()), (3, Vec::new())];
        all.push(calls(&[begun, shown, asked, done].concat()));
    }
    all
}
