//! Readers, who never stop: each fixes a read point, reads every table on every tablet at it, and holds what it saw
//! against everything that must hold.

use super::draft::OPENING;
use super::history::{ACCOUNTS, History, Number, Parts, TABLES};
use super::properties::model::Promised;
use super::properties::monotone::LogWatch;
use super::properties::{Snapshot, bank, counters, dense, lists, model, whole};
use super::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use untorn::applier::Reader;
use untorn::coordinator::{ReadPoint, Release};
use untorn::tablet::{ReadRequest, TabletError};
use untorn::wal::HybridTime;

/// Who reads.
pub struct Auditor {
    /// The world.
    pub world: World,
    /// What the source did.
    pub history: Arc<Mutex<History>>,
    /// How the replica decides.
    pub release: Release,
    /// What the log says.
    pub watch: Arc<Mutex<LogWatch>>,
    /// The source tablets' names, where not all of them are always seen.
    pub come_and_go: Option<Vec<String>>,
    /// How many accounts there are.
    pub accounts: usize,
    /// The longest form of each list.
    pub longest: BTreeMap<String, String>,
    /// Safe points that were read, and what was seen there.
    pub kept: Vec<(ReadPoint, BTreeSet<Number>, Parts)>,
    /// The newest read point of each kind.
    pub newest: [Option<ReadPoint>; 2],
    /// Reads that came to their end.
    pub reads: u64,
}

/// What kind of read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Every decision.
    Latest,
    /// At safe time.
    Safe,
    /// At an older time.
    Older,
}

impl Auditor {
    /// Reads once, by a reader of whoever leads or led. Nothing where no answer comes: neither a success nor a failure.
    pub async fn read(&mut self, reader: &Reader, kind: Kind) -> Option<Snapshot> {
        let known = self.kept.len();
        let (point, promised) = match kind {
            Kind::Latest => (reader.latest().ok()?, self.promised(HybridTime::MAX, true)),
            Kind::Safe => {
                let point = reader.safe().ok()?;
                (point, self.promised(point.time, false))
            }
            Kind::Older => {
                let index = self.world.chance(|chance| chance.below(known));
                let (older, ..) = self.kept.get(index)?;
                let point = reader.at(older.time).ok()?;
                (point, self.promised(point.time, false))
            }
        };
        let snapshot = match self.scan(reader, point).await {
            Ok(snapshot) => snapshot,
            Err(TabletError::Refused(why)) => {
                self.world.broken(format!("a read at {point:?} was refused: {why}"));
                return None;
            }
            Err(error) => {
                self.world.event((), || format!("a read at {point:?} came to nothing: {error}"));
                return None;
            }
        };
        self.reads += 1;
        self.world.event((point.position, point.time, snapshot.rows.len()), || {
            format!("read {kind:?} {point:?}: {} rows, {} transactions", snapshot.rows.len(), snapshot.markers.len())
        });
        let parts = self.parts(point);
        if let Some(broken) = self.broken(&snapshot, promised, &parts) {
            self.world.broken(format!("{kind:?} read at {point:?}: {broken}"));
        }
        self.compare(kind, point, &snapshot, parts);
        Some(snapshot)
    }

    fn promised(&self, time: HybridTime, latest: bool) -> Promised {
        match self.release {
            Release::CommonClock if latest => Promised::Whole,
            Release::CommonClock => Promised::AtTime(time),
            Release::Ordered => Promised::Cut,
            Release::Atomic => Promised::KeysInOrder,
        }
    }

    /// What a reader at this point sees, by what the log says of it.
    pub fn parts(&self, point: ReadPoint) -> Parts {
        let Some(names) = &self.come_and_go else { return Parts::All };
        let watch = self.watch.lock().unwrap();
        let parts = names.iter().enumerate().flat_map(|(server, name)| {
            let shown = TABLES.iter().enumerate().filter(|(_, table)| watch.shows(name, table, point));
            shown.map(move |(table, _)| (server, table)).collect::<Vec<_>>()
        });
        let parts: BTreeSet<_> = parts.collect();
        if parts.len() == names.len() * TABLES.len() { Parts::All } else { Parts::Only(names.len(), parts) }
    }

    async fn scan(&self, reader: &Reader, at: ReadPoint) -> Result<Snapshot, TabletError> {
        let mut snapshot = Snapshot::default();
        let small = self.world.chance(|chance| chance.skewed(500, 1 << 20)) as usize;
        for tablet in 0..reader.tablet_count() {
            for (number, name) in TABLES.iter().enumerate() {
                let Some(schema) = reader.table(name) else { continue };
                let mut after = None;
                loop {
                    let request =
                        ReadRequest { table: schema.table, at, key: None, after, history: false, max_bytes: small };
                    let page = reader.page(tablet, request).await?;
                    for row in page.rows {
                        if let Err(broken) = snapshot.add(number, row) {
                            self.world.broken(broken);
                        }
                    }
                    after = page.more_after;
                    if after.is_none() {
                        break;
                    }
                }
            }
            self.world.sleep_ms(1, 400).await;
        }
        Ok(snapshot)
    }

    fn broken(&mut self, seen: &Snapshot, promised: Promised, parts: &Parts) -> Option<String> {
        let opened = seen.table(ACCOUNTS).next().is_some();
        let total = if opened { OPENING * self.accounts as i64 } else { 0 };
        let history = self.history.lock().unwrap();
        // Sequences go on within a key, lists too: every release but a read of `latest` with a common clock keeps them.
        let in_order = promised != Promised::Whole && *parts == Parts::All;
        model::broken(seen, &history, promised, parts)
            .or_else(|| (*parts == Parts::All).then(|| whole::broken(seen)).flatten())
            .or_else(|| in_order.then(|| bank::broken(seen, total)).flatten())
            .or_else(|| in_order.then(|| dense::broken(seen)).flatten())
            .or_else(|| in_order.then(|| counters::broken(seen)).flatten())
            .or_else(|| in_order.then(|| lists::broken(seen, &mut self.longest)).flatten())
    }

    /// A read point always shows the same, and later ones show more.
    fn compare(&mut self, kind: Kind, point: ReadPoint, seen: &Snapshot, parts: Parts) {
        let visible = seen.visible();
        for (other, before, _) in self.kept.iter().filter(|(_, _, other)| *other == parts) {
            let says = if kind == Kind::Latest && self.release == Release::CommonClock {
                point.position >= other.position && !before.is_subset(&visible)
            } else if other.time == point.time && kind != Kind::Latest {
                *before != visible
            } else if other.time < point.time && other.position <= point.position {
                !before.is_subset(&visible)
            } else {
                false
            };
            if says {
                let lost = before.difference(&visible).next();
                self.world
                    .broken(format!("a read at {other:?} showed other transactions than one at {point:?}: {lost:?}"));
                break;
            }
        }
        if kind != Kind::Latest {
            if self.kept.len() >= 8 {
                let index = self.world.chance(|chance| chance.below(8));
                self.kept.remove(index);
            }
            self.kept.push((point, visible, parts));
        }
    }

    /// Whoever leads now shows at least what the one before it had shown when it died.
    pub fn covers(&self, reader: &Reader, older: &Reader) {
        for (now, before) in [(reader.latest(), older.latest()), (reader.safe(), older.safe())] {
            if let (Ok(now), Ok(before)) = (now, before)
                && now.position < before.position
            {
                self.world.broken(format!("the owner before had shown {before:?}, and this one shows {now:?}"));
            }
        }
    }

    /// Safe and latest only rise, for as long as one process shows them.
    pub fn rises(&mut self, reader: &Reader) {
        for (place, point) in [reader.latest().ok(), reader.safe().ok()].into_iter().enumerate() {
            if let (Some(before), Some(now)) = (self.newest[place], point)
                && (now.position < before.position || (now.time < before.time && before.time < HybridTime::MAX))
            {
                self.world.broken(format!("a read point went back from {before:?} to {now:?}"));
            }
            self.newest[place] = point.or(self.newest[place]);
        }
    }
}
