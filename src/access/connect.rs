//! Connecting to a server, by TLS where its URL says `https`.

use super::keys::ClientKeys;
use super::trusted::Trusted;
use crate::limits::{GRPC_CONNECT_MS, GRPC_KEEPALIVE_MS, GRPC_WINDOW_BYTES};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::InvalidUri;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Where a server is, and the keys to reach it where it has TLS.
#[derive(Clone, Debug)]
pub struct Address {
    url: String,
    keys: Option<Arc<ClientKeys>>,
}

/// An address that no connection can be made to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no gRPC address ({fault}); write it as http://HOST:PORT, or https://HOST:PORT with TLS files")]
pub struct BadAddress {
    url: String,
    fault: String,
}

impl From<&str> for Address {
    fn from(url: &str) -> Self {
        Self { url: url.to_owned(), keys: None }
    }
}

impl From<&String> for Address {
    fn from(url: &String) -> Self {
        url.as_str().into()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Address {
    /// A server that is reached with these keys, if any.
    #[must_use]
    pub fn new(url: &str, keys: Option<Arc<ClientKeys>>) -> Self {
        Self { url: url.to_owned(), keys }
    }

    /// A channel that is connected. As [`Address::channel`] otherwise.
    ///
    /// # Errors
    /// Why nobody is reached there, for people.
    pub async fn connect(&self) -> Result<Channel, String> {
        let endpoint = self.endpoint().map_err(|error| error.to_string())?;
        let channel = match &self.keys {
            None => endpoint.connect().await,
            Some(keys) => {
                let name = self.server_name(endpoint.uri()).map_err(|error| error.to_string())?;
                let keys = Arc::clone(keys);
                let connect = service_fn(move |uri| connect(uri, Arc::clone(&keys), name.clone()));
                endpoint.connect_with_connector(connect).await
            }
        };
        channel.map_err(|error| reason(&error))
    }

    /// A channel that connects when it is first used, and again whenever it must. To be called within a tokio runtime.
    /// Calls have no deadline of their own.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn channel(&self) -> Result<Channel, BadAddress> {
        let endpoint = self.endpoint()?;
        match &self.keys {
            None => Ok(endpoint.connect_lazy()),
            Some(keys) => {
                let (keys, name) = (Arc::clone(keys), self.server_name(endpoint.uri())?);
                let connect = service_fn(move |uri| connect(uri, Arc::clone(&keys), name.clone()));
                Ok(endpoint.connect_with_connector_lazy(connect))
            }
        }
    }

    fn endpoint(&self) -> Result<Endpoint, BadAddress> {
        let uri: Uri = self.url.parse().map_err(|fault: InvalidUri| self.bad(&fault.to_string()))?;
        let (scheme, other) = if self.keys.is_some() { ("https", "http") } else { ("http", "https") };
        match uri.scheme_str() {
            Some(found) if found == scheme => {}
            Some("https") => return Err(self.bad("https needs certificates, and none are given")),
            Some(found) if found == other => return Err(self.bad("certificates are given, and http does not use them")),
            _ => return Err(self.bad("its scheme is not http or https")),
        }
        if uri.port().is_none() {
            return Err(self.bad("it has no port"));
        }
        let keepalive = Duration::from_millis(GRPC_KEEPALIVE_MS);
        Ok(Endpoint::from(uri)
            .connect_timeout(Duration::from_millis(GRPC_CONNECT_MS))
            .http2_keep_alive_interval(keepalive)
            .keep_alive_timeout(keepalive)
            .initial_stream_window_size(GRPC_WINDOW_BYTES)
            .initial_connection_window_size(GRPC_WINDOW_BYTES * 4))
    }

    /// The name that the server's certificate must have.
    fn server_name(&self, uri: &Uri) -> Result<ServerName<'static>, BadAddress> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = self.keys.as_ref().and_then(|keys| keys.server_name()).unwrap_or(host);
        ServerName::try_from(name.to_owned()).map_err(|error| self.bad(&format!("the server's name {name:?}: {error}")))
    }

    fn bad(&self, fault: &str) -> BadAddress {
        BadAddress { url: self.url.clone(), fault: fault.to_owned() }
    }
}

/// The innermost cause of a transport's error, which is the one that says something ("Connection refused").
fn reason(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A connection, once both sides know each other. Files that change during the handshake may make it fail though either's
/// would do, the old or the new; so it is tried again with what they hold then. It lasts while the server's certificate counts.
async fn connect(
    uri: Uri,
    keys: Arc<ClientKeys>,
    name: ServerName<'static>,
) -> io::Result<TokioIo<Trusted<tokio_rustls::client::TlsStream<TcpStream>>>> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let mut config = keys.current();
    loop {
        let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
        tcp.set_nodelay(true)?;
        let error = match TlsConnector::from(Arc::clone(&config)).connect(name.clone(), tcp).await {
            Ok(tls) => {
                let shown = tls.get_ref().1.peer_certificates().unwrap_or_default();
                let shown: Vec<_> = shown.iter().map(|shown| shown.clone().into_owned()).collect();
                let distrusted =
                    async move { format!("the certificate of {uri}: {}", keys.distrusted(&shown, &name).await) };
                return Ok(TokioIo::new(Trusted::new(tls, distrusted)));
            }
            Err(error) => error,
        };
        let now = keys.current();
        if Arc::ptr_eq(&now, &config) {
            return Err(error);
        }
        config = now;
    }
}
