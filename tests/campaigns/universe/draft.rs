//! What a client wants to do: one transaction's statements, by source tablet.

use super::chance::Chance;
use super::history::{
    ACCOUNTS, COUNTERS, DOCUMENTS, History, LISTS, MARKERS, Number, RowKey, SCRATCH, SEQUENCE, Value,
};
use super::server::{Change, Op};
use std::collections::BTreeMap;

/// How the workload is set up.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Source tablets.
    pub tablets: usize,
    /// Accounts, over all of them.
    pub accounts: usize,
    /// Counters and lists.
    pub counters: usize,
    /// Where a row lives that was never moved; for a source that is cut by key, where it always does.
    pub home: fn(&RowKey, usize) -> usize,
    /// Whether rows may move from one source tablet to another.
    pub moves: bool,
    /// Whether tables are truncated.
    pub truncates: bool,
}

/// What every account holds at first.
pub const OPENING: i64 = 1000;

/// A transaction's statements.
#[derive(Debug, Default)]
pub struct Draft {
    /// Its number.
    pub number: Number,
    /// What it does on each source tablet.
    pub parts: BTreeMap<usize, Vec<Change>>,
    /// What its keys hold after it.
    pub effects: BTreeMap<RowKey, Option<Value>>,
    /// The keys that it holds locked.
    pub locks: Vec<RowKey>,
}

impl Draft {
    /// Locks keys; one that is locked already by this transaction is refused too, so that it writes each key once.
    fn lock(&mut self, history: &mut History, keys: Vec<RowKey>) -> bool {
        let locked = history.lock(&keys);
        if locked {
            self.locks.extend(keys);
        }
        locked
    }

    fn put(&mut self, tablet: usize, key: RowKey, value: Value, history: &History) {
        let op = if history.current.contains_key(&key) {
            Op::Update { value: value.clone(), unchanged: false }
        } else {
            Op::Insert(value.clone())
        };
        self.change(tablet, key.clone(), op);
        self.effects.insert(key, Some(value));
    }

    fn change(&mut self, tablet: usize, key: RowKey, op: Op) {
        self.parts.entry(tablet).or_default().push(Change { key, op });
    }
}

/// Where a row lives now.
fn home(shape: &Shape, history: &History, key: &RowKey) -> usize {
    history.home.get(key).copied().unwrap_or_else(|| (shape.home)(key, shape.tablets))
}

/// Draws a transaction; its keys are locked. Nothing where everything that it wanted is locked.
pub fn draw(shape: &Shape, history: &mut History, chance: &mut Chance) -> Option<Draft> {
    let mut draft = Draft { number: history.begin(), ..Draft::default() };
    let wishes = if chance.happens(0.02) { 30 } else { chance.skewed(1, 5) };
    for _ in 0..wishes {
        match chance.below(20) {
            0..8 => transfer(&mut draft, shape, history, chance),
            8..11 => raise(&mut draft, shape, history, chance),
            11..13 => count_on(&mut draft, shape, history, chance),
            13..16 => write_document(&mut draft, shape, history, chance),
            16 => move_row(&mut draft, shape, history, chance),
            _ => scratch(&mut draft, shape, history, chance),
        }
    }
    if draft.parts.is_empty() {
        history.unlock(&draft.locks);
        return None;
    }
    mark(&mut draft, shape, history, chance);
    Some(draft)
}

/// One or two rows a part that say who wrote them and how many there are.
pub fn mark(draft: &mut Draft, shape: &Shape, history: &mut History, chance: &mut Chance) {
    let number = draft.number;
    let tablets: Vec<usize> = draft.parts.keys().copied().collect();
    let mut markers = Vec::new();
    for tablet in tablets {
        for copy in 0..chance.between(1, 2) {
            // A source that is cut by key holds only its own.
            let named = |salt: u32| (MARKERS, format!("{number}.{tablet}.{copy}.{salt}"));
            let salt = (0..).find(|salt| shape.moves || (shape.home)(&named(*salt), shape.tablets) == tablet);
            markers.push((tablet, named(salt.unwrap_or(0))));
        }
    }
    let count = markers.len().to_string();
    for (tablet, _) in &markers {
        *history.txns[number as usize].markers.entry(*tablet).or_default() += 1;
    }
    for (tablet, key) in markers {
        draft.put(tablet, key, [number.to_string(), count.clone()], history);
    }
}

fn transfer(draft: &mut Draft, shape: &Shape, history: &mut History, chance: &mut Chance) {
    let many = if chance.happens(0.8) { 2 } else { chance.between(3, 8) };
    let mut keys: Vec<RowKey> = (0..many).map(|_| (ACCOUNTS, format!("a{}", chance.below(shape.accounts)))).collect();
    keys.sort();
    keys.dedup();
    if keys.len() < 2 || keys.iter().any(|key| !history.current.contains_key(key)) || !draft.lock(history, keys.clone())
    {
        return;
    }
    let amount = chance.between(1, 50) as i64;
    let last = keys.len() as i64 - 1;
    for (place, key) in (0..).zip(keys) {
        let [balance, note] = history.current[&key].clone();
        let change = if place == 0 { -amount * last } else { amount };
        let balance = balance.parse::<i64>().unwrap() + change;
        draft.put(home(shape, history, &key), key, [balance.to_string(), note], history);
    }
}

fn raise(draft: &mut Draft, shape: &Shape, history: &mut History, chance: &mut Chance) {
    let name = format!("c{}", chance.below(shape.counters));
    let (counter, list) = ((COUNTERS, name.clone()), (LISTS, name));
    if !draft.lock(history, vec![counter.clone(), list.clone()]) {
        return;
    }
    let held = |key: &RowKey| history.current.get(key).map(|value| value[0].clone());
    let count: u64 = held(&counter).map_or(0, |text| text.parse().unwrap()) + 1;
    let entries = held(&list).map_or(String::new(), |text| text + ",") + &draft.number.to_string();
    draft.put(home(shape, history, &counter), counter, [count.to_string(), String::new()], history);
    draft.put(home(shape, history, &list), list, [entries, String::new()], history);
}

fn count_on(draft: &mut Draft, shape: &Shape, history: &mut History, chance: &mut Chance) {
    let tablet = chance.below(shape.tablets);
    let head = (SEQUENCE, format!("head.{tablet}"));
    if !draft.lock(history, vec![head.clone()]) {
        return;
    }
    let next = history.current.get(&head).map_or(0, |value| value[0].parse::<u64>().unwrap()) + 1;
    let number = (SEQUENCE, format!("{tablet}.{next}"));
    let value = [next.to_string(), String::new()];
    draft.put(home(shape, history, &head), head, value.clone(), history);
    draft.put(home(shape, history, &number), number, value, history);
}

fn write_document(draft: &mut Draft, shape: &Shape, history: &mut History, chance: &mut Chance) {
    let key = (DOCUMENTS, format!("d{}", chance.below(shape.accounts)));
    if !draft.lock(history, vec![key.clone()]) {
        return;
    }
    let tablet = home(shape, history, &key);
    let title = draft.number.to_string();
    match history.current.get(&key).cloned() {
        Some(_) if chance.happens(0.15) => {
            draft.change(tablet, key.clone(), Op::Delete);
            draft.effects.insert(key, None);
        }
        // Only a small column changes: the large one is not sent.
        Some([_, body]) if chance.happens(0.7) => {
            let value = [title, body];
            draft.change(tablet, key.clone(), Op::Update { value: value.clone(), unchanged: true });
            draft.effects.insert(key, Some(value));
        }
        _ => {
            let body = format!("body of {title} {}", "x".repeat(chance.below(60)));
            draft.put(tablet, key, [title, body], history);
        }
    }
}

/// A row goes from one server to another: a delete there, an insert here.
fn move_row(draft: &mut Draft, shape: &Shape, history: &mut History, chance: &mut Chance) {
    let key = (DOCUMENTS, format!("d{}", chance.below(shape.accounts)));
    let Some(value) = history.current.get(&key).cloned().filter(|_| shape.moves && shape.tablets > 1) else {
        return;
    };
    if !draft.lock(history, vec![key.clone()]) {
        return;
    }
    let from = home(shape, history, &key);
    let to = (from + 1 + chance.below(shape.tablets - 1)) % shape.tablets;
    draft.change(from, key.clone(), Op::Delete);
    draft.change(to, key.clone(), Op::Insert(value.clone()));
    draft.effects.insert(key, Some(value));
}

/// Rows that come and go within one transaction, and tables that are emptied.
fn scratch(draft: &mut Draft, shape: &Shape, history: &mut History, chance: &mut Chance) {
    let tablet = chance.below(shape.tablets);
    if !draft.lock(history, vec![(SCRATCH, format!("table of {tablet}"))]) {
        return;
    }
    let number = draft.number;
    let own = |salt: usize| (SCRATCH, format!("s{number}.{tablet}.{salt}"));
    let keys = (0..).map(own).filter(|key| shape.moves || (shape.home)(key, shape.tablets) == tablet);
    let keys: Vec<RowKey> = keys.take(3).collect();
    let value = |text: &str| [format!("{text} {number}"), String::new()];
    if shape.truncates && chance.happens(0.1) {
        let suffix = format!(".{tablet}.");
        // Those that are gone, too: a reader of `latest` may see this and not what deleted them.
        let held: Vec<RowKey> = history
            .keys
            .range((SCRATCH, String::new())..(SCRATCH + 1, String::new()))
            .filter(|((_, id), _)| id.contains(&suffix))
            .map(|(key, _)| key.clone())
            .collect();
        draft.change(tablet, (SCRATCH, String::new()), Op::Truncate);
        draft.effects.extend(held.into_iter().map(|key| (key, None)));
    }
    let [kept, churned, updated] = &keys[..] else { return };
    draft.put(tablet, kept.clone(), value("kept"), history);
    // Inserted, updated and deleted in one transaction: nothing is left of it.
    draft.change(tablet, churned.clone(), Op::Insert(value("first")));
    draft.change(tablet, churned.clone(), Op::Update { value: value("second"), unchanged: true });
    draft.change(tablet, churned.clone(), Op::Delete);
    // Written twice: the later one stays.
    draft.change(tablet, updated.clone(), Op::Insert(value("before")));
    draft.change(tablet, updated.clone(), Op::Update { value: value("after"), unchanged: false });
    draft.effects.insert(updated.clone(), Some(value("after")));
}
