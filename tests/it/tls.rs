//! Every hop over mutual TLS: who is let in, with what right, and what a rotation costs (nothing).

use crate::support::authority::{Authority, address, files, put};
use crate::support::process::{Process, free_port};
use crate::support::upstream::{TABLE, TABLETS, TOTAL, Upstream, name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tonic::Code;
use untorn::admin::client::AdminClient;
use untorn::admin::scan::ScanAt;
use untorn::admin::status::Status;
use untorn::proto::cdc::cdc_service_client::CdcServiceClient;
use untorn::proto::cdc::{GetCdcRecordsRequest, ListTabletsRequest};
use untorn::proto::tablet::tablet_service_client::TabletServiceClient;
use untorn::proto::tablet::{ReadRequest, StatsRequest, SyncRequest};
use untorn::proto::transaction::transaction_service_client::TransactionServiceClient;
use untorn::proto::transaction::{GetTransactionRecordRequest, OpenStreamRequest};

/// How long anything may take before a test gives up: no property, only a bound.
const PATIENCE: Duration = Duration::from_secs(90);
/// When the certificates of this test expire, at the end of the year.
const UNTIL: i32 = 2099;
const ROTATIONS: usize = 100;

/// A tablet server as the source, one as the replica, a leader and a poller; every hop over TLS.
struct World {
    home: TempDir,
    authority: Authority,
    source: u16,
    replica: u16,
    leader: u16,
    admin: u16,
    metrics: u16,
    processes: Vec<Process>,
    upstream: Upstream,
}

impl World {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path();
        let authority = Authority::new();
        put(&folder.join("ca.crt"), &authority.pem);
        authority.give(folder, "untorn", &["untorn.example", "127.0.0.1"], UNTIL);
        authority.give(folder, "viewer", &["viewer.example"], UNTIL);
        authority.give(folder, "operator", &["operator.example"], UNTIL);
        authority.give(folder, "stranger", &["stranger.example"], UNTIL);
        authority.give(folder, "expired", &["untorn.example", "127.0.0.1"], 2001);
        Authority::new().give(folder, "other", &["untorn.example", "127.0.0.1"], UNTIL);

        let [source, replica, leader, admin, metrics] = [(); 5].map(|()| free_port());
        let file = |name: &str| folder.join(name);
        let connect =
            format!("{{ ca = {:?}, cert = {:?}, key = {:?} }}", file("ca.crt"), file("untorn.crt"), file("untorn.key"));
        let listen = |section: &str, port: u16| {
            let (cert, key, ca) = (file("untorn.crt"), file("untorn.key"), file("ca.crt"));
            let mut text = format!(
                "[{section}]\nlisten = \"127.0.0.1:{port}\"\ntls = {{ cert = {cert:?}, key = {key:?}, client_ca = {ca:?} }}\n"
            );
            for (name, role) in [("untorn", "admin"), ("operator", "operator"), ("viewer", "viewer")] {
                writeln!(text, "[[{section}.access]]\nidentity = \"{name}.example\"\nrole = \"{role}\"").unwrap();
            }
            text
        };
        let tablets =
            |port, names: &[String]| listen("tablet", port).replace("\ntls", &format!("\nnames = {names:?}\ntls"));
        let names: Vec<String> = (0..TABLETS).map(name).collect();
        let urls = |port: u16| format!("url = \"https://127.0.0.1:{port}\"\ntls = {connect}\n");
        let mut ends = "[source]\nkind = \"cdc\"\npoll = POLL\n".to_owned();
        for number in 0..TABLETS {
            let tablet = format!("name = \"shard-{number}\"\ntablet = \"r{number}\"");
            writeln!(ends, "[[source.tablets]]\n{tablet}\n{}", urls(source)).unwrap();
        }
        writeln!(ends, "[replica]\nkind = \"grpc\"").unwrap();
        for number in 0..2 {
            // The name that the certificate has beside its address.
            let named = urls(replica).replace(" }", ", server_name = \"untorn.example\" }");
            writeln!(ends, "[[replica.tablets]]\nname = \"replica-{number}\"\n{named}").unwrap();
        }
        let polls: Vec<_> = (0..TABLETS).map(|number| format!("shard-{number}")).collect();
        let poller = ends.replace("POLL", &format!("{polls:?}")) + &format!("[leader]\n{}", urls(leader));
        let poller =
            poller + &listen("admin", free_port()) + &format!("[metrics]\nlisten = \"127.0.0.1:{}\"\n", free_port());
        let leading = ends.replace("POLL", "[]")
            + &listen("leader", leader)
            + &listen("admin", admin)
            + &listen("metrics", metrics);
        let replicas = ["replica-0".to_owned(), "replica-1".to_owned()];
        let processes = vec![
            Process::new(folder, "source", "tablet", &tablets(source, &names)),
            Process::new(folder, "replica", "tablet", &tablets(replica, &replicas)),
            Process::new(folder, "leader", "run", &leading),
            Process::new(folder, "poller", "run", &poller),
        ];
        let upstream = Upstream::start(vec![address(folder, "untorn", source); TABLETS]);
        Self { authority, source, replica, leader, admin, metrics, processes, upstream, home }
    }

    fn folder(&self) -> &Path {
        self.home.path()
    }

    fn told(&self) -> String {
        self.processes.iter().map(Process::told).collect()
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Status) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = match AdminClient::connect(address(self.folder(), "viewer", self.admin)).await {
                Ok(mut client) => client.status().await,
                Err(error) => Err(error),
            };
            if status.as_ref().is_ok_and(&wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "never: {what}\n{status:?}\n{}", self.told());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn caught_up(&self) {
        let end = self.upstream.history.end();
        self.until("caught up", |status| status.safe_time.is_some_and(|safe| safe >= end)).await;
    }

    /// Runs a command against the leader's admin listener as `name`.
    fn ask(&self, name: &str, arguments: &[&str]) -> Output {
        let files = files(self.folder(), name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_untorn"));
        command.args(arguments).args(["--admin", &format!("https://127.0.0.1:{}", self.admin)]);
        command.arg("--tls-ca").arg(files.ca).arg("--tls-cert").arg(files.cert).arg("--tls-key").arg(files.key);
        tokio::task::block_in_place(|| command.output().unwrap())
    }
}

/// A client's side of TLS that shows this certificate, or none.
fn client(folder: &Path, shows: Option<&str>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(folder.join("ca.crt")).unwrap() {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match shows {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.crt"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    })
}

/// What a GET brings over TLS, and the server's certificate.
async fn get(port: u16, path: &str, client: Arc<ClientConfig>) -> io::Result<(String, CertificateDer<'static>)> {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut tls = TlsConnector::from(client).connect("127.0.0.1".try_into().unwrap(), tcp).await?;
    let certificate = tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    tls.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut response = Vec::new();
    tls.read_to_end(&mut response).await?;
    Ok((String::from_utf8_lossy(&response).into_owned(), certificate))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_endpoint_asks_who_calls_and_what_it_may() {
    let world = World::start();
    world.caught_up().await;
    let folder = world.folder();

    for port in [world.source, world.replica, world.leader, world.admin, world.metrics] {
        for shows in [None, Some("other"), Some("expired")] {
            let error = get(port, "/status", client(folder, shows)).await.expect_err("nobody is let in");
            assert!(error.to_string().contains("alert"), "{port}, {shows:?}: {error}");
        }
        let (response, _) = get(port, "/livez", client(folder, Some("stranger"))).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 403"), "{port}: {response}");
        let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        plain.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut response = Vec::new();
        let _ = timeout(PATIENCE, plain.read_to_end(&mut response)).await.unwrap();
        assert!(!response.starts_with(b"HTTP"), "{port} answers in plain text");
    }
    let (response, _) = get(world.admin, "/status", client(folder, Some("viewer"))).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("\"ready\":true"), "{response}");
    let (response, _) = get(world.metrics, "/metrics", client(folder, Some("viewer"))).await.unwrap();
    for file in ["admin.tls.cert", "admin.tls.client_ca", "leader.tls.cert", "source.tablets[0].tls.ca"] {
        let line = format!("untorn_certificate_expiry_timestamp_seconds{{certificate=\"{file}\"}} ");
        assert!(response.contains(&line), "{line} in {response}");
    }

    roles(&world).await;

    // The other side is looked at, too.
    let rogue = Authority::new();
    let elsewhere = tempfile::tempdir().unwrap();
    put(&elsewhere.path().join("ca.crt"), &rogue.pem);
    world.authority.give(elsewhere.path(), "viewer", &["viewer.example"], UNTIL);
    let error = AdminClient::connect(address(elsewhere.path(), "viewer", world.admin)).await.err().unwrap().to_string();
    assert!(error.contains("certificate"), "{error}");
    let status = world.ask("viewer", &["status", "--format", "json"]);
    assert!(status.status.success() && status.stdout.starts_with(b"{"), "{status:?}");
    let none = Command::new(env!("CARGO_BIN_EXE_untorn")).args(["status", "--admin", "https://127.0.0.1:1"]).output();
    assert!(String::from_utf8_lossy(&none.unwrap().stderr).contains("--tls-ca"));

    // A refused call is audited.
    let log = world.processes[2].whole();
    let line =
        log.lines().find(|line| line.contains("untorn::audit") && line.contains("viewer.example")).expect("a line");
    assert!(line.contains("AdminService/Scan") && line.contains("needs operator"), "{line}");
}

/// What each role may do, of every service.
async fn roles(world: &World) {
    let folder = world.folder();
    let denied = |status: tonic::Status| {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains("needs"), "{status}");
    };

    let output = world.ask("viewer", &["scan", "--table", TABLE]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("viewer.example has viewer here"), "{told}");
    let output = world.ask("operator", &["scan", "--table", TABLE]);
    let rows = String::from_utf8(output.stdout).unwrap();
    let balance = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["balance"].as_i64().unwrap();
    assert_eq!(rows.lines().map(balance).sum::<i64>(), TOTAL);
    for (name, arguments, needed) in [
        ("viewer", &["verify"][..], Some("operator")),
        ("viewer", &["retry"], Some("operator")),
        ("viewer", &["log-level"], Some("operator")),
        ("operator", &["skip", "nobody"], Some("admin")),
        ("operator", &["retry"], None),
        ("operator", &["log-level"], None),
    ] {
        let output = world.ask(name, arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        let refused = needed.map(|role| format!("this call needs {role}"));
        assert_eq!(output.status.success(), refused.is_none(), "{name} {arguments:?}: {told}");
        assert!(refused.is_none_or(|refused| told.contains(&refused)), "{name} {arguments:?}: {told}");
    }
    let mut stranger = AdminClient::connect(address(folder, "stranger", world.admin)).await.unwrap();
    let error = stranger.scan(TABLE, ScanAt::Safe).await.err().unwrap().to_string();
    assert!(error.contains("stranger.example has no role here"), "{error}");

    let channel = |name, port| address(folder, name, port).channel().unwrap();
    let read = || ReadRequest { tablet: "nowhere".into(), ..ReadRequest::default() };
    let mut viewer = TabletServiceClient::new(channel("viewer", world.replica));
    viewer.stats(StatsRequest { tablet: "replica-0".into() }).await.unwrap();
    denied(viewer.read(read()).await.unwrap_err());
    let mut operator = TabletServiceClient::new(channel("operator", world.replica));
    assert_ne!(operator.read(read()).await.unwrap_err().code(), Code::PermissionDenied);
    denied(operator.sync(SyncRequest { tablet: "replica-0".into() }).await.unwrap_err());

    let mut viewer = CdcServiceClient::new(channel("viewer", world.source));
    assert_eq!(viewer.list_tablets(ListTabletsRequest {}).await.unwrap().into_inner().tablets.len(), TABLETS);
    denied(viewer.get_cdc_records(GetCdcRecordsRequest::default()).await.unwrap_err());
    let mut operator = CdcServiceClient::new(channel("operator", world.source));
    let error = operator.get_cdc_records(GetCdcRecordsRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "let in, and asked for a reader's name");

    let mut viewer = TransactionServiceClient::new(channel("viewer", world.leader));
    let nobody = GetTransactionRecordRequest { transaction_id: u64::MAX };
    assert_eq!(viewer.get_transaction_record(nobody).await.unwrap_err().code(), Code::NotFound);
    denied(viewer.open_stream(OpenStreamRequest::default()).await.unwrap_err());
    let mut operator = TransactionServiceClient::new(channel("operator", world.leader));
    denied(operator.open_stream(OpenStreamRequest::default()).await.unwrap_err());
}

/// Calls again and again as `name`, over one connection or a new one each time, until it is told to stop; every call must
/// be answered.
async fn call(tablet: untorn::access::Address, anew: bool, stop: Arc<AtomicBool>, calls: Arc<AtomicU64>) {
    let mut client = TabletServiceClient::new(tablet.channel().unwrap());
    while !stop.load(Ordering::Relaxed) {
        if anew {
            client = TabletServiceClient::new(tablet.channel().unwrap());
        }
        let answer = client.stats(StatsRequest { tablet: "replica-0".into() }).await;
        answer.unwrap_or_else(|status| panic!("a call was dropped: {}", untorn::proto::transport::describe(&status)));
        calls.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(1)).await;
    }
}

/// Panics with what a caller met, if it ended.
fn none_ended(load: &mut JoinSet<()>) {
    if let Some(ended) = load.try_join_next() {
        panic!("a caller ended: {:?}", ended.map_err(|error| error.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_authorities_are_rotated_and_no_call_is_dropped() {
    let world = World::start();
    let folder = world.folder();
    world.caught_up().await;
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), [0, 0].map(|n| Arc::new(AtomicU64::new(n))));
    let mut load = JoinSet::new();
    for (anew, calls) in [false, true].into_iter().zip(&calls) {
        load.spawn(call(address(folder, "untorn", world.replica), anew, Arc::clone(&stop), Arc::clone(calls)));
    }
    let mut authority = Authority::new();
    let mut authorities = format!("{}{}", world.authority.pem, authority.pem);
    put(&folder.join("ca.crt"), &authorities);
    let mut seen = Vec::new();
    for rotation in 0..ROTATIONS {
        if rotation % 10 == 9 {
            // The next authority beside the old ones, which connections that stand go by; the certificates below are its.
            authority = Authority::new();
            authorities += &authority.pem;
            put(&folder.join("ca.crt"), &authorities);
        }
        authority.give(folder, "untorn", &["untorn.example", "127.0.0.1"], UNTIL);
        authority.give(folder, "viewer", &["viewer.example"], UNTIL);
        let shown = [world.source, world.replica, world.leader, world.admin, world.metrics];
        let (_, certificate) = get(shown[rotation % 5], "/livez", client(folder, Some("viewer"))).await.unwrap();
        assert!(!seen.contains(&certificate), "rotation {rotation} is not in use");
        seen.push(certificate);
        none_ended(&mut load);
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) > ROTATIONS as u64));
    // The new certificates are good for new connections between the processes, too.
    let log = world.told();
    assert!(!log.contains("cannot be pulled"), "{log}");
    world.caught_up().await;
    let (metrics, _) = get(world.metrics, "/metrics", client(folder, Some("viewer"))).await.unwrap();
    let reopened = |line: &&str| line.starts_with("untorn_stream_reconnects_total{") && !line.ends_with(" 0");
    assert_eq!(metrics.lines().find(reopened), None, "a stream was opened again");

    // The old authorities are taken away: who stands by one of their certificates is sent away, comes back, and goes on.
    put(&folder.join("ca.crt"), &authority.pem);
    let deadline = Instant::now() + PATIENCE;
    while !world.told().contains("a connection ends: its peer is not trusted any more") {
        assert!(Instant::now() < deadline, "connections outlive their authority\n{}", world.told());
        sleep(Duration::from_millis(50)).await;
    }
    world.caught_up().await;
}
