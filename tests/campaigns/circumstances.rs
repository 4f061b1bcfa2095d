//! Under which circumstances a planted bug shows, if it shows at all: `bugs` meets them first, so that it is cheap.

use super::universe::Ask;
use super::universe::faults::Kind::{self, *};
use untorn::coordinator::Release::{self, *};
use untorn::planted::Bug;

/// Faults that are active from the start, beside those that are drawn, and how transactions are decided; `None` where
/// that is drawn.
pub struct Circumstances(pub &'static [Kind], pub Option<Release>);

impl Circumstances {
    /// A seed under these circumstances; all else is left to the seed.
    pub fn ask(&self, seed: u64) -> Ask {
        Ask { with: self.0, release: self.1, ..Ask::seed(seed) }
    }
}

/// Those of a bug.
pub fn of(bug: Bug) -> Circumstances {
    let (kinds, release): (&[Kind], _) = match bug {
        Bug::GateWithoutOne | Bug::SafeTimeIsLargest => (&[ReorderStreams], Some(CommonClock)),
        Bug::AbortIsCommit => (&[LostAbort], Some(CommonClock)),
        Bug::DecidedAgain | Bug::ReadIgnoresPosition | Bug::SecondTabletsWritesLost => (&[], None),
        Bug::SafeTimeWithoutSilent => (&[SilentServer], Some(CommonClock)),
        Bug::SafeTimeBeforeDurable => (&[CrashLeader, LogUnavailable, LateAppend], Some(CommonClock)),
        Bug::LatestBeforeDurable | Bug::AppliedBeforeDurable => {
            (&[CrashLeader, LogUnavailable, LateAppend, LeaderChange], None)
        }
        Bug::NoDiscovery | Bug::RoundProvesTooMuch | Bug::RoundPassedByOne => {
            (&[ReorderStreams, SilentServer], Some(Ordered))
        }
        Bug::CutWithoutPrepares | Bug::TimesOfServers => (&[ReorderStreams, ManagerDies], Some(Ordered)),
        Bug::FenceAtOnce | Bug::FenceWithoutPrepared | Bug::ReadersBeforeFirstCut => {
            (&[LateBranch, SilentServer, ReorderStreams], Some(Ordered))
        }
        Bug::WritersReordered => (&[ReorderStreams, ManagerDies], Some(Atomic)),
        Bug::GidJoinsAnyUse => (&[GidReuse, ReorderStreams], Some(Ordered)),
        Bug::RolledBackBranchStays => (&[GidReuse], Some(Ordered)),
        Bug::StalePullerReports => (&[PullerChange, LateAnswer, Replay, Delay], None),
        Bug::ForgottenWhenOneApplied => (&[StoppedTablet, SlowTablet, CrashLeader, CrashTablet], None),
        Bug::RestartAppliesNothing | Bug::SnapshotWithoutUndecided => (&[CrashLeader, LeaderChange], None),
        Bug::AnswerBeforeDurable | Bug::AcknowledgedWhenStored => (&[CrashLeader, LogUnavailable, LateAppend], None),
        Bug::FailedWriteCounts => (&[Drop, LostAnswer, CrashTablet], None),
        Bug::UnknownAppendCounts => (&[LostAppend, LateAppend], None),
        Bug::LogTakesAnyAppend => (&[LateAppend, LeaderChange], None),
        Bug::DroppedWhenHeard | Bug::HeardIsAssumed | Bug::HeardIsDurable => {
            (&[CrashTablet, LostAnswer, FailedBarrier], None)
        }
        Bug::MarkBeforeData
        | Bug::StoredBeforeBarrier
        | Bug::FailedBarrierForgotten
        | Bug::RecordsDeletedFirst
        | Bug::HeardBeforeVersions => (&[CrashTablet, CrashLeader, TornTail, FailedBarrier], None),
        Bug::TabletTakesAgain => (&[Duplicate, Replay, Delay, LostAnswer], None),
        Bug::LastAppliedWins => (&[ReorderStreams], Some(CommonClock)),
        Bug::DeleteBeatsWrite => (&[], Some(Ordered)),
        Bug::ReadDoesNotWait => (&[SlowTablet, StoppedTablet], None),
        Bug::CollectsTooMuch => (&[SlowTablet], None),
        Bug::LatePrepareDropped => (&[LateBranch], Some(Ordered)),
        Bug::KeepaliveConfirms => (&[ConnectionLost, CrashLeader, ReorderStreams], Some(Ordered)),
        Bug::CutOffCopyCounts => (&[ConnectionLost, LateBranch, CrashLeader], Some(Ordered)),
        Bug::CopyShownAtOnce | Bug::CopiedRowsAlone | Bug::CopyEndUnheard | Bug::OldCopyStays => {
            (&[Recopy, ReorderStreams, ManagerDies], Some(Ordered))
        }
        Bug::LeftStreamStays | Bug::JoinShownAtOnce | Bug::JoinWithoutPrepared => {
            (&[StreamsComeAndGo, ReorderStreams, ManagerDies], Some(Ordered))
        }
        Bug::AbortedStays
        | Bug::TruncatesAllStreams
        | Bug::RolledBackChunksCount
        | Bug::TruncateToOneTablet
        | Bug::UnchangedIsEmpty => (&[], Some(Ordered)),
    };
    Circumstances(kinds, release)
}
