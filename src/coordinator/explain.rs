//! Why does it wait? (C12) The views that `explain` and `status` are made of.

use super::copies::TableCopy;
use super::gate::Missing;
use super::machine::Coordinator;
use super::state::State;
use super::stream::Place;
use super::transaction::{Status, Transaction};
use crate::wal::{HybridTime, OpId, ReplicaTabletId, SourceTabletId, TransactionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What a transaction waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// It lacks something before it may be decided.
    Gate(Missing),
    /// The stream it needs has stopped (by name).
    StoppedStream(SourceTabletId),
    /// Its decision is on its way to the log.
    Log,
    /// The initial copy of this stream is not over.
    Copy(SourceTabletId),
    /// A replica tablet has not applied it.
    Apply(ReplicaTabletId),
}

impl Wait {
    /// The cause as people and scripts see it.
    #[must_use]
    pub fn cause(self) -> Cause {
        match self {
            Self::StoppedStream(_) => Cause::StoppedStream,
            Self::Copy(_) => Cause::Copy,
            Self::Log => Cause::Log,
            Self::Apply(_) => Cause::Apply,
            Self::Gate(Missing::Commit(_)) => Cause::Commit,
            Self::Gate(Missing::Applying(_)) => Cause::Applying,
            Self::Gate(Missing::StartFence(_)) => Cause::StartFence,
            Self::Gate(Missing::Discovery(_)) => Cause::Discovery,
            Self::Gate(Missing::GidInUse(_)) => Cause::GidInUse,
            Self::Gate(Missing::Cut(..)) => Cause::Cut,
            Self::Gate(Missing::EarlierWrite(_)) => Cause::EarlierWrite,
        }
    }

    /// The stream waited for, where that is known.
    #[must_use]
    pub fn stream(self) -> Option<SourceTabletId> {
        match self {
            Self::StoppedStream(stream) | Self::Copy(stream) => Some(stream),
            Self::Gate(missing) => missing.stream(),
            Self::Log | Self::Apply(_) => None,
        }
    }
}

/// The cause of a wait, in the words of `explain` and of the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// An involved source tablet's Applying record.
    Applying,
    /// The Commit record.
    Commit,
    /// Proof that every branch has been seen: a server's stream must pass a position.
    Discovery,
    /// A stream has not passed the fence of its start.
    StartFence,
    /// Its cut: a transaction that comes before it is not decided.
    Cut,
    /// An earlier transaction of the same stream wrote one of its keys (`release = "atomic"`).
    EarlierWrite,
    /// Its gid is still in use by an earlier transaction.
    GidInUse,
    /// The initial copy.
    Copy,
    /// Replica tablets have not applied it.
    Apply,
    /// A stream that it needs has stopped.
    StoppedStream,
    /// A stream that it needs is pulled by nobody.
    NotPolled,
    /// A replica tablet does not take a stream's writes.
    BackPressure,
    /// The transaction log does not take appends.
    Log,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// An involved source tablet as `explain` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InvolvedView {
    /// Its stream.
    pub stream: SourceTabletId,
    /// Its Applying record has arrived.
    pub applying: bool,
    /// Write records taken.
    pub records: u64,
    /// Write records that the Commit record counts, where it does.
    pub expected: Option<u64>,
    /// Where the stream last spoke of it; zero if it has not.
    pub position: OpId,
}

/// A transaction as `explain` shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    /// untorn's number.
    pub id: TransactionId,
    /// The source's id.
    pub source_id: String,
    /// Where it stands, as far as that is durable.
    pub status: Status,
    /// When the log first heard of it.
    pub since: HybridTime,
    /// Its commit hybrid time, once decided, else what its Commit record says.
    pub commit_time: Option<HybridTime>,
    /// Its Commit record is known.
    pub commit_known: bool,
    /// Who is involved, as far as is known.
    pub involved: Vec<InvolvedView>,
    /// What it waits for; `None` when nothing waits.
    pub waits_for: Option<Wait>,
    /// One sentence that a person understands.
    pub text: String,
    /// How many transactions wait behind it.
    pub behind_it: u64,
}

/// A stream as `status` shows it: what the log knows. Its puller knows the rest.
#[derive(Clone, PartialEq, Debug)]
pub struct StreamView {
    /// Its number.
    pub stream: SourceTabletId,
    /// Its name.
    pub name: String,
    /// How far it is known to have come.
    pub received: OpId,
    /// The checkpoint: everything up to here is durable at the replica and in the log.
    pub durable: OpId,
    /// What was acknowledged to the source.
    pub checkpointed: OpId,
    /// How far the copy of each table is.
    pub copies: Vec<TableCopy>,
    /// It takes part; else it is on its way in, and nothing of it is seen.
    pub takes_part: bool,
    /// Its slot stands.
    pub slot_stands: bool,
}

/// Transactions by where they stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransactionCounts {
    /// `CREATED` or `PENDING`.
    pub pending: u64,
    /// `WAITING_TO_COMMIT`.
    pub waiting_to_commit: u64,
    /// `COMMITTED`.
    pub committed_not_applied: u64,
    /// When the oldest that waits to commit was first heard of.
    pub oldest_waiting: Option<HybridTime>,
}

/// How many waits behind waits are followed before the last is named. They form no circle, but a chain may be long.
const CHAIN_MAX: usize = 64;

impl Coordinator {
    /// Every transaction that this name fits: untorn's number, the source's id, or `stream:xid`.
    #[must_use]
    pub fn explain(&self, name: &str) -> Vec<Explanation> {
        let number = name.strip_prefix('x').unwrap_or(name).parse().ok().map(TransactionId);
        let fits = |t: &&Transaction| {
            let source = t.source.to_string();
            Some(t.id) == number || source == name || source.split('#').next() == Some(name)
        };
        let mut found: Vec<&Transaction> = self.state().transactions.iter().filter(fits).collect();
        found.sort_unstable_by_key(|t| t.id);
        found.into_iter().map(|t| self.explain_one(t)).collect()
    }

    /// The transaction that has waited to commit for longest.
    #[must_use]
    pub fn oldest_waiting(&self) -> Option<Explanation> {
        self.longest_waiting(1).pop()
    }

    /// The transactions that have waited to commit for longest, the oldest first.
    #[must_use]
    pub fn longest_waiting(&self, most: usize) -> Vec<Explanation> {
        let waiting = self.state().transactions.iter().filter(|t| t.status() == Status::WaitingToCommit);
        let mut waiting: Vec<_> = waiting.map(|t| (t.since, t.id)).collect();
        if waiting.len() > most {
            waiting.select_nth_unstable(most);
            waiting.truncate(most);
        }
        waiting.sort_unstable();
        waiting.into_iter().filter_map(|(_, id)| Some(self.explain_one(self.state().transactions.get(id)?))).collect()
    }

    fn explain_one(&self, transaction: &Transaction) -> Explanation {
        let state = self.state();
        let waits_for = self.wait(transaction);
        let mut status = transaction.status();
        if waits_for == Some(Wait::Log) {
            status = Status::WaitingToCommit;
        }
        let commit = transaction.commit.as_ref();
        let listed = commit.and_then(|c| c.listed.as_deref()).unwrap_or_default();
        let mut streams: BTreeSet<SourceTabletId> = listed.iter().map(|i| i.stream).collect();
        streams.extend(transaction.branches.iter().filter(|b| !b.bystander).map(|b| b.stream));
        let involved = streams.into_iter().map(|stream| {
            let parts = || transaction.branches.iter().filter(move |b| b.stream == stream && !b.bystander);
            InvolvedView {
                stream,
                applying: parts().next().is_some() && parts().all(|b| b.applying),
                records: parts().map(|b| b.records).sum(),
                expected: listed.iter().find(|i| i.stream == stream).and_then(|i| i.records),
                position: parts().map(|b| b.mentioned).max().unwrap_or(OpId::ZERO),
            }
        });
        let decided = transaction.decision.and_then(|d| match d.outcome {
            super::entry::Outcome::Commit(time) => Some(time),
            super::entry::Outcome::Abort => None,
        });
        Explanation {
            id: transaction.id,
            source_id: transaction.source.to_string(),
            status,
            since: transaction.since,
            commit_time: decided.or(commit.map(|c| c.time)),
            commit_known: commit.is_some(),
            involved: involved.collect(),
            text: waits_for.map_or_else(|| "it waits for nothing".to_owned(), |wait| self.sentence(transaction, wait)),
            waits_for,
            behind_it: behind(state, transaction),
        }
    }

    fn wait(&self, transaction: &Transaction) -> Option<Wait> {
        let state = self.state();
        if let Some(decision) = transaction.decision {
            if decision.position > self.durable() {
                return Some(Wait::Log);
            }
            if transaction.applied {
                return None;
            }
            let behind = |tablet: &ReplicaTabletId| state.applied.get(tablet).is_some_and(|at| *at < decision.position);
            return transaction.tablets().into_iter().find(behind).map(Wait::Apply);
        }
        let missing = self.root(transaction, state.missing(transaction)?, CHAIN_MAX);
        match missing.stream() {
            Some(stream) if self.stopped.contains_key(&stream) => Some(Wait::StoppedStream(stream)),
            Some(stream)
                if matches!(missing, Missing::StartFence(_))
                    && state.stream(stream).is_some_and(|s| s.slot.is_none()) =>
            {
                Some(Wait::Copy(stream))
            }
            _ => Some(Wait::Gate(missing)),
        }
    }

    /// Follows a wait for a place before the cut to the stream that holds that place: what the cut really waits for.
    fn root(&self, transaction: &Transaction, missing: Missing, hops: usize) -> Missing {
        let state = self.state();
        let Missing::Cut(stream, Some(first)) = missing else { return missing };
        let Some(blocker) = state.transactions.get(first).filter(|t| t.id != transaction.id) else { return missing };
        if hops == 0 {
            return missing;
        }
        match state.missing(blocker).map(|missing| self.root(blocker, missing, hops - 1)) {
            Some(Missing::Discovery(Some(holder)) | Missing::Cut(holder, _) | Missing::Applying(holder)) => {
                Missing::Cut(holder, Some(first))
            }
            _ => Missing::Cut(stream, Some(first)),
        }
    }

    fn sentence(&self, transaction: &Transaction, wait: Wait) -> String {
        let state = self.state();
        let name = |stream: SourceTabletId| state.stream_name(stream);
        let other =
            |id: TransactionId| state.transactions.get(id).map_or_else(|| id.to_string(), |t| t.source.to_string());
        match wait {
            Wait::Log => "its decision is on its way to the transaction log".into(),
            Wait::Apply(tablet) => {
                let name = self.tablet_name(tablet);
                match self.refusal(tablet) {
                    None => format!("it is committed, and replica tablet {name} has not applied it yet"),
                    Some(cause) => format!("it is committed, and replica tablet {name} refuses to go on: {cause}"),
                }
            }
            Wait::Copy(stream) => {
                format!("the initial copy of {} is not over, and nothing is shown before that", name(stream))
            }
            Wait::StoppedStream(stream) => {
                let cause = self.stopped.get(&stream).map_or("", String::as_str);
                format!("the stream of {} has stopped: {cause}", name(stream))
            }
            Wait::Gate(missing) => match missing {
                Missing::Commit(None) => "its Commit record has not come".into(),
                Missing::Commit(Some(stream)) if transaction.branches.iter().all(|b| b.applying || b.bystander) => {
                    format!(
                        "every record seen of it has come, but not its Commit record, which the source writes when the transaction commits ({} would carry it)",
                        name(stream)
                    )
                }
                Missing::Commit(Some(stream)) => {
                    format!("the source has not committed it, and {} is still sending its writes", name(stream))
                }
                Missing::Applying(stream) => format!(
                    "{} has not sent its Applying record: its stream has not carried all of the transaction's writes",
                    name(stream)
                ),
                Missing::StartFence(None) => "the start fence has not been taken: it needs every server's slot".into(),
                Missing::StartFence(Some(stream)) => format!(
                    "{} has not passed the start fence, and nothing is shown before every server has",
                    name(stream)
                ),
                Missing::Discovery(None) => "whether other servers hold a branch of it is being asked".into(),
                Missing::Discovery(Some(stream)) => {
                    format!("whether {} holds a branch of it is not known until its stream comes further", name(stream))
                }
                Missing::GidInUse(stream) => {
                    format!("its gid was used before, and that use has not ended on {}", name(stream))
                }
                Missing::Cut(stream, Some(first)) => {
                    format!("it lies behind transaction {}, which {} holds back", other(first), name(stream))
                }
                Missing::Cut(stream, None) => format!("{} has not come far enough for a consistent cut", name(stream)),
                Missing::EarlierWrite(earlier) => {
                    format!("transaction {} wrote one of its keys before it and is not decided", other(earlier))
                }
            },
        }
    }

    /// A replica tablet's name in the configuration.
    #[must_use]
    pub fn tablet_name(&self, tablet: ReplicaTabletId) -> &str {
        self.map().tablets.iter().find(|t| t.id == tablet).map_or("?", |t| &t.name)
    }

    /// The stream that holds safe time back, while something is committed at the source and not shown.
    #[must_use]
    pub fn held_by(&self) -> Option<SourceTabletId> {
        let state = self.state();
        if let Some((_, id)) = state.undecided.first() {
            let transaction = state.transactions.get(*id)?;
            return self.root(transaction, state.missing(transaction)?, CHAIN_MAX).stream();
        }
        if state.release != super::entry::Release::CommonClock {
            return None;
        }
        let live = state.streams.iter().filter(|s| !s.left);
        live.min_by_key(|s| (s.safe_time_heard, s.safe_time)).map(|s| s.stream)
    }

    /// What the log knows of every stream that has not left.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamView> {
        let live = self.state().streams.iter().filter(|s| !s.left);
        live.map(|s| StreamView {
            stream: s.stream,
            name: s.name.clone(),
            received: s.head,
            durable: s.checkpoint,
            checkpointed: s.acknowledged,
            copies: s.copies.clone(),
            takes_part: s.joining.is_none(),
            slot_stands: s.slot.is_some(),
        })
        .collect()
    }

    /// When the oldest transaction that is not decided was first heard of: how old the oldest provisional record may be.
    #[must_use]
    pub fn oldest_undecided(&self) -> Option<HybridTime> {
        self.state().transactions.iter().filter(|t| t.decision.is_none()).map(|t| t.since).min()
    }

    /// Transactions by where they stand. Looks at every one.
    #[must_use]
    pub fn transaction_counts(&self) -> TransactionCounts {
        let mut counts = TransactionCounts::default();
        for transaction in self.state().transactions.iter() {
            match transaction.status() {
                Status::Created | Status::Pending => counts.pending += 1,
                Status::WaitingToCommit => {
                    counts.waiting_to_commit += 1;
                    counts.oldest_waiting =
                        Some(counts.oldest_waiting.map_or(transaction.since, |oldest| oldest.min(transaction.since)));
                }
                Status::Committed => counts.committed_not_applied += 1,
                Status::Applied | Status::Aborted => {}
            }
        }
        counts
    }

    /// The commit time of the oldest commit that readers at safe time do not see.
    #[must_use]
    pub fn oldest_invisible(&self) -> Option<HybridTime> {
        self.state().undecided.first().map(|(time, _)| *time)
    }
}

/// How many transactions wait behind this one: with a common clock those committed later, which safe time does not reach
/// before it; without one, the commits behind its own in its streams.
fn behind(state: &State, transaction: &Transaction) -> u64 {
    if transaction.decision.is_some() {
        return 0;
    }
    if state.release == super::entry::Release::CommonClock {
        let Some(commit) = &transaction.commit else { return 0 };
        return state.undecided.range((commit.time, TransactionId(transaction.id.0 + 1))..).count() as u64;
    }
    let mut behind = BTreeSet::new();
    for branch in &transaction.branches {
        let places = state.stream(branch.stream).into_iter().flat_map(|s| &s.places);
        let after = places.skip_while(|place| match place {
            Place::Prepare { transaction: id, .. } | Place::Commit { transaction: id } => *id != transaction.id,
        });
        behind.extend(after.filter_map(|place| match place {
            Place::Commit { transaction: id } if *id != transaction.id => Some(*id),
            _ => None,
        }));
    }
    behind.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_every_cause_and_status() {
        use Cause::{
            Apply, Applying, BackPressure, Commit, Copy, Cut, Discovery, EarlierWrite, GidInUse, Log, NotPolled,
            StartFence, StoppedStream,
        };
        let causes = [
            Applying,
            Commit,
            Discovery,
            StartFence,
            Cut,
            EarlierWrite,
            GidInUse,
            Copy,
            Apply,
            StoppedStream,
            NotPolled,
            BackPressure,
            Log,
        ];
        assert_eq!(
            causes.map(|cause| cause.to_string()).join(" "),
            "applying commit discovery start-fence cut earlier-write gid-in-use copy apply stopped-stream not-polled \
             back-pressure log"
        );
        use Status::{Aborted, Applied, Committed, Created, Pending, WaitingToCommit};
        assert_eq!(
            [Created, Pending, WaitingToCommit, Committed, Applied, Aborted].map(|status| status.to_string()).join(" "),
            "CREATED PENDING WAITING_TO_COMMIT COMMITTED APPLIED ABORTED"
        );
    }
}
