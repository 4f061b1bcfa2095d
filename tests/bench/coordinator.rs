//! What a record costs the coordinator, with 0, 100,000 and 1,000,000 transactions waiting to commit beside it, and what
//! those that wait cost in memory and in a snapshot. `cargo bench --bench coordinator`.

#![allow(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]

use untorn::coordinator::{
    Applied, ApplyingFact, Coordinator, Fact, Fence, InvolvedStream, Involvement, Output, Release, Report, Settings,
};
use untorn::wal::{Epoch, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId};

const TABLETS: [ReplicaTabletId; 2] = [ReplicaTabletId(0), ReplicaTabletId(1)];
/// Transactions a report tells of, about what a poller gathers at full speed.
const BATCH: u64 = 64;

/// One coordinator, the poller of each of its streams, and tablets that do at once what they are asked.
struct Bench {
    machine: Coordinator,
    checkpoints: [OpId; 2],
    now: u64,
    round: Option<LogPosition>,
}

impl Bench {
    fn new(release: Release) -> Self {
        let settings = Settings { release, ..Settings::default() };
        let mut machine = Coordinator::restore(settings, None).unwrap();
        let tablets: Vec<_> = TABLETS.iter().map(|tablet| (tablet.to_string(), None)).collect();
        machine.handle_opened(HybridTime::from_micros(1), Epoch(1), "bench", &tablets).unwrap();
        for name in ["a", "b"] {
            machine.handle_stream_joined(HybridTime::from_micros(1), name);
            machine.handle_open_stream(HybridTime::from_micros(1), name).unwrap();
        }
        let mut bench = Self { machine, checkpoints: [OpId::ZERO; 2], now: 1, round: None };
        if release != Release::CommonClock {
            for stream in [SourceTabletId(0), SourceTabletId(1)] {
                bench.machine.handle_slot(bench.time(), stream, Epoch(1), OpId::ZERO, "", &[]).unwrap();
            }
            let positions = vec![(SourceTabletId(0), OpId::ZERO), (SourceTabletId(1), OpId::ZERO)];
            let fence = Fence { before: positions.clone(), prepared: vec![], positions };
            bench.machine.handle_fence(bench.time(), Some(fence));
        }
        bench.run();
        bench
    }

    fn time(&self) -> HybridTime {
        HybridTime::from_micros(self.now)
    }

    fn report(&mut self, stream: usize, upto: u64, facts: Vec<Fact>) {
        let (follows, upto) = (self.checkpoints[stream], OpId::new(upto, 0));
        self.checkpoints[stream] = upto;
        let stored = TABLETS.iter().map(|tablet| (*tablet, upto)).collect();
        let report = Report {
            stream: SourceTabletId(stream as u32),
            puller: Epoch(1),
            follows,
            upto,
            head: OpId::ZERO,
            acknowledged: follows,
            stored,
            facts,
        };
        self.now += 1;
        self.machine.handle_report(self.time(), report).unwrap();
    }

    /// Takes entries and outputs, as the runtime does after every input.
    fn run(&mut self) {
        let mut last = self.machine.durable();
        while let Some(entry) = self.machine.poll_entry() {
            last = entry.position;
        }
        self.machine.handle_durable(last);
        while let Some(output) = self.machine.poll_output() {
            if let Output::TakeRound { begun_after, .. } = output {
                self.round = Some(begun_after);
            }
        }
        for tablet in TABLETS {
            self.machine.handle_applied(tablet, Applied { heard: last, applied: last });
        }
    }

    fn take_round(&mut self) {
        if let Some(begun_after) = self.round.take() {
            let positions = vec![(SourceTabletId(0), self.checkpoints[0]), (SourceTabletId(1), self.checkpoints[1])];
            self.machine.handle_round(self.time(), begun_after, Some(positions));
        }
        self.run();
    }
}

fn source(number: u64) -> SourceTransactionId {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    SourceTransactionId::first(&id)
}

fn branch(number: u64, opened: u64, at: u64, prepared_at: HybridTime) -> Fact {
    Fact::Branch {
        transaction: source(number),
        opened: OpId::new(opened, 0),
        records: 2,
        tablets: TABLETS.to_vec(),
        after: Vec::new(),
        applying: Some(ApplyingFact { at: OpId::new(at, 0), records: None, prepared_at, label: None }),
    }
}

fn commit_listed(number: u64, at: u64) -> Fact {
    let involved = |stream| InvolvedStream { stream: SourceTabletId(stream), records: Some(2) };
    Fact::Commit {
        transaction: source(number),
        branch: None,
        at: OpId::new(at, 0),
        time: HybridTime::from_micros(1_000_000 + number),
        involved: Involvement::Listed(vec![involved(0), involved(1)]),
    }
}

/// Created, writes, Applying and Commit on one stream; writes and Applying on the other: 8 stream records.
const COMMON_CLOCK_RECORDS: u64 = 8;

fn common_clock_home(number: u64, upto: &mut u64, facts: &mut Vec<Fact>) {
    let at = *upto + 1;
    facts.push(Fact::Created { transaction: source(number), at: OpId::new(at, 0) });
    facts.push(branch(number, at + 1, at + 3, HybridTime::MIN));
    facts.push(commit_listed(number, at + 4));
    *upto = at + 4;
}

fn common_clock(bench: &mut Bench, first: u64, count: u64) {
    let mut number = first;
    while number < first + count {
        let last = (number + BATCH).min(first + count);
        let (mut a, mut b) = (bench.checkpoints[0].term, bench.checkpoints[1].term);
        let mut facts = Vec::new();
        (number..last).for_each(|number| common_clock_home(number, &mut a, &mut facts));
        let safe = Fact::SafeTime { time: HybridTime::from_micros(999_999 + last) };
        facts.push(safe.clone());
        bench.report(0, a, facts);
        let mut facts = Vec::new();
        for number in number..last {
            facts.push(branch(number, b + 1, b + 3, HybridTime::MIN));
            b += 3;
        }
        facts.push(safe);
        bench.report(1, b, facts);
        bench.run();
        number = last;
    }
}

/// A PREPARE of two writes and a COMMIT PREPARED on either stream: 8 stream records.
const ORDERED_RECORDS: u64 = 8;

fn prepare(number: u64, upto: &mut u64) -> Fact {
    *upto += 1;
    branch(number, *upto, *upto, HybridTime::from_micros(1_000_000 + number))
}

fn commit_prepared(number: u64, opened: u64, upto: &mut u64) -> Fact {
    *upto += 1;
    Fact::Commit {
        transaction: source(number),
        branch: Some(OpId::new(opened, 0)),
        at: OpId::new(*upto, 0),
        time: HybridTime::from_micros(1_000_000 + number),
        involved: Involvement::Discovered,
    }
}

fn ordered(bench: &mut Bench, first: u64, count: u64) {
    let mut number = first;
    while number < first + count {
        let last = (number + BATCH).min(first + count);
        for stream in [0, 1] {
            let mut upto = bench.checkpoints[stream].term;
            let begun = upto;
            let mut facts: Vec<Fact> = (number..last).map(|number| prepare(number, &mut upto)).collect();
            for (place, number) in (number..last).enumerate() {
                facts.push(commit_prepared(number, begun + 1 + place as u64, &mut upto));
            }
            bench.report(stream, upto, facts);
        }
        bench.run();
        bench.take_round();
        number = last;
    }
}

/// Transactions that stay: with a common clock they lack one Applying record, without one their Commit record.
fn waiting(bench: &mut Bench, release: Release, count: u64) {
    let first = 1 << 40;
    let mut number = first;
    while number < first + count {
        let mut upto = bench.checkpoints[0].term;
        let mut facts = Vec::new();
        for number in number..(number + BATCH).min(first + count) {
            match release {
                Release::CommonClock => common_clock_home(number, &mut upto, &mut facts),
                _ => facts.push(prepare(number, &mut upto)),
            }
        }
        bench.report(0, upto, facts);
        bench.run();
        number += BATCH;
    }
}

/// Seconds that this thread has really run: what else the machine does is not measured.
fn cpu_seconds() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    told.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// Resident memory in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or_default();
    kib / 1024.0
}

fn measure(release: Release, waits: u64) {
    let before = resident();
    let mut bench = Bench::new(release);
    waiting(&mut bench, release, waits);
    let memory = resident() - before;
    let count = 200_000;
    let (run, records): (fn(&mut Bench, u64, u64), u64) = match release {
        Release::CommonClock => (common_clock, COMMON_CLOCK_RECORDS),
        _ => (ordered, ORDERED_RECORDS),
    };
    run(&mut bench, 0, 20_000);
    let begun = cpu_seconds();
    for part in 1..=10 {
        run(&mut bench, part * 20_000, count / 10);
        let now = bench.time();
        bench.machine.handle_tick(now);
        bench.run();
    }
    let each = (cpu_seconds() - begun) * 1e9 / (count * records) as f64;
    println!("{release:?}, {waits} waiting: {each:.0} ns a record; the waiting ones take {memory:.0} MiB");
    if waits >= 1_000_000 {
        let begun = cpu_seconds();
        let (position, bytes) = bench.machine.snapshot().unwrap();
        let encoded = cpu_seconds() - begun;
        let settings = Settings { release, ..Settings::default() };
        drop(bench);
        let begun = cpu_seconds();
        let restored = Coordinator::restore(settings, Some((position, &bytes))).unwrap();
        println!(
            "  snapshot: {:.0} MiB, encoded in {encoded:.2} s, {} transactions restored in {:.2} s",
            bytes.len() as f64 / 1048576.0,
            restored.state().transactions.len(),
            cpu_seconds() - begun
        );
    }
}

fn main() {
    // Cargo passes `--bench`; another word chooses what is run, each best in a process of its own.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for release in [Release::CommonClock, Release::Ordered, Release::Atomic] {
        for waits in [0, 100_000, 1_000_000] {
            let name = format!("{release:?}-{waits}");
            if chosen.is_empty() || chosen.iter().any(|chosen| name.contains(chosen.as_str())) {
                measure(release, waits);
            }
        }
    }
}
