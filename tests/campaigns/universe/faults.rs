//! What goes wrong, and when. Two stages: a kind is *active* in a quarter of all seeds, so that some runs have it always and
//! others never and combinations are met; where it is active it is *firing* in a quarter of the windows of time.

use super::chance::Chance;
use std::collections::BTreeMap;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A request never arrives, and its sender hears nothing.
    Drop,
    /// A request or an answer takes long.
    Delay,
    /// A request arrives twice.
    Duplicate,
    /// A request of minutes ago arrives again.
    Replay,
    /// Streams run at their own pace: one stands still while others run on.
    ReorderStreams,
    /// Everything from one process to another is lost, and nothing the other way.
    OneWayPartition,
    /// Links are clogged one after another and freed in another order.
    SwizzleClog,
    /// A request did what it did, and its sender hears nothing.
    LostAnswer,
    /// An answer comes after its sender gave up.
    LateAnswer,
    /// A log append lands, and its owner hears that nobody knows.
    LostAppend,
    /// A log append lands after its owner was told that nobody knows, perhaps after another owner's.
    LateAppend,
    /// The log cannot be reached.
    LogUnavailable,
    /// The leader's process dies at an output.
    CrashLeader,
    /// It dies again while it recovers.
    CrashInRecovery,
    /// A tablet's process dies.
    CrashTablet,
    /// What was written and not synced survives a crash in part: a prefix of it.
    TornTail,
    /// A durability barrier fails.
    FailedBarrier,
    /// A process' clock jumps, forth or back.
    ClockSkew,
    /// A tablet answers slowly.
    SlowTablet,
    /// A tablet does not answer for a while.
    StoppedTablet,
    /// Another process takes the log over while the old owner lives on.
    LeaderChange,
    /// Another puller takes a stream.
    PullerChange,
    /// A source collects WAL that was not acknowledged.
    WalCollected,
    /// The transaction manager dies between its prepares and commits, and goes on later.
    ManagerDies,
    /// A gid is used again.
    GidReuse,
    /// A slot is created while transactions are prepared: they come late.
    LateBranch,
    /// A stream's connection breaks.
    ConnectionLost,
    /// A server's flush position lies inside a record that it does not send.
    ShortFlush,
    /// A source hears late what it may forget.
    LateAcknowledgement,
    /// A server neither sends nor answers for a while.
    SilentServer,
    /// A source sends again what it had sent, as new records.
    Repeated,
    /// A transaction's end never reaches the streams of its source.
    LostAbort,
    /// Somebody asks for tables to be copied again.
    Recopy,
    /// The configuration names another set of source tablets: one leaves, or joins, perhaps again.
    StreamsComeAndGo,
    /// A table is added to a server's publication.
    TableAdded,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 35] = [
        Self::Drop,
        Self::Delay,
        Self::Duplicate,
        Self::Replay,
        Self::ReorderStreams,
        Self::OneWayPartition,
        Self::SwizzleClog,
        Self::LostAnswer,
        Self::LateAnswer,
        Self::LostAppend,
        Self::LateAppend,
        Self::LogUnavailable,
        Self::CrashLeader,
        Self::CrashInRecovery,
        Self::CrashTablet,
        Self::TornTail,
        Self::FailedBarrier,
        Self::ClockSkew,
        Self::SlowTablet,
        Self::StoppedTablet,
        Self::LeaderChange,
        Self::PullerChange,
        Self::WalCollected,
        Self::ManagerDies,
        Self::GidReuse,
        Self::LateBranch,
        Self::ConnectionLost,
        Self::ShortFlush,
        Self::LateAcknowledgement,
        Self::SilentServer,
        Self::Repeated,
        Self::LostAbort,
        Self::Recopy,
        Self::StreamsComeAndGo,
        Self::TableAdded,
    ];
}

/// Kinds that are active only where somebody asks for them: `tables` does, and bugs in copies. Runs with them are longer.
pub const TABLES: [Kind; 3] = [Kind::Recopy, Kind::StreamsComeAndGo, Kind::TableAdded];

/// How long a window is, in milliseconds.
pub const WINDOW_MS: u64 = 10_000;
const ACTIVE: f64 = 0.25;
const FIRING: f64 = 0.25;
const FIRING_OFTEN: f64 = 0.6;

/// The faults of one run.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    active: Vec<Kind>,
    firing: Vec<Kind>,
    window: Option<u64>,
    healed: bool,
    always: bool,
    /// Kinds that fire in more windows than others.
    often: Vec<Kind>,
    counts: BTreeMap<Kind, u64>,
}

impl Faults {
    /// Draws which kinds are active; at least one.
    pub fn draw(chance: &mut Chance) -> Self {
        let mut active: Vec<_> = Kind::ALL.into_iter().filter(|_| chance.happens(ACTIVE)).collect();
        active.retain(|kind| !TABLES.contains(kind));
        if active.is_empty() {
            active.push(Kind::ALL[chance.below(Kind::ALL.len() - TABLES.len())]);
        }
        // A source that forgot what was needed ends the run of its stream: seldom, so that most runs go to their end.
        if !chance.happens(0.2) {
            active.retain(|kind| *kind != Kind::WalCollected);
        }
        Self { active, ..Self::default() }
    }

    /// These kinds, too, and more often.
    #[must_use]
    pub fn with(mut self, kinds: &[Kind]) -> Self {
        self.often = kinds.to_vec();
        self.active.extend(kinds.iter().filter(|kind| !self.active.contains(kind)).copied().collect::<Vec<_>>());
        self
    }

    /// These kinds and no others, in every window.
    pub fn always(kinds: &[Kind]) -> Self {
        Self { active: kinds.to_vec(), always: true, ..Self::default() }
    }

    /// Whether the kind is active in this run.
    pub fn is_active(&self, kind: Kind) -> bool {
        !self.healed && self.active.contains(&kind)
    }

    /// Draws anew which kinds fire, when another window has begun.
    pub fn enter_window(&mut self, window: u64, chance: &mut Chance) {
        if self.window != Some(window) {
            self.window = Some(window);
            let often = |kind| if self.often.contains(kind) { FIRING_OFTEN } else { FIRING };
            self.firing =
                self.active.iter().filter(|kind| self.always || chance.happens(often(kind))).copied().collect();
        }
    }

    /// Whether the kind fires in this window.
    pub fn fires(&self, kind: Kind) -> bool {
        !self.healed && self.firing.contains(&kind)
    }

    /// Notes that it happened.
    pub fn count(&mut self, kind: Kind) {
        *self.counts.entry(kind).or_default() += 1;
    }

    /// From here on nothing goes wrong.
    pub fn heal(&mut self) {
        self.healed = true;
    }

    /// How often each kind happened.
    pub fn counts(&self) -> &BTreeMap<Kind, u64> {
        &self.counts
    }
}
