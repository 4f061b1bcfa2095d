//! A run's topology and knobs, drawn from its seed.

use super::chance::Chance;
use std::time::Duration;
use untorn::coordinator::Release;
use untorn::limits::{APPLY_WINDOW, TRANSACTIONS_HELD};
use untorn::tablet::engine::TabletOptions;

/// How a universe is built.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How transactions are decided: with a common clock, ordered, or atomic.
    pub release: Release,
    /// Source tablets, 2 to 64.
    pub source_tablets: usize,
    /// Replica tablets, 1 to 16.
    pub replica_tablets: usize,
    /// Whether the replica tablets live in the leader's process.
    pub embedded: bool,
    /// Processes that pull streams for the leader; with none it pulls by itself.
    pub pullers: usize,
    /// Transactions that the source commits.
    pub transactions: u64,
    /// Users that write at the same time.
    pub users: usize,
    /// How long the source writes, in seconds.
    pub seconds: u64,
    /// Bytes that may be on their way.
    pub memory_budget: usize,
    /// Bytes of log entries between two snapshots.
    pub snapshot_after_bytes: usize,
    /// The longest ordinary log append, in milliseconds.
    pub log_delay_ms: u64,
    /// How tablets keep versions.
    pub tablet_options: TabletOptions,
    /// The leader's windows.
    pub windows: Windows,
}

/// How much the leader takes on at once. Drawn apart from everything else, so that a seed that found something before there
/// were these is still the same run but for them.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Decisions on their way to one replica tablet.
    pub apply: usize,
    /// Transactions held beyond which streams pause.
    pub transactions: usize,
}

impl Windows {
    /// Draws them: often so small that tablets are held back and streams pause.
    pub fn draw(seed: u64) -> Self {
        let mut chance = Chance::of(seed ^ 0x77_696e_646f_7773);
        let mut window = |product: usize, least: u64, most: u64| {
            if chance.happens(0.5) { product } else { chance.skewed(least, most) as usize }
        };
        Self { apply: window(APPLY_WINDOW, 1, 100), transactions: window(TRANSACTIONS_HELD, 1, 1_000) }
    }
}

impl Plan {
    /// Draws one.
    pub fn draw(chance: &mut Chance, windows: Windows) -> Self {
        let release = *chance.pick(&[Release::CommonClock, Release::Ordered, Release::Ordered, Release::Atomic]);
        let embedded = chance.happens(0.4);
        // Many small universes meet more than a few large ones; the largest are long enough for what takes its time.
        let transactions = chance.skewed(100, 1_200);
        let seconds = transactions * chance.between(20, 40) / 100;
        let keep_age = match chance.below(3) {
            0 => None,
            1 => Some(Duration::from_secs(600)),
            _ => Some(Duration::from_secs(chance.skewed(1, 60))),
        };
        Self {
            release,
            source_tablets: chance.skewed(2, 64) as usize,
            replica_tablets: chance.skewed(1, 16) as usize,
            embedded,
            pullers: if embedded || chance.happens(0.5) { 0 } else { chance.between(1, 3) as usize },
            transactions,
            users: chance.between(4, 16) as usize,
            seconds,
            memory_budget: chance.skewed(2_000, 8 << 20) as usize,
            snapshot_after_bytes: chance.skewed(2_000, 8 << 20) as usize,
            log_delay_ms: chance.skewed(1, 50),
            tablet_options: TabletOptions { keep_age, keep_versions: chance.between(1, 3) as usize, wal: false },
            windows,
        }
    }
}
