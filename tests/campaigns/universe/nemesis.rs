//! Who makes things go wrong that no single call can: deaths, partitions, takeovers.

use super::faults::{Kind, WINDOW_MS};
use super::history::TABLES;
use super::network::Place;
use super::workload::Database;
use super::{Mode, Universe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

impl Universe {
    /// Strikes now and then until everything is healed.
    pub(super) async fn nemesis(self: Arc<Self>, mode: Mode) {
        if mode == Mode::Liveness {
            self.break_for_good();
        }
        loop {
            self.world.sleep_ms(WINDOW_MS / 10, WINDOW_MS / 2).await;
            let strikes = |kind| self.world.strikes(kind, 0.3);
            if strikes(Kind::CrashLeader) {
                let outputs = self.world.chance(|chance| chance.skewed(1, 500));
                self.life.lock().unwrap().die_at_output(outputs);
            }
            if !self.plan.embedded {
                self.strike_apart();
            }
            if strikes(Kind::StoppedTablet) {
                let tablet = Arc::clone(&self.tablets[self.world.chance(|chance| chance.below(self.tablets.len()))]);
                let world = self.world.clone();
                tokio::spawn(async move {
                    tablet.stop(true);
                    world.sleep_ms(500, 40_000).await;
                    tablet.stop(false);
                });
            }
            if strikes(Kind::SilentServer) {
                let millis = self.world.chance(|chance| chance.skewed(500, 30_000));
                self.on_a_source(|server| server.falls_silent(millis), |tablet| tablet.falls_silent(millis));
            }
            if strikes(Kind::ClockSkew) {
                let off = self.world.chance(|chance| chance.between(0, 1_200_000_000)) as i64 - 600_000_000;
                self.clock_off_micros.store(off, Ordering::Relaxed);
            }
            if let Database::Servers(servers) = &self.database {
                self.strike_copies(servers);
            }
            if self.world.strikes(Kind::WalCollected, 0.03) {
                self.on_a_source(
                    |server| {
                        let mut state = server.state();
                        (state.collected, state.connection) = (true, 0);
                    },
                    |tablet| tablet.collect(),
                );
            }
        }
    }

    /// What makes tables be copied, beside everything else.
    fn strike_copies(&self, servers: &[Arc<super::Server>]) {
        if self.world.strikes(Kind::Recopy, 0.3)
            && let Some((_, inspector, _)) = self.reader()
        {
            let stream = self.world.chance(|chance| chance.happens(0.6).then(|| chance.pick(servers).name.clone()));
            let one_table = stream.is_none() || self.world.chance(|chance| chance.happens(0.7));
            let table = one_table.then(|| *self.world.chance(|chance| chance.pick(&TABLES)));
            tokio::spawn(async move { inspector.recopy(stream.as_deref(), table).await.is_ok() });
        }
        if self.world.is_active(Kind::TableAdded) && self.world.chance(|chance| chance.happens(0.2)) {
            let server = self.world.chance(|chance| chance.pick(servers));
            if server.publishes_all() {
                self.world.struck(Kind::TableAdded);
            }
        }
        if self.world.strikes(Kind::StreamsComeAndGo, 0.2) {
            let number = self.world.chance(|chance| chance.below(servers.len()));
            let mut absent = self.absent.lock().unwrap();
            if !absent.remove(&number) && absent.len() + 1 < servers.len() {
                absent.insert(number);
            }
            // The configuration is read at the start.
            let outputs = self.world.chance(|chance| chance.skewed(1, 50));
            self.life.lock().unwrap().die_at_output(outputs);
        }
    }

    pub(super) fn on_a_source(&self, server: impl FnOnce(&super::Server), tablet: impl FnOnce(&super::CdcTablet)) {
        let number = self.world.chance(|chance| chance.below(self.plan.source_tablets));
        match &self.database {
            Database::Servers(servers) => server(&servers[number]),
            Database::Tablets(tablets) => tablet(&tablets[number]),
        }
    }

    fn a_link(&self) -> (Place, Place) {
        let node = self.life.lock().unwrap().place();
        let tablet = Place::Tablet(self.world.chance(|chance| chance.below(self.tablets.len())) as u32);
        if self.world.chance(|chance| chance.happens(0.5)) { (node, tablet) } else { (tablet, node) }
    }

    /// What takes several processes.
    fn strike_apart(self: &Arc<Self>) {
        let strikes = |kind| self.world.strikes(kind, 0.3);
        if strikes(Kind::CrashTablet) {
            self.tablets[self.world.chance(|chance| chance.below(self.tablets.len()))].crash();
        }
        if strikes(Kind::LeaderChange) {
            self.take_over.notify_one();
        }
        if strikes(Kind::PullerChange) {
            let names = self.stream_names();
            let stolen: Vec<_> =
                names.into_iter().filter(|_| self.world.chance(|chance| chance.happens(0.3))).collect();
            let until =
                Instant::now() + Duration::from_millis(self.world.chance(|chance| chance.skewed(1_000, 60_000)));
            tokio::spawn(Arc::clone(self).pull(stolen, Some(until)));
        }
        if strikes(Kind::OneWayPartition) {
            let (universe, (from, to)) = (Arc::clone(self), self.a_link());
            tokio::spawn(async move {
                universe.network.cut(from, to);
                universe.world.sleep_ms(1_000, 40_000).await;
                universe.network.mend(from, to);
            });
        }
        if strikes(Kind::SwizzleClog) {
            let mut links: Vec<_> = (0..self.tablets.len() * 2).map(|_| self.a_link()).collect();
            let universe = Arc::clone(self);
            tokio::spawn(async move {
                for (from, to) in &links {
                    universe.network.cut(*from, *to);
                    universe.world.sleep_ms(1, 1_000).await;
                }
                while !links.is_empty() {
                    let (from, to) = links.swap_remove(universe.world.chance(|chance| chance.below(links.len())));
                    universe.network.mend(from, to);
                    universe.world.sleep_ms(1, 1_000).await;
                }
            });
        }
    }

    /// Outside a core set of half of everything, faults begin and do not end.
    fn break_for_good(&self) {
        for tablet in self.tablets.iter().skip(1).step_by(2) {
            tablet.stop(true);
            self.world.struck(Kind::StoppedTablet);
        }
        self.on_a_source(|server| server.falls_silent(1 << 40), |tablet| tablet.falls_silent(1 << 40));
        self.world.struck(Kind::SilentServer);
    }

    /// Nothing goes wrong from here on, and what did is mended.
    pub(super) fn heal(&self) {
        self.world.event("healed", || "everything is healed".into());
        self.world.heal();
        self.network.mend_all();
        self.tablets.iter().for_each(|tablet| tablet.stop(false));
        self.clock_off_micros.store(0, Ordering::Relaxed);
        if !std::mem::take(&mut *self.absent.lock().unwrap()).is_empty() {
            self.life.lock().unwrap().die_at_output(1);
        }
        match &self.database {
            Database::Servers(servers) => servers.iter().for_each(|server| {
                server.falls_silent(0);
                server.publishes_all();
            }),
            Database::Tablets(tablets) => tablets.iter().for_each(|tablet| tablet.falls_silent(0)),
        }
    }
}
