//! Questions to the source's servers: rounds, the start fence, prepared and running transactions, nudges. One of a kind is
//! out at a time; one that failed is asked again at the next tick. No decision waits for the clock.

use super::discovery::{Outstanding, Start};
use super::entry::{Fence, Item, Release};
use super::joining::Joining;
use super::machine::Coordinator;
use super::output::Output;
use super::stream::StreamRecord;
use super::transaction::Transaction;
use crate::limits::{NUDGE_AFTER_MS, ORPHAN_CHECK_AFTER_MS, ORPHAN_CHECK_MAX};
use crate::wal::{HybridTime, LogPosition, OpId, SourceTabletId, SourceTransactionId, TransactionId};
use std::collections::BTreeMap;

/// What the source's servers were asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Questions {
    round: Asked,
    fence: Asked,
    prepared: Asked,
    /// When a stream was last nudged.
    nudged: HybridTime,
    /// When orphans were last asked for.
    orphans_asked: HybridTime,
}

/// A question that is out once at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    /// Nobody asked.
    #[default]
    No,
    /// The answer has not come.
    OnItsWay,
    /// The last one failed: asked again at the next tick.
    Failed,
}

impl Coordinator {
    /// What `TakeFence` found; nothing when a server did not answer (it will be asked for again).
    pub fn handle_fence(&mut self, now: HybridTime, fence: Option<Fence>) {
        let Some(mut fence) = fence.filter(|fence| self.names_every_stream(&fence.positions)) else {
            self.questions.fence = Asked::Failed;
            return;
        };
        self.questions.fence = Asked::No;
        let counted: Vec<_> = self.state.counted().collect();
        fence.positions.retain(|(stream, _)| counted.contains(stream));
        let joining = self.to_be_fenced();
        if self.state.start == Start::Slots {
            self.say(now, Item::Fence(fence));
        } else if !joining.is_empty() {
            self.say(now, Item::JoinFence { streams: joining, fence });
        }
        self.tell_heads(now);
        self.settle(now);
    }

    /// Whether no stream was left out: the server of one that was could hold a branch.
    fn names_every_stream(&self, positions: &[(SourceTabletId, OpId)]) -> bool {
        self.state.counted().all(|stream| positions.iter().any(|(named, _)| *named == stream))
    }

    /// What `CheckPrepared` found to be gone, and a flush position read after that.
    pub fn handle_fence_resolved(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        transactions: Vec<SourceTransactionId>,
        position: OpId,
    ) {
        self.questions.prepared = Asked::No;
        if !transactions.is_empty() {
            self.say(now, Item::FenceResolved { stream, transactions, position });
            self.tell_heads(now);
            self.settle(now);
        }
    }

    /// What `TakeRound` found; no positions when a server did not answer (it will be asked for again).
    pub fn handle_round(
        &mut self,
        now: HybridTime,
        begun_after: LogPosition,
        positions: Option<Vec<(SourceTabletId, OpId)>>,
    ) {
        let Some(mut positions) = positions.filter(|positions| self.names_every_stream(positions)) else {
            self.questions.round = Asked::Failed;
            return;
        };
        let counted: Vec<_> = self.state.counted().collect();
        positions.retain(|(stream, _)| counted.contains(stream));
        self.questions.round = Asked::No;
        self.say(now, Item::Round { begun_after, positions });
        self.tell_heads(now);
        self.settle(now);
    }

    /// Time has passed: about every 100 ms. Never needed for a decision: for nudges, orphans, questions that failed, and to
    /// tell the log what the tablets applied when nothing else is said.
    pub fn handle_tick(&mut self, now: HybridTime) {
        for asked in [&mut self.questions.round, &mut self.questions.fence, &mut self.questions.prepared] {
            if *asked == Asked::Failed {
                *asked = Asked::No;
            }
        }
        self.tell_applied(now);
        self.show_copies(now);
        self.take_in(now);
        self.settle(now);
        self.feel_pressure();
        let since = |then: HybridTime| millis_since(then, now);
        if since(self.questions.nudged) >= NUDGE_AFTER_MS
            && let Some(stream) = self.lagging_stream()
        {
            self.questions.nudged = now;
            self.outputs.push_back(Output::Nudge { stream });
        }
        if self.questions.prepared == Asked::No
            && let Some((stream, transactions)) = self.still_prepared()
        {
            self.questions.prepared = Asked::OnItsWay;
            self.outputs.push_back(Output::CheckPrepared { stream, transactions });
        }
        if self.state.release == Release::CommonClock && since(self.questions.orphans_asked) >= ORPHAN_CHECK_AFTER_MS {
            self.questions.orphans_asked = now;
            self.ask_for_orphans(now);
        }
    }

    /// A round or the start fence, where one is wanted and not on its way.
    pub(super) fn next_question(&mut self) -> Option<Output> {
        if !self.state.discovery.unproved.is_empty()
            && self.questions.round == Asked::No
            && matches!(self.state.start, Start::FirstCut { .. } | Start::Over)
        {
            self.questions.round = Asked::OnItsWay;
            // What is heard from here on stands in a later entry: this round does not prove it.
            self.seal();
            return Some(Output::TakeRound { begun_after: self.state.position, of: self.state.counted().collect() });
        }
        let mut live = self.state.streams.iter().filter(|stream| !stream.left).peekable();
        let starts = self.state.start == Start::Slots && live.peek().is_some() && live.all(|s| s.slot.is_some());
        // Every round that does not ask it began before this: one that is on its way names too few streams by now.
        let joins = !self.to_be_fenced().is_empty();
        if self.questions.fence == Asked::No && (starts || joins) {
            self.questions.fence = Asked::OnItsWay;
            return Some(Output::TakeFence { of: self.state.counted().collect() });
        }
        None
    }

    /// What a fence of one stream waits for, as far as it is not known to be gone.
    fn still_prepared(&self) -> Option<(SourceTabletId, Vec<SourceTransactionId>)> {
        let stream = self.outstanding().find(|o| o.gone_at.is_none())?.stream;
        let left = self.outstanding().filter(|o| o.stream == stream && o.gone_at.is_none());
        Some((stream, left.map(|o| o.transaction.clone()).collect()))
    }

    /// What the fences that are not passed wait for.
    fn outstanding(&self) -> impl Iterator<Item = &Outstanding> {
        let at_the_start = match &self.state.start {
            Start::Fenced { outstanding, .. } => &outstanding[..],
            _ => &[],
        };
        let joining = self.state.streams.iter().filter_map(|stream| match &stream.joining {
            Some(Joining::Fenced { outstanding, .. }) => Some(&outstanding[..]),
            _ => None,
        });
        at_the_start.iter().chain(joining.flatten())
    }

    /// The stream that has to come further before anything moves: the fence's or the oldest round's.
    fn lagging_stream(&self) -> Option<SourceTabletId> {
        if let Start::Fenced { fence, outstanding } = &self.state.start {
            let behind =
                |(stream, at): &&(SourceTabletId, OpId)| self.state.head(*stream).is_some_and(|head| head < *at);
            let gone = outstanding.iter().find(|o| o.gone_at.is_some()).map(|o| o.stream);
            return fence.positions.iter().find(behind).map(|(stream, _)| *stream).or(gone);
        }
        let behind = |stream: SourceTabletId, at: OpId| self.state.head(stream).is_some_and(|head| head < at);
        let joining = self.state.streams.iter().find_map(|record| match &record.joining {
            Some(Joining::Fenced { fence, outstanding }) => {
                let behind =
                    fence.positions.iter().find(|(stream, at)| behind(*stream, *at)).map(|(stream, _)| *stream);
                behind.or(outstanding.iter().find(|o| o.gone_at.is_some()).map(|o| o.stream))
            }
            _ => None,
        });
        let copied = || {
            let live = self.state.streams.iter().filter(|stream| !stream.left);
            let to_show = |record: &StreamRecord| {
                record.copies.iter().filter_map(|copy| copy.to_show()).any(|(_, at)| record.head < at)
            };
            live.filter(|record| to_show(record)).map(|record| record.stream).next()
        };
        self.state.discovery.laggard(|stream| self.state.head(stream)).or(joining).or_else(copied)
    }

    /// Asks about transactions that have been open for long and have no Commit record (C8). Age only makes us ask.
    fn ask_for_orphans(&mut self, now: HybridTime) {
        let old = |t: &&Transaction| {
            t.commit.is_none() && t.decision.is_none() && millis_since(t.since, now) >= ORPHAN_CHECK_AFTER_MS
        };
        let mut asked: BTreeMap<SourceTabletId, Vec<(TransactionId, SourceTransactionId)>> = BTreeMap::new();
        for transaction in self.state.transactions.iter().filter(old) {
            // Without its Created record nobody knows which stream would carry its Commit record: all are asked.
            let passed = self.state.not_running.get(&transaction.id);
            let carrier = self.state.carrier(transaction);
            let carries = |stream: SourceTabletId| carrier.is_none_or(|carrier| carrier == stream);
            let live = self.state.streams.iter().filter(|s| !s.left).map(|s| s.stream);
            for stream in live.filter(|s| carries(*s) && !passed.is_some_and(|passed| passed.contains(s))) {
                asked.entry(stream).or_default().push((transaction.id, transaction.source.clone()));
            }
        }
        for (stream, mut transactions) in asked {
            transactions.sort_unstable_by_key(|(id, _)| *id);
            transactions.truncate(ORPHAN_CHECK_MAX);
            let transactions = transactions.into_iter().map(|(_, source)| source).collect();
            self.outputs.push_back(Output::CheckRunning { stream, transactions });
        }
    }
}

/// How long ago that was. A clock that was set back says nothing of it: then long enough.
fn millis_since(then: HybridTime, now: HybridTime) -> u64 {
    now.micros().checked_sub(then.micros()).map_or(u64::MAX, |micros| micros / 1000)
}
