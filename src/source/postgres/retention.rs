//! The end of a slot's life: what it holds back.

use super::PostgresSource;
use crate::flow::Retention;
use crate::source::SourceError;

impl PostgresSource {
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
