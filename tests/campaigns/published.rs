//! `published`: failures that other systems of this class were published with, each as a named test. The circumstances of
//! each are always there (not drawn by chance), the replica must come through, and with the same mistake planted the test
//! must fail: otherwise it would prove nothing.
//!
//! Published failures that no simulated universe can meet stand in `src/docs/behaviours.md` with the test that covers
//! them: large transactions, damaged bytes, splits.

use super::report::{Options, Report, on_all_cores};
use super::universe::faults::Kind::{self, *};
use super::universe::{self, Ask};
use serde_json::json;
use std::sync::Mutex;
use untorn::coordinator::Release::{self, *};
use untorn::planted::{Bug, plant};

/// One published failure.
struct Published {
    /// Where it was published, and its number there.
    name: &'static str,
    /// What went wrong.
    what: &'static str,
    /// Under which circumstances.
    kinds: &'static [Kind],
    /// Between which kinds of universes.
    release: Release,
    /// The same mistake, planted.
    bug: Bug,
}

const fn published(
    name: &'static str,
    what: &'static str,
    kinds: &'static [Kind],
    release: Release,
    bug: Bug,
) -> Published {
    Published { name, what, kinds, release, bug }
}

const ALL: &[Published] = &[
    published(
        "yugabyte-26043",
        "safe time passed writes that were not committed: part of a transaction was read",
        &[ReorderStreams, Delay],
        CommonClock,
        Bug::SafeTimeIsLargest,
    ),
    published(
        "yugabyte-31899",
        "a write was applied again after a crash and hid a later one",
        &[CrashTablet, CrashLeader, TornTail],
        CommonClock,
        Bug::LastAppliedWins,
    ),
    published(
        "yugabyte-32163",
        "an Applying message came twice and brought an old value back",
        &[Duplicate, Replay, LostAnswer],
        CommonClock,
        Bug::LastAppliedWins,
    ),
    published(
        "yugabyte-32280",
        "provisional records were gone before all of their rows were applied",
        &[CrashTablet, TornTail],
        CommonClock,
        Bug::RecordsDeletedFirst,
    ),
    published(
        "yugabyte-32694",
        "the checkpoint covered records that were not durable",
        &[CrashTablet, CrashLeader, TornTail, FailedBarrier],
        CommonClock,
        Bug::MarkBeforeData,
    ),
    published(
        "yugabyte-32931",
        "a cleanup that had been queued destroyed what was needed by then",
        &[ReorderStreams, SlowTablet],
        CommonClock,
        Bug::CollectsTooMuch,
    ),
    published(
        "yugabyte-19728",
        "five source tablets into one: the last operations of a batch were dropped",
        &[ReorderStreams],
        CommonClock,
        Bug::SecondTabletsWritesLost,
    ),
    published(
        "yugabyte-14442",
        "rows of an aborted transaction were visible where one tablet lagged",
        &[StoppedTablet, SlowTablet],
        CommonClock,
        Bug::AbortIsCommit,
    ),
    published(
        "yugabyte-12164",
        "the source collected what its reader still needed",
        &[ConnectionLost, CrashLeader],
        Ordered,
        Bug::KeepaliveConfirms,
    ),
    published(
        "yugabyte-15275",
        "a transaction was shown in part after one stream stood still",
        &[ReorderStreams, SilentServer],
        CommonClock,
        Bug::GateWithoutOne,
    ),
    published(
        "yugabyte-5779",
        "one aborted transaction blocked everything behind it",
        &[GidReuse, ManagerDies],
        Ordered,
        Bug::RolledBackBranchStays,
    ),
    published(
        "yugabyte-18142",
        "a poller that bounced between leaders used a stale checkpoint",
        &[PullerChange, LateAnswer, Replay],
        CommonClock,
        Bug::StalePullerReports,
    ),
    published(
        "yugabyte-15548",
        "what was aborted stayed among the provisional records",
        &[ReorderStreams],
        CommonClock,
        Bug::AbortedStays,
    ),
    published(
        "ticdc-2474",
        "a message was lost, and the higher timestamp behind it accepted",
        &[Drop, LostAnswer],
        CommonClock,
        Bug::FailedWriteCounts,
    ),
    published(
        "ticdc-5401",
        "the checkpoint passed a table before it was acknowledged",
        &[CrashLeader, CrashInRecovery],
        CommonClock,
        Bug::AcknowledgedWhenStored,
    ),
    published(
        "ticdc-6045",
        "after losses of the whole network the checkpoint had passed, and rows differed",
        &[OneWayPartition, SwizzleClog, Drop],
        Ordered,
        Bug::FailedWriteCounts,
    ),
    published(
        "ticdc-5353",
        "the effect of one payment was missing under random chaos",
        &[Drop, CrashTablet, LostAnswer, StoppedTablet],
        Ordered,
        Bug::DroppedWhenHeard,
    ),
    published(
        "ticdc-5709",
        "an error was dropped, and nothing moved any more",
        &[CrashLeader, CrashTablet],
        Ordered,
        Bug::RestartAppliesNothing,
    ),
    published(
        "kafka-890",
        "a decision that came late counted for a later transaction",
        &[LateAppend, LeaderChange],
        Ordered,
        Bug::LogTakesAnyAppend,
    ),
    published(
        "foundationdb-commit-unknown",
        "an append whose outcome nobody knew counted as done",
        &[LostAppend, LateAppend],
        Ordered,
        Bug::UnknownAppendCounts,
    ),
    published(
        "postgresql-50521",
        "a slot's position went back after a restart",
        &[CrashLeader, ConnectionLost, LateAcknowledgement],
        Ordered,
        Bug::AnswerBeforeDurable,
    ),
    published(
        "rds-17.4-long-fork",
        "two readers saw two transactions in opposite orders",
        &[ReorderStreams, SlowTablet],
        Ordered,
        Bug::ReadDoesNotWait,
    ),
    published(
        "cockroach-104309",
        "a stream promised that nothing older would come, and it came",
        &[SilentServer, ReorderStreams],
        CommonClock,
        Bug::SafeTimeIsLargest,
    ),
    published(
        "cdc-sink-476",
        "a timestamp counted as complete, and its mutations had failed",
        &[LostAnswer, Drop, StoppedTablet],
        CommonClock,
        Bug::FailedWriteCounts,
    ),
    published(
        "fjall-304",
        "a failed write to the journal was dropped, and a later barrier claimed it",
        &[FailedBarrier, CrashTablet],
        CommonClock,
        Bug::StoredBeforeBarrier,
    ),
    published(
        "commonware-3940",
        "what was recovered and not synced counted as durable",
        &[CrashTablet, TornTail],
        CommonClock,
        Bug::StoredBeforeBarrier,
    ),
    published(
        "redb-double-crash",
        "a crash during recovery from a crash took durable decisions back",
        &[CrashLeader, CrashInRecovery, CrashTablet, TornTail],
        Ordered,
        Bug::RestartAppliesNothing,
    ),
];

/// Seeds that must pass, each.
const SEEDS: u64 = 3;
/// Seeds within which the planted mistake must show.
const SHOWS_WITHIN: u64 = 60;

/// Runs it; `--n` is how many seeds each must pass.
pub fn run(options: &Options) -> Report {
    let seeds = options.n.unwrap_or(SEEDS);
    let all: Vec<&Published> =
        ALL.iter().filter(|p| options.only.as_ref().is_none_or(|only| p.name == *only)).collect();
    let found = Mutex::new((Vec::new(), Vec::new()));
    on_all_cores(all.len() as u64, |number| {
        let Published { name, what, kinds, release, bug } = all[number as usize];
        let ask = |seed| Ask {
            only: Some(kinds),
            release: Some(*release),
            tracing: options.trace,
            ..Ask::seed(options.seed + seed)
        };
        let failed = (0..seeds).map(|seed| universe::run(ask(seed))).find(|outcome| !outcome.broken.is_empty());
        plant(Some(*bug));
        let shows = (0..SHOWS_WITHIN).find(|seed| !universe::run(ask(*seed)).broken.is_empty());
        plant(None);
        let replay = format!("tests/prove published --only {name} --seed {} --trace", options.seed);
        let mut found = found.lock().unwrap();
        let line = match (&failed, shows) {
            (Some(outcome), _) => Err(format!("{name} ({what}): {}", outcome.broken.join(" | "))),
            (None, None) => Err(format!("{name}: {bug:?} planted does not show within {SHOWS_WITHIN} seeds")),
            (None, Some(seed)) => Ok(seed + 1),
        };
        match line {
            Ok(seeds) => {
                options.say(&format!("{name}: does not occur; planted, it shows after {seeds} seeds ({what})"));
                found.1.push((name.to_string(), json!(seeds)));
            }
            Err(failure) => found.0.push((failure, replay)),
        }
        if let Some(outcome) = failed {
            outcome.lines.iter().for_each(|line| options.say(line));
        }
    });
    let (failures, shown) = found.into_inner().unwrap();
    let mut report = Report { n: all.len() as u64, failures, ..Report::default() };
    report.exercised.insert("planted_shows_after".into(), serde_json::Value::Object(shown.into_iter().collect()));
    report
}
