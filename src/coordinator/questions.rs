//! Questions to the source's servers: rounds, the start fence, prepared and running transactions, nudges. One of a kind is
//! out at a time; one that failed is asked again at the next tick. No decision waits for the clock.

use super::discovery::Start;
use super::entry::{Fence, Item, Release};
use super::machine::Coordinator;
use super::output::Output;
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
        let Some(fence) = fence.filter(|fence| self.names_every_stream(&fence.positions)) else {
            self.questions.fence = Asked::Failed;
            return;
        };
        self.questions.fence = Asked::No;
        if self.state.start == Start::Slots {
            self.say(now, Item::Fence(fence));
            self.tell_heads(now);
            self.settle(now);
        }
    }

    /// Whether no stream was left out: the server of one that was could hold a branch.
    fn names_every_stream(&self, positions: &[(SourceTabletId, OpId)]) -> bool {
        let mut live = self.state.streams.iter().filter(|stream| !stream.left);
        live.all(|stream| positions.iter().any(|(named, _)| *named == stream.stream))
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
        let Some(positions) = positions.filter(|positions| self.names_every_stream(positions)) else {
            self.questions.round = Asked::Failed;
            return;
        };
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
        self.feel_pressure();
        let since = |then: HybridTime| millis_since(then, now);
        if since(self.questions.nudged) >= NUDGE_AFTER_MS
            && let Some(stream) = self.lagging_stream()
        {
            self.questions.nudged = now;
            self.outputs.push_back(Output::Nudge { stream });
        }
        if let Start::Fenced { outstanding, .. } = &self.state.start
            && self.questions.prepared == Asked::No
            && let Some(first) = outstanding.iter().find(|o| o.gone_at.is_none())
        {
            let stream = first.stream;
            let left = outstanding.iter().filter(|o| o.stream == stream && o.gone_at.is_none());
            let transactions = left.map(|o| o.transaction.clone()).collect();
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
            return Some(Output::TakeRound { begun_after: self.state.position });
        }
        let mut live = self.state.streams.iter().filter(|stream| !stream.left).peekable();
        if self.state.start == Start::Slots
            && self.questions.fence == Asked::No
            && live.peek().is_some()
            && live.all(|stream| stream.slot.is_some())
        {
            self.questions.fence = Asked::OnItsWay;
            return Some(Output::TakeFence);
        }
        None
    }

    /// The stream that has to come further before anything moves: the fence's or the oldest round's.
    fn lagging_stream(&self) -> Option<SourceTabletId> {
        if let Start::Fenced { fence, outstanding } = &self.state.start {
            let behind =
                |(stream, at): &&(SourceTabletId, OpId)| self.state.head(*stream).is_some_and(|head| head < *at);
            let gone = outstanding.iter().find(|o| o.gone_at.is_some()).map(|o| o.stream);
            return fence.positions.iter().find(behind).map(|(stream, _)| *stream).or(gone);
        }
        self.state.discovery.laggard(|stream| self.state.head(stream))
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
