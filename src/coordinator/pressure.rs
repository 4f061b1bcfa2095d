//! Who runs too far ahead (C10). Every transaction that is not forgotten costs a record in memory, whether it waits for a
//! stream, for safe time or for a replica tablet that takes no decisions. When there are too many, streams are asked to
//! pause; but never one that a transaction waits for which was known by then, nor one that safe time waits for to pass it.
//! So all of them come to one place, whoever is behind catches up, and nobody waits for a stream that was told to pause.

use super::discovery::Start;
use super::entry::Release;
use super::machine::Coordinator;
use super::stream::StreamRecord;
use crate::wal::{HybridTime, LogPosition, OpId, SourceTabletId};

/// The moment in which too much waited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full {
    /// The last entry then.
    at: LogPosition,
    /// No commit known then has a higher time.
    time: HybridTime,
}

impl Coordinator {
    /// Looks whether too much waits, or no longer.
    pub(super) fn feel_pressure(&mut self) {
        let most = self.settings.transactions_held;
        let waiting = self.state.transactions.len().max(self.state.work.len());
        // Where nobody is behind, pausing would wait for nothing: what is held then is what the source holds open.
        if waiting <= most / 2 || self.full.is_some_and(|full| self.behind(full).is_none()) {
            self.full = None;
        } else if waiting > most && self.full.is_none() {
            let newest = self.state.undecided.last().map_or(HybridTime::MIN, |(time, _)| *time);
            self.full = Some(Full { at: self.state.position, time: newest.max(self.state.last_time) });
        }
    }

    /// What a stream is to pause for, because it runs too far ahead: a replica tablet that takes no decisions, or a stream
    /// that is behind.
    #[must_use]
    pub fn must_pause(&self, stream: SourceTabletId) -> Option<&str> {
        let full = self.full?;
        let record = self.state.stream(stream)?;
        if self.is_needed(record, full) {
            return None;
        }
        self.behind(full)
    }

    /// Who is waited for: a replica tablet that takes no decisions, or the first stream that is needed.
    fn behind(&self, full: Full) -> Option<&str> {
        let needed = || self.state.streams.iter().find(|record| !record.left && self.is_needed(record, full));
        let tablet = self.held_back().map(|tablet| self.tablet_name(tablet));
        tablet.or_else(|| needed().map(|record| record.name.as_str()))
    }

    /// Whether somebody who was known when it got too much waits for this stream.
    fn is_needed(&self, record: &StreamRecord, full: Full) -> bool {
        let state = &self.state;
        if state.release == Release::CommonClock {
            return !record.safe_time_heard || record.safe_time < full.time;
        }
        let behind = |at: Option<OpId>| at.is_some_and(|at| record.head < at);
        state.start != Start::Over
            || state.discovery.unproved.iter().any(|commit| commit.heard <= full.at)
            || state.discovery.rounds.iter().any(|r| r.begun_after <= full.at && behind(r.position(record.stream)))
    }
}
