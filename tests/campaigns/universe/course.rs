//! The course of a run: the users do what they want, everything is healed, and all of it must arrive.

use super::auditor::{self, Auditor};
use super::faults::Kind;
use super::history::Parts;
use super::properties::idle;
use super::properties::monotone::LEAVES;
use super::workload::Database;
use super::{Mode, Outcome, Universe};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use untorn::applier::Inspector;
use untorn::coordinator::Release;
use untorn::tablet::TabletLeader;

/// Seconds after healing within which everything must have arrived.
const ARRIVES_WITHIN: u64 = 300;
/// The same where faults were permanent: the core set never stopped, and nothing was left to luck.
const LIVELY_WITHIN: u64 = 150;

impl Universe {
    /// Runs to its end, or to the first thing that does not hold.
    pub(super) async fn live(self: Arc<Self>, seed: u64, mode: Mode) -> Outcome {
        let auditor = Auditor {
            world: self.world.clone(),
            history: Arc::clone(&self.workload.history),
            release: self.plan.release,
            watch: Arc::clone(&self.watch),
            come_and_go: self.come_and_go.then(|| self.stream_names()),
            accounts: self.workload.shape.accounts,
            longest: BTreeMap::new(),
            kept: Vec::new(),
            newest: [None; 2],
            reads: 0,
        };
        let auditor = Arc::new(tokio::sync::Mutex::new(auditor));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&self).lead());
        tasks.spawn(Arc::clone(&self).audit(Arc::clone(&auditor)));
        tasks.spawn(Arc::clone(&self).nemesis(mode));
        tasks.spawn(self.workload.clone().promise());
        if !self.plan.embedded {
            self.tablets.iter().for_each(|tablet| drop(tasks.spawn(Arc::clone(tablet).supervise())));
        }
        let names = self.stream_names();
        for puller in 0..self.plan.pullers {
            let own = names.iter().skip(puller).step_by(self.plan.pullers).cloned().collect();
            tasks.spawn(Arc::clone(&self).pull(own, None));
        }
        if self.world.is_active(Kind::SilentServer) {
            // One source says nothing for the first minute or so.
            let millis = self.world.chance(|chance| chance.between(5_000, 90_000));
            self.on_a_source(|server| server.falls_silent(millis), |tablet| tablet.falls_silent(millis));
            self.world.struck(Kind::SilentServer);
        }
        tokio::select! {
            biased;
            () = self.world.is_broken() => {}
            () = self.run_its_course(mode, &auditor) => {}
        }
        let reads = auditor.lock().await.reads;
        Outcome {
            seed,
            plan: self.plan.clone(),
            hash: self.world.hash(),
            broken: self.world.all_broken(),
            faults: self.world.fault_counts(),
            reached: self.world.all_reached(),
            transactions: self.workload.history.lock().unwrap().committed,
            reads,
            seconds: self.world.elapsed_micros() as f64 / 1e6,
            lines: self.world.lines(),
        }
    }

    /// Lets the users do what they want, heals everything, and sees to it that all of it arrives.
    async fn run_its_course(&self, mode: Mode, auditor: &tokio::sync::Mutex<Auditor>) {
        if !self.world.is_active(Kind::LateBranch) {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        if self.plan.release == Release::CommonClock {
            self.workload.open().await;
        }
        let mut users = JoinSet::new();
        for _ in 0..self.plan.users {
            users.spawn(self.workload.clone().user());
        }
        while let Some(user) = users.join_next().await {
            if let Err(error) = user {
                self.world.broken(format!("a user of the simulator failed: {error}"));
            }
        }
        self.heal();
        let collected = self.is_collected();
        let within = if mode == Mode::Liveness { LIVELY_WITHIN } else { ARRIVES_WITHIN };
        let arrived = tokio::time::timeout(Duration::from_secs(within), self.arrives(auditor)).await.is_ok();
        if !arrived && !collected && self.world.all_broken().is_empty() {
            let stuck = self.stuck(auditor).await;
            self.world
                .broken(format!("converged: the replica did not come to the source's head within {within} s: {stuck}"));
        }
    }

    /// Whether a source lost what was needed: then the replica stands still, and says so.
    fn is_collected(&self) -> bool {
        match &self.database {
            Database::Servers(servers) => servers.iter().any(|server| server.state().collected),
            Database::Tablets(tablets) => tablets.iter().any(|tablet| tablet.is_collected()),
        }
    }

    /// Waits until the replica shows everything that the source committed, and holds nothing else.
    async fn arrives(&self, auditor: &tokio::sync::Mutex<Auditor>) {
        loop {
            self.world.sleep_ms(500, 2_000).await;
            let Some((reader, inspector, true)) = self.reader() else { continue };
            if self.left(&inspector).await.is_some() {
                continue;
            }
            let read = async { auditor.lock().await.read(&reader, auditor::Kind::Safe).await };
            // A leader may still die of what was arranged before: then nobody answers.
            let seen = tokio::time::timeout(Duration::from_secs(30), read).await.ok().flatten();
            let whole = match reader.latest() {
                Ok(latest) => auditor.lock().await.parts(latest) == Parts::All,
                Err(_) => false,
            };
            let history = self.workload.history.lock().unwrap();
            let committed = (0..).zip(&history.txns).filter(|(_, txn)| txn.committed).map(|(number, _)| number);
            if whole && seen.is_some_and(|seen| seen.visible() == committed.collect()) {
                return;
            }
        }
    }

    /// What is still held although nothing is left to do.
    async fn left(&self, inspector: &Inspector) -> Option<String> {
        let look = inspector.look(|machine, _| {
            let live = machine.state().streams.iter().filter(|stream| !stream.left);
            let copying = live.flat_map(|stream| &stream.copies).find(|copy| !copy.is_over()).cloned();
            (machine.state().transactions.len(), copying)
        });
        let Some((transactions, copying)) = look.await.ok() else { return Some("the leader does not answer".into()) };
        if let Some(copy) = copying {
            return Some(format!("a copy is not over: {copy:?}"));
        }
        let mut stats = Vec::new();
        for tablet in &self.tablets {
            let Some(engine) = tablet.engine() else { return Some("a tablet does not run".into()) };
            match engine.stats().await {
                Ok(tablet) => stats.push(tablet),
                Err(error) => return Some(error.to_string()),
            }
        }
        // What a stream that left had stored and not reported stays, unseen (see the track record).
        if self.world.all_reached().contains_key(LEAVES) {
            stats.clear();
        }
        // A chunk that the network delivers once more behind its transaction's end stays until its connection ends.
        let counts = self.world.fault_counts();
        if counts.contains_key(&Kind::Duplicate) || counts.contains_key(&Kind::Replay) {
            let staged = stats.iter_mut().filter(|stats| stats.provisional_branches == 0);
            staged.for_each(|stats| stats.provisional_records = 0);
        }
        idle::broken(transactions, &stats)
    }

    /// Why it does not come to an end.
    async fn stuck(&self, auditor: &tokio::sync::Mutex<Auditor>) -> String {
        let Some((reader, inspector, _)) = self.reader() else { return "nobody leads".into() };
        let look = inspector.look(|machine, _| {
            let oldest = machine.oldest_waiting();
            let held = machine.state().transactions.iter().map(|t| (t.id, t.clone())).collect::<BTreeMap<_, _>>();
            let oldest = oldest.map(|oldest| format!("{oldest:?}"));
            let start = format!("{:?}", machine.state().start);
            format!("oldest waiting {oldest:?}; start {start}; first held {:?}", held.values().next())
        });
        let look = tokio::time::timeout(Duration::from_secs(5), look).await;
        let left = tokio::time::timeout(Duration::from_secs(5), self.left(&inspector)).await;
        let known = inspector.look(|machine, _| {
            machine.state().streams.iter().map(|stream| (stream.stream, stream.name.clone())).collect::<Vec<_>>()
        });
        let known = tokio::time::timeout(Duration::from_secs(5), known).await;
        let streams: Vec<String> = (known.ok().and_then(Result::ok).into_iter().flatten())
            .map(|(id, name)| (inspector.stream_state(id, &name), name))
            .filter(|(state, _)| *state != untorn::applier::leader::StreamState::Running)
            .map(|(state, name)| format!("{name} {state:?}"))
            .collect();
        // Nobody may answer any more.
        let read = async { auditor.lock().await.read(&reader, auditor::Kind::Safe).await };
        let missing = match tokio::time::timeout(Duration::from_secs(30), read).await.ok().flatten() {
            Some(seen) => {
                let history = self.workload.history.lock().unwrap();
                let visible = seen.visible();
                let missing = (0..).zip(&history.txns).filter(|(n, txn)| txn.committed && !visible.contains(n));
                format!("{} are missing, first {:?}", missing.clone().count(), missing.clone().next())
            }
            None => "no read comes to its end".into(),
        };
        format!("{missing}; {left:?}; {look:?}; {streams:?}")
    }
}
