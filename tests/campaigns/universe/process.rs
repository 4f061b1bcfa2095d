//! Processes with an applier: how they die, freeze, and are fenced.

use super::faults::Kind;
use super::network::Place;
use super::properties::acknowledged;
use super::properties::monotone::LogWatch;
use super::server::Server;
use super::world::World;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use untorn::wal::OpId;

/// One life of a process: from its start until it dies.
pub struct Life {
    number: u32,
    world: World,
    watch: Arc<Mutex<LogWatch>>,
    /// Outputs until it dies.
    left: Mutex<Option<u64>>,
    dead: watch::Sender<bool>,
    frozen: watch::Sender<bool>,
}

impl Life {
    /// A process begins.
    pub fn new(world: &World, number: u32, watch: &Arc<Mutex<LogWatch>>) -> Arc<Self> {
        Arc::new(Self {
            number,
            world: world.clone(),
            watch: Arc::clone(watch),
            left: Mutex::default(),
            dead: watch::Sender::new(false),
            frozen: watch::Sender::new(false),
        })
    }

    /// Where it is in the network.
    pub fn place(&self) -> Place {
        Place::Node(self.number)
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// It will die at the so-manyth of its outputs from now.
    pub fn die_at_output(&self, outputs: u64) {
        *self.left.lock().unwrap() = Some(outputs);
    }

    /// Dies now.
    pub fn die(&self) {
        self.dead.send_replace(true);
    }

    /// Freezes, or goes on: while it is frozen nothing leaves it.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// Waits for its death.
    pub async fn died(&self) {
        self.dead.subscribe().wait_for(|dead| *dead).await.ok();
    }

    /// Something leaves it, or has just come back: the places at which it may die.
    pub async fn output(&self) {
        let last = {
            let mut left = self.left.lock().unwrap();
            *left = left.map(|left| left.saturating_sub(1));
            *left == Some(0)
        };
        if last && !*self.dead.borrow() {
            self.world.struck(Kind::CrashLeader);
            self.world.event(("dies", self.number), || format!("node {} dies at an output", self.number));
            self.die();
        }
        if *self.dead.borrow() {
            std::future::pending::<()>().await;
        }
        self.frozen.subscribe().wait_for(|frozen| !frozen).await.ok();
    }

    /// Whether the log holds a stream up to here, and so whoever owns it never asks for what lies below.
    pub fn holds(&self, stream: &str, upto: OpId) -> bool {
        self.watch.lock().unwrap().checkpoint(stream) >= upto
    }

    /// A server is told that it may forget.
    pub fn acknowledged(&self, world: &World, server: &Server, upto: u64) {
        let held = self.watch.lock().unwrap().checkpoint(&server.name);
        if let Some(broken) = acknowledged::broken(server, held, upto) {
            world.broken(broken);
        }
    }

    /// As [`Life::acknowledged`], for a source with a common clock.
    pub fn acknowledged_cdc(&self, world: &World, tablet: &str, upto: OpId) {
        let held = self.watch.lock().unwrap().checkpoint(tablet);
        if upto > held {
            world.broken(format!("{tablet} may forget {upto}, and only {held} is durable in the log"));
        }
    }
}
