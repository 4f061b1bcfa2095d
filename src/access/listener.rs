//! Connections as they come in: counted, shaken hands with, and with who called.

use super::keys::{ServerKeys, expiry};
use super::peer::Peer;
use super::role::Grant;
use crate::limits::{CONNECTIONS_MAX, HANDSHAKE_MS, HANDSHAKES_MAX, RETRY_FIRST_MS};
use futures::stream::{FuturesUnordered, StreamExt};
use rustls::server::Acceptor;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
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
        return Some(Connection { io: Either::Left(tcp), peer: Peer::anyone(address), expires: None, _permit: permit });
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
    let shown = tls.get_ref().1.peer_certificates()?;
    let peer = Peer::certified(address, shown.first()?, &grants);
    let expires = expiry(shown.iter()).map(|at| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Box::pin(sleep(at.saturating_sub(now)))
    });
    Some(Connection { io: Either::Right(Box::new(tls)), peer, expires, _permit: permit })
}

/// A connection that may send requests, until a certificate that the caller showed expires: then it ends, and a caller that has
/// a newer one makes another. untorn's own read back what became of a call that was under way (C6).
pub struct Connection {
    io: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    peer: Peer,
    expires: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Ready with an error once a certificate that the caller showed has expired.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(expires) = &mut self.expires else { return Poll::Pending };
        ready!(expires.as_mut().poll(cx));
        Poll::Ready(io::Error::other(format!("the certificate of {} has expired", self.peer)))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_expired(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_expired(cx) {
            return Poll::Ready(Err(error));
        }
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
        if let Poll::Ready(error) = self.poll_expired(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
