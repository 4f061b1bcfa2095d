use super::*;
use crate::access::{Address, ClientFiles, ClientKeys, Grant, ServerFiles, ServerKeys};
use crate::limits::AUTHORITIES_LOOK_MS;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::codegen::http;
use tower::{Service, ServiceExt};

/// How long anything may take before a test gives up: no property, only a bound.
const PATIENCE: Duration = Duration::from_secs(60);

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Writes an authority, and a pair of its own for both sides good until then.
fn files(folder: &Path, until: Duration) -> (ServerFiles, ClientFiles) {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let [ca, cert, key] = ["ca.crt", "tls.crt", "tls.key"].map(|file| folder.join(file));
    std::fs::write(&ca, parameters.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(parameters, authority_key);
    let mut parameters = CertificateParams::new(vec!["127.0.0.1".into(), "caller.example".into()]).unwrap();
    parameters.not_after = date_time_ymd(1970, 1, 1) + until;
    let own = KeyPair::generate().unwrap();
    std::fs::write(&cert, parameters.signed_by(&own, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&key, own.serialize_pem()).unwrap();
    let section = || "test".to_owned();
    let shown =
        ClientFiles { section: section(), ca: ca.clone(), cert: cert.clone(), key: key.clone(), server_name: None };
    (ServerFiles { section: section(), cert, key, client_ca: ca }, shown)
}

/// Serves a page over TLS.
async fn start(files: ServerFiles, tasks: &mut JoinSet<()>) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let grants = [Grant { identity: "caller.example".into(), role: Role::Admin }];
    let keys = Arc::new(ServerKeys::load(files).unwrap());
    let routes = Router::new().route("/livez", get(async || "page"));
    let listener = Listener::guarded(tcp, keys, &grants);
    tasks.spawn(async move { serve(listener, routes, std::future::pending()).await.unwrap() });
    address
}

/// A request over HTTP/1, and the whole head and body of its answer.
async fn ask(to: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), path: &str) -> std::io::Result<String> {
    to.write_all(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
    let mut answer = vec![0; 4_096];
    let read = to.read(&mut answer).await?;
    Ok(String::from_utf8(answer[..read].to_vec()).unwrap())
}

#[tokio::test]
async fn a_connection_ends_when_the_certificate_of_its_caller_expires() {
    let folder = tempfile::tempdir().unwrap();
    let until = Duration::from_secs(since_epoch().as_secs() + 4);
    let (server, client) = files(folder.path(), until);
    let mut tasks = JoinSet::new();
    let address = start(server, &mut tasks).await;
    let connect = async || {
        let config = ClientKeys::load(client.clone()).unwrap().current();
        let mut config = (*config).clone();
        config.alpn_protocols.clear();
        let tcp = TcpStream::connect(address).await.unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().unwrap(), tcp).await
    };
    let mut standing = connect().await.expect("it is good for some seconds");
    // The answer's kind does not matter: it shows that the connection is in use.
    assert!(ask(&mut standing, "/livez").await.unwrap().starts_with("HTTP/1.1 405"));
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, standing.read_to_end(&mut rest)).await.expect("the connection outlives the certificate");
    assert!(since_epoch() >= until, "it ended too soon");
    assert!(rest.is_empty());
    // The server's expires with it, so nobody is reached any more once the second that it is good for is over.
    while since_epoch() < until + Duration::from_secs(1) {
        sleep(Duration::from_millis(50)).await;
    }
    let refused = connect().await.expect_err("an expired certificate is good");
    assert!(refused.to_string().contains("xpired"), "{refused}");
}

#[tokio::test]
async fn a_connection_ends_when_the_authority_of_its_peer_is_taken_away() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let until = since_epoch() + Duration::from_secs(86_400);
    let (server, mut client) = files(folder.path(), until);
    let (other, _) = files(elsewhere.path(), until);
    client.ca = folder.path().join("servers.crt");
    std::fs::copy(&server.client_ca, &client.ca).unwrap();
    let mut tasks = JoinSet::new();
    let address = start(server.clone(), &mut tasks).await;
    let keys = Arc::new(ClientKeys::load(client.clone()).unwrap());
    let mut config = (*keys.current()).clone();
    config.alpn_protocols.clear();
    let tcp = TcpStream::connect(address).await.unwrap();
    let standing = tokio_rustls::TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().unwrap(), tcp);
    let mut standing = standing.await.unwrap();
    assert!(ask(&mut standing, "/livez").await.unwrap().starts_with("HTTP/1.1 405"));
    let mut channel = Address::new(&format!("https://{address}"), Some(Arc::clone(&keys))).channel().unwrap();
    let mut call = async || {
        let request = http::Request::post(format!("https://{address}/livez")).body(tonic::body::Body::empty());
        channel.ready().await?.call(request.unwrap()).await
    };
    assert_eq!(call().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);

    // Another one beside it changes nothing: nobody is sent away.
    let both = [std::fs::read(&other.client_ca).unwrap(), std::fs::read(&server.client_ca).unwrap()].concat();
    std::fs::write(&server.client_ca, both).unwrap();
    sleep(Duration::from_millis(AUTHORITIES_LOOK_MS * 2)).await;
    assert!(ask(&mut standing, "/livez").await.unwrap().starts_with("HTTP/1.1 405"));

    // The caller's side: the server that it is connected to is no longer one that it trusts.
    std::fs::copy(&other.client_ca, &client.ca).unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while call().await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the caller goes on with a server that it must not trust");
        sleep(Duration::from_millis(50)).await;
    }

    // The server's side.
    std::fs::copy(&other.client_ca, &server.client_ca).unwrap();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, standing.read_to_end(&mut rest)).await.expect("the connection outlives its authority");
    assert!(rest.is_empty());
}

/// A page on this machine can make a browser post to an open port, but not in HTTP/2 without TLS: so gRPC is nothing else.
#[tokio::test]
async fn grpc_is_spoken_in_http_2_only() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    let said = || get(async || "page").post(async || "done");
    let routes = Router::new().route("/livez", said()).route("/untorn.admin.v1.AdminService/Status", said());
    tasks.spawn(async move { serve(tcp.into(), routes, std::future::pending()).await.unwrap() });
    for (path, code) in [("/livez", "200"), ("/untorn.admin.v1.AdminService/Status", "505"), ("/untorn.x/y", "505")] {
        let mut plain = TcpStream::connect(address).await.unwrap();
        let answer = ask(&mut plain, path).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {answer}");
        assert_eq!(answer.contains("done"), code == "200", "{path}: {answer}");
    }
    let mut channel = Address::from(format!("http://{address}").as_str()).channel().unwrap();
    let request = http::Request::post(format!("http://{address}/untorn.admin.v1.AdminService/Status"));
    let request = request.body(tonic::body::Body::empty()).unwrap();
    assert_eq!(channel.ready().await.unwrap().call(request).await.unwrap().status(), StatusCode::OK);
}
