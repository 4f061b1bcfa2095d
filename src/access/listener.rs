//! Connections as they come in: counted, shaken hands with, and with who called.

use super::keys::ServerKeys;
use super::peer::Peer;
use super::role::Grant;
use super::trusted::Trusted;
use crate::limits::{CONNECTIONS_MAX, HANDSHAKE_MS, HANDSHAKES_MAX, RETRY_FIRST_MS};
use futures::stream::{FuturesUnordered, StreamExt};
use rustls::server::Acceptor;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

/// A listener, with what it asks of callers.
pub struct Listener {
    tcp: TcpListener,
    guard: Option<Guard>,
}

/// TLS, and who may call.
#[derive(Clone)]
struct Guard {
    keys: Arc<ServerKeys>,
    grants: Arc<[Grant]>,
}

impl From<TcpListener> for Listener {
    /// A listener that is open: for loopback.
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, guard: None }
    }
}

impl Listener {
    /// A listener that lets in only whom these grants name.
    #[must_use]
    pub fn guarded(tcp: TcpListener, keys: Arc<ServerKeys>, grants: &[Grant]) -> Self {
        Self { tcp, guard: Some(Guard { keys, grants: grants.into() }) }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The connections, each once its handshake is over. A slow handshake holds up no other.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let handshakes = FuturesUnordered::new();
        futures::stream::unfold((self, permits, handshakes), |(listener, permits, mut handshakes)| async move {
            let made = loop {
                let room = handshakes.len() < HANDSHAKES_MAX;
                tokio::select! {
                    Some(made) = handshakes.next(), if !handshakes.is_empty() => {
                        if let Some(made) = made {
                            break made;
                        }
                    }
                    accepted = accept(&listener.tcp, &permits), if room => match accepted {
                        Ok((permit, tcp, address)) => {
                            handshakes.push(handshake(tcp, address, listener.guard.clone(), permit));
                        }
                        Err(error) => {
                            // Too many open files, most likely: it goes on when some are closed.
                            tracing::warn!(%error, "a connection could not be accepted");
                            sleep(Duration::from_millis(RETRY_FIRST_MS)).await;
                        }
                    },
                }
            };
            Some((Ok(made), (listener, permits, handshakes)))
        })
    }
}

/// The next connection, once there is room for it. What is beyond waits at the kernel.
async fn accept(
    tcp: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = tcp.accept().await?;
    Ok((permit, stream, address))
}

async fn handshake(
    tcp: TcpStream,
    address: SocketAddr,
    guard: Option<Guard>,
    permit: OwnedSemaphorePermit,
) -> Option<Connection> {
    tcp.set_nodelay(true).ok();
    let Some(Guard { keys, grants }) = guard else {
        return Some(Connection { io: Either::Left(tcp), peer: Peer::anyone(address), _permit: permit });
    };
    let shaken = async {
        // The caller has read its own files when it says hello. Only ours, read after that, are sure to know the authority
        // of a certificate that it was just given.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        hello.into_stream(keys.current()).await
    };
    let tls = match timeout(Duration::from_millis(HANDSHAKE_MS), shaken).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "a caller was turned away: its handshake failed");
            return None;
        }
        Err(_) => {
            tracing::info!(%address, "a caller was turned away: its handshake took too long");
            return None;
        }
    };
    let shown: Vec<_> = tls.get_ref().1.peer_certificates()?.iter().map(|shown| shown.clone().into_owned()).collect();
    let peer = Peer::certified(address, shown.first()?, &grants);
    let who = peer.to_string();
    let distrusted = async move { format!("the certificate of {who}: {}", keys.distrusted(&shown).await) };
    Some(Connection { io: Either::Right(Box::new(Trusted::new(tls, distrusted))), peer, _permit: permit })
}

/// A connection that may send requests, for as long as its caller's certificate counts.
pub struct Connection {
    io: Either<TcpStream, Box<Trusted<TlsStream<TcpStream>>>>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
