//! Links between processes: calls that are lost, late, doubled, and replayed.

use super::faults::Kind;
use super::world::World;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// An end of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// A process with an applier.
    Node(u32),
    /// A tablet server.
    Tablet(u32),
    /// The leader, wherever it lives.
    Leader,
}

/// The network. Clones are the same network.
#[derive(Clone)]
pub struct Network {
    world: World,
    cut: Arc<Mutex<BTreeSet<(Place, Place)>>>,
    /// How long a caller waits, in milliseconds.
    patience_ms: u64,
    /// The longest ordinary delay one way, in milliseconds.
    delay_ms: u64,
}

impl Network {
    /// A network with delays of its own.
    pub fn new(world: &World) -> Self {
        let (patience_ms, delay_ms) = world.chance(|chance| (chance.skewed(1_000, 10_000), chance.skewed(1, 40)));
        Self { world: world.clone(), cut: Arc::default(), patience_ms, delay_ms }
    }

    /// Loses everything on its way from one place to another.
    pub fn cut(&self, from: Place, to: Place) {
        self.cut.lock().unwrap().insert((from, to));
    }

    /// Loses nothing there any more.
    pub fn mend(&self, from: Place, to: Place) {
        self.cut.lock().unwrap().remove(&(from, to));
    }

    /// Loses nothing anywhere.
    pub fn mend_all(&self) {
        self.cut.lock().unwrap().clear();
    }

    fn is_cut(&self, from: Place, to: Place) -> bool {
        self.cut.lock().unwrap().contains(&(from, to))
    }

    async fn travel(&self) {
        self.world.sleep_ms(1, self.delay_ms).await;
        if self.world.strikes(Kind::Delay, 0.1) {
            self.world.sleep_ms(50, 5_000).await;
        }
    }

    /// Calls `deliver` at the other end, perhaps never, perhaps more than once, and answers what the first delivery did if
    /// that comes back in time. A delivery goes on when its caller is gone.
    pub async fn call<T: Send + 'static>(
        &self,
        from: Place,
        to: Place,
        what: &'static str,
        deliver: impl Fn() -> BoxFuture<'static, T> + Send + Sync + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let (network, deliver) = (self.clone(), Arc::new(deliver));
        if !self.world.strikes(Kind::Drop, 0.1) {
            tokio::spawn(async move { network.carry(from, to, what, deliver, reply).await });
        }
        tokio::time::timeout(Duration::from_millis(self.patience_ms), answer).await.ok()?.ok()
    }

    async fn carry<T: Send + 'static>(
        self,
        from: Place,
        to: Place,
        what: &'static str,
        deliver: Arc<impl Fn() -> BoxFuture<'static, T> + Send + Sync + 'static>,
        reply: oneshot::Sender<T>,
    ) {
        self.travel().await;
        if self.is_cut(from, to) {
            return;
        }
        for (kind, first, last) in [(Kind::Duplicate, 1, 500), (Kind::Replay, 20_000, 200_000)] {
            if self.world.strikes(kind, if kind == Kind::Replay { 0.02 } else { 0.1 }) {
                let (network, deliver) = (self.clone(), Arc::clone(&deliver));
                tokio::spawn(async move {
                    network.world.sleep_ms(first, last).await;
                    deliver().await;
                });
            }
        }
        self.world.event((from, to, what), || format!("{from:?} → {to:?} {what}"));
        let answer = deliver().await;
        if self.world.strikes(Kind::LostAnswer, 0.1) {
            return;
        }
        self.travel().await;
        if self.world.strikes(Kind::LateAnswer, 0.05) {
            tokio::time::sleep(Duration::from_millis(self.patience_ms)).await;
        }
        if !self.is_cut(to, from) {
            reply.send(answer).ok();
        }
    }
}
