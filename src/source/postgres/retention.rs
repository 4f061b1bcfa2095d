//! The end of a slot's life: what it holds back, and how it is dropped.

use super::error::Failure;
use super::slot::{self, Slot};
use super::{PostgresSource, Sql};
use crate::flow::Retention;
use crate::source::SourceError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Attempts to drop a slot whose reader was told to go: it may take a moment, or be back at once.
const ATTEMPTS: u32 = 50;
/// Between two of them.
const ATTEMPT_EVERY: Duration = Duration::from_millis(100);

/// What became of a slot that was to be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// It is gone.
    Gone,
    /// It was not there.
    NotThere,
}

impl PostgresSource {
    /// The slot's name.
    #[must_use]
    pub fn slot(&self) -> &str {
        &self.options.slot
    }

    /// Drops the slot. One that is being read is dropped only with `force`, which ends its reader.
    ///
    /// # Errors
    /// Why it still stands.
    pub async fn drop_slot(&self, force: bool) -> Result<Dropped, SourceError> {
        let (label, name) = (self.target.label(), &self.options.slot);
        let stop = |text: String| Err(SourceError::Stop(format!("{label}: {text}")));
        let at = |failure: Failure| failure.at(&label);
        let mut sql = self.target.sql().await?;
        for _ in 0..ATTEMPTS {
            let found = slot::inspect(&mut sql, &self.options.publication, name).await.map_err(at)?.slot;
            let Some(Slot { plugin, database, active_pid, two_phase, .. }) = found else {
                return Ok(Dropped::NotThere);
            };
            if plugin != "pgoutput" || !two_phase || database != self.target.database() {
                return stop(format!(
                    "slot {name:?} was not created by untorn for this database (plugin {plugin:?}, database \
                     {database:?}); if nobody needs it: SELECT pg_drop_replication_slot({});",
                    super::relation::literal(name)
                ));
            }
            match active_pid {
                Some(pid) if !force => {
                    return stop(format!("process {pid} reads slot {name:?}: stop untorn first, or say --force"));
                }
                Some(pid) => {
                    sql.query("SELECT pg_catalog.pg_terminate_backend($1)", &[&pid]).await.map_err(at)?;
                }
                None => match drop_now(&mut sql, name).await {
                    // Its reader came back.
                    Err(failure) if force && failure.code == "55006" => {}
                    dropped => return dropped.map(|()| Dropped::Gone).map_err(at),
                },
            }
            tokio::time::sleep(ATTEMPT_EVERY).await;
        }
        stop(format!("slot {name:?} is read again at once by whoever read it; stop that first"))
    }

    /// Drops a slot that this process created and whose copy came to nothing: nobody would ever read it, and it would
    /// hold back WAL. One that cannot be dropped now is dropped by the next start, or by `untorn source drop`.
    pub(super) async fn drop_unfinished(&self) {
        if self.unfinished.swap(false, Ordering::AcqRel)
            && let Err(error) = self.drop_slot(true).await
        {
            tracing::warn!(%error, "the slot of a copy that was cut off stays behind: untorn source drop removes it");
        }
    }

    /// What the slot holds back; `None` before it stands, and once it is lost, which stops the stream.
    pub(super) async fn held_back(&self) -> Result<Option<Retention>, SourceError> {
        let question =
            "SELECT greatest(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn), 0)::int8,
                    s.safe_wal_size, s.wal_status,
                    COALESCE((SELECT EXTRACT(EPOCH FROM now() - min(p.prepared)) FROM pg_catalog.pg_prepared_xacts p
                              WHERE p.database = pg_catalog.current_database()), 0)::float8
             FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1 AND s.wal_status <> 'lost'";
        let name = self.options.slot.clone();
        let rows = self.ask(async |sql| sql.query(question, &[&name]).await).await?;
        let one = |row: &tokio_postgres::Row| {
            let (retained, safe, status): (Option<i64>, Option<i64>, &str) = (row.get(0), row.get(1), row.get(2));
            // Beyond its limit it lives until the next checkpoint.
            let doomed = status == "unreserved";
            Retention {
                retained: retained.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default(),
                safe: if doomed { Some(0) } else { safe.map(|bytes| u64::try_from(bytes).unwrap_or_default()) },
                prepared_oldest_seconds: row.get(3),
            }
        };
        Ok(rows.first().map(one))
    }
}

async fn drop_now(sql: &mut Sql, name: &str) -> Result<(), Failure> {
    sql.query("SELECT pg_catalog.pg_drop_replication_slot($1)", &[&name]).await.map(|_| ())
}
