//! Streams that join a log whose start is over, and streams that leave it: the fold, and what the machine does about them.
//! The room's opening has the protocol.

use super::copies::Undecided;
use super::decided::Turn;
use super::discovery::{Outstanding, Start};
use super::entry::{CopyState, Fence, Item, Release};
use super::machine::Coordinator;
use super::state::{Piece, State};
use super::stream::StreamRecord;
use crate::planted::{Bug, planted};
use crate::wal::{HybridTime, OpId, SourceTabletId, TransactionId};
use serde::{Deserialize, Serialize};

/// How far a stream is on its way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Joining {
    /// Set when it joins; waits until its slot stands and all of its tables are copied. Rounds do not ask its server.
    Copying,
    /// Set then: rounds ask its server. Waits for its start fence to be taken.
    Counted,
    /// Set by the fence; waits until every stream has passed it, and everything that was prepared on any server has ended:
    /// what committed on the joining one before its slot stood may not have committed elsewhere yet.
    Fenced {
        /// The fence, over all servers.
        fence: Fence,
        /// What has not ended of what was prepared.
        outstanding: Vec<Outstanding>,
    },
    /// Set when the fence is passed; waits until everything is decided that any stream carried by then.
    Passed {
        /// How far each stream had come.
        upto: Vec<(SourceTabletId, OpId)>,
    },
}

/// Times at which readers miss the rows of a stream that had to join anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absence {
    /// The number that the stream had before.
    pub stream: SourceTabletId,
    /// Its rows are hidden from this time on.
    pub from: HybridTime,
    /// The stream of its name shows them again from this time on; `MAX` before.
    pub until: HybridTime,
}

impl State {
    /// The stream that was joining anew at this time with a part of the table, and when: a read there would miss rows.
    /// What leaves for good is not missed.
    #[must_use]
    pub fn absent(&self, table: &str, time: HybridTime) -> Option<(&StreamRecord, Absence)> {
        self.absences.iter().filter(|absence| (absence.from..absence.until).contains(&time)).find_map(|absence| {
            let record = self.stream(absence.stream)?;
            let is_awaited =
                absence.until < HybridTime::MAX || self.stream_named(&record.name).is_some_and(|s| !s.left);
            let had = record.copies.iter().any(|copy| copy.table == table);
            (is_awaited && had).then_some((record, *absence))
        })
    }

    /// Whether a stream that is new to the log has to be kept back until it was taken in.
    pub(super) fn joins_late(&self) -> bool {
        self.start != Start::Slots && self.release != Release::CommonClock
    }

    /// Streams whose servers rounds ask: the others are on their way in, and nothing of them is seen.
    pub(super) fn counted(&self) -> impl Iterator<Item = SourceTabletId> + '_ {
        let counts = |joining: &Option<Joining>| !matches!(joining, Some(Joining::Copying));
        self.streams.iter().filter(move |s| !s.left && counts(&s.joining)).map(|s| s.stream)
    }

    pub(super) fn fold_join_fence(&mut self, streams: &[SourceTabletId], fence: &Fence) {
        let outstanding = fence.prepared.iter().map(|(stream, transaction)| Outstanding {
            stream: *stream,
            transaction: transaction.clone(),
            gone_at: None,
        });
        let outstanding: Vec<_> = outstanding.collect();
        for stream in streams {
            if let Some(record) = self.stream_mut(*stream) {
                record.joining = Some(Joining::Fenced { fence: fence.clone(), outstanding: outstanding.clone() });
            }
        }
        self.pass_joins();
    }

    /// Moves on every stream on its way in whose fence is passed.
    pub(super) fn pass_joins(&mut self) {
        for number in 0..self.streams.len() {
            if self.streams[number].joining.is_none() {
                continue;
            }
            let heads: Vec<OpId> =
                self.streams.iter().map(|record| if record.left { OpId::MAX } else { record.head }).collect();
            let head = |s: SourceTabletId| heads.get(s.0 as usize).copied().unwrap_or(OpId::MAX);
            let record = &mut self.streams[number];
            let Some(Joining::Fenced { fence, outstanding }) = &mut record.joining else { continue };
            outstanding.retain(|o| o.gone_at.is_none_or(|gone| head(o.stream) < gone));
            let prepared = !outstanding.is_empty() && !planted(Bug::JoinWithoutPrepared);
            if !prepared && fence.positions.iter().all(|(stream, at)| head(*stream) >= *at) {
                let upto = fence.positions.iter().map(|(stream, _)| (*stream, head(*stream))).collect();
                record.joining = Some(Joining::Passed { upto });
            }
        }
    }

    /// The stream leaves for good: what it did not end will not be ended by it, and it acknowledges nothing any more.
    pub(super) fn fold_left(&mut self, stream: SourceTabletId) {
        let position = self.position;
        let (from, was_shown) = (self.last_time, self.joins_late());
        let Some(record) = self.stream_mut(stream) else { return };
        record.left = true;
        record.joining = None;
        record.unacknowledged.clear();
        if was_shown && !record.copies.is_empty() {
            // The entry hid them at the newest time of the log. Whoever leaves for good has none.
            self.absences.push(Absence { stream, from, until: HybridTime::MAX });
        }
        if let Start::Fenced { outstanding, .. } = &mut self.start {
            outstanding.retain(|o| o.stream != stream);
        }
        for record in &mut self.streams {
            if let Some(Joining::Fenced { outstanding, .. }) = &mut record.joining {
                outstanding.retain(|o| o.stream != stream);
            }
        }
        let ids: Vec<TransactionId> = {
            let touched = self.transactions.iter().filter(|t| t.branches.iter().any(|b| b.stream == stream));
            let mut ids: Vec<_> = touched.map(|t| t.id).collect();
            ids.sort_unstable();
            ids
        };
        for id in ids {
            let Some(found) = self.transactions.get_mut(id) else { continue };
            found.branches.iter_mut().filter(|b| b.stream == stream).for_each(|b| b.unacknowledged = false);
            if found.decision.is_none() && self.release != Release::CommonClock {
                let lost: Vec<_> =
                    found.branches.iter().filter(|b| b.stream == stream && !b.ended).map(|b| b.id()).collect();
                for branch in lost {
                    let Some(place) = found.branches.iter().position(|b| b.id() == branch) else { continue };
                    if found.branches.len() == 1 {
                        found.branches[place].ended = true;
                        found.doomed = true;
                    } else {
                        let branch = found.branches.remove(place);
                        self.by_branch.remove(&branch.id());
                        let (branch, tablets) = (branch.id(), branch.tablets);
                        self.work.push_back((position, Piece::Discarded { branch, tablets }));
                    }
                }
                self.candidate(id);
                self.wake_later_writers(id);
            }
            self.wake_later_uses(id);
            self.forget_if_finished(id);
        }
        self.pass_rounds();
        self.pass_start();
        self.pass_joins();
    }

    pub(super) fn fold_shown(&mut self, stream: SourceTabletId, table: &str, base: HybridTime, time: HybridTime) {
        self.last_time = self.last_time.max(time);
        let (number, position) = (self.table_number(table), self.position);
        if let Some(copy) = self.table_copy_mut(stream, table) {
            (copy.shown, copy.shown_at) = (Some(base), position);
            self.turned(stream, number, Turn::Shown { base, time });
        }
    }

    pub(super) fn fold_stream_shown(&mut self, stream: SourceTabletId, time: HybridTime) {
        self.last_time = self.last_time.max(time);
        let Some(record) = self.stream_mut(stream) else { return };
        record.joining = None;
        let name = record.name.clone();
        let streams = &self.streams;
        let is_it = |absence: &&mut Absence| {
            let before = streams.get(absence.stream.0 as usize);
            absence.until == HybridTime::MAX && before.is_some_and(|before| before.name == name)
        };
        self.absences.iter_mut().filter(is_it).for_each(|absence| absence.until = time);
    }

    pub(super) fn turned(&mut self, stream: SourceTabletId, table: crate::wal::TableId, turn: Turn) {
        self.work.push_back((self.position, Piece::Turned { stream, table, turn }));
    }
}

impl Coordinator {
    /// The streams of the configuration: joins those that the log does not know, and lets go of those that it does not
    /// name any more. With a common clock none is let go of. Answers the names of those that it let go of.
    pub fn handle_configured(&mut self, now: HybridTime, names: &[&str]) -> Vec<String> {
        let is_gone = |s: &&StreamRecord| !s.left && !names.contains(&s.name.as_str());
        let mut gone: Vec<_> = self.state.streams.iter().filter(is_gone).map(|s| (s.stream, s.name.clone())).collect();
        if self.state.release == Release::CommonClock {
            gone.clear();
        }
        for (stream, _) in &gone {
            self.let_go(now, *stream, true);
        }
        for name in names {
            self.handle_stream_joined(now, name);
        }
        self.settle(now);
        gone.into_iter().map(|(_, name)| name).collect()
    }

    /// A stream that cannot go on where it was, because its slot or its server is another, leaves and joins anew under its
    /// name: its slot is made again, and its tables are read by nobody until they are shown
    /// ([`State::unreadable`]).
    pub(super) fn rejoin(&mut self, now: HybridTime, stream: SourceTabletId) {
        let name = self.state.stream_name(stream).to_owned();
        self.let_go(now, stream, false);
        self.handle_stream_joined(now, &name);
        self.settle(now);
    }

    /// A stream leaves; its rows are hidden from here on. `gone`: its tables are nothing that anybody waits for.
    fn let_go(&mut self, now: HybridTime, stream: SourceTabletId, gone: bool) {
        let time = self.next_time(now);
        let copies = self.state.stream(stream).map_or(&[][..], |record| &record.copies);
        for table in copies.iter().map(|copy| copy.table.clone()).collect::<Vec<_>>() {
            self.say(now, Item::CopyHidden { stream, table, time, gone });
        }
        self.say(now, Item::StreamLeft { stream });
    }

    /// Takes streams in as far as they are: counts them once they are copied, and shows them once they may be seen.
    pub(super) fn take_in(&mut self, now: HybridTime) {
        if self.state.start != Start::Over {
            return;
        }
        let on_its_way = self.state.streams.iter().filter(|s| !s.left);
        let on_its_way: Vec<_> = on_its_way.filter_map(|s| Some((s.stream, s.joining.clone()?))).collect();
        for (stream, joining) in on_its_way {
            let Some(record) = self.state.stream(stream) else { continue };
            match joining {
                Joining::Copying => {
                    let copied = record.copies.iter().all(|c| matches!(c.state, CopyState::Done { .. }));
                    if record.slot.is_some() && copied {
                        self.say(now, Item::StreamCounted { stream });
                    }
                }
                Joining::Counted | Joining::Fenced { .. } => {}
                Joining::Passed { upto } => {
                    let snapshots = record.copies.iter().filter_map(|copy| Some((stream, copy.to_show()?.1)));
                    let upto: Vec<_> = upto.into_iter().chain(snapshots).collect();
                    let whole = record.copies.iter().all(|copy| copy.to_show().is_some());
                    let left = |stream: SourceTabletId| self.state.stream(stream).is_none_or(|record| record.left);
                    let upto: Vec<_> = upto.into_iter().filter(|(stream, _)| !left(*stream)).collect();
                    let decided = upto.into_iter().all(|(stream, at)| self.is_decided_upto(stream, at));
                    if !whole || !(decided || planted(Bug::JoinShownAtOnce)) {
                        continue;
                    }
                    let time = self.next_time(now);
                    let shown = self.state.stream(stream).map_or(&[][..], |record| &record.copies);
                    let shown = shown.iter().filter_map(|copy| Some((copy.table.clone(), copy.to_show()?.0)));
                    for (table, base) in shown.collect::<Vec<_>>() {
                        self.say(now, Item::CopyShown { stream, table, base, time });
                    }
                    self.say(now, Item::StreamShown { stream, time });
                }
            }
        }
    }

    /// Streams whose start fence is to be taken.
    pub(super) fn to_be_fenced(&self) -> Vec<SourceTabletId> {
        let counted = self.state.streams.iter().filter(|s| !s.left && s.joining == Some(Joining::Counted));
        counted.map(|s| s.stream).collect()
    }

    /// Whether everything is decided that committed in the stream at or below the position. One that holds it up is asked
    /// for again before all are looked through.
    pub(super) fn is_decided_upto(&mut self, stream: SourceTabletId, position: OpId) -> bool {
        let undecided = |id: &TransactionId| self.state.transactions.get(*id).is_some_and(|t| t.decision.is_none());
        if self.held_up_by.get(&stream).is_some_and(|(at, id)| *at <= position && undecided(id)) {
            return false;
        }
        match self.state.undecided_upto(stream, position) {
            Undecided::None => true,
            Undecided::MayCome => false,
            Undecided::Transaction(id) => {
                self.held_up_by.insert(stream, (position, id));
                false
            }
        }
    }
}
