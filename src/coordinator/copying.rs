//! What copiers say and ask: which tables a stream's publication has, when a copy begins, and when its rows are durable.
//! The rule and its reasons stand in [`super::copies`].

use super::copies::PublishedTable;
use super::entry::{CopyState, Item, Release};
use super::machine::Coordinator;
use super::output::{Promise, Refused};
use super::stream::StreamRecord;
use crate::planted::{Bug, planted};
use crate::wal::{Column, Epoch, HybridTime, OpId, SourceTabletId, TableId, TableSchema};

impl Coordinator {
    /// Whether tables are copied: not where the streams carry everything.
    fn takes_copies(&self) -> bool {
        self.state.release != Release::CommonClock
    }

    /// Whether people read the replica by themselves, so that the rows of a stream that leaves stay where they are.
    #[must_use]
    pub fn is_read_directly(&self) -> bool {
        self.settings.read_directly
    }

    /// Whether a copy can take the place of what is shown of a stream's part of a table. Where people read the replica by
    /// themselves, only if no other stream has a part of it: nobody can tell them apart there.
    fn may_be_replaced(&self, stream: SourceTabletId, table: &str) -> bool {
        let others = || self.state.streams.iter().filter(|other| !other.left && other.stream != stream);
        let is_shared = || others().any(|other| self.state.table_copy(other.stream, table).is_some());
        let shown = || self.state.table_copy(stream, table).is_some_and(|copy| copy.shown.is_some());
        !self.settings.read_directly || self.state.safe.is_none() || !shown() || !is_shared()
    }

    /// A table's shape. `spoken` is the stream that is about to send changes of it, and the relation that it names: a table
    /// that has no copy there yet, is another one than before or has another key is hidden before its first change.
    pub fn handle_table(
        &mut self,
        now: HybridTime,
        name: &str,
        columns: Vec<Column>,
        spoken: Option<(SourceTabletId, u32)>,
    ) -> Promise<TableSchema> {
        let number = self.state.tables.iter().position(|t| t.name == name).unwrap_or(self.state.tables.len());
        let table = TableId(number as u32);
        let versions = self.state.tables.get(number).map_or(&[][..], |t| &t.versions);
        let known = versions.iter().position(|known| *known == columns);
        let version = known.unwrap_or(versions.len()) as u32 + 1;
        if known.is_none() {
            self.say(now, Item::Table { table, name: name.to_owned(), version, columns: columns.clone() });
        }
        let promise = self.promise(TableSchema { table, name: name.to_owned(), version, columns });
        // The last word of a stream that has left may come late: nobody would make the copy that it asks for.
        let heard =
            |(stream, _): &(SourceTabletId, u32)| self.takes_copies() && self.state.taking_part(*stream).is_ok();
        match spoken.filter(heard) {
            Some((stream, relation)) if self.spoken_of(now, stream, name, table, (relation, version)) => {
                self.promise(promise.value)
            }
            _ => promise,
        }
    }

    /// The stream is about to speak of a table. Whether that hides it; else nobody has to wait until the log knows: after a
    /// crash the stream says it again.
    fn spoken_of(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        name: &str,
        table: TableId,
        (relation, version): (u32, u32),
    ) -> bool {
        let before = self.state.table_copy(stream, name).map(|copy| copy.spoken);
        if before == Some((relation, version)) {
            return false;
        }
        let keys = |version: u32| {
            let columns = self.state.tables.get(table.0 as usize)?.versions.get((version as usize).checked_sub(1)?)?;
            Some(columns.iter().filter(|c| c.key).map(|c| c.name.as_str()).collect::<Vec<_>>())
        };
        let tells_apart_otherwise = match before {
            None => true,
            Some((0, _)) => false,
            Some((known, as_version)) => known != relation || keys(as_version) != keys(version),
        };
        let tells_apart_otherwise = tells_apart_otherwise && self.may_be_replaced(stream, name);
        if tells_apart_otherwise {
            // The next look at the publication says how far the stream must come first.
            self.ask_for_copy(now, stream, name, OpId::MAX, true);
        }
        self.say(now, Item::Spoken { stream, table: name.to_owned(), relation, version });
        tells_apart_otherwise
    }

    /// Asks for a copy, and hides what is shown until then where that is not what the table holds.
    fn ask_for_copy(&mut self, now: HybridTime, stream: SourceTabletId, table: &str, after: OpId, hides: bool) {
        if hides {
            let (table, time) = (table.to_owned(), self.next_time(now));
            self.say(now, Item::CopyHidden { stream, table, time, gone: false });
        }
        self.say(now, Item::CopyAsked { stream, table: table.to_owned(), after });
    }

    /// A stream's slot stands: it carries what commits above this position. Its tables are being copied from its snapshot,
    /// under the base that is the answer.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_slot(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        puller: Epoch,
        start: OpId,
        identity: &str,
        tables: &[PublishedTable],
    ) -> Result<Promise<HybridTime>, Refused> {
        self.check_puller(stream, puller)?;
        for table in tables {
            self.ask_for_copy(now, stream, &table.name, OpId::ZERO, true);
            self.say(now, Item::Published { stream, table: table.clone() });
        }
        let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
        let base = self.begin(now, stream, &names);
        self.say(now, Item::Slot { stream, start, identity: identity.to_owned() });
        self.settle(now);
        Ok(self.promise(base))
    }

    /// What the stream's publication has, read before its server had flushed `flushed`. Answers the tables that may be
    /// copied now.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_published(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        puller: Epoch,
        flushed: OpId,
        tables: &[PublishedTable],
    ) -> Result<Promise<Vec<String>>, Refused> {
        self.check_puller(stream, puller)?;
        if !self.takes_copies() {
            return Ok(self.promise(Vec::new()));
        }
        let known = self.state.stream(stream).map_or(&[][..], |record| &record.copies);
        let gone = known.iter().filter(|copy| !tables.iter().any(|table| table.name == copy.table));
        for table in gone.map(|copy| copy.table.clone()).collect::<Vec<_>>() {
            let time = self.next_time(now);
            self.say(now, Item::CopyHidden { stream, table, time, gone: true });
        }
        for table in tables {
            let known = self.state.table_copy(stream, &table.name);
            let (asks, hides) = known.map_or((true, true), |copy| {
                let other = copy.published.relation != 0 && copy.published.relation != table.relation;
                let undated = copy.state == CopyState::Pending && copy.after == OpId::MAX;
                (other || undated || copy.published.needs_copy_as(&table.columns), other)
            });
            let described = known.is_none_or(|copy| copy.published != *table);
            if asks && self.may_be_replaced(stream, &table.name) {
                self.ask_for_copy(now, stream, &table.name, flushed, hides);
            }
            if described {
                self.say(now, Item::Published { stream, table: table.clone() });
            }
        }
        self.tell_heads(now);
        self.settle(now);
        let copies = self.state.stream(stream).map_or(&[][..], |record| &record.copies);
        let waiting = copies.iter().filter(|copy| !matches!(copy.state, CopyState::Done { .. }));
        let waiting: Vec<_> = waiting.map(|copy| (copy.table.clone(), copy.after)).collect();
        let may_begin = waiting.into_iter().filter(|(_, after)| self.is_decided_upto(stream, *after));
        let may_begin = may_begin.map(|(table, _)| table).collect();
        Ok(self.promise(may_begin))
    }

    /// Copies of these tables begin, from a snapshot that is taken once the answer is durable: the base of their rows.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_copy_begun(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        puller: Epoch,
        tables: &[String],
    ) -> Result<Promise<HybridTime>, Refused> {
        self.check_puller(stream, puller)?;
        let base = self.begin(now, stream, tables);
        self.settle(now);
        Ok(self.promise(base))
    }

    fn begin(&mut self, now: HybridTime, stream: SourceTabletId, tables: &[String]) -> HybridTime {
        let base = self.next_time(now);
        for table in tables {
            let state = CopyState::Running { base, snapshot: OpId::ZERO };
            self.say(now, Item::Copy { stream, table: table.clone(), state });
        }
        base
    }

    /// Every row of a table's copy is durable at the replica tablets. One that began again since is not meant.
    ///
    /// # Errors
    /// Fenced.
    pub fn handle_copied(
        &mut self,
        now: HybridTime,
        stream: SourceTabletId,
        puller: Epoch,
        table: &str,
        (base, snapshot, rows): (HybridTime, OpId, u64),
    ) -> Result<Promise<()>, Refused> {
        self.check_puller(stream, puller)?;
        let copy = self.state.table_copy(stream, table);
        if copy.is_some_and(|copy| matches!(copy.state, CopyState::Running { base: running, .. } if running == base)) {
            let state = CopyState::Done { base, snapshot, rows };
            self.say(now, Item::Copy { stream, table: table.to_owned(), state });
            self.tell_heads(now);
            self.show_copies(now);
        }
        Ok(self.promise(()))
    }

    /// Somebody asks for copies of what is shown now: of a stream, of a table, or of one's part of the other. Answers them.
    /// A stream that has stopped joins anew, with another slot: it is the way back for one whose slot is lost.
    ///
    /// # Errors
    /// There is no such stream or table, or the source has no copies.
    pub fn handle_recopy(
        &mut self,
        now: HybridTime,
        stream: Option<&str>,
        table: Option<&str>,
    ) -> Result<Promise<Vec<(String, String)>>, String> {
        if self.state.release == Release::CommonClock {
            return Err("this source has a common clock and no copies: its streams carry everything".into());
        }
        let live = self.state.streams.iter().filter(|s| !s.left && stream.is_none_or(|name| name == s.name));
        let stopped = |s: &&StreamRecord| stream.is_some() && table.is_none() && self.stopped.contains_key(&s.stream);
        if let Some(anew) = live.clone().find(stopped).map(|record| record.stream) {
            if self.settings.read_directly && self.state.safe.is_some() {
                return Err(format!(
                    "the replica is a PostgreSQL server, whose readers would see parts of transactions while source tablet {:?} \
                     joins anew: stop untorn, empty the replica's tables and the data folder, and start again",
                    self.state.stream_name(anew)
                ));
            }
            let copies = self.state.stream(anew).map_or(&[][..], |record| &record.copies);
            let name = self.state.stream_name(anew).to_owned();
            let tables = copies.iter().map(|copy| (name.clone(), copy.table.clone())).collect();
            self.rejoin(now, anew);
            return Ok(self.promise(tables));
        }
        let copies = live.flat_map(|s| s.copies.iter().map(move |copy| (s, copy)));
        let asked = copies.filter(|(_, copy)| table.is_none_or(|name| name == copy.table));
        let asked: Vec<_> = asked.map(|(s, copy)| (s.stream, s.name.clone(), copy.table.clone())).collect();
        if asked.is_empty() {
            let at = |stream: &str| format!(" of source tablet {stream:?}");
            return Err(match table {
                Some(table) => format!("no table {table}{} is replicated", stream.map_or_else(String::new, at)),
                None => format!("there is no source tablet {:?}, or it has no tables", stream.unwrap_or_default()),
            });
        }
        if let Some((_, name, table)) = asked.iter().find(|(stream, _, table)| !self.may_be_replaced(*stream, table)) {
            return Err(format!(
                "the replica is a PostgreSQL server, and table {table} comes from several source tablets: which of its rows \
                 are those of {name:?} is not known there, so that a copy could not take their place; untorn verify names the \
                 rows that differ"
            ));
        }
        for (stream, _, table) in &asked {
            // One that waits or runs began after this was asked, or will: it is asked for anew all the same, because rows
            // of it may have been read before whatever gave the reason to ask.
            let after = self.state.table_copy(*stream, table).map_or(OpId::ZERO, |copy| copy.after);
            self.ask_for_copy(now, *stream, table, after, false);
        }
        self.settle(now);
        Ok(self.promise(asked.into_iter().map(|(_, stream, table)| (stream, table)).collect()))
    }

    /// Shows every copy that may be seen now, of streams that take part.
    pub(super) fn show_copies(&mut self, now: HybridTime) {
        let live = self.state.streams.iter().filter(|s| !s.left && s.joining.is_none());
        let done = live.flat_map(|s| s.copies.iter().map(move |copy| (s.stream, copy)));
        let done = done.filter_map(|(stream, copy)| Some((stream, copy.table.clone(), copy.to_show()?)));
        for (stream, table, (base, snapshot)) in done.collect::<Vec<_>>() {
            if self.is_decided_upto(stream, snapshot) || planted(Bug::CopyShownAtOnce) {
                let time = self.next_time(now);
                self.say(now, Item::CopyShown { stream, table, base, time });
            }
        }
        self.settle(now);
    }
}
