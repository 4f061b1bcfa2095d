//! What pullers say: who takes a stream, and how far it has come.

use super::copies::TableCopy;
use super::discovery::Start;
use super::entry::{CopyState, Item};
use super::fact::Report;
use super::joining::Joining;
use super::machine::Coordinator;
use super::output::{OpenBranchView, Promise, Refused, StreamOpening};
use crate::wal::{Epoch, HybridTime, OpId, SourceTabletId};

impl Coordinator {
    /// A stream of the configuration; joins it if the log does not know it.
    pub fn handle_stream_joined(&mut self, now: HybridTime, name: &str) -> SourceTabletId {
        if let Some(known) = self.state.stream_named(name).filter(|known| !known.left) {
            return known.stream;
        }
        let stream = SourceTabletId(self.state.streams.len() as u32);
        let at = self.state.safe.map_or(HybridTime::MIN, |(_, time)| time);
        self.say(now, Item::StreamJoined { stream, name: name.to_owned(), at });
        stream
    }

    /// A slot was found for a stream before its puller asked for one: whether this log may have made it. It may once a
    /// puller took a stream of that name, as slots are made after that and before the log hears of them.
    ///
    /// # Errors
    /// [`Refused::ForeignSlot`].
    pub fn owns_slot(&self, name: &str, found: &str) -> Result<(), Refused> {
        if self.may_have_slot(name) {
            return Ok(());
        }
        Err(Refused::ForeignSlot { stream: name.to_owned(), found: found.to_owned() })
    }

    /// Whether the log may have made a slot for a stream of that name.
    #[must_use]
    pub fn may_have_slot(&self, name: &str) -> bool {
        self.state.streams.iter().any(|record| record.name == name && record.puller > Epoch(0))
    }

    /// A puller takes a stream.
    ///
    /// # Errors
    /// The stream is unknown, or it left.
    pub fn handle_open_stream(&mut self, now: HybridTime, name: &str) -> Result<Promise<StreamOpening>, Refused> {
        let Some(record) = self.state.stream_named(name).filter(|record| !record.is_gone()) else {
            return Err(Refused::UnknownStream(name.to_owned()));
        };
        let (stream, puller) = (record.stream, Epoch(record.puller.0 + 1));
        self.stopped.remove(&stream);
        self.say(now, Item::PullerOpened { stream, epoch: puller });
        let mut open_branches: Vec<OpenBranchView> = self
            .state
            .transactions
            .iter()
            .flat_map(|t| {
                t.branches.iter().filter(|b| b.stream == stream && !b.ended && !b.bystander).map(move |b| (t, b))
            })
            .map(|(transaction, branch)| OpenBranchView {
                transaction: transaction.source.clone(),
                label: branch.label().map(str::to_owned),
                opened: branch.opened,
                records: branch.records,
                applying: branch.applying,
                belongs_to: transaction.id,
            })
            .collect();
        open_branches.sort_unstable_by_key(|branch| branch.opened);
        let record = &self.state.streams[stream.0 as usize];
        let opening = StreamOpening {
            stream,
            puller,
            checkpoint: record.checkpoint,
            stored: record.stored.clone(),
            open_branches,
            slot: record.slot,
            identity: record.identity.clone(),
        };
        Ok(self.promise(opening))
    }

    pub(super) fn check_puller(&self, stream: SourceTabletId, puller: Epoch) -> Result<(), Refused> {
        let record = self.state.taking_part(stream)?;
        if record.puller == puller { Ok(()) } else { Err(Refused::Fenced { held: record.puller }) }
    }

    /// A poller's report. The promise's value is the checkpoint.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn handle_report(&mut self, now: HybridTime, mut report: Report) -> Result<Promise<OpId>, Refused> {
        let record = self.state.check_report(&report)?;
        let upto = report.upto;
        let head = self.heads.entry(report.stream).or_default();
        *head = report.head.max(*head);
        report.head = *head;
        if report.acknowledged > upto {
            return Err(Refused::Damage(format!(
                "stream {} says that it acknowledged {} to its source, and its checkpoint is {upto}",
                record.name, report.acknowledged
            )));
        }
        let says_nothing =
            report.facts.is_empty() && upto == report.follows && report.acknowledged <= record.acknowledged;
        if says_nothing && !self.waits_for_head(report.stream, record.head) {
            // The checkpoint that it repeats may stand in an entry that is still on its way.
            return Ok(self.promise(upto));
        }
        self.say(now, Item::Report(report));
        self.settle(now);
        Ok(self.promise(upto))
    }

    /// Whether somebody waits for this stream to have come further than it is known to.
    fn waits_for_head(&self, stream: SourceTabletId, head: OpId) -> bool {
        let reached = |positions: &[(SourceTabletId, OpId)]| positions.iter().any(|(s, at)| *s == stream && head < *at);
        match &self.state.start {
            Start::Slots => false,
            Start::Fenced { fence, outstanding } => {
                reached(&fence.positions) || outstanding.iter().any(|o| o.stream == stream && o.gone_at.is_some())
            }
            Start::FirstCut { .. } | Start::Over => {
                // Positions rise from round to round: whoever has passed the last one has passed all.
                self.state.discovery.rounds.back().is_some_and(|round| reached(&round.positions))
                    || self.copies_wait_for(stream, head)
            }
        }
    }

    /// Whether a copy is to begin or to be shown once this stream has come further, or a stream on its way in.
    fn copies_wait_for(&self, stream: SourceTabletId, head: OpId) -> bool {
        let waits = self.state.streams.iter().filter(|s| !s.left).any(|s| match &s.joining {
            Some(Joining::Fenced { fence, outstanding }) => {
                fence.positions.iter().any(|(s, at)| *s == stream && head < *at)
                    || outstanding.iter().any(|o| o.stream == stream && o.gone_at.is_some())
            }
            _ => false,
        });
        let copies = self.state.stream(stream).map_or(&[][..], |record| &record.copies);
        let asked = |copy: &TableCopy| copy.state == CopyState::Pending && copy.after < OpId::MAX && head < copy.after;
        waits || copies.iter().any(|copy| asked(copy) || copy.to_show().is_some_and(|(_, snapshot)| head < snapshot))
    }

    /// How far a stream is known to have come, whether that was worth an entry or not: everything that it carries up to
    /// there was reported.
    #[must_use]
    pub fn head(&self, name: &str) -> Option<OpId> {
        let record = self.state.stream_named(name)?;
        Some(self.heads.get(&record.stream).map_or(record.head, |heard| record.head.max(*heard)))
    }

    /// Somebody waits for heads now: those that were heard and not worth an entry are.
    pub(super) fn tell_heads(&mut self, now: HybridTime) {
        for (stream, head) in self.heads.clone() {
            let Some(record) = self.state.stream(stream) else { continue };
            if head > record.head {
                let (puller, at, acknowledged) = (record.puller, record.checkpoint, record.acknowledged);
                let report = Report { stream, puller, follows: at, upto: at, head, acknowledged, ..Report::default() };
                self.say(now, Item::Report(report));
            }
        }
    }

    /// The poller of this stream stopped (or runs again): what `explain` says of whoever waits for it.
    pub fn handle_stream_stopped(&mut self, stream: SourceTabletId, cause: Option<String>) {
        match cause {
            Some(cause) => self.stopped.insert(stream, cause),
            None => self.stopped.remove(&stream),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Settings;
    use super::*;

    #[test]
    fn a_slot_is_its_own_once_a_puller_took_a_stream_of_that_name() {
        let now = HybridTime::from_micros(1);
        let mut machine = Coordinator::restore(Settings::default(), None).unwrap();
        machine.handle_opened(now, Epoch(1), "leader", &[]).unwrap();
        machine.handle_configured(now, &["shard-a"]);
        let refused = machine.owns_slot("shard-a", "slot \"a\"").unwrap_err().to_string();
        assert!(refused.contains("slot \"a\"") && refused.contains("source drop"), "{refused}");
        machine.handle_open_stream(now, "shard-a").unwrap();
        assert_eq!(machine.owns_slot("shard-a", "slot \"a\""), Ok(()));
        // It left, and comes again: what stands there is its own.
        machine.handle_configured(now, &[]);
        machine.handle_configured(now, &["shard-a"]);
        assert_eq!(machine.owns_slot("shard-a", "slot \"a\""), Ok(()));
    }
}
