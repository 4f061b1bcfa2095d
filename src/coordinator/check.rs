//! What a report may not say (C1, C2, C8, C9). A report that says it is refused whole, so that its stream stands still
//! before the damage and not behind it.

use super::entry::{Outcome, Release};
use super::fact::{Fact, InvolvedStream, Involvement, Report};
use super::output::Refused;
use super::state::State;
use super::stream::StreamRecord;
use super::transaction::{Carried, Transaction};
use crate::planted::{Bug, planted};
use crate::wal::{HybridTime, OpId, SourceTabletId, SourceTransactionId};
use rustc_hash::FxHashMap;

/// What the report itself says before the fact that is looked at.
#[derive(Default)]
struct Said<'r> {
    /// Of a branch: with a common clock a transaction has one in a stream, whose opening is left out.
    branches: FxHashMap<(&'r SourceTransactionId, Option<OpId>), SaidBranch>,
    commits: FxHashMap<&'r SourceTransactionId, (HybridTime, Option<Vec<InvolvedStream>>)>,
    aborted: Vec<&'r SourceTransactionId>,
    safe_time: HybridTime,
}

#[derive(Clone, Copy, Default)]
struct SaidBranch {
    records: u64,
    applying: bool,
    committed: bool,
    rolled_back: bool,
}

impl State {
    /// A stream that the log knows, and whose word still counts.
    ///
    /// # Errors
    /// There is none, or it left.
    pub(super) fn taking_part(&self, stream: SourceTabletId) -> Result<&StreamRecord, Refused> {
        match self.stream(stream) {
            None => Err(Refused::UnknownStream(stream.to_string())),
            Some(gone) if gone.is_gone() => Err(Refused::UnknownStream(gone.name.clone())),
            Some(record) => Ok(record),
        }
    }

    /// Refuses a report that cannot be true or does not follow. Answers its stream.
    pub(super) fn check_report(&self, report: &Report) -> Result<&StreamRecord, Refused> {
        let stream = self.taking_part(report.stream)?;
        if report.puller != stream.puller && !planted(Bug::StalePullerReports) {
            return Err(Refused::Fenced { held: stream.puller });
        }
        let stale = planted(Bug::StalePullerReports) && report.puller != stream.puller;
        if report.follows != stream.checkpoint && !stale {
            return Err(Refused::OutOfOrder { held: stream.checkpoint, follows: report.follows });
        }
        if report.upto < report.follows {
            return Err(Refused::Damage(format!(
                "stream {} went back from {} to {}; its server was replaced or restored: check it, then copy this source tablet again",
                stream.name, report.follows, report.upto
            )));
        }
        let mut said = Said::default();
        for fact in &report.facts {
            self.check_fact(report, fact, &mut said).map_err(Refused::Damage)?;
        }
        Ok(stream)
    }

    fn check_fact<'r>(&self, report: &Report, fact: &'r Fact, said: &mut Said<'r>) -> Result<(), String> {
        let &Report { stream, follows, .. } = report;
        match fact {
            Fact::Branch { transaction, opened, records, applying, .. } => {
                let expected = applying.as_ref().and_then(|applying| applying.records);
                self.check_branch(
                    (stream, follows),
                    (transaction, *opened),
                    *records,
                    (applying.is_some(), expected),
                    said,
                )
            }
            Fact::Commit { transaction, branch: Some(opened), .. } => {
                self.check_branch_commit(stream, transaction, *opened, said)
            }
            Fact::Commit { transaction, branch: None, time, involved, .. } => {
                self.check_commit(stream, transaction, *time, involved, said)
            }
            Fact::Aborted { transaction, branch: None, .. } => {
                let known = self.known(transaction);
                if known.is_some_and(|t| t.commit.is_some()) || said.commits.contains_key(transaction) {
                    return Err(format!(
                        "stream {} aborts transaction {transaction}, which its source had committed",
                        self.stream_name(stream)
                    ));
                }
                said.aborted.push(transaction);
                Ok(())
            }
            Fact::Aborted { transaction, branch: Some(opened), .. } => {
                self.check_rolled_back(stream, transaction, *opened, said)
            }
            Fact::SafeTime { time } => {
                said.safe_time = said.safe_time.max(*time);
                Ok(())
            }
            Fact::Split { children, .. } => self.check_split(stream, children),
            Fact::Created { .. } | Fact::Pending { .. } | Fact::NotRunning { .. } => Ok(()),
        }
    }

    fn check_branch<'r>(
        &self,
        (stream, follows): (SourceTabletId, OpId),
        (transaction, opened): (&'r SourceTransactionId, OpId),
        records: u64,
        (applying, expected): (bool, Option<u64>),
        said: &mut Said<'r>,
    ) -> Result<(), String> {
        let name = self.stream_name(stream);
        let known = self.branch_holder(transaction, stream, opened);
        let held = known.map_or(Carried::default(), |t| self.held(t, stream, opened));
        let before = said.branches.entry((transaction, self.opening(opened))).or_default();
        if (held.complete || before.applying) && records > 0 {
            return Err(format!(
                "stream {name} carries a write of transaction {transaction} after its Applying record"
            ));
        }
        before.records += records;
        before.applying |= applying;
        let here = Carried { records: held.records + before.records, complete: held.complete || before.applying };
        let began_earlier = opened <= follows || here.records == 0;
        if began_earlier && held.is_nothing() && self.release == Release::CommonClock {
            // Writes of it that were taken earlier are forgotten with it, because it was aborted or is repeated; or they were
            // lost. Its Applying record counts for nothing then, and a Commit record waits for them (see the fold).
            return Ok(());
        }
        if let Some(expected) = expected.filter(|expected| *expected != here.records) {
            return Err(format!(
                "stream {name} says that it carried {expected} writes of transaction {transaction}, but {} were taken",
                here.records
            ));
        }
        let Some(known) = known else { return Ok(()) };
        let Some(listed) = known.commit.as_ref().and_then(|commit| commit.listed.as_deref()) else { return Ok(()) };
        if records > 0 && !self.names(listed, stream) {
            return Err(format!(
                "stream {name} carries a write of transaction {transaction}, whose Commit record does not name it"
            ));
        }
        if applying { self.check_counts(transaction, Some(known), listed, (stream, here)) } else { Ok(()) }
    }

    fn check_commit<'r>(
        &self,
        stream: SourceTabletId,
        transaction: &'r SourceTransactionId,
        time: HybridTime,
        involved: &Involvement,
        said: &mut Said<'r>,
    ) -> Result<(), String> {
        let name = self.stream_name(stream);
        let known = self.known(transaction);
        let listed = self.listed(stream, involved);
        let aborted = known.is_some_and(|t| t.doomed || t.decision.is_some_and(|d| d.outcome == Outcome::Abort));
        if aborted || said.aborted.contains(&transaction) {
            return Err(format!("stream {name} commits transaction {transaction}, which its source had aborted"));
        }
        let earlier = known.and_then(|t| t.commit.as_ref()).map(|commit| (commit.time, commit.listed.as_deref()));
        let earlier = earlier.or(said.commits.get(transaction).map(|(time, listed)| (*time, listed.as_deref())));
        if let Some(earlier) = earlier {
            if earlier != (time, listed.as_deref()) {
                return Err(format!(
                    "stream {name} commits transaction {transaction} at {time}, and an earlier Commit record says {} or names other tablets or counts",
                    earlier.0
                ));
            }
            return Ok(());
        }
        let here = said.branches.get(&(transaction, None));
        if known.is_none() && here.is_none() && self.is_finished(transaction, time) {
            return Ok(());
        }
        let promised = self.stream(stream).map_or(HybridTime::MIN, |record| record.safe_time).max(said.safe_time);
        let promised = self.safe.map_or(promised, |(_, safe)| promised.max(safe));
        if time <= promised {
            return Err(format!(
                "stream {name} commits transaction {transaction} at {time}, although its SafeTime record says that nothing at or below {promised} will come"
            ));
        }
        if let Some(listed) = listed.as_deref() {
            let written = known.into_iter().flat_map(|t| &t.branches).filter(|b| b.records > 0).map(|b| b.stream);
            let written_here = here.filter(|branch| branch.records > 0).map(|_| stream);
            if let Some(other) = written.chain(written_here).find(|other| !self.names(listed, *other)) {
                return Err(format!(
                    "stream {name} commits transaction {transaction} and does not name {}, which carries writes of it",
                    self.stream_name(other)
                ));
            }
            let held = known.map_or(Carried::default(), |t| self.held(t, stream, OpId::ZERO));
            let here = here.copied().unwrap_or_default();
            let here = Carried { records: held.records + here.records, complete: held.complete || here.applying };
            self.check_counts(transaction, known, listed, (stream, here))?;
        }
        said.commits.insert(transaction, (time, listed));
        Ok(())
    }

    fn check_branch_commit<'r>(
        &self,
        stream: SourceTabletId,
        transaction: &'r SourceTransactionId,
        opened: OpId,
        said: &mut Said<'r>,
    ) -> Result<(), String> {
        let name = self.stream_name(stream);
        let known = self.branch_holder(transaction, stream, opened);
        let branch = known.and_then(|t| t.branch(stream, opened));
        let before = said.branches.get_mut(&(transaction, self.opening(opened)));
        if branch.is_none() && before.is_none() {
            return Err(format!(
                "stream {name} commits transaction {transaction}, whose PREPARE at {opened} it never carried"
            ));
        }
        let doomed = known.is_some_and(|t| t.doomed) && branch.is_some_and(|b| b.ended);
        if doomed || before.as_ref().is_some_and(|before| before.rolled_back) {
            return Err(format!("stream {name} commits a branch of transaction {transaction} that it had rolled back"));
        }
        said.branches.entry((transaction, self.opening(opened))).or_default().committed = true;
        Ok(())
    }

    fn check_rolled_back<'r>(
        &self,
        stream: SourceTabletId,
        transaction: &'r SourceTransactionId,
        opened: OpId,
        said: &mut Said<'r>,
    ) -> Result<(), String> {
        let name = self.stream_name(stream);
        let known = self.branch_holder(transaction, stream, opened);
        if known.is_some_and(|t| matches!(t.decision.map(|d| d.outcome), Some(Outcome::Commit(_)))) {
            return Err(format!(
                "stream {name} rolls back its branch of transaction {transaction}, which is committed: another server committed it and this one did not"
            ));
        }
        let ended = known.is_some_and(|t| !t.doomed && t.branch(stream, opened).is_some_and(|b| b.ended));
        let before = said.branches.entry((transaction, self.opening(opened))).or_default();
        if ended || before.committed {
            return Err(format!(
                "stream {name} rolls back a branch of transaction {transaction} that it had committed"
            ));
        }
        before.rolled_back = true;
        Ok(())
    }

    /// A tablet is split into others that go on: joined streams that have not left, and not itself.
    fn check_split(&self, stream: SourceTabletId, children: &[SourceTabletId]) -> Result<(), String> {
        let goes_on = |child: &SourceTabletId| *child != stream && self.stream(*child).is_some_and(|s| !s.left);
        if children.is_empty() || !children.iter().all(goes_on) {
            return Err(format!(
                "stream {} says that its tablet was split into {}, which are no streams that go on after it",
                self.stream_name(stream),
                children.iter().map(|child| self.stream_name(*child)).collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(())
    }

    fn known(&self, source: &SourceTransactionId) -> Option<&Transaction> {
        self.transactions.find(source).and_then(|id| self.transactions.get(id))
    }

    /// The transaction that a fact of this branch speaks of.
    fn branch_holder(
        &self,
        source: &SourceTransactionId,
        stream: SourceTabletId,
        opened: OpId,
    ) -> Option<&Transaction> {
        match self.release {
            Release::CommonClock => self.known(source),
            Release::Ordered | Release::Atomic => {
                self.holder(source, stream, opened).and_then(|id| self.transactions.get(id))
            }
        }
    }

    /// How a branch is told from others of its transaction and stream: with a common clock there are none.
    fn opening(&self, opened: OpId) -> Option<OpId> {
        (self.release != Release::CommonClock).then_some(opened)
    }

    /// What the stream has carried of the transaction; without a common clock, of this branch.
    fn held(&self, transaction: &Transaction, stream: SourceTabletId, opened: OpId) -> Carried {
        match self.release {
            Release::CommonClock => transaction.carried_by(stream),
            Release::Ordered | Release::Atomic => transaction
                .branch(stream, opened)
                .map_or(Carried::default(), |b| Carried { records: b.records, complete: b.applying }),
        }
    }

    /// Whom a Commit record names, in order, so that two of them can be compared; `None`: found out by discovery, or
    /// without a common clock only its own stream.
    pub(super) fn listed(&self, stream: SourceTabletId, involved: &Involvement) -> Option<Vec<InvolvedStream>> {
        match involved {
            Involvement::Listed(listed) => {
                let mut listed = listed.clone();
                listed.sort_unstable_by_key(|involved| (involved.stream, involved.records));
                Some(listed)
            }
            Involvement::OnlyThisStream if self.release == Release::CommonClock => {
                Some(vec![InvolvedStream { stream, records: None }])
            }
            Involvement::OnlyThisStream | Involvement::Discovered => None,
        }
    }

    /// Whether a Commit record that lists these tablets speaks of this one: by its name, by that of a tablet that was
    /// split into it, or by those that it was split into.
    fn names(&self, listed: &[InvolvedStream], stream: SourceTabletId) -> bool {
        listed
            .iter()
            .any(|involved| self.goes_on_in(involved.stream, stream) || self.goes_on_in(stream, involved.stream))
    }

    fn goes_on_in(&self, tablet: SourceTabletId, stream: SourceTabletId) -> bool {
        let children = self.stream(tablet).map_or(&[][..], |record| &record.children);
        tablet == stream || children.iter().any(|child| self.goes_on_in(*child, stream))
    }

    /// What an involved tablet and those that it was split into have carried of a transaction, where `here` is what the
    /// report's own stream has. It is complete when the tablet's own Applying record has arrived, or all its children's.
    pub(super) fn carried(
        &self,
        transaction: Option<&Transaction>,
        tablet: SourceTabletId,
        here: Option<(SourceTabletId, Carried)>,
    ) -> Carried {
        let mut carried = match here {
            Some((stream, carried)) if stream == tablet => carried,
            _ => transaction.map_or(Carried::default(), |transaction| transaction.carried_by(tablet)),
        };
        let children = self.stream(tablet).map_or(&[][..], |record| &record.children);
        let mut all = !children.is_empty();
        for child in children {
            let child = self.carried(transaction, *child, here);
            carried.records += child.records;
            all &= child.complete;
        }
        carried.complete |= all;
        carried
    }

    /// The Commit record's counts against the tablets that are complete.
    fn check_counts(
        &self,
        source: &SourceTransactionId,
        known: Option<&Transaction>,
        listed: &[InvolvedStream],
        here: (SourceTabletId, Carried),
    ) -> Result<(), String> {
        for involved in listed {
            let Some(expected) = involved.records else { continue };
            let carried = self.carried(known, involved.stream, Some(here));
            if carried.complete && carried.records != expected {
                return Err(format!(
                    "the Commit record of transaction {source} says that stream {} carries {expected} of its writes, but {} were taken",
                    self.stream_name(involved.stream),
                    carried.records
                ));
            }
        }
        Ok(())
    }
}
