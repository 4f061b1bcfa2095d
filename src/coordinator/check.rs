//! What a report may not say (C1, C2, C8). A report that says it is refused whole, so that its stream stands still before
//! the damage and not behind it.

use super::entry::Outcome;
use super::fact::{Fact, Involvement, Report};
use super::output::Refused;
use super::state::State;
use super::transaction::Transaction;
use crate::wal::{OpId, SourceTabletId, SourceTransactionId};
use rustc_hash::FxHashMap;

/// What the report itself says of a transaction before the fact that is looked at.
#[derive(Default)]
struct Said {
    records: u64,
    applying: bool,
}

impl State {
    /// Refuses a report that cannot be true or does not follow.
    pub(super) fn check_report(&self, report: &Report) -> Result<(), Refused> {
        let Some(stream) = self.stream(report.stream) else {
            return Err(Refused::UnknownStream(report.stream.to_string()));
        };
        if report.puller != stream.puller {
            return Err(Refused::Fenced { held: stream.puller });
        }
        if report.follows != stream.checkpoint {
            return Err(Refused::OutOfOrder { held: stream.checkpoint, follows: report.follows });
        }
        if report.upto < report.follows {
            return Err(Refused::Damage(format!(
                "stream {} went back from {} to {}; its server was replaced or restored: check it, then copy this source tablet again",
                stream.name, report.follows, report.upto
            )));
        }
        let mut said: FxHashMap<(&SourceTransactionId, Option<OpId>), Said> = FxHashMap::default();
        for fact in &report.facts {
            self.check_fact(report.stream, fact, &mut said).map_err(Refused::Damage)?;
        }
        Ok(())
    }

    fn check_fact<'r>(
        &self,
        stream: SourceTabletId,
        fact: &'r Fact,
        said: &mut FxHashMap<(&'r SourceTransactionId, Option<OpId>), Said>,
    ) -> Result<(), String> {
        let name = self.stream_name(stream);
        match fact {
            Fact::Branch { transaction, opened, records, applying, .. } => {
                let known = self.branch_holder(transaction, stream, *opened);
                let branch = known.and_then(|t| t.branch(stream, *opened));
                let before = said.entry((transaction, Some(*opened))).or_default();
                let taken = branch.map_or(0, |b| b.records) + before.records;
                let complete = before.applying || branch.is_some_and(|b| b.applying);
                if complete && *records > 0 {
                    return Err(format!(
                        "stream {name} carries a write of transaction {transaction} after its Applying record"
                    ));
                }
                before.records += records;
                before.applying |= applying.is_some();
                let total = taken + records;
                let complete = before.applying || complete;
                said.insert((transaction, None), Said { records: total, applying: complete });
                if let Some(expected) = applying.as_ref().and_then(|a| a.records).filter(|expected| *expected != total)
                {
                    return Err(format!(
                        "stream {name} says that it carried {expected} writes of transaction {transaction}, but {total} were taken"
                    ));
                }
                match known {
                    Some(known) if applying.is_some() => self.check_listed(known, stream, total),
                    _ => Ok(()),
                }
            }
            Fact::Commit { transaction, branch: Some(opened), .. } => {
                let in_report = said.contains_key(&(transaction, Some(*opened)));
                if !in_report && self.holder(transaction, stream, *opened).is_none() {
                    return Err(format!(
                        "stream {name} commits transaction {transaction}, whose PREPARE at {opened} it never carried"
                    ));
                }
                Ok(())
            }
            Fact::Commit { transaction, branch: None, time, involved, .. } => {
                let known = self.transactions.find(transaction).and_then(|id| self.transactions.get(id));
                self.check_counts(transaction, known, stream, involved, said)?;
                let Some(known) = known else { return Ok(()) };
                if known.doomed || known.decision.is_some_and(|d| d.outcome == Outcome::Abort) {
                    return Err(format!(
                        "stream {name} commits transaction {transaction}, which its source had aborted"
                    ));
                }
                if let (Some(commit), Involvement::Listed(listed)) = (&known.commit, involved)
                    && (commit.time != *time || commit.listed.as_deref() != Some(&listed[..]))
                {
                    return Err(format!(
                        "stream {name} commits transaction {transaction} at {time}, and an earlier Commit record says {} or names other tablets",
                        commit.time
                    ));
                }
                Ok(())
            }
            Fact::Aborted { transaction, branch: None, .. } => {
                let known = self.transactions.find(transaction).and_then(|id| self.transactions.get(id));
                if known.is_some_and(|t| t.commit.is_some()) {
                    return Err(format!(
                        "stream {name} aborts transaction {transaction}, which its source had committed"
                    ));
                }
                Ok(())
            }
            Fact::Aborted { transaction, branch: Some(opened), .. } => {
                let held = self.branch_holder(transaction, stream, *opened);
                if held.is_some_and(|t| matches!(t.decision.map(|d| d.outcome), Some(Outcome::Commit(_)))) {
                    return Err(format!(
                        "stream {name} rolls back its branch of transaction {transaction}, which is committed: another server committed it and this one did not"
                    ));
                }
                Ok(())
            }
            Fact::Created { .. }
            | Fact::Pending { .. }
            | Fact::SafeTime { .. }
            | Fact::NotRunning { .. }
            | Fact::Split { .. } => Ok(()),
        }
    }

    fn branch_holder(
        &self,
        source: &SourceTransactionId,
        stream: SourceTabletId,
        opened: OpId,
    ) -> Option<&Transaction> {
        let exact = self.transactions.find(source);
        exact.or_else(|| self.holder(source, stream, opened)).and_then(|id| self.transactions.get(id))
    }

    /// A branch that is complete against the Commit record that names it.
    fn check_listed(&self, known: &Transaction, stream: SourceTabletId, total: u64) -> Result<(), String> {
        let Some(listed) = known.commit.as_ref().and_then(|c| c.listed.as_deref()) else { return Ok(()) };
        let Some(involved) = listed.iter().find(|i| i.stream == stream) else { return Ok(()) };
        match involved.records {
            Some(expected) if expected != total => Err(format!(
                "the Commit record of transaction {} says that stream {} carries {expected} of its writes, but {total} were taken",
                known.source,
                self.stream_name(stream)
            )),
            _ => Ok(()),
        }
    }

    /// A Commit record against the branches that are complete, here or in this very report.
    fn check_counts(
        &self,
        source: &SourceTransactionId,
        known: Option<&Transaction>,
        stream: SourceTabletId,
        involved: &Involvement,
        said: &FxHashMap<(&SourceTransactionId, Option<OpId>), Said>,
    ) -> Result<(), String> {
        let Involvement::Listed(listed) = involved else { return Ok(()) };
        for tablet in listed {
            let here = said.get(&(source, None)).filter(|said| said.applying && tablet.stream == stream);
            let branch = known.and_then(|t| t.branches.iter().find(|b| b.stream == tablet.stream && b.applying));
            let Some(total) = here.map(|said| said.records).or(branch.map(|b| b.records)) else { continue };
            if let Some(expected) = tablet.records.filter(|expected| *expected != total) {
                return Err(format!(
                    "stream {} commits transaction {source} and says that stream {} carries {expected} of its writes, but {total} were taken",
                    self.stream_name(stream),
                    self.stream_name(tablet.stream)
                ));
            }
        }
        Ok(())
    }
}
