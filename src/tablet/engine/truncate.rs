//! A truncation in the tablet's own WAL.
//!
//! It removes the rows whose newest version its stream wrote, and no others; who reads the WAL knows one stream only, this
//! tablet. So where rows of other streams stay, what goes is said row by row.

use super::apply::{Applying, Step};
use super::state::State;
use crate::coordinator::ReadPoint;
use crate::limits::APPLY_BYTES;
use crate::mvcc::{Chain, Offer, Stamp, Truncation, Truncations};
use crate::tablet::TabletError;
use crate::tablet::format::{Raw, StoredOp, StoredVersion, StoredWrite, decode};
use crate::tablet::keys::{self, VersionKey};
use crate::tablet::store::{Read, Space, Store};
use crate::wal::{BranchId, HybridTime, LogPosition, SourceTabletId, TableId};
use std::sync::Arc;

/// A row before the truncation, by its newest version.
struct Shown {
    key: Vec<u8>,
    time: HybridTime,
    stream: SourceTabletId,
}

impl<S: Store> State<S> {
    /// Says a truncation by `id`'s stream, before it is known: as one record, or as deletes of what it removes.
    pub(super) fn wal_truncate(
        &mut self,
        step: &mut Step,
        applying: &Applying,
        id: BranchId,
        write: &StoredWrite<'_>,
    ) -> Result<(), TabletError> {
        self.finish(step)?;
        let (view, mut truncations) = (self.store.view(), self.shared.truncations());
        let (table, time) = (write.table, applying.time);
        // A crash may have left it.
        Arc::make_mut(&mut truncations).remove(table, id.stream, Truncation { time, position: applying.position });
        let mut others = false;
        each_row(&view, table, time, &truncations, &mut |row| {
            others |= row.stream != id.stream;
            Ok(())
        })?;
        if !others {
            return self.wal_write(step, applying.transaction, write, None);
        }
        each_row(&view, table, time, &truncations, &mut |row| {
            // A newer version, applied before this older transaction, stays.
            if row.stream != id.stream || row.time > time {
                return Ok(());
            }
            let delete = StoredWrite { table, key: Raw(&row.key), op: StoredOp::Delete };
            if !self.is_beaten(time, id.stream, &delete)? {
                self.wal_write(step, applying.transaction, &delete, None)?;
            }
            if step.batch.bytes >= APPLY_BYTES { self.finish_part(step, applying, id) } else { Ok(()) }
        })
    }
}

/// Every row of a table that is shown, leaving out what the transaction at `except` wrote (after a crash it may have
/// written some already).
fn each_row<V: Read>(
    view: &V,
    table: TableId,
    except: HybridTime,
    truncations: &Truncations,
    with: &mut dyn FnMut(Shown) -> Result<(), TabletError>,
) -> Result<(), TabletError> {
    let everything = ReadPoint { position: LogPosition(u64::MAX), time: HybridTime::MAX };
    let (from, below) = keys::table_versions(table);
    let mut row: Option<(Chain<'_>, Shown)> = None;
    for entry in view.scan(Space::Versions, &from, &below) {
        let (key, value) = entry?;
        let parsed = VersionKey::parse(key.as_ref())
            .ok_or_else(|| TabletError::Poisoned("a version's key is damaged".into()))?;
        if row.as_ref().is_none_or(|(_, shown)| shown.key != parsed.row) {
            if let Some((_, shown)) = row.take().filter(|(chain, _)| chain.shows_row()) {
                with(shown)?;
            }
            let shown = Shown { key: parsed.row.to_vec(), time: parsed.time, stream: parsed.stream };
            row = Some((Chain::new(table, everything, truncations), shown));
        }
        let Some((chain, shown)) = row.as_mut().filter(|_| parsed.time != except) else { continue };
        let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
        let (time, stream, deleted) = (parsed.time, parsed.stream, version.row.is_none());
        if chain.offer(&Stamp { time, position: version.position, stream, deleted }) == Offer::Best {
            (shown.time, shown.stream) = (time, stream);
        }
    }
    row.filter(|(chain, _)| chain.shows_row()).map_or(Ok(()), |(_, shown)| with(shown))
}
