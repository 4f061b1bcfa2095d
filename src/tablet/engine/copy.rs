//! Rows of an initial copy: versions at once, below every commit.

use super::provisional::check_key;
use super::state::State;
use crate::mvcc::Truncation;
use crate::tablet::format::{Raw, StoredVersion, encode, encode_row};
use crate::tablet::keys;
use crate::tablet::store::{Space, Store, StoreBatch};
use crate::tablet::{CopyBatch, TabletError};
use crate::wal::{HybridTime, LogPosition};

impl<S: Store> State<S> {
    /// See [`crate::tablet::TabletLeader::copy_rows`].
    pub(super) fn copy_rows(&mut self, copy: CopyBatch) -> Result<(), TabletError> {
        self.admit_owner(copy.owner)?;
        self.admit_puller(copy.stream, copy.puller)?;
        copy.rows.iter().try_for_each(|(key, _)| check_key(key))?;
        let (table, time) = (copy.schema.table, HybridTime::from_u64(u64::from(copy.attempt)));
        let mut batch = StoreBatch::default();
        self.learn(std::slice::from_ref(&copy.schema))?;
        self.note_writer(&mut batch, table, copy.stream);
        if copy.first {
            let attempt = Truncation { time, position: LogPosition(0) };
            batch.put(Space::Undecided, keys::truncation(table, copy.stream, attempt), Vec::new());
            self.shared.truncate(table, copy.stream, attempt);
        }
        for (key, row) in &copy.rows {
            let row = encode_row(row)?;
            let version = StoredVersion { position: LogPosition(0), row: Some(Raw(&row)) };
            batch.put(Space::Versions, keys::version(table, &key.0, time, copy.stream), encode(&version)?);
        }
        Ok(self.store.write(batch)?)
    }
}
