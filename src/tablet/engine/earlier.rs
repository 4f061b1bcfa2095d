//! Filling a row before it is stored: its key changed, and the cells that did not are those of its old key's newest
//! earlier write, decided or not (see [`FillRequest`]).

use super::chunks::Transaction;
use super::fill::not_here;
use super::provisional::check_key;
use super::state::State;
use crate::tablet::format::{StoredOp, StoredWrite, decode_row};
use crate::tablet::store::Store;
use crate::tablet::{FillRequest, TabletError};
use crate::wal::{Cell, HybridTime, Row, TableId};

/// What a run of writes, from its first to its last, makes of one key.
enum Found {
    /// It does not write it.
    Nothing,
    /// The newest row, perhaps with cells that the run itself leaves unchanged.
    Row(Row),
    /// The key is gone.
    Gone,
}

impl<S: Store> State<S> {
    /// See [`crate::tablet::TabletLeader::fill`].
    pub(super) fn fill_before_storing(&mut self, request: FillRequest) -> Result<Row, TabletError> {
        self.admit_owner(request.owner)?;
        self.admit_puller(request.stream, request.puller)?;
        check_key(&request.from)?;
        self.learn(&request.schemas)?;
        let FillRequest { stream, connection, xid, rolled_back, upto, table, from, mut row, .. } = request;
        let missing = || not_here(stream, table, &from.0);
        let found = self.staged_row((stream, connection, xid), &rolled_back, table, &from.0)?;
        if self.fill_from(table, &mut row, found)?.ok_or_else(missing)? {
            return Ok(row);
        }
        for branch in self.writers_before(stream, upto, table, &from.0)? {
            let Some(records) = self.branches.get(&branch).filter(|held| !held.rolled_back).map(|held| held.records)
            else {
                continue;
            };
            let mut found = Found::Nothing;
            self.each_write(branch, records, &mut |state, write| state.follow(&mut found, table, &from.0, write))?;
            if self.fill_from(table, &mut row, found)?.ok_or_else(missing)? {
                return Ok(row);
            }
        }
        let earlier = self.newest_write(HybridTime::MAX, None, stream, table, &from.0)?;
        let settled = match &earlier {
            Some(earlier) => self.is_settled(table, stream, &from.0, earlier.time)?,
            None => false,
        };
        if !settled && self.copying.get(&(table, stream)).is_some_and(|copying| !copying.complete) {
            // The copy goes on by itself, so the row only has to be asked for again.
            return Err(TabletError::Indeterminate(format!(
                "a row that stream {stream} moved leaves cells unchanged, and the row that they are to be taken from comes \
                 with the copy of table {table}, which runs"
            )));
        }
        let Some(earlier) = earlier else {
            // Nothing is seen of the table before a copy that has not begun yet or is complete: it has the row under its
            // new key. So what is unchanged is left so, and taken from there.
            return if self.may_come(table, stream) { Ok(row) } else { Err(missing()) };
        };
        self.fill_cells(table, &mut row, &decode_row(&earlier.row)?)?;
        if row.cells.contains(&Cell::Unchanged) { Err(missing()) } else { Ok(row) }
    }

    /// What the chunks of a transaction that has not ended make of a key.
    fn staged_row(
        &mut self,
        id: Transaction,
        rolled_back: &[u32],
        table: TableId,
        key: &[u8],
    ) -> Result<Found, TabletError> {
        let mut found = Found::Nothing;
        for number in self.chunks_that_wrote(id, rolled_back, table, key)? {
            self.each_staged(id, number, &mut |state, write| state.follow(&mut found, table, key, write))?;
        }
        Ok(found)
    }

    /// One more write of the run.
    fn follow(
        &self,
        found: &mut Found,
        table: TableId,
        key: &[u8],
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        if write.table != table {
            return Ok(());
        }
        *found = match write.op {
            StoredOp::Truncate => Found::Gone,
            _ if write.key.0 != key => return Ok(()),
            StoredOp::Delete => Found::Gone,
            StoredOp::Put(row) => Found::Row(decode_row(row.0)?),
            StoredOp::Fill { row, from: None } => {
                let mut row = decode_row(row.0)?;
                if let Found::Row(base) = found {
                    self.fill_cells(table, &mut row, base)?;
                }
                Found::Row(row)
            }
            StoredOp::Fill { from: Some(_), .. } => {
                return Err(TabletError::Refused(format!(
                    "key {:?} of table {table} holds a row that is itself filled from another key, and only when its \
                     transaction is applied",
                    crate::wal::Key(key.to_vec().into())
                )));
            }
        };
        Ok(())
    }

    /// Fills what is still unchanged; whether nothing is left, `None` where there is nothing to fill from.
    fn fill_from(&self, table: TableId, row: &mut Row, found: Found) -> Result<Option<bool>, TabletError> {
        match found {
            Found::Nothing => return Ok(Some(false)),
            Found::Row(base) => self.fill_cells(table, row, &base)?,
            Found::Gone => return Ok(None),
        }
        Ok(Some(!row.cells.contains(&Cell::Unchanged)))
    }
}
