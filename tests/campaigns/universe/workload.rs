//! The source's users.

use super::cdc::{self, CdcTablet, Logged};
use super::draft::{self, Draft, OPENING, Shape};
use super::faults::Kind;
use super::history::{ACCOUNTS, History, Number, Span, Value};
use super::properties::monotone::LogWatch;
use super::server::{Part, Server};
use super::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use untorn::wal::{HybridTime, Record, SourceTransactionId};

/// What the users write to.
#[derive(Clone)]
pub enum Database {
    /// Servers that know nothing of each other.
    Servers(Vec<Arc<Server>>),
    /// Tablets with a common clock.
    Tablets(Vec<Arc<CdcTablet>>),
}

/// The users of one run. Clones are the same users.
#[derive(Clone)]
pub struct Workload {
    /// The world.
    pub world: World,
    /// What they write to.
    pub database: Database,
    /// What they did.
    pub history: Arc<Mutex<History>>,
    /// What they may do.
    pub shape: Shape,
    /// How many transactions they commit at least.
    pub wanted: u64,
    /// The longest pause between two transactions of one user, in milliseconds.
    pub pause_ms: u64,
    /// Gids that may be used again, and when.
    pub gids: Arc<Mutex<BTreeMap<String, Instant>>>,
    /// Transactions of a common clock that may still commit.
    pub running: Arc<Mutex<BTreeSet<SourceTransactionId>>>,
    /// The largest commit time of each key's writer, and of any.
    pub clock: Arc<Mutex<HybridTime>>,
    /// What the log says.
    pub watch: Arc<Mutex<LogWatch>>,
    /// Whether transactions of a common clock abort.
    pub aborts: bool,
}

/// How long a gid rests between two uses: what a user must wait when the servers' clocks may differ by half a second.
const GID_RESTS_MS: u64 = 2_000;

impl Workload {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    /// Whether every slot stands.
    fn all_stand(&self) -> bool {
        self.watch.lock().unwrap().slots() >= self.shape.tablets
    }

    /// The rows that the servers hold before anything is replicated, by server; the history's first transaction.
    pub fn opening(&self) -> Draft {
        let mut draft = Draft { number: self.history().begin(), ..Draft::default() };
        for number in 0..self.shape.accounts {
            let key = (ACCOUNTS, format!("a{number}"));
            let tablet = (self.shape.home)(&key, self.shape.tablets);
            let value: Value = [OPENING.to_string(), format!("account {number}")];
            let op = super::server::Op::Insert(value.clone());
            draft.parts.entry(tablet).or_default().push(super::server::Change { key: key.clone(), op });
            draft.effects.insert(key, Some(value));
        }
        self.world.chance(|chance| draft::mark(&mut draft, &self.shape, &mut self.history(), chance));
        draft
    }

    /// A source with a common clock has no copy: its accounts are opened by a transaction.
    pub async fn open(&self) {
        let draft = self.opening();
        if let Database::Tablets(tablets) = &self.database {
            self.common_clock(tablets, draft, false).await;
        }
    }

    /// One user, until enough is committed.
    pub async fn user(self) {
        while self.history().committed < self.wanted {
            let pause = self.world.chance(|chance| chance.between(1, self.pause_ms));
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let draft = self.world.chance(|chance| draft::draw(&self.shape, &mut self.history(), chance));
            let Some(draft) = draft else { continue };
            match &self.database {
                Database::Servers(servers) => self.two_phase(servers, draft).await,
                Database::Tablets(tablets) => self.common_clock(tablets, draft, true).await,
            }
        }
    }

    async fn two_phase(&self, servers: &[Arc<Server>], draft: Draft) {
        let number = draft.number;
        let part = |changes: &[super::server::Change]| Part {
            xid: 0,
            changes: changes.to_vec(),
            streamed: self.world.chance(|chance| chance.happens(0.1)),
        };
        let in_one = draft.parts.len() == 1 && self.world.chance(|chance| chance.happens(0.8));
        if let Some((server, changes)) = draft.parts.iter().next().filter(|_| in_one) {
            let place = servers[*server].commit(part(changes));
            self.committed(&draft, HybridTime::MIN);
            self.span(number, *server, place, Some(place));
            self.history().unlock(&draft.locks);
            return;
        }
        let name = self.gid(number);
        let gid = |server: usize| format!("{name}@{server}");
        let mut order: Vec<usize> = draft.parts.keys().copied().collect();
        if self.world.is_active(Kind::GidReuse) && self.world.chance(|chance| chance.happens(0.05)) {
            self.fail_first(&servers[order[0]], &gid(order[0])).await;
        }
        for server in &order {
            self.world.sleep_ms(1, 60).await;
            let place = servers[*server].prepare(&gid(*server), part(&draft.parts[server]));
            self.span(number, *server, place, None);
        }
        self.world.sleep_ms(1, 60).await;
        if self.world.is_active(Kind::LateBranch) && !self.all_stand() {
            // Prepared while slots are made.
            self.world.sleep_ms(100, 4_000).await;
        }
        if self.world.chance(|chance| chance.happens(0.05)) {
            for server in &order {
                self.world.sleep_ms(1, 60).await;
                servers[*server].rollback_prepared(&gid(*server));
            }
        } else {
            if self.world.chance(|chance| chance.happens(0.5)) {
                order.reverse();
            }
            let between = self.world.is_active(Kind::LateBranch) && !self.all_stand();
            let dies = between && self.world.chance(|chance| chance.happens(0.3));
            if dies {
                // It ends where slots are still to be made, and dies before it ends where they stand.
                order.sort_by_key(|server| servers[*server].state().slot);
            }
            for (nth, server) in order.iter().enumerate() {
                if nth > 0 && dies && servers[*server].state().slot {
                    self.world.struck(Kind::ManagerDies);
                    self.world.sleep_ms(2_000, 60_000).await;
                } else if nth > 0 && self.world.strikes(Kind::ManagerDies, 0.1) {
                    self.world.sleep_ms(2_000, 30_000).await;
                }
                self.world.sleep_ms(1, 60).await;
                let place = servers[*server].commit_prepared(&gid(*server));
                self.ended(number, *server, place);
                if nth == 0 {
                    self.committed(&draft, HybridTime::MIN);
                    self.moved(&draft);
                }
            }
        }
        self.history().unlock(&draft.locks);
        self.gids.lock().unwrap().insert(name, Instant::now() + Duration::from_millis(GID_RESTS_MS));
    }

    /// A first attempt under the same gid, which fails and is rolled back.
    async fn fail_first(&self, server: &Server, gid: &str) {
        let number = self.history().begin();
        let key = (super::history::MARKERS, format!("{number}.failed"));
        let op = super::server::Op::Insert([number.to_string(), "1".into()]);
        let part = Part { xid: 0, changes: vec![super::server::Change { key, op }], streamed: false };
        server.prepare(gid, part);
        self.world.sleep_ms(1, 100).await;
        server.rollback_prepared(gid);
        self.world.sleep_ms(1, 100).await;
    }

    fn gid(&self, number: Number) -> String {
        if self.world.is_active(Kind::GidReuse) {
            let now = Instant::now();
            let mut gids = self.gids.lock().unwrap();
            let rested: Vec<String> =
                gids.iter().filter(|(_, rests_until)| **rests_until <= now).map(|(gid, _)| gid.clone()).collect();
            if !rested.is_empty() && self.world.chance(|chance| chance.happens(0.5)) {
                let gid = self.world.chance(|chance| chance.pick(&rested).clone());
                gids.remove(&gid);
                self.world.struck(Kind::GidReuse);
                return gid;
            }
        }
        format!("g{number}")
    }

    fn span(&self, number: Number, server: usize, from: u64, to: Option<u64>) {
        self.history().txns[number as usize].spans.push(Span { server, from, to });
    }

    fn ended(&self, number: Number, server: usize, place: u64) {
        let spans = &mut self.history().txns[number as usize].spans;
        spans.iter_mut().filter(|span| span.server == server).for_each(|span| span.to = Some(place));
    }

    fn committed(&self, draft: &Draft, time: HybridTime) {
        self.world.event(("committed", draft.number), || format!("transaction {} is committed", draft.number));
        self.history().commit(draft.number, time, &draft.effects);
    }

    /// Rows that were inserted live where they were inserted.
    fn moved(&self, draft: &Draft) {
        let history = &mut *self.history();
        for (server, changes) in &draft.parts {
            for change in changes {
                if matches!(change.op, super::server::Op::Insert(_))
                    && draft.effects.get(&change.key).is_some_and(Option::is_some)
                {
                    history.home.insert(change.key.clone(), *server);
                }
            }
        }
    }

    async fn common_clock(&self, tablets: &[Arc<CdcTablet>], draft: Draft, may_fail: bool) {
        let number = draft.number;
        let id = cdc::id(number);
        let other = |record| Logged::Other(record);
        let carrier = {
            let parts: Vec<usize> = draft.parts.keys().copied().collect();
            self.world.chance(|chance| match chance.below(4) {
                0 => chance.below(tablets.len()),
                _ => *chance.pick(&parts),
            })
        };
        self.running.lock().unwrap().insert(id.clone());
        tablets[carrier].log(other(Record::Created { transaction: id.clone() }));
        let early = self.world.chance(|chance| chance.happens(0.2));
        for (tablet, changes) in &draft.parts {
            self.world.sleep_ms(1, 30).await;
            for change in changes {
                tablets[*tablet].log(Logged::Write(id.clone(), change.clone()));
            }
            if early {
                tablets[*tablet].log(other(self.applying(&id, changes.len())));
            }
        }
        if self.world.chance(|chance| chance.happens(0.1)) {
            tablets[carrier].log(other(Record::Pending { transaction: id.clone() }));
        }
        self.world.sleep_ms(1, 50).await;
        if may_fail && self.aborts && self.world.chance(|chance| chance.happens(0.08)) {
            self.running.lock().unwrap().remove(&id);
            if !self.world.strikes(Kind::LostAbort, 0.7) {
                tablets[carrier].log(other(Record::Aborted { transaction: id, branch: None }));
            }
            self.history().unlock(&draft.locks);
            return;
        }
        let time = self.commit_time(tablets, draft.parts.keys().copied().chain([carrier]));
        self.committed(&draft, time);
        self.history().unlock(&draft.locks);
        let counts: BTreeMap<usize, usize> =
            draft.parts.iter().map(|(tablet, changes)| (*tablet, changes.len())).collect();
        let counted = self.world.chance(|chance| chance.happens(0.7));
        let commit =
            Record::Commit { transaction: id.clone(), branch: None, time, involved: cdc::involved(&counts, counted) };
        // Whoever still owes a record, in any order.
        let mut owed: Vec<(usize, Record)> = vec![(carrier, commit.clone())];
        if !early {
            owed.extend(counts.iter().map(|(tablet, records)| (*tablet, self.applying(&id, *records))));
        }
        while !owed.is_empty() {
            let next = self.world.chance(|chance| chance.below(owed.len()));
            let (tablet, record) = owed.swap_remove(next);
            self.world.sleep_ms(1, 40).await;
            tablets[tablet].log(other(record.clone()));
            if self.world.strikes(Kind::Repeated, 0.3) {
                self.world.sleep_ms(1, 3_000).await;
                tablets[tablet].log(other(record));
            }
            if !owed.iter().any(|(other, _)| *other == tablet) {
                tablets[tablet].state().owed.remove(&time);
            }
        }
        for tablet in tablets {
            tablet.state().owed.remove(&time);
        }
        self.running.lock().unwrap().remove(&id);
    }

    fn applying(&self, id: &SourceTransactionId, records: usize) -> Record {
        let records = self.world.chance(|chance| chance.happens(0.8)).then_some(records as u64);
        Record::Applying { transaction: id.clone(), records, prepared_at: None, label: None }
    }

    /// A commit time above what any involved tablet has promised, and above that of everyone whose keys it overwrote; they
    /// all owe their streams something of it from now on.
    fn commit_time(&self, tablets: &[Arc<CdcTablet>], involved: impl Iterator<Item = usize> + Clone) -> HybridTime {
        let ahead = self.world.chance(|chance| chance.skewed(1, 200_000));
        let now = HybridTime::from_micros(self.world.now().micros() + ahead);
        let mut last = self.clock.lock().unwrap();
        let promised = involved.clone().map(|tablet| tablets[tablet].state().promised).max().unwrap_or(now);
        let time = now.max(promised.next()).max(last.next());
        *last = time;
        for tablet in involved {
            tablets[tablet].state().owed.insert(time);
        }
        time
    }

    /// The tablets of a common clock say how far they are, again and again.
    pub async fn promise(self) {
        let Database::Tablets(tablets) = &self.database else { return };
        loop {
            for tablet in tablets {
                tablet.promise(self.world.now());
            }
            self.world.sleep_ms(50, 1_000).await;
        }
    }
}
