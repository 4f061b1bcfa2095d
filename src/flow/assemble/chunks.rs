//! Chunks of transactions that have not ended: routed and numbered at each tablet, then adopted by name or dropped.

use super::branches::OpenBranch;
use super::{Assembler, NO_TABLETS};
use crate::wal::{
    Adopt, BranchId, BranchWrites, ChunkBatch, ChunkOrigin, DropChunks, DroppedChunks, FillRequest, ReplicaTabletId,
    Row, StagedChunk, Write, WriteOp,
};

/// A chunk, ready to go out.
#[derive(Debug, Default, PartialEq)]
pub struct RoutedChunk {
    /// What each tablet is to stage.
    pub parts: Vec<(ReplicaTabletId, ChunkBatch)>,
    /// What is to be asked first: the row of the chunk's first write is to be filled, at this tablet. Not before
    /// everything that was taken in until then is stored.
    pub fill: Option<(ReplicaTabletId, FillRequest)>,
    /// The part that the chunk's first write is in.
    first: usize,
}

impl RoutedChunk {
    /// The answer: the row of the first write.
    pub fn filled(&mut self, filled: Row) {
        let write = self.parts.get_mut(self.first).and_then(|(_, part)| part.writes.first_mut());
        if let Some(Write { op: WriteOp::Put { row, fill_from }, .. }) = write {
            *row = filled;
            *fill_from = None;
        }
    }
}

impl Assembler {
    /// Routes a chunk of a transaction that has not ended.
    ///
    /// # Errors
    /// As [`Assembler::push`].
    pub fn chunk(&mut self, mut chunk: StagedChunk) -> Result<RoutedChunk, String> {
        let fill = self.fill_request(&mut chunk)?;
        let mut first_at = None;
        let mut routed: Vec<Vec<Write>> = vec![Vec::new(); self.tablets.len()];
        for mut write in chunk.writes {
            match self.target(&mut write)? {
                Some(tablet) => {
                    first_at.get_or_insert(tablet);
                    routed[tablet].push(write);
                }
                None => routed.iter_mut().for_each(|writes| writes.push(write.clone())),
            }
        }
        let numbers = self.chunks.entry((chunk.connection, chunk.xid)).or_insert_with(|| vec![0; self.tablets.len()]);
        let mut parts = Vec::new();
        let mut first = 0;
        for (index, ((tablet, number), writes)) in self.tablets.iter().zip(numbers).zip(routed).enumerate() {
            if writes.is_empty() {
                continue;
            }
            if first_at == Some(index) {
                first = parts.len();
            }
            *number += 1;
            let batch = ChunkBatch {
                stream: self.stream,
                owner: self.owner,
                puller: self.puller,
                connection: chunk.connection,
                xid: chunk.xid,
                sub_xid: chunk.sub_xid,
                number: *number,
                schemas: chunk.schemas.clone(),
                writes,
            };
            parts.push((tablet.id, batch));
        }
        Ok(RoutedChunk { parts, fill, first })
    }

    /// Which tablets staged chunks that go nowhere.
    pub fn dropped(&mut self, dropped: DroppedChunks) -> Vec<(ReplicaTabletId, DropChunks)> {
        let DroppedChunks { connection, xid, sub_xid } = dropped;
        let numbers = match sub_xid {
            None => self.chunks.remove(&(connection, xid)),
            // Its numbers stay taken.
            Some(_) => self.chunks.get(&(connection, xid)).cloned(),
        };
        let drop = self.drop_chunks(dropped);
        let tablets = self.tablets.iter().zip(numbers.unwrap_or_default());
        tablets.filter(|(_, last_chunk)| *last_chunk > 0).map(|(tablet, _)| (tablet.id, drop)).collect()
    }

    /// As [`Assembler::dropped`], of chunks that came again: since the last time, what they belong to was found to be stored
    /// at these tablets already.
    pub fn take_came_again(&mut self) -> Vec<(ReplicaTabletId, DropChunks)> {
        std::mem::take(&mut self.came_again)
    }

    fn drop_chunks(&self, dropped: DroppedChunks) -> DropChunks {
        DropChunks { stream: self.stream, owner: self.owner, puller: self.puller, dropped }
    }

    /// What is to be asked before a chunk can be staged whose first write changed its key and not all of its cells.
    fn fill_request(&self, chunk: &mut StagedChunk) -> Result<Option<(ReplicaTabletId, FillRequest)>, String> {
        if self.tablets.len() == 1 {
            // The row does not leave its tablet, which fills it when it is applied. A PostgreSQL server as the replica keeps
            // no earlier rows where they could be asked for.
            return Ok(None);
        }
        let rolled_back = std::mem::take(&mut chunk.rolled_back);
        let schemas = chunk.schemas.clone();
        let Some(Write { table, op: WriteOp::Put { row, fill_from }, .. }) = chunk.writes.first_mut() else {
            return Ok(None);
        };
        let Some(from) = fill_from.take() else { return Ok(None) };
        let holder = self.router.route(*table, &from).ok_or(NO_TABLETS)?;
        let request = FillRequest {
            stream: self.stream,
            owner: self.owner,
            puller: self.puller,
            connection: chunk.connection,
            xid: chunk.xid,
            rolled_back,
            upto: self.last,
            schemas,
            table: *table,
            from,
            row: row.clone(),
        };
        Ok(Some((holder, request)))
    }

    /// Chunks of a transaction take their place: its branch opens with them.
    pub(super) fn adopt(&mut self, origin: ChunkOrigin) -> Result<(), String> {
        let numbers = self.chunks.remove(&(origin.connection, origin.xid)).unwrap_or_default();
        if self.open.contains_key(&origin.transaction) {
            return Err(format!("transaction {} was sent in chunks and as a whole", origin.transaction));
        }
        let mut branch = OpenBranch::at(origin.opened);
        branch.run = self.gathered.run;
        branch.records = origin.records;
        let id = BranchId { stream: self.stream, opened: origin.opened };
        let ChunkOrigin { connection, xid, .. } = origin;
        let drop = self.drop_chunks(DroppedChunks { connection, xid, sub_xid: None });
        for (index, (tablet, last_chunk)) in self.tablets.iter_mut().zip(numbers).enumerate() {
            if last_chunk == 0 {
                continue;
            }
            tablet.touched = true;
            branch.tablets.push(tablet.id);
            if tablet.mark >= origin.opened {
                // Stored before a crash, in one atomic batch with the end of the transaction: nothing adopts them twice.
                branch.stored_before = self.report_conflicts;
                self.came_again.push((tablet.id, drop));
                continue;
            }
            branch.places.push((index, tablet.branches.len()));
            let adopt = Adopt {
                connection: origin.connection,
                xid: origin.xid,
                rolled_back: origin.rolled_back.clone(),
                last_chunk,
            };
            tablet.branches.push(BranchWrites { branch: id, writes: Vec::new(), adopt: Some(adopt) });
        }
        self.gathered.unsaid.push(origin.transaction.clone());
        self.open.insert(origin.transaction, branch);
        Ok(())
    }
}
