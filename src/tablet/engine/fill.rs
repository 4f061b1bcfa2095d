//! Filling cells that the source did not send because they did not change (trace 37).
//!
//! They are taken from the newest earlier write of that key by the same stream: of this transaction, else of the
//! transactions before it, else the copied row.

use super::state::State;
use crate::coordinator::ReadPoint;
use crate::mvcc::{Fate, Stamp};
use crate::planted::{Bug, planted};
use crate::tablet::TabletError;
use crate::tablet::format::{StoredOp, StoredVersion, StoredWrite, decode, decode_row, encode_row};
use crate::tablet::keys::{self, VersionKey};
use crate::tablet::store::{Space, Store};
use crate::wal::{Cell, HybridTime, LogPosition, Row, SourceTabletId, TableId};
use rustc_hash::FxHashMap;

/// A transaction that changes keys: the old key's delete may come before the new key's write is filled from it.
#[derive(Default)]
pub(super) struct Filling {
    /// Rows that the transaction wrote and then deleted, by stream, table and key.
    pub(super) deleted: FxHashMap<(SourceTabletId, TableId, Vec<u8>), Vec<u8>>,
}

/// What a row's unchanged cells are to be taken from is missing.
pub(super) fn not_here(stream: SourceTabletId, table: TableId, key: &[u8]) -> TabletError {
    let key = crate::wal::Key(key.to_vec().into());
    TabletError::Refused(format!(
        "a write of stream {stream} to table {table} leaves cells unchanged, and the row {key:?} that they are to be \
         taken from is not here"
    ))
}

/// An earlier row of a key.
pub(super) struct Earlier {
    /// Its bytes.
    pub(super) row: Vec<u8>,
    /// When it was written; a copied row's base.
    pub(super) time: HybridTime,
}

/// A row whose cells are filled.
pub(super) struct Filled {
    /// Its bytes.
    pub(super) row: Vec<u8>,
    /// Whether a copy on its way changes nothing about it.
    pub(super) settled: bool,
}

impl<S: Store> State<S> {
    /// The row of a write with its unchanged cells filled; `None` where what they are to be taken from may still come.
    pub(super) fn fill(
        &self,
        time: HybridTime,
        filling: Option<&Filling>,
        stream: SourceTabletId,
        write: &StoredWrite<'_>,
    ) -> Result<Option<Filled>, TabletError> {
        let StoredOp::Fill { row, from } = write.op else { return Ok(None) };
        let (table, key) = (write.table, from.unwrap_or(write.key).0);
        let Some(base) = self.newest_write(time, filling, stream, table, key)? else {
            return if self.may_come(table, stream) { Ok(None) } else { Err(not_here(stream, table, key)) };
        };
        let settled = self.is_settled(table, stream, key, base.time)?;
        let mut row = decode_row(row.0)?;
        self.fill_cells(table, &mut row, &decode_row(&base.row)?)?;
        if row.cells.contains(&Cell::Unchanged) {
            return Err(not_here(stream, table, key));
        }
        Ok(Some(Filled { row: encode_row(&row)?, settled }))
    }

    /// Whether rows of the table are on their way that were not here: its copy runs, or nothing is seen of it before one.
    pub(super) fn may_come(&self, table: TableId, stream: SourceTabletId) -> bool {
        self.copying.contains_key(&(table, stream)) || self.shared.truncations().is_hidden(table, stream)
    }

    /// Whether a row that was written then stays what it is, whatever the copy on its way brings: it is of that copy or
    /// was written above its base, and does not wait for it itself.
    pub(super) fn is_settled(
        &self,
        table: TableId,
        stream: SourceTabletId,
        key: &[u8],
        time: HybridTime,
    ) -> Result<bool, TabletError> {
        let Some(copying) = self.copying.get(&(table, stream)) else {
            return Ok(true);
        };
        let waits = || self.store.get(Space::Undecided, &keys::unfilled(table, stream, time, key));
        Ok(time == copying.base || time > copying.base && waits()?.is_none())
    }

    /// The newest row that `stream` wrote under a key, at or below a time.
    pub(super) fn newest_write(
        &self,
        time: HybridTime,
        filling: Option<&Filling>,
        stream: SourceTabletId,
        table: TableId,
        key: &[u8],
    ) -> Result<Option<Earlier>, TabletError> {
        let truncations = self.shared.truncations();
        let before = ReadPoint { position: LogPosition(u64::MAX), time: time.previous() };
        let (from, below) = keys::row_versions(table, key, time);
        let own = || filling.and_then(|filling| filling.deleted.get(&(stream, table, key.to_vec())).cloned());
        for entry in self.store.scan(Space::Versions, &from, &below) {
            let (version_key, value) = entry?;
            let parsed = VersionKey::parse(version_key.as_ref())
                .ok_or_else(|| TabletError::Poisoned("a version's key is damaged".into()))?;
            if parsed.stream != stream {
                continue;
            }
            let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
            let row = version.row.map(|row| row.0.to_vec());
            if parsed.time == time {
                if let Some(row) = row {
                    return Ok(Some(Earlier { row, time }));
                }
                continue;
            }
            if let Some(row) = own() {
                return Ok(Some(Earlier { row, time }));
            }
            let stamp = Stamp { time: parsed.time, position: version.position, stream, deleted: row.is_none() };
            match self.fate_in_copy(&truncations, table, &stamp, before) {
                Fate::Counts => return Ok(row.map(|row| Earlier { row, time: parsed.time })),
                Fate::Removed(_) => return Ok(None),
                Fate::Superseded => {}
            }
        }
        Ok(own().map(|row| Earlier { row, time }))
    }

    /// Fills unchanged cells from an earlier row, by the names of columns. What is unchanged there stays so.
    pub(super) fn fill_cells(&self, table: TableId, row: &mut Row, base: &Row) -> Result<(), TabletError> {
        let columns = |version: u32| self.schemas.get(&(table, version)).map(|schema| &schema.columns);
        let (new, old) = (columns(row.schema_version), columns(base.schema_version));
        let same_shape = row.schema_version == base.schema_version;
        for (place, cell) in row.cells.iter_mut().enumerate() {
            if *cell != Cell::Unchanged {
                continue;
            }
            let from = if same_shape {
                Some(place)
            } else {
                new.and_then(|new| new.get(place))
                    .zip(old)
                    .and_then(|(column, old)| old.iter().position(|other| other.name == column.name))
            };
            let Some(found) = from.and_then(|from| base.cells.get(from)) else {
                return Err(TabletError::Refused(format!(
                    "column {place} of a row of table {table} is unchanged since schema version {}, which has no such \
                     column here",
                    base.schema_version
                )));
            };
            *cell = if planted(Bug::UnchangedIsEmpty) { Cell::Text(Default::default()) } else { found.clone() };
        }
        Ok(())
    }
}
