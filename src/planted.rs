//! Bugs that are put in on purpose, to prove that the simulator finds them: zero failures mean nothing until it does.
//!
//! Each stands behind a switch that exists only in builds with the feature `planted-bugs`, which no product build has:
//! there [`planted`] is `false` for the compiler, and nothing of a bug is left in the binary. `tests/prove bugs` turns
//! them on one by one and counts the seeds until each is found.
//!
//! Some mistakes that look worth planting change nothing that anybody can see, because another rule holds alone, too:
//! a cut that does not ask for the first place of a stream (no PREPARE behind it lies inside), a log or a tablet that does
//! not fence an old epoch (the position that every append and batch names refuses it), a tablet or a leader that would take
//! a gap (a puller sends the next batch, and over one connection the next report, only in order), forgetting before the
//! source was told (what comes again for a forgotten branch counts for nothing), and a Commit record that comes again below
//! safe time (a source that keeps its promise sends none). Those rules have unit tests and scenarios of their own.

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The gate opens when one involved source tablet has not reported.
    GateWithoutOne,
    /// What the source aborted is decided to commit.
    AbortIsCommit,
    /// A transaction that is decided may be decided again.
    DecidedAgain,
    /// Safe time is the largest of all streams' instead of the smallest.
    SafeTimeIsLargest,
    /// Safe time forgets streams that have not said anything yet.
    SafeTimeWithoutSilent,
    /// Safe time is shown before it is durable.
    SafeTimeBeforeDurable,
    /// `latest` is a position that the log does not hold durably yet.
    LatestBeforeDurable,
    /// Decisions go to the tablets before they are durable.
    AppliedBeforeDurable,
    /// Nobody waits for discovery: the branches seen at the first COMMIT PREPARED count as all.
    NoDiscovery,
    /// A discovery round proves commits that it may have missed.
    RoundProvesTooMuch,
    /// A discovery round counts as passed when any one stream has passed it.
    RoundPassedByOne,
    /// The cut does not look at PREPAREs.
    CutWithoutPrepares,
    /// The start is over as soon as the fence is taken.
    FenceAtOnce,
    /// The start does not wait for what was prepared when the fence was taken.
    FenceWithoutPrepared,
    /// Readers are served before the first cut is decided.
    ReadersBeforeFirstCut,
    /// Times are the source's, although its servers' clocks differ.
    TimesOfServers,
    /// Under `atomic` two writes of one key may be decided in the other order.
    WritersReordered,
    /// A PREPARE joins the newest use of its gid, whatever has ended.
    GidJoinsAnyUse,
    /// A branch that was rolled back stays in its transaction.
    RolledBackBranchStays,
    /// A report of a puller that was replaced is taken, whatever it follows.
    StalePullerReports,
    /// A transaction is forgotten when one tablet has applied it.
    ForgottenWhenOneApplied,
    /// After a restart nothing is applied that was decided before.
    RestartAppliesNothing,
    /// A snapshot does not hold what waits to be decided.
    SnapshotWithoutUndecided,
    /// Answers are given before the log is durable.
    AnswerBeforeDurable,
    /// The source is told to forget what the tablets have stored and the log has not.
    AcknowledgedWhenStored,
    /// A failed write to a tablet counts as stored.
    FailedWriteCounts,
    /// An append whose outcome is not known counts as done.
    UnknownAppendCounts,
    /// The log takes any append, whoever sends it and whatever it expects.
    LogTakesAnyAppend,
    /// Decisions are dropped once a tablet has heard them, durable or not.
    DroppedWhenHeard,
    /// A tablet that has heard less is taken to have heard all.
    HeardIsAssumed,
    /// A tablet moves its mark before it writes the data.
    MarkBeforeData,
    /// A tablet takes a batch again that it holds.
    TabletTakesAgain,
    /// A tablet answers before its barrier.
    StoredBeforeBarrier,
    /// A failed barrier is tried again and forgotten.
    FailedBarrierForgotten,
    /// A tablet says that what it has only heard is durable.
    HeardIsDurable,
    /// Provisional records are deleted before their versions are written.
    RecordsDeletedFirst,
    /// The position heard is stored before the versions are.
    HeardBeforeVersions,
    /// The version that was applied last wins, whatever its time.
    LastAppliedWins,
    /// A delete takes another stream's row of the same key along.
    DeleteBeatsWrite,
    /// A truncation empties other streams' rows, too.
    TruncatesAllStreams,
    /// A read does not wait for the tablet to hear the log.
    ReadDoesNotWait,
    /// A read sees versions of any position.
    ReadIgnoresPosition,
    /// Versions are collected that readers still see.
    CollectsTooMuch,
    /// What was aborted stays among the provisional records.
    AbortedStays,
    /// Chunks of a sub-transaction that was rolled back count.
    RolledBackChunksCount,
    /// A PREPARE that comes late is taken for a repetition.
    LatePrepareDropped,
    /// A keepalive lets the server forget what stands before it and is not acknowledged.
    KeepaliveConfirms,
    /// A TRUNCATE goes to the first tablet only.
    TruncateToOneTablet,
    /// The third write of a branch is lost where it goes to the second tablet, and counted.
    SecondTabletsWritesLost,
    /// A copy that was cut off counts as whole.
    CutOffCopyCounts,
    /// An unchanged cell is filled with nothing.
    UnchangedIsEmpty,
    /// A copy is shown before what committed below its snapshot is decided.
    CopyShownAtOnce,
    /// What the stream brought above a copy's base does not count beside the copied rows.
    CopiedRowsAlone,
    /// The tablets do not hear that a copy has ended.
    CopyEndUnheard,
    /// Rows of an earlier copy count beside those of the one that is shown.
    OldCopyStays,
    /// A tablet goes on showing the rows of a stream that left.
    LeftStreamStays,
    /// A stream that joins is shown before what its streams carried is decided.
    JoinShownAtOnce,
    /// A stream that joins does not wait for what was prepared when its fence was taken.
    JoinWithoutPrepared,
}

impl Bug {
    /// Every planted bug.
    pub const ALL: &[Self] = &[
        Self::GateWithoutOne,
        Self::AbortIsCommit,
        Self::DecidedAgain,
        Self::SafeTimeIsLargest,
        Self::SafeTimeWithoutSilent,
        Self::SafeTimeBeforeDurable,
        Self::LatestBeforeDurable,
        Self::AppliedBeforeDurable,
        Self::NoDiscovery,
        Self::RoundProvesTooMuch,
        Self::RoundPassedByOne,
        Self::CutWithoutPrepares,
        Self::FenceAtOnce,
        Self::FenceWithoutPrepared,
        Self::ReadersBeforeFirstCut,
        Self::TimesOfServers,
        Self::WritersReordered,
        Self::GidJoinsAnyUse,
        Self::RolledBackBranchStays,
        Self::StalePullerReports,
        Self::ForgottenWhenOneApplied,
        Self::RestartAppliesNothing,
        Self::SnapshotWithoutUndecided,
        Self::AnswerBeforeDurable,
        Self::AcknowledgedWhenStored,
        Self::FailedWriteCounts,
        Self::UnknownAppendCounts,
        Self::LogTakesAnyAppend,
        Self::DroppedWhenHeard,
        Self::HeardIsAssumed,
        Self::MarkBeforeData,
        Self::TabletTakesAgain,
        Self::StoredBeforeBarrier,
        Self::FailedBarrierForgotten,
        Self::HeardIsDurable,
        Self::RecordsDeletedFirst,
        Self::HeardBeforeVersions,
        Self::LastAppliedWins,
        Self::DeleteBeatsWrite,
        Self::TruncatesAllStreams,
        Self::ReadDoesNotWait,
        Self::ReadIgnoresPosition,
        Self::CollectsTooMuch,
        Self::AbortedStays,
        Self::RolledBackChunksCount,
        Self::LatePrepareDropped,
        Self::KeepaliveConfirms,
        Self::TruncateToOneTablet,
        Self::SecondTabletsWritesLost,
        Self::CutOffCopyCounts,
        Self::UnchangedIsEmpty,
        Self::CopyShownAtOnce,
        Self::CopiedRowsAlone,
        Self::CopyEndUnheard,
        Self::OldCopyStays,
        Self::LeftStreamStays,
        Self::JoinShownAtOnce,
        Self::JoinWithoutPrepared,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static ON: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether the bug is turned on, on this thread.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    ON.get() == Some(bug)
}

/// Whether the bug is turned on: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
#[must_use]
pub const fn planted(_bug: Bug) -> bool {
    false
}

/// Turns one bug on for this thread, or all off.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    ON.set(bug);
}

#[cfg(feature = "planted-bugs")]
static MUTANT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Whether the mutant of this number is turned on, in this process: what a copy of the sources that holds mutants asks
/// (`tests/mutants`). Nothing in these sources does.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn mutant(number: u32) -> bool {
    MUTANT.load(std::sync::atomic::Ordering::Relaxed) == number
}

/// Turns one mutant on for this process; 0 is none.
#[cfg(feature = "planted-bugs")]
pub fn mutate(number: u32) {
    MUTANT.store(number, std::sync::atomic::Ordering::Relaxed);
}
