//! Filling cells that the source did not send because they did not change (trace 37).
//!
//! They are taken from the newest earlier write of that key by the same stream: of this transaction, else of the
//! transactions before it, else the copied row.

use super::state::State;
use crate::coordinator::ReadPoint;
use crate::mvcc::{Fate, Stamp};
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

/// A row whose cells are filled.
pub(super) struct Filled {
    /// Its bytes.
    pub(super) row: Vec<u8>,
    /// They were taken from a write above the base of the copy on its way, or from that copy; true where there is none.
    pub(super) from_copy: bool,
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
        let copying = self.copying.get(&(table, stream));
        // A table that is hidden is copied, and nothing from before that is seen.
        let may_come = copying.is_some() || self.shared.truncations().is_hidden(table, stream);
        let Some((base, base_time)) = self.newest_write(time, filling, stream, table, key)? else {
            if may_come {
                return Ok(None);
            }
            let key = crate::wal::Key(key.to_vec().into());
            return Err(TabletError::Refused(format!(
                "a write of stream {stream} to table {table} at {time} leaves cells unchanged, and the row {key:?} that \
                 they are to be taken from is not here"
            )));
        };
        let (mut row, base) = (decode_row(row.0)?, decode_row(&base)?);
        if may_come && base.cells.contains(&Cell::Unchanged) {
            return Ok(None);
        }
        let mut from_copy = true;
        if let Some(copying) = copying {
            let waits = || self.store.get(Space::Undecided, &keys::unfilled(table, stream, base_time, key));
            from_copy = base_time == copying.base || base_time > copying.base && waits()?.is_none();
        }
        self.fill_cells(table, &mut row, &base)?;
        Ok(Some(Filled { row: encode_row(&row)?, from_copy }))
    }

    fn newest_write(
        &self,
        time: HybridTime,
        filling: Option<&Filling>,
        stream: SourceTabletId,
        table: TableId,
        key: &[u8],
    ) -> Result<Option<(Vec<u8>, HybridTime)>, TabletError> {
        let copying = self.copying.get(&(table, stream)).map(|copying| copying.base);
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
                    return Ok(Some((row, time)));
                }
                continue;
            }
            if let Some(row) = own() {
                return Ok(Some((row, time)));
            }
            if let Some(row) =
                row.clone().filter(|_| Some(parsed.time) == copying && version.position == LogPosition(0))
            {
                return Ok(Some((row, parsed.time)));
            }
            let stamp = Stamp { time: parsed.time, position: version.position, stream, deleted: row.is_none() };
            match truncations.fate(table, &stamp, before) {
                Fate::Counts => return Ok(row.map(|row| (row, parsed.time))),
                Fate::Removed(_) => return Ok(None),
                Fate::Superseded => {}
            }
        }
        Ok(own().map(|row| (row, time)))
    }

    fn fill_cells(&self, table: TableId, row: &mut Row, base: &Row) -> Result<(), TabletError> {
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
            let found = from.and_then(|from| base.cells.get(from)).filter(|found| **found != Cell::Unchanged);
            let Some(found) = found else {
                return Err(TabletError::Refused(format!(
                    "column {place} of a row of table {table} is unchanged since schema version {}, which has no such \
                     column here",
                    base.schema_version
                )));
            };
            *cell = found.clone();
        }
        Ok(())
    }
}
