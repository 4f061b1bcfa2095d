//! The fold: what each item of the log does to the state. Total: whatever the log says, folding it does not fail, because
//! an item that could do harm was refused before it was appended ([`super::check`]).

use super::decided::Turn;
use super::discovery::{Outstanding, Start, Unproved};
use super::entry::{CopyState, Entry, Fence, Item, Outcome, Release};
use super::fact::{ApplyingFact, Fact, Involvement, Report};
use super::joining::Joining;
use super::state::{Piece, State, TableRecord};
use super::stream::{Place, StreamRecord};
use super::transaction::{Branch, CommitRecord, Decision};
use crate::planted::{Bug, planted};
use crate::wal::{
    BranchId, HybridTime, LogPosition, OpId, ReplicaTabletId, SourceTabletId, SourceTransactionId, TransactionId,
};
use smallvec::SmallVec;

impl State {
    /// Folds a whole entry: recovery.
    pub(super) fn fold_entry(&mut self, entry: &Entry) {
        self.begin_entry(entry.position, entry.time);
        for item in &entry.items {
            self.fold(item);
        }
    }

    /// The items folded from here on stand in this entry.
    pub(super) fn begin_entry(&mut self, position: LogPosition, time: HybridTime) {
        self.position = position;
        self.time = self.time.max(time);
    }

    /// Folds one item of the entry that was begun.
    pub(super) fn fold(&mut self, item: &Item) {
        match item {
            Item::Opened { epoch, owner: _, clock_skew_micros } => {
                self.epoch = *epoch;
                self.clock_skew_micros = *clock_skew_micros;
            }
            Item::Created { release } => {
                self.release = *release;
                self.start = if *release == Release::CommonClock { Start::Over } else { Start::Slots };
            }
            Item::Map(map) => {
                for tablet in &map.tablets {
                    self.applied.entry(tablet.id).or_default();
                }
                self.map = map.clone();
            }
            Item::StreamJoined { stream, name, at } => {
                debug_assert_eq!(stream.0 as usize, self.streams.len(), "streams are numbered in the order they join");
                let joining = self.joins_late().then_some(Joining::Copying);
                self.streams.push(StreamRecord { joining, ..StreamRecord::new(*stream, name.clone(), *at) });
            }
            Item::StreamLeft { stream } => self.fold_left(*stream),
            Item::PullerOpened { stream, epoch } => {
                if let Some(record) = self.stream_mut(*stream) {
                    record.puller = *epoch;
                }
            }
            Item::Table { table, name, version: _, columns } => {
                if table.0 as usize == self.tables.len() {
                    self.tables.push(TableRecord { name: name.clone(), versions: Vec::new() });
                }
                if let Some(record) = self.tables.get_mut(table.0 as usize) {
                    record.versions.push(columns.clone());
                }
            }
            Item::Slot { stream, start, identity } => {
                if let Some(record) = self.stream_mut(*stream) {
                    record.slot = Some(*start);
                    record.identity.clone_from(identity);
                    record.checkpoint = record.checkpoint.max(*start);
                    record.head = record.head.max(*start);
                    record.acknowledged = record.acknowledged.max(*start);
                }
            }
            Item::Copy { stream, table, state } => self.fold_copy(*stream, table, *state),
            Item::CopyAsked { stream, table, after } => {
                if let Some(copy) = self.table_copy_mut(*stream, table) {
                    (copy.state, copy.after) = (CopyState::Pending, *after);
                }
            }
            Item::Published { stream, table } => {
                if let Some(copy) = self.table_copy_mut(*stream, &table.name) {
                    copy.published = table.clone();
                }
            }
            Item::Spoken { stream, table, relation, version } => {
                if let Some(copy) = self.table_copy_mut(*stream, table) {
                    copy.spoken = (*relation, *version);
                }
            }
            Item::CopyHidden { stream, table, time, gone } => self.fold_hidden(*stream, table, *time, *gone),
            Item::CopyShown { stream, table, base, time } => self.fold_shown(*stream, table, *base, *time),
            Item::StreamCounted { stream } => {
                if let Some(record) = self.stream_mut(*stream) {
                    record.joining = Some(Joining::Counted);
                }
            }
            Item::JoinFence { streams, fence } => self.fold_join_fence(streams, fence),
            Item::StreamShown { stream, time } => self.fold_stream_shown(*stream, *time),
            Item::Fence(fence) => self.fold_fence(fence),
            Item::FenceResolved { stream, transactions, position } => {
                let gone = |outstanding: &mut Vec<Outstanding>| {
                    for left in outstanding.iter_mut().filter(|o| o.stream == *stream) {
                        if transactions.contains(&left.transaction) {
                            left.gone_at = Some(*position);
                        }
                    }
                };
                if let Start::Fenced { outstanding, .. } = &mut self.start {
                    gone(outstanding);
                }
                for record in &mut self.streams {
                    if let Some(Joining::Fenced { outstanding, .. }) = &mut record.joining {
                        gone(outstanding);
                    }
                }
                self.pass_start();
                self.pass_joins();
            }
            Item::Round { begun_after, positions } => {
                self.discovery.taken(*begun_after, positions.clone());
                self.pass_rounds();
            }
            Item::Report(report) => self.fold_report(report),
            Item::Decision { transaction, outcome } => self.fold_decision(*transaction, *outcome),
            Item::Applied { tablet, through } => self.fold_applied(*tablet, *through),
            Item::Released { tablet, release, .. } => {
                self.released.insert(*tablet, *release);
            }
            Item::SafeTime { time } => {
                self.safe = Some((self.position, *time));
                self.last_time = self.last_time.max(*time);
                while let Some(&(at, id)) = self.above_safe.first().filter(|(at, _)| at <= time) {
                    self.above_safe.remove(&(at, id));
                    self.forget_if_finished(id);
                }
            }
        }
    }

    fn fold_copy(&mut self, stream: SourceTabletId, table: &str, state: CopyState) {
        let number = self.table_number(table);
        if let Some(copy) = self.table_copy_mut(stream, table) {
            copy.state = state;
        }
        if let CopyState::Running { base, .. } = state {
            self.last_time = self.last_time.max(base);
            self.turned(stream, number, Turn::Begun { base });
        }
    }

    fn fold_hidden(&mut self, stream: SourceTabletId, table: &str, time: HybridTime, gone: bool) {
        let number = self.table_number(table);
        self.last_time = self.last_time.max(time);
        self.turned(stream, number, Turn::Hidden { time });
        if let Some(copy) = self.table_copy_mut(stream, table) {
            copy.shown = None;
        }
        if let Some(record) = self.stream_mut(stream).filter(|_| gone) {
            record.copies.retain(|copy| copy.table != table);
        }
    }

    fn fold_fence(&mut self, fence: &Fence) {
        let outstanding = fence.prepared.iter().map(|(stream, transaction)| Outstanding {
            stream: *stream,
            transaction: transaction.clone(),
            gone_at: None,
        });
        self.start = Start::Fenced { outstanding: outstanding.collect(), fence: fence.clone() };
        self.pass_start();
    }

    fn fold_report(&mut self, report: &Report) {
        for fact in &report.facts {
            self.fold_fact(report, fact);
        }
        let Some(record) = self.stream_mut(report.stream) else { return };
        record.checkpoint = report.upto;
        record.head = record.head.max(report.upto).max(report.head);
        for &(tablet, at) in &report.stored {
            record.note_stored(tablet, at);
        }
        self.fold_acknowledged(report.stream, report.acknowledged);
        self.pass_rounds();
        self.pass_start();
        self.pass_joins();
    }

    fn fold_fact(&mut self, report: &Report, fact: &Fact) {
        let stream = report.stream;
        match fact {
            Fact::Created { transaction, at } => {
                let id = self.identified(transaction);
                self.mention(id, stream, None, *at);
                let found = self.transactions.get_mut(id);
                if let Some(branch) = found.and_then(|t| t.branches.iter_mut().find(|b| b.stream == stream)) {
                    branch.carrier = true;
                }
            }
            Fact::Pending { transaction } => {
                let id = self.transactions.find(transaction);
                if let Some(found) = id.and_then(|id| self.transactions.get_mut(id)) {
                    found.pending = true;
                }
            }
            Fact::Branch { transaction, opened, records, tablets, after, applying } => {
                self.fold_branch(report, transaction, *opened, *records, (tablets, after), applying.as_ref());
            }
            Fact::Commit { transaction, branch, at, time, involved } => {
                self.fold_commit(stream, transaction, *branch, *at, *time, involved);
            }
            Fact::Aborted { transaction, branch: None, at } => {
                if let Some(id) = self.transactions.find(transaction) {
                    self.mention(id, stream, None, *at);
                    self.doom(id);
                }
            }
            Fact::Aborted { transaction, branch: Some(opened), at } => {
                self.fold_rolled_back(stream, transaction, *opened, *at);
            }
            Fact::SafeTime { time } => {
                if let Some(record) = self.stream_mut(stream) {
                    record.safe_time = record.safe_time.max(*time);
                    record.safe_time_heard = true;
                }
            }
            Fact::NotRunning { transactions } => {
                for id in transactions.iter().filter_map(|t| self.transactions.find(t)).collect::<Vec<_>>() {
                    self.fold_not_running(stream, id);
                }
            }
            Fact::Split { children, at: _ } => self.fold_split(stream, children),
        }
    }

    fn fold_branch(
        &mut self,
        report: &Report,
        source: &SourceTransactionId,
        opened: OpId,
        records: u64,
        (tablets, after): (&[ReplicaTabletId], &[BranchId]),
        applying: Option<&ApplyingFact>,
    ) {
        let stream = report.stream;
        let common_clock = self.release == Release::CommonClock;
        let prepared_at = applying.map_or(HybridTime::MIN, |a| a.prepared_at);
        let known = self.transactions.find(source).and_then(|id| self.transactions.get(id));
        let taken = records + known.map_or(0, |t| t.carried_by(stream).records);
        let is_short = common_clock && applying.and_then(|a| a.records).is_some_and(|all| all != taken);
        if is_short && records == 0 && known.is_none() {
            // An Applying record whose writes were not taken is no report. It repeats one of a transaction that was
            // forgotten (C2); if it does not, the transaction waits for this stream, and is never shown in part.
            return;
        }
        let id = if common_clock {
            self.identified(source)
        } else {
            self.holder(source, stream, opened).unwrap_or_else(|| self.joined(source, stream, prepared_at, None))
        };
        let (release, position) = (self.release, self.position);
        let Some(found) = self.transactions.get_mut(id) else { return };
        let decision = found.decision;
        let complete = found.branches.iter().find(|b| b.stream == stream && b.applying && common_clock);
        if let Some(opened) = complete.map(|branch| branch.opened) {
            // An Applying record that comes again, perhaps from a poller that does not know where the branch opened.
            self.mention(id, stream, Some(opened), applying.map_or(report.upto, |a| a.at));
            return;
        }
        if found.branch(stream, opened).is_none() {
            match found.branches.iter_mut().find(|b| b.stream == stream && b.bystander) {
                Some(bystander) => (bystander.opened, bystander.bystander) = (opened, false),
                None => found.branches.push(Branch::new(stream, opened)),
            }
        }
        let Some(branch) = found.branch_mut(stream, opened) else { return };
        let at = applying.map_or(report.upto, |a| a.at);
        let applying = applying.filter(|_| !is_short);
        let first_applying = applying.is_some() && !branch.applying;
        branch.records += records;
        for tablet in tablets {
            if !branch.tablets.contains(tablet) {
                branch.tablets.push(*tablet);
            }
        }
        if !after.is_empty() {
            branch.extra.get_or_insert_default().after.extend_from_slice(after);
        }
        branch.applying |= applying.is_some();
        branch.ended |= common_clock && applying.is_some();
        branch.prepared_at = branch.prepared_at.max(prepared_at);
        if let Some(label) = applying.and_then(|a| a.label.as_deref()) {
            branch.extra.get_or_insert_default().label = Some(label.into());
        }
        let (name, held) = (branch.id(), branch.tablets.clone());
        match decision.map(|d| d.outcome) {
            None if release == Release::Atomic => {
                self.by_branch.insert(name, id);
            }
            _ if tablets.is_empty() => {}
            None => {}
            Some(Outcome::Abort) => self.work.push_back((position, Piece::Discarded { branch: name, tablets: held })),
            Some(Outcome::Commit(_)) => self.work.push_back((position, Piece::Late { transaction: id, branch: name })),
        }
        self.mention(id, stream, Some(opened), at);
        if first_applying {
            if release == Release::Ordered {
                if let Some(record) = self.stream_mut(stream) {
                    record.places.push_back(Place::Prepare { transaction: id, opened });
                }
                self.advance_cut(stream);
            }
            self.candidate(id);
            // The first records of a large branch came without the time of its PREPARE.
            let committed_at = self.transactions.get(id).and_then(|t| t.commit.as_ref()).map(|commit| commit.time);
            if let Some(committed_at) = committed_at {
                self.split_off_later_use(id, committed_at, None);
            }
        }
    }

    fn fold_commit(
        &mut self,
        stream: SourceTabletId,
        source: &SourceTransactionId,
        branch: Option<OpId>,
        at: OpId,
        time: HybridTime,
        involved: &Involvement,
    ) {
        let id = match branch {
            Some(opened) => self.holder(source, stream, opened),
            None if self.is_finished(source, time) => None,
            None => Some(self.identified(source)),
        };
        let Some(id) = id else { return };
        self.mention(id, stream, branch, at);
        let listed = self.listed(stream, involved).map(Vec::into_boxed_slice);
        let Some(found) = self.transactions.get_mut(id) else { return };
        if let Some(branch) = branch.and_then(|opened| found.branch_mut(stream, opened)) {
            branch.ended = true;
            // A PREPARE that takes the place of its COMMIT PREPARED came late: it was prepared before the slot stood, and so
            // lies before everything in the stream. Its place would close a circle of waits.
            branch.inside |= *involved == Involvement::Discovered && branch.opened.term == at.term;
        }
        if *involved == Involvement::Discovered {
            self.split_off_later_use(id, time, branch.map(|opened| BranchId { stream, opened }));
        }
        let Some(found) = self.transactions.get_mut(id) else { return };
        if found.commit.is_none() && found.decision.is_none() {
            let discovered = *involved != Involvement::Discovered;
            found.commit = Some(CommitRecord { time, listed, discovered });
            self.undecided.insert((time, id));
            if *involved == Involvement::Discovered {
                self.discovery.heard(Unproved { transaction: id, stream, at, heard: self.position });
                self.pass_rounds();
            }
        }
        self.resolve_outstanding(stream, source, at);
        if self.release == Release::Ordered {
            if let Some(record) = self.stream_mut(stream) {
                record.places.push_back(Place::Commit { transaction: id });
            }
            self.advance_cut(stream);
        }
        self.candidate(id);
        self.wake_later_uses(id);
        self.forget_if_finished(id);
    }

    fn fold_rolled_back(&mut self, stream: SourceTabletId, source: &SourceTransactionId, opened: OpId, at: OpId) {
        self.resolve_outstanding(stream, source, at);
        let Some(id) = self.holder(source, stream, opened) else { return };
        self.mention(id, stream, Some(opened), at);
        let position = self.position;
        let Some(found) = self.transactions.get_mut(id) else { return };
        if found.branches.len() == 1 {
            found.branches[0].ended = true;
            self.doom(id);
            return;
        }
        // Rule 3 of `join`: the branch leaves its transaction, which goes on with the others.
        let place = found.branches.iter().position(|b| b.stream == stream && b.opened == opened);
        if let Some(place) = place.filter(|_| !planted(Bug::RolledBackBranchStays)) {
            let branch = found.branches.remove(place);
            self.by_branch.remove(&branch.id());
            self.work.push_back((position, Piece::Discarded { branch: branch.id(), tablets: branch.tablets }));
        }
        self.candidate(id);
        self.wake_later_writers(id);
        self.wake_later_uses(id);
    }

    /// The Commit record can no longer come by this stream: enough where it is the one that would carry it (C8).
    fn fold_not_running(&mut self, stream: SourceTabletId, id: TransactionId) {
        let Some(found) = self.transactions.get(id) else { return };
        if found.commit.is_some() || found.decision.is_some() {
            return;
        }
        let gone = match self.carrier(found) {
            Some(carrier) => carrier == stream,
            None => {
                let passed = self.not_running.entry(id).or_default();
                passed.insert(stream);
                self.streams.iter().filter(|s| !s.left).all(|s| passed.contains(&s.stream))
            }
        };
        if gone {
            self.doom(id);
        }
    }

    fn fold_split(&mut self, parent: SourceTabletId, children: &[SourceTabletId]) {
        let Some(record) = self.stream_mut(parent) else { return };
        record.left = true;
        record.children = children.to_vec();
        let at = record.safe_time;
        for child in children {
            if let Some(child) = self.stream_mut(*child) {
                child.safe_time = child.safe_time.max(at);
            }
        }
        let waiting: Vec<_> = self.undecided.iter().map(|(_, id)| *id).collect();
        waiting.into_iter().for_each(|id| self.candidate(id));
        self.pass_rounds();
    }

    fn doom(&mut self, id: TransactionId) {
        if let Some(found) = self.transactions.get_mut(id).filter(|t| t.decision.is_none()) {
            found.doomed = true;
            self.candidate(id);
        }
    }

    fn fold_decision(&mut self, id: TransactionId, outcome: Outcome) {
        let (position, release) = (self.position, self.release);
        if matches!(outcome, Outcome::Commit(_)) {
            self.part_from_streams_on_their_way_in(id);
        }
        let Some(found) = self.transactions.get_mut(id).filter(|t| t.decision.is_none()) else { return };
        found.decision = Some(Decision { outcome, position });
        let time = found.commit.as_ref().map(|c| c.time);
        let starts = found.starts;
        let streams: SmallVec<[BranchId; 4]> = found.branches.iter().map(Branch::id).collect();
        if let Some(time) = time {
            self.undecided.remove(&(time, id));
        }
        if let Outcome::Commit(time) = outcome {
            self.last_time = self.last_time.max(time);
        }
        self.not_running.remove(&id);
        let wrote = found.branches.iter().any(|branch| !branch.tablets.is_empty());
        if wrote {
            self.work.push_back((position, Piece::Decided(id)));
        }
        match release {
            Release::CommonClock => {}
            Release::Ordered => streams.iter().for_each(|branch| self.advance_cut(branch.stream)),
            Release::Atomic => {
                for branch in &streams {
                    self.by_branch.remove(branch);
                }
                self.wake_later_writers(id);
            }
        }
        self.wake_later_uses(id);
        if starts && let Start::FirstCut { undecided, .. } = &mut self.start {
            *undecided -= 1;
            if *undecided == 0 {
                self.start = Start::Over;
            }
        }
        if !wrote {
            self.fold_all_applied(id);
        }
    }

    /// Rounds that every stream has passed prove whoever waited for them.
    pub(super) fn pass_rounds(&mut self) {
        if self.discovery.rounds.is_empty() {
            return;
        }
        let streams = &self.streams;
        let head = |s: SourceTabletId| streams.get(s.0 as usize).filter(|r| !r.left).map(|r| r.head);
        for id in self.discovery.passed(head) {
            self.discovered(id);
        }
    }

    fn discovered(&mut self, id: TransactionId) {
        if let Some(commit) = self.transactions.get_mut(id).and_then(|t| t.commit.as_mut()) {
            commit.discovered = true;
            self.candidate(id);
        }
    }

    /// A branch of the fence's list has ended in its stream.
    fn resolve_outstanding(&mut self, stream: SourceTabletId, source: &SourceTransactionId, at: OpId) {
        let resolve = |before: OpId, outstanding: &mut Vec<Outstanding>| {
            // What ended at or below `before` had ended before the list was read: another use of the id.
            if at > before
                && let Some(place) = outstanding.iter().position(|o| o.stream == stream && o.transaction == *source)
            {
                outstanding.remove(place);
            }
        };
        if let Start::Fenced { fence, outstanding } = &mut self.start {
            resolve(fence.before_of(stream), outstanding);
        }
        for record in &mut self.streams {
            if let Some(Joining::Fenced { fence, outstanding }) = &mut record.joining {
                resolve(fence.before_of(stream), outstanding);
            }
        }
    }

    /// Moves the start on when the fence is passed.
    pub(super) fn pass_start(&mut self) {
        let Start::Fenced { fence, outstanding } = &mut self.start else { return };
        let streams = &self.streams;
        let head = |s: SourceTabletId| streams.get(s.0 as usize).filter(|r| !r.left).map_or(OpId::MAX, |r| r.head);
        outstanding.retain(|o| o.gone_at.is_none_or(|gone| head(o.stream) < gone));
        let prepared = !outstanding.is_empty() && !planted(Bug::FenceWithoutPrepared);
        let behind = fence.positions.iter().any(|(stream, at)| head(*stream) < *at);
        if (prepared || behind) && !planted(Bug::FenceAtOnce) {
            return;
        }
        let fence = fence.clone();
        let waiting: Vec<TransactionId> = self.undecided.iter().map(|(_, id)| *id).collect();
        for &id in &waiting {
            let Some(found) = self.transactions.get_mut(id) else { continue };
            found.starts = true;
            // What was committed before the fence was read needs no round: whatever was prepared then has ended.
            let before_fence = found.branches.iter().any(|branch| {
                let fenced = fence.positions.iter().find(|(s, _)| *s == branch.stream);
                branch.ended && fenced.is_some_and(|(_, at)| branch.mentioned <= *at)
            });
            if let Some(commit) = found.commit.as_mut() {
                commit.discovered |= before_fence;
            }
            self.candidate(id);
        }
        self.start = match waiting.len() as u64 {
            0 => Start::Over,
            undecided => Start::FirstCut { fence, undecided },
        };
    }
}
