//! A small TCP proxy that fails in the ways in which networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What the proxy does to what passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Each connection ends after so many bytes in either direction.
    CutAt(u64),
    /// Nothing passes towards the client any more, and nobody is told; for connections of now also after it is healed.
    HalfOpen,
    /// Every connection is reset, and new ones, too.
    Reset,
    /// Nothing passes either way, and nobody is told, until it is healed.
    Blackhole,
    /// So many bytes a second.
    Bandwidth(u64),
    /// Everything comes so much later.
    Delay(Duration),
}

/// A proxy on a port of its own. Dropping it ends every connection.
pub struct Proxy {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    fault: watch::Sender<Fault>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to a port on 127.0.0.1.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (fault, faults) = watch::channel(Fault::None);
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                tokio::spawn(connection(client, SocketAddr::from(([127, 0, 0, 1], port)), faults.clone()));
            }
        });
        Self { port: own, fault, task }
    }

    /// From here on it fails so.
    pub fn fail(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(client: TcpStream, to: SocketAddr, faults: watch::Receiver<Fault>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let sockets = Arc::new((socket2::SockRef::from(&client).try_clone(), socket2::SockRef::from(&server).try_clone()));
    let passed = Arc::new(AtomicU64::new(0));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let up = pump(from_client, to_server, false, faults.clone(), Arc::clone(&passed));
    let down = pump(from_server, to_client, true, faults.clone(), passed);
    let reset = tokio::select! {
        reset = up => reset,
        reset = down => reset,
    };
    if reset && let (Ok(client), Ok(server)) = &*sockets {
        let _ = (client.set_linger(Some(Duration::ZERO)), server.set_linger(Some(Duration::ZERO)));
    }
}

/// Passes on what comes; whether its end is a reset.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    down: bool,
    mut faults: watch::Receiver<Fault>,
    passed: Arc<AtomicU64>,
) -> bool {
    let mut buffer = vec![0; 16 << 10];
    let mut dead = false;
    loop {
        let fault = *faults.borrow_and_update();
        dead |= fault == Fault::HalfOpen && down;
        let mut most = buffer.len();
        match fault {
            Fault::Reset => return true,
            Fault::Blackhole => {
                if faults.changed().await.is_err() {
                    return false;
                }
                continue;
            }
            Fault::CutAt(at) => most = most.min(at.saturating_sub(passed.load(Ordering::Relaxed)) as usize),
            Fault::Bandwidth(bytes) => most = most.min((bytes / 20).max(1) as usize),
            Fault::None | Fault::HalfOpen | Fault::Delay(_) => {}
        }
        if most == 0 {
            return false;
        }
        let read = tokio::select! {
            biased;
            changed = faults.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return false,
            },
            read = from.read(&mut buffer[..most]) => read,
        };
        let Ok(read @ 1..) = read else { return false };
        match fault {
            Fault::Delay(delay) => sleep(delay).await,
            Fault::Bandwidth(_) => sleep(Duration::from_millis(50)).await,
            _ => {}
        }
        passed.fetch_add(read as u64, Ordering::Relaxed);
        if !dead && to.write_all(&buffer[..read]).await.is_err() {
            return false;
        }
    }
}
