use super::*;
use crate::admin::RecopyError;
use crate::admin::client::{AdminClient, ClientError};
use crate::admin::explain::{self, Explanation};
use crate::admin::scan::{Scan, ScanRow};
use crate::admin::status;
use crate::admin::verify::{self, VerifyError};
use crate::wal::{Column, HybridTime};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A daemon with one transaction and a few tables.
struct Fake;

#[async_trait::async_trait]
impl Inspect for Fake {
    async fn recopy(&self, tablet: Option<&str>, table: Option<&str>) -> Result<Vec<(String, String)>, RecopyError> {
        let (tablet, table) = (tablet.unwrap_or("shard-a"), table.unwrap_or("public.t"));
        if tablet == "nowhere" {
            return Err(RecopyError::Refused("no such source tablet".into()));
        }
        Ok(vec![(tablet.to_owned(), table.to_owned())])
    }

    async fn status(&self) -> status::Status {
        status::tests::sample()
    }

    async fn explain(&self, transaction: &str) -> Vec<Explanation> {
        if transaction == "order-4711" { vec![explain::tests::sample(); 2] } else { Vec::new() }
    }

    async fn waiting(&self) -> Vec<Explanation> {
        vec![explain::tests::sample()]
    }

    async fn scan(&self, table: &str, at: ScanAt) -> Result<Scan, ScanError> {
        let row =
            |n: u64| ScanRow { cells: vec![Some(Bytes::from(n.to_string())), None], time: HybridTime::from_u64(n) };
        let page = move |from: u64| Ok((from..from + 100).map(row).collect::<Vec<_>>());
        let rows: Vec<Result<Vec<ScanRow>, ScanError>> = match (table, at) {
            ("public.t", ScanAt::Safe) => vec![page(0), page(100)],
            ("public.t", ScanAt::Time(time)) => vec![Ok(vec![ScanRow { cells: Vec::new(), time }])],
            ("public.t", ScanAt::Latest) => return Err(ScanError::NotReady("no safe point yet".into())),
            ("public.empty", _) => Vec::new(),
            ("public.broken", _) => vec![page(0), Err(ScanError::Failed("tablet r1 does not answer".into()))],
            ("public.endless", _) => {
                let rows = stream::iter([page(0)]).chain(stream::pending()).boxed();
                return Ok(Scan { columns: Vec::new(), rows });
            }
            (table, _) => return Err(ScanError::UnknownTable(table.to_owned())),
        };
        let column = |name: &str| Column { name: name.into(), type_name: "int8".into(), key: name == "id" };
        Ok(Scan { columns: vec![column("id"), column("b")], rows: stream::iter(rows).boxed() })
    }

    async fn verify_tables(&self) -> Result<Vec<String>, VerifyError> {
        Ok(vec!["public.t".into()])
    }

    fn verify(&self, table: &str) -> BoxStream<'static, Result<verify::Event, VerifyError>> {
        match table {
            "public.t" => stream::iter([
                Ok(verify::Event::Progress(verify::Progress::default())),
                Ok(verify::Event::Verdict(verify::Verdict { source_rows: 3, ..verify::Verdict::default() })),
            ])
            .boxed(),
            "public.endless" => stream::pending().boxed(),
            table => stream::iter([Err(VerifyError::UnknownTable(table.to_owned()))]).boxed(),
        }
    }
}

async fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Health::default();
    health.running(Some(Arc::new(Fake)));
    tokio::spawn(admin(listener, Arc::new(Fake), health, std::future::pending()));
    address.to_string()
}

async fn client() -> AdminClient {
    AdminClient::connect(&format!("http://{}", serve().await)).await.unwrap()
}

#[tokio::test]
async fn status_and_explanations_come_back_as_they_were() {
    let mut client = client().await;
    assert_eq!(client.status().await.unwrap(), status::tests::sample());
    let explanations = client.explain("order-4711").await.unwrap();
    assert_eq!(explanations, vec![explain::tests::sample(); 2]);
    let error = client.explain("nothing").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)) && error.to_string() == "no transaction nothing", "{error}");
}

#[tokio::test]
async fn a_scan_brings_every_row() {
    let mut client = client().await;
    let mut rows = client.scan("public.t", ScanAt::Safe).await.unwrap();
    assert_eq!(rows.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["id", "b"]);
    let mut all = Vec::new();
    while let Some(page) = rows.next().await.unwrap() {
        all.extend(page);
    }
    assert_eq!(all.len(), 200);
    assert_eq!(all[150].cells, [Some(Bytes::from_static(b"150")), None]);
    assert_eq!(all[150].time, HybridTime::from_u64(150));

    let mut at = client.scan("public.t", ScanAt::Time(HybridTime::from_u64(9))).await.unwrap();
    assert_eq!(at.next().await.unwrap().unwrap()[0].time, HybridTime::from_u64(9));
    assert_eq!(client.scan("public.empty", ScanAt::Safe).await.unwrap().next().await.unwrap(), None);
}

#[tokio::test]
async fn a_scan_that_breaks_never_ends_well() {
    let mut client = client().await;
    let mut rows = client.scan("public.broken", ScanAt::Safe).await.unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap().len(), 100);
    assert_eq!(rows.next().await.unwrap_err().to_string(), "tablet r1 does not answer");
    let error = client.scan("public.t", ScanAt::Latest).await.err().unwrap();
    assert_eq!(error.to_string(), "not ready: no safe point yet");
    let error = client.scan("public.none", ScanAt::Safe).await.err().unwrap();
    assert_eq!(error.to_string(), "no table public.none");
}

#[tokio::test]
async fn scans_are_bounded_and_given_back() {
    let url = format!("http://{}", serve().await);
    let mut open = Vec::new();
    for _ in 0..limits::SCANS_MAX {
        // A connection each: scans that nobody reads fill a shared connection's window.
        let mut client = AdminClient::connect(&url).await.unwrap();
        open.push((client.scan("public.endless", ScanAt::Safe).await.unwrap(), client));
    }
    let mut client = AdminClient::connect(&url).await.unwrap();
    let error = client.scan("public.t", ScanAt::Safe).await.err().unwrap();
    assert!(error.to_string().contains("scans are running"), "{error}");
    drop(open);
    // The server hears of a dropped stream by a message of its own; the next scan may overtake it.
    while let Err(error) = client.scan("public.t", ScanAt::Safe).await {
        assert!(error.to_string().contains("scans are running"), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_said_clearly() {
    let error = AdminClient::connect("http://127.0.0.1:1").await.err().unwrap();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

/// The status line's code and the body of a GET.
async fn get_text(address: &str, path: &str) -> (u16, String) {
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn http_stands_on_the_same_port() {
    let address = serve().await;
    let (code, body) = get_text(&address, "/status").await;
    assert_eq!((code, serde_json::from_str::<status::Status>(&body).unwrap()), (200, status::tests::sample()));
    let (code, body) = get_text(&address, "/explain/order-4711").await;
    assert_eq!((code, serde_json::from_str::<Vec<Explanation>>(&body).unwrap().len()), (200, 2));
    assert_eq!(get_text(&address, "/explain/nothing").await, (404, "[]".to_owned()));
    assert_eq!(get_text(&address, "/livez").await, (200, "ok\n".to_owned()));
    let (code, body) = get_text(&address, "/readyz").await;
    assert!(code == 503 && body.starts_with("not ready"), "{body}");
    assert_eq!(get_text(&address, "/elsewhere").await.0, 404);
}

#[tokio::test]
async fn metrics_are_rendered_beside_health() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    ::metrics::with_local_recorder(&recorder, || ::metrics::counter!(crate::metrics::LOG_APPENDS).increment(3));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let health = Health::default();
    let server =
        tokio::spawn(metrics(listener, handle, health.clone(), Keyring::default(), async { drop(stopped.await) }));
    let (code, body) = get_text(&address, "/metrics").await;
    assert!(code == 200 && body.contains("untorn_log_appends_total 3"), "{body}");
    assert_eq!(get_text(&address, "/readyz").await, (503, "not ready: it is starting\n".to_owned()));
    health.running(None);
    assert_eq!(get_text(&address, "/readyz").await, (200, "ready\n".to_owned()));
    health.draining();
    assert_eq!(get_text(&address, "/readyz").await, (503, "not ready: it is draining\n".to_owned()));
    assert_eq!(get_text(&address, "/livez").await.0, 200);
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_verification_runs_at_a_time_and_ends_with_its_verdict() {
    let mut client = client().await;
    assert_eq!(client.verify_tables().await.unwrap(), ["public.t"]);
    let mut events = client.verify("public.t").await.unwrap();
    assert!(matches!(events.next().await, Ok(verify::Event::Progress(_))));
    assert!(matches!(events.next().await, Ok(verify::Event::Verdict(verdict)) if verdict.source_rows == 3));
    assert!(matches!(events.next().await, Err(ClientError::CutOff(_))), "there is nothing behind a verdict");
    drop(events);
    let mut none = client.verify("public.none").await.unwrap();
    assert!(matches!(none.next().await, Err(ClientError::Refused(text)) if text.contains("no server publishes")));
    drop(none);
    let endless = client.verify("public.endless").await.unwrap();
    assert!(
        matches!(client.verify("public.t").await, Err(ClientError::Refused(text)) if text.contains("runs already"))
    );
    drop(endless);
}
