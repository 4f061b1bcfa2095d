//! A connection that ends when its peer's certificate does not count any more.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection for as long as its peer's certificate counts: until it expires, or its authority is taken away. Then it ends,
/// and a peer that has a newer one makes another. untorn's own read back what became of a call that was under way (C6).
pub(super) struct Trusted<S> {
    io: S,
    distrusted: Pin<Box<dyn Future<Output = String> + Send>>,
}

impl<S> Trusted<S> {
    /// `distrusted` ends when the peer's certificate does not count any more, and says why.
    pub(super) fn new(io: S, distrusted: impl Future<Output = String> + Send + 'static) -> Self {
        Self { io, distrusted: Box::pin(distrusted) }
    }

    /// Ready with an error once the connection must end.
    fn poll_distrusted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let why = ready!(self.distrusted.as_mut().poll(cx));
        tracing::info!(why, "a connection ends: its peer is not trusted any more");
        let error = io::Error::other(why.clone());
        // It says so whenever it is asked again.
        self.distrusted = Box::pin(std::future::ready(why));
        Poll::Ready(error)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Trusted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_distrusted(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Trusted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_distrusted(cx) {
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
        if let Poll::Ready(error) = self.poll_distrusted(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
