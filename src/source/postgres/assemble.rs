//! From pgoutput's messages to batches: the heart of this source, and pure.
//!
//! A transaction is sent when it ends, or in blocks before its end once it is large, so the position of its records is
//! the end position of the message that ends it, in stream order (trace 2). What comes in becomes:
//!
//! | message | records, all in the term of its end position |
//! |---|---|
//! | COMMIT | the Writes, Applying, Commit: a transaction of one tablet |
//! | PREPARE | the Writes, Applying: a branch opens |
//! | COMMIT PREPARED | Commit, which names the branch that it ends |
//! | ROLLBACK PREPARED | Aborted, of that branch only |
//!
//! **Late PREPAREs.** What was prepared while the slot was being created is sent only at its COMMIT PREPARED, behind
//! later commits and with its old positions (trace 28). A PREPARE whose end lies at or below the stream's position is
//! therefore kept until that COMMIT PREPARED, and takes its end position. (A server that sends an open branch again is
//! recognised by the branch's position.) A COMMIT PREPARED or ROLLBACK PREPARED that no known branch fits ends nothing
//! that this stream carried: a transaction that only locked rows sends no PREPARE, and one that was prepared before the
//! slot stood and rolled back sends its end alone.
//!
//! **Changed keys.** An update that changes a row's key sends no cells that stayed in TOAST. Its row is to be filled from
//! the old key's newest earlier write, which may live on another replica tablet; such a transaction goes out in chunks,
//! and such a row at the head of one, when everything before it has gone out.
//!
//! **Copied tables.** The slot's own snapshot waits for every running and prepared transaction, so whatever the slot
//! sends committed above it. A table that is copied again has a snapshot inside the stream: what committed at or below it
//! is in the copy and is sent all the same. A branch's records must go out at its PREPARE, when the position of its COMMIT
//! PREPARED, which decides that, is not known (trace 29); and applied above the copied rows they change nothing
//! ([`crate::coordinator`], copies). So nothing is dropped here.

use super::gid::GidPattern;
use super::transaction::{Transaction, begins_chunk};
use super::tuple::Shape;
use crate::limits::{BATCH_BYTES, CHECKPOINT_IDLE_MS, CHUNK_BYTES};
use crate::planted::{Bug, planted};
use crate::source::{Resume, StreamEvent};
use crate::wal::{
    BranchId, HybridTime, Involved, Key, OpId, Record, SourceBatch, SourceTabletId, SourceTransactionId, StagedChunk,
    TableSchema, WriteOp,
};
use pg_walstream::protocol::LogicalReplicationMessage as Message;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// An open branch, found by its full gid.
struct Open {
    transaction: SourceTransactionId,
    opened: OpId,
}

/// A PREPARE that came late and waits for its COMMIT PREPARED.
struct Late {
    transaction: Transaction,
    prepared_at: HybridTime,
}

/// Where a change came from, as the frame around its message says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Its place in the WAL.
    pub wal_at: u64,
    /// Its sub-transaction, within a streamed block.
    pub sub_xid: u32,
}

/// Assembles one connection's messages. Feed it in order; take what is ready with [`Assembler::poll`].
pub struct Assembler {
    name: String,
    stream: SourceTabletId,
    connection: u64,
    gids: GidPattern,
    /// The highest end position that came in order: what ends at or below it came late or was taken before.
    position: u64,
    branches: HashMap<String, Open>,
    late: HashMap<String, Late>,
    /// The transaction that is being sent whole, from its BEGIN to its end.
    current: Option<Transaction>,
    streamed: HashMap<u32, Transaction>,
    /// The streamed transaction whose block is being sent.
    block: Option<u32>,
    /// Every relation that was sent; `None` for one that is not replicated.
    relations: HashMap<u32, Option<Arc<Shape>>>,
    /// Shapes that no record has said yet. The next branch says them: replica tablets fill unchanged cells by the names
    /// of columns, across versions.
    unsaid: Vec<TableSchema>,
    batch: SourceBatch,
    head: OpId,
    /// The server's clock when a keepalive moved the position last.
    moved_at: Option<HybridTime>,
    /// Whether the server said since the last batch where it is: handed over even without news, because the age of its
    /// last answer is the lag of a stream that carries nothing.
    heard: bool,
    ready: VecDeque<StreamEvent>,
}

impl Assembler {
    /// For a connection that resumes a stream. `connection` is a number that no other connection of the stream has.
    #[must_use]
    pub fn new(name: &str, gids: GidPattern, connection: u64, resume: &Resume) -> Self {
        let open = resume.open_branches.iter().map(|branch| {
            let id = || String::from_utf8_lossy(&branch.transaction.id).into_owned();
            let gid = branch.label.clone().unwrap_or_else(id);
            (gid, Open { transaction: branch.transaction.clone(), opened: branch.opened })
        });
        Self {
            name: name.to_owned(),
            stream: resume.stream,
            connection,
            gids,
            position: resume.after.term,
            branches: open.collect(),
            late: HashMap::new(),
            current: None,
            streamed: HashMap::new(),
            block: None,
            relations: HashMap::new(),
            unsaid: Vec::new(),
            batch: SourceBatch { upto: resume.after, ..SourceBatch::default() },
            head: OpId::ZERO,
            moved_at: None,
            heard: false,
            ready: VecDeque::new(),
        }
    }

    /// What is ready, in order. With `flush`, also a batch that has room left.
    pub fn poll(&mut self, flush: bool) -> Option<StreamEvent> {
        if self.ready.is_empty() && (flush || self.batch.bytes >= BATCH_BYTES) {
            self.flush();
        }
        self.ready.pop_front()
    }

    /// A keepalive: everything that ends at or below `end` has been sent. Positions of zero and ones going back are
    /// ignored. From time to time it moves the position: only what is in the log is ever confirmed, and a server whose WAL
    /// carries nothing for us must not keep it for us.
    pub fn keepalive(&mut self, end: u64, sent_at: HybridTime) {
        self.batch.sent_at = self.batch.sent_at.max(sent_at);
        let since = sent_at.micros().saturating_sub(self.moved_at.get_or_insert(sent_at).micros());
        let between = self.current.is_none() && self.block.is_none();
        if end > self.position && between && since >= CHECKPOINT_IDLE_MS * 1000 {
            self.moved_to(end);
            self.moved_at = Some(sent_at);
        }
        self.head = self.head.max(if end == 0 { OpId::ZERO } else { OpId::end_of_term(end) });
        self.batch.head = self.head;
        self.heard = true;
    }

    /// The shape of a relation from here on: the answer to a RELATION message.
    pub fn relation(&mut self, relation: u32, shape: Arc<Shape>) {
        if !self.unsaid.contains(&shape.schema) {
            self.unsaid.push(shape.schema.clone());
        }
        self.learn(relation, Some(shape));
    }

    /// A relation that is not replicated: its changes are left out.
    pub fn exclude(&mut self, relation: u32) {
        self.learn(relation, None);
    }

    fn learn(&mut self, relation: u32, shape: Option<Arc<Shape>>) {
        let relations = match self.block.and_then(|xid| self.streamed.get_mut(&xid)) {
            Some(transaction) => &mut transaction.relations,
            None => &mut self.relations,
        };
        relations.insert(relation, shape);
    }

    /// The next message; a RELATION is answered with [`Assembler::relation`] instead.
    ///
    /// # Errors
    /// What does not fit what came before: the stream must stop.
    pub fn message(&mut self, change: Change, sent_at: HybridTime, message: Message) -> Result<(), String> {
        self.batch.sent_at = self.batch.sent_at.max(sent_at);
        match message {
            Message::Begin { xid, .. } => self.begin(xid),
            Message::BeginPrepare { xid, .. } => self.begin(xid),
            Message::Commit { end_lsn, timestamp, .. } => {
                let transaction = self.take_current("COMMIT")?;
                self.commit(transaction, end_lsn, super::decode::time(timestamp))
            }
            Message::Prepare { end_lsn, timestamp, gid, .. } => {
                let transaction = self.take_current("PREPARE")?;
                self.prepare(transaction, end_lsn, super::decode::time(timestamp), gid)
            }
            Message::CommitPrepared { end_lsn, timestamp, gid, .. } => {
                self.commit_prepared(end_lsn, super::decode::time(timestamp), &gid)
            }
            Message::RollbackPrepared { rollback_end_lsn, gid, .. } => {
                self.rollback_prepared(rollback_end_lsn, &gid);
                Ok(())
            }
            Message::StreamStart { xid, .. } => {
                self.nothing_under_way(xid)?;
                self.streamed.entry(xid).or_insert_with(|| Transaction::new(xid));
                self.block = Some(xid);
                Ok(())
            }
            Message::StreamStop => {
                // Between its blocks a transaction takes no memory, however many are under way.
                if let Some(mut transaction) = self.block.take().and_then(|xid| self.streamed.remove(&xid)) {
                    self.stage(&mut transaction);
                    self.streamed.insert(transaction.xid(), transaction);
                }
                Ok(())
            }
            Message::StreamCommit { xid, end_lsn, timestamp, .. } => {
                let mut transaction = self.take_streamed(xid, "STREAM COMMIT")?;
                self.relations.extend(transaction.relations.drain());
                self.commit(transaction, end_lsn, super::decode::time(timestamp))
            }
            Message::StreamPrepare { xid, end_lsn, timestamp, gid, .. } => {
                let transaction = self.take_streamed(xid, "STREAM PREPARE")?;
                self.prepare(transaction, end_lsn, super::decode::time(timestamp), gid)
            }
            Message::StreamAbort { xid, subtransaction_xid, .. } => {
                if xid == subtransaction_xid {
                    let ended = self.streamed.remove(&xid);
                    ended.iter().for_each(|transaction| self.goes_nowhere(transaction));
                } else if let Some(transaction) = self.streamed.get_mut(&xid) {
                    let dropped = transaction.roll_back(self.connection, subtransaction_xid);
                    self.ready.extend(dropped.map(StreamEvent::Dropped));
                }
                Ok(())
            }
            Message::Insert { relation_id, tuple } => {
                let Some(shape) = self.shape(relation_id)? else { return Ok(()) };
                let name = self.name.clone();
                let transaction = self.transaction(&shape)?;
                let place = (change.wal_at, transaction.nth_from(change.wal_at));
                let (key, op) = shape.insert(tuple, &name, place).map_err(|e| format!("{}: {e}", shape.schema.name))?;
                self.write(change.sub_xid, &shape, key, op)
            }
            Message::Update { relation_id, old_tuple, new_tuple, .. } => {
                let Some(shape) = self.shape(relation_id)? else { return Ok(()) };
                let place = (change.wal_at, 0);
                let updated = shape.update(old_tuple, new_tuple, &self.name, place);
                let (old, key, op) = updated.map_err(|e| format!("{}: {e}", shape.schema.name))?;
                // The new row comes first: what did not change is filled from the old key's newest earlier write, and
                // that must not be this update's own delete.
                self.write(change.sub_xid, &shape, key, op)?;
                old.map_or(Ok(()), |old| self.write(change.sub_xid, &shape, old, WriteOp::Delete))
            }
            Message::Delete { relation_id, old_tuple, .. } => {
                let Some(shape) = self.shape(relation_id)? else { return Ok(()) };
                let key = shape.delete(old_tuple, &self.name).map_err(|e| format!("{}: {e}", shape.schema.name))?;
                self.write(change.sub_xid, &shape, key, WriteOp::Delete)
            }
            Message::Truncate { relation_ids, .. } => {
                for relation in relation_ids {
                    let Some(shape) = self.shape(relation)? else { continue };
                    self.write(change.sub_xid, &shape, Key::default(), WriteOp::Truncate)?;
                }
                Ok(())
            }
            Message::Relation { .. } | Message::Type { .. } | Message::Origin { .. } | Message::Message { .. } => {
                Ok(())
            }
        }
    }

    fn begin(&mut self, xid: u32) -> Result<(), String> {
        self.nothing_under_way(xid)?;
        self.current = Some(Transaction::new(xid));
        Ok(())
    }

    fn nothing_under_way(&self, xid: u32) -> Result<(), String> {
        match (&self.current, self.block) {
            (None, None) => Ok(()),
            _ => Err(format!("transaction {xid} begins inside another one")),
        }
    }

    fn write(&mut self, sub_xid: u32, shape: &Arc<Shape>, key: Key, op: WriteOp) -> Result<(), String> {
        let in_block = self.block.is_some();
        let connection = self.connection;
        let transaction = self.transaction(shape)?;
        let sub_xid = if in_block { sub_xid } else { transaction.xid() };
        let before = if begins_chunk(&op) { transaction.take_chunks(connection) } else { Vec::new() };
        transaction.push(sub_xid, shape, key, op);
        let after = if transaction.bytes() >= CHUNK_BYTES { transaction.take_chunks(connection) } else { Vec::new() };
        self.hand_over(before);
        self.hand_over(after);
        Ok(())
    }

    /// The transaction that a change belongs to.
    fn transaction(&mut self, shape: &Shape) -> Result<&mut Transaction, String> {
        let transaction = match self.block {
            Some(xid) => self.streamed.get_mut(&xid),
            None => self.current.as_mut(),
        };
        transaction.ok_or_else(|| format!("a change of {} outside a transaction", shape.schema.name))
    }

    fn commit(&mut self, transaction: Transaction, end: u64, time: HybridTime) -> Result<(), String> {
        if end <= self.position {
            self.goes_nowhere(&transaction);
            return Ok(());
        }
        let id = SourceTransactionId::ordinary(&self.name, transaction.xid());
        if !transaction.is_empty() {
            let index = self.branch(transaction, end, &id, None, None)?;
            // It ends its own branch: one that is never said to have ended is never forgotten.
            let branch = Some(BranchId { stream: self.stream, opened: OpId::new(end, 1) });
            let commit = Record::Commit { transaction: id, branch, time, involved: Involved::OnlyThisStream };
            self.batch.records.push((OpId::new(end, index), commit));
        }
        self.moved_to(end);
        Ok(())
    }

    fn prepare(&mut self, transaction: Transaction, end: u64, time: HybridTime, gid: String) -> Result<(), String> {
        if end <= self.position {
            let taken = self.branches.get(&gid).is_some_and(|open| open.opened.term == end);
            if taken || planted(Bug::LatePrepareDropped) {
                self.goes_nowhere(&transaction);
            } else {
                self.late.insert(gid, Late { transaction, prepared_at: time });
            }
            return Ok(());
        }
        let id = SourceTransactionId::first(self.gids.transaction(&gid).as_bytes());
        self.branch(transaction, end, &id, Some(time), Some(&gid))?;
        self.branches.insert(gid, Open { transaction: id, opened: OpId::new(end, 1) });
        self.moved_to(end);
        Ok(())
    }

    fn commit_prepared(&mut self, end: u64, time: HybridTime, gid: &str) -> Result<(), String> {
        let late = self.late.remove(gid);
        if end <= self.position {
            late.iter().for_each(|late| self.goes_nowhere(&late.transaction));
            return Ok(());
        }
        let ended = match (late, self.branches.remove(gid)) {
            (Some(late), _) => {
                let id = SourceTransactionId::first(self.gids.transaction(gid).as_bytes());
                let index = self.branch(late.transaction, end, &id, Some(late.prepared_at), Some(gid))?;
                Some((id, OpId::new(end, 1), index))
            }
            (None, Some(open)) => Some((open.transaction, open.opened, 1)),
            (None, None) => None,
        };
        if let Some((transaction, opened, index)) = ended {
            let branch = Some(BranchId { stream: self.stream, opened });
            let commit = Record::Commit { transaction, branch, time, involved: Involved::Discovered };
            self.batch.records.push((OpId::new(end, index), commit));
        }
        self.moved_to(end);
        Ok(())
    }

    fn rollback_prepared(&mut self, end: u64, gid: &str) {
        let late = self.late.remove(gid);
        late.iter().for_each(|late| self.goes_nowhere(&late.transaction));
        if end <= self.position {
            return;
        }
        if let Some(open) = self.branches.remove(gid) {
            let branch = Some(BranchId { stream: self.stream, opened: open.opened });
            self.batch.records.push((OpId::new(end, 1), Record::Aborted { transaction: open.transaction, branch }));
        }
        self.moved_to(end);
    }

    /// Puts a branch's writes and its Applying record into the batch, and answers the index after it.
    fn branch(
        &mut self,
        mut transaction: Transaction,
        end: u64,
        id: &SourceTransactionId,
        prepared_at: Option<HybridTime>,
        gid: Option<&str>,
    ) -> Result<u64, String> {
        if transaction.is_staged() {
            self.stage(&mut transaction);
        }
        let said = self.unsaid.drain(..).map(|schema| (OpId::new(end, 0), Record::Schema(schema)));
        self.batch.records.extend(said);
        let ended = transaction.end(end, self.connection, id.clone());
        let writes = ended.writes.into_iter();
        self.batch.records.extend(writes.map(|write| (write.at, Record::Write { transaction: id.clone(), write })));
        self.batch.adopted.extend(ended.adopted);
        let label = gid.filter(|gid| gid.as_bytes() != &id.id[..]).map(str::to_owned);
        let applying = Record::Applying { transaction: id.clone(), records: Some(ended.records), prepared_at, label };
        self.batch.records.push((OpId::new(end, ended.next_index), applying));
        self.batch.bytes += ended.bytes + RECORD_BYTES;
        Ok(ended.next_index + 1)
    }

    /// Hands a transaction's writes over in chunks, behind everything that ended before.
    fn stage(&mut self, transaction: &mut Transaction) {
        let chunks = transaction.take_chunks(self.connection);
        self.hand_over(chunks);
    }

    /// It was rolled back, or it was taken before: what was handed over of it is not to wait for its end.
    fn goes_nowhere(&mut self, transaction: &Transaction) {
        self.ready.extend(transaction.dropped(self.connection).map(StreamEvent::Dropped));
    }

    fn hand_over(&mut self, chunks: Vec<StagedChunk>) {
        if !chunks.is_empty() {
            self.flush();
            self.ready.extend(chunks.into_iter().map(StreamEvent::Chunk));
        }
    }

    fn moved_to(&mut self, end: u64) {
        self.position = end;
        self.batch.upto = OpId::end_of_term(end);
        self.batch.bytes += RECORD_BYTES;
    }

    /// Closes the batch if it says anything.
    fn flush(&mut self) {
        let upto = self.batch.upto;
        if self.batch.head < upto {
            self.batch.head = OpId::ZERO;
        }
        if self.batch.bytes > 0 || std::mem::take(&mut self.heard) {
            let next = SourceBatch { upto, ..SourceBatch::default() };
            self.ready.push_back(StreamEvent::Batch(std::mem::replace(&mut self.batch, next)));
        }
    }

    fn take_current(&mut self, what: &str) -> Result<Transaction, String> {
        self.current.take().ok_or_else(|| format!("{what} without a transaction"))
    }

    fn take_streamed(&mut self, xid: u32, what: &str) -> Result<Transaction, String> {
        self.streamed.remove(&xid).ok_or_else(|| format!("{what} of transaction {xid}, which never began"))
    }

    fn shape(&self, relation: u32) -> Result<Option<Arc<Shape>>, String> {
        let own = self.block.and_then(|xid| self.streamed.get(&xid)).and_then(|t| t.relations.get(&relation));
        let shape = own.or_else(|| self.relations.get(&relation));
        shape.cloned().ok_or_else(|| format!("a change of relation {relation}, whose columns were never sent"))
    }
}

/// Bytes that a record without a row takes, about.
const RECORD_BYTES: usize = 96;

#[cfg(test)]
mod tests;
