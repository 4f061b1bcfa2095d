//! The session that writes to the server: how it is opened, and the one row that says how far the server is.
//!
//! `untorn.progress` is the truth about the server. It is compared and set by the same UPDATE, in the same transaction as
//! the rows: so a transaction of the source is applied once or not at all, whoever crashes, and whoever was taken over
//! finds another epoch there and changes nothing (C7).

use super::error::Lost;
use super::inserts::Trial;
use super::release;
use crate::coordinator::ReleaseId;
use crate::postgres::{Failure, Sql, Target, literal};
use crate::tablet::TabletError;
use crate::wal::{Epoch, LogPosition, ReplicaTabletId, SourceTabletId, TableId};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

/// What [`Session`] keeps at the server.
const SETUP: &str = "CREATE TABLE IF NOT EXISTS untorn.progress (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    log_id text NOT NULL,
    tablet bigint NOT NULL,
    epoch bigint NOT NULL,
    started boolean NOT NULL,
    position bigint NOT NULL,
    backend integer,
    backend_start timestamptz
);
CREATE TABLE IF NOT EXISTS untorn.writers (
    table_id bigint NOT NULL,
    stream bigint NOT NULL,
    PRIMARY KEY (table_id, stream)
);
CREATE TABLE IF NOT EXISTS untorn.skipped (
    position bigint NOT NULL,
    transaction text NOT NULL,
    cause text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);";

/// The format of `untorn.progress`.
pub const FORMAT: i32 = 1;

/// How long a lock is waited for before the transaction is tried again, and whoever holds it is named.
const LOCK_TIMEOUT: &str = "5s";
/// How long an old owner's backend may take to end.
const BACKEND_ENDS: Duration = Duration::from_secs(10);

/// Whose session it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The log that the server is bound to.
    pub log_id: String,
    /// The tablet's number in it.
    pub tablet: ReplicaTabletId,
    /// The owner's epoch.
    pub epoch: Epoch,
}

/// How far the server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The first cut was released.
    pub started: bool,
    /// It has applied the log up to here, durably when this was read.
    pub position: LogPosition,
}

/// What an owner before may have left prepared, where there are several servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leftovers {
    /// The last release that was decided: it is committed. Everything else is rolled back.
    pub last: Option<ReleaseId>,
}

/// An open session.
pub struct Session {
    pub(super) sql: Sql,
    label: String,
    role: String,
    /// What the gids of its prepared transactions begin with.
    pub(super) gids: String,
    statements: HashMap<String, Statement>,
    /// How COPY fared, by table.
    pub(super) trials: HashMap<TableId, Trial>,
    /// `untorn.writers`, once it was read; forgotten when a transaction is rolled back.
    writers: Option<BTreeSet<(TableId, SourceTabletId)>>,
}

/// Statements kept prepared. Patches have one a set of columns; beyond this all are prepared anew.
const STATEMENTS_KEPT: usize = 256;

impl Session {
    /// Opens a session as this owner: ends the backends of owners before it, and of this one's lost sessions, takes the
    /// progress row, and says how far the server is. What was committed before is durable then.
    ///
    /// # Errors
    /// The server cannot be reached, lacks rights, belongs to another log, or has seen a higher epoch.
    pub async fn open(
        target: &Target,
        owner: &Owner,
        durable: bool,
        leftovers: Option<Leftovers>,
    ) -> Result<(Self, Progress), TabletError> {
        let label = target.label();
        let gids = release::gid_prefix(&owner.log_id, target.name());
        let lost = |failure: Failure| Lost::of(&failure).at(&label, target.user());
        let mut sql = target.sql().await.map_err(lost)?;
        let progress = take(&mut sql, owner, &label, leftovers.map(|left| (left, &gids[..]))).await?.map_err(lost)?;
        let synchronous = if durable { "on" } else { "off" };
        let settings = format!("SET synchronous_commit = {synchronous}");
        sql.text(&settings).await.map_err(lost)?;
        let role = target.user().to_owned();
        let (statements, trials) = (HashMap::new(), HashMap::new());
        Ok((Self { sql, label, role, gids, statements, trials, writers: None }, progress))
    }

    /// The server as messages name it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Who logs in there.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Begins a transaction that moves the progress row on from where it is known to be; `false` when it is elsewhere or
    /// somebody else's, and nothing may be written.
    ///
    /// # Errors
    /// What the server said.
    pub async fn begin(&mut self, owner: &Owner, from: Progress, to: LogPosition) -> Result<bool, Failure> {
        self.sql.text("BEGIN").await?;
        let (to, epoch, held) = (number(to.0), number(owner.epoch.0), number(from.position.0));
        let moved = "UPDATE untorn.progress SET position = $1, started = true
                     WHERE log_id = $2 AND epoch = $3 AND position = $4 AND started = $5";
        Ok(self.execute(moved, &[&to, &owner.log_id, &epoch, &held, &from.started]).await? == 1)
    }

    /// Commits, after what is deferred has been checked: a refusal is then certain, and not the answer to COMMIT.
    ///
    /// # Errors
    /// What the server said; without an answer to COMMIT the outcome is unknown.
    pub async fn commit(&mut self) -> Result<(), Failure> {
        self.sql.text("SET CONSTRAINTS ALL IMMEDIATE").await?;
        self.sql.text("COMMIT").await.map(|_| ())
    }

    /// Makes everything committed so far durable, where commits do not wait for the disk.
    ///
    /// # Errors
    /// What the server said.
    pub async fn barrier(&mut self) -> Result<(), Failure> {
        let barrier =
            "BEGIN; SET LOCAL synchronous_commit = on; UPDATE untorn.progress SET position = position; COMMIT";
        self.sql.text(barrier).await.map(|_| ())
    }

    /// How far the server's WAL is on disk, and how far it is written: what is committed by now is durable once it is on
    /// disk so far.
    ///
    /// # Errors
    /// What the server said.
    pub async fn wal(&mut self) -> Result<(u64, u64), Failure> {
        let asked = "SELECT (pg_catalog.pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8,
                            (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8";
        let rows = self.query(asked, &[]).await?;
        Ok(rows.first().map_or((0, u64::MAX), |row| (unsigned(row.get(0)), unsigned(row.get(1)))))
    }

    /// Rolls back what is open, if anything is.
    ///
    /// # Errors
    /// The session is lost.
    pub async fn roll_back(&mut self) -> Result<(), Failure> {
        self.writers = None;
        self.sql.text("ROLLBACK").await.map(|_| ())
    }

    /// Whether a stream is known to write to a table.
    ///
    /// # Errors
    /// What the server said.
    pub async fn is_writer(&mut self, table: TableId, stream: SourceTabletId) -> Result<bool, Failure> {
        if let Some(writers) = &self.writers {
            return Ok(writers.contains(&(table, stream)));
        }
        let rows = self.query("SELECT table_id, stream FROM untorn.writers", &[]).await?;
        let known = rows.iter().filter_map(|row| {
            let (table, stream) = (u32::try_from(row.get::<_, i64>(0)), u32::try_from(row.get::<_, i64>(1)));
            Some((TableId(table.ok()?), SourceTabletId(stream.ok()?)))
        });
        Ok(self.writers.insert(known.collect()).contains(&(table, stream)))
    }

    /// Keeps that a stream writes to a table, with the transaction that is open.
    ///
    /// # Errors
    /// What the server said.
    pub async fn add_writer(&mut self, table: TableId, stream: SourceTabletId) -> Result<(), Failure> {
        let keep = "INSERT INTO untorn.writers (table_id, stream) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        self.execute(keep, &[&i64::from(table.0), &i64::from(stream.0)]).await?;
        self.writers.get_or_insert_default().insert((table, stream));
        Ok(())
    }

    /// Whether any stream is known to write to a table here.
    ///
    /// # Errors
    /// What the server said.
    pub async fn writers_of_table(&mut self, table: TableId) -> Result<bool, Failure> {
        self.is_writer(table, SourceTabletId(u32::MAX)).await?;
        Ok(self.writers_of(table) > 0)
    }

    /// The streams that have written to a table.
    ///
    /// # Errors
    /// What the server said.
    pub async fn all_writers_of(&mut self, table: TableId) -> Result<Vec<SourceTabletId>, Failure> {
        self.is_writer(table, SourceTabletId(u32::MAX)).await?;
        let all = (table, SourceTabletId(0))..=(table, SourceTabletId(u32::MAX));
        Ok(self.writers.iter().flat_map(|writers| writers.range(all.clone())).map(|(_, stream)| *stream).collect())
    }

    /// Nothing of what was written to a table is there any more, with the transaction that is open.
    ///
    /// # Errors
    /// What the server said.
    pub async fn forget_writers_of(&mut self, table: TableId) -> Result<(), Failure> {
        self.execute("DELETE FROM untorn.writers WHERE table_id = $1", &[&i64::from(table.0)]).await?;
        self.writers.iter_mut().for_each(|writers| writers.retain(|(of, _)| *of != table));
        Ok(())
    }

    /// How many streams write to a table, as far as was asked.
    #[must_use]
    pub fn writers_of(&self, table: TableId) -> usize {
        let all = (table, SourceTabletId(0))..=(table, SourceTabletId(u32::MAX));
        self.writers.as_ref().map_or(0, |writers| writers.range(all).count())
    }

    /// Whether the progress row is still this owner's.
    ///
    /// # Errors
    /// What the server said.
    pub async fn is_owned(&mut self, owner: &Owner) -> Result<bool, Failure> {
        let held = "SELECT FROM untorn.progress WHERE log_id = $1 AND epoch = $2";
        Ok(!self.query(held, &[&owner.log_id, &number(owner.epoch.0)]).await?.is_empty())
    }

    /// Who holds locks on the replicated tables, for people.
    ///
    /// # Errors
    /// What the server said.
    pub async fn lock_holders(&mut self) -> Result<String, Failure> {
        let held =
            "SELECT DISTINCT format('process %s (user %s, application %L, %s) holds locks on %s', a.pid, a.usename,
                        a.application_name, a.state, l.relation::regclass)
                    FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
                    WHERE l.granted AND l.locktype = 'relation' AND l.mode <> 'AccessShareLock'
                      AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                      AND a.pid <> pg_catalog.pg_backend_pid() LIMIT 3";
        let rows = self.query(held, &[]).await?;
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        Ok(names.join("; "))
    }

    /// Runs a statement, prepared once.
    ///
    /// # Errors
    /// What the server said.
    pub async fn execute(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Failure> {
        let statement = self.prepared(sql).await?;
        self.sql.execute(&statement, parameters).await
    }

    /// Rows of a statement, prepared once.
    ///
    /// # Errors
    /// What the server said.
    pub async fn query(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure> {
        let statement = self.prepared(sql).await?;
        self.sql.query(&statement, parameters).await
    }

    async fn prepared(&mut self, sql: &str) -> Result<Statement, Failure> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.sql.prepare(sql).await?;
        if self.statements.len() >= STATEMENTS_KEPT {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// PostgreSQL has no unsigned numbers; ours stay far below its largest.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Takes the progress row.
async fn take(
    sql: &mut Sql,
    owner: &Owner,
    label: &str,
    leftovers: Option<(Leftovers, &str)>,
) -> Result<Result<Progress, Failure>, TabletError> {
    // What it refuses by name, or what the server said.
    let settings = format!(
        "SET session_replication_role = replica; SET lock_timeout = '{LOCK_TIMEOUT}'; \
         SET plan_cache_mode = force_generic_plan; SET synchronous_commit = on"
    );
    let asked = async {
        sql.text(&settings).await?;
        // Whoever may not create a schema may not say IF NOT EXISTS either.
        let no_schema = "SELECT pg_catalog.to_regnamespace('untorn') IS NULL";
        if sql.text(no_schema).await?.as_deref() == Some("t") {
            sql.text("CREATE SCHEMA untorn").await?;
        }
        let no_tables = "SELECT pg_catalog.to_regclass('untorn.progress') IS NULL
                             OR pg_catalog.to_regclass('untorn.writers') IS NULL
                             OR pg_catalog.to_regclass('untorn.skipped') IS NULL";
        if sql.text(no_tables).await?.as_deref() == Some("t") {
            sql.text(SETUP).await?;
        }
        let (log_id, tablet, epoch) = (&owner.log_id, i64::from(owner.tablet.0), number(owner.epoch.0));
        sql.query(
            // Where a row stands, ON CONFLICT would wait for whoever is changing it.
            "INSERT INTO untorn.progress (format, log_id, tablet, epoch, started, position)
             SELECT $1::int, $2::text, $3::bigint, $4::bigint, false, 0 WHERE NOT EXISTS (SELECT FROM untorn.progress) ON CONFLICT DO NOTHING",
            &[&FORMAT, log_id, &tablet, &epoch],
        )
        .await?;
        let found = "SELECT log_id, tablet, epoch, format, backend, backend_start FROM untorn.progress";
        sql.query(found, &[]).await
    };
    let rows = match asked.await {
        Ok(rows) => rows,
        Err(failure) => return Ok(Err(failure)),
    };
    let Some(row) = rows.first() else {
        return Err(TabletError::Refused(format!(
            "{label}: untorn.progress is empty although a row was just put there"
        )));
    };
    let (log_id, tablet, epoch, format): (String, i64, i64, i32) = (row.get(0), row.get(1), row.get(2), row.get(3));
    if format > FORMAT {
        return Err(TabletError::Refused(format!(
            "{label}: untorn.progress has format {format}, this untorn reads {FORMAT}; run the newer one"
        )));
    }
    if log_id != owner.log_id || tablet != i64::from(owner.tablet.0) {
        return Err(TabletError::Refused(format!(
            "{label}: the database belongs to another untorn: it is bound to log {log_id} as r{tablet}, this one's log is \
             {} and its tablet {}. Start that one with its data folder; or, to begin again with a new copy, stop it, empty \
             the replicated tables and run there:\nDROP SCHEMA untorn CASCADE;",
            owner.log_id, owner.tablet
        )));
    }
    if unsigned(epoch) > owner.epoch.0 {
        return Err(TabletError::Fenced { held: Epoch(unsigned(epoch)) });
    }
    if let (Some(backend), Some(started)) = (row.get::<_, Option<i32>>(4), row.get(5)) {
        match end_backend(sql, backend, started).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(TabletError::Indeterminate(format!(
                    "{label}: the session of the owner before this one, process {backend}, does not end"
                )));
            }
            Err(failure) => return Ok(Err(failure)),
        }
    }
    if let Some((leftovers, gids)) = leftovers {
        match resolve(sql, leftovers, gids).await {
            Ok(true) => {}
            Ok(false) => return Err(TabletError::Refused(format!("{label}: {NO_PREPARED}"))),
            Err(failure) => return Ok(Err(failure)),
        }
    }
    let epoch = number(owner.epoch.0);
    let taken = "UPDATE untorn.progress SET epoch = $1, backend = pg_catalog.pg_backend_pid(), backend_start =
             (SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid())
         WHERE log_id = $2 AND epoch <= $1 RETURNING started, position";
    Ok(match sql.query(taken, &[&epoch, &owner.log_id]).await {
        Err(failure) => Err(failure),
        Ok(rows) => match rows.first() {
            Some(row) => Ok(Progress { started: row.get(0), position: LogPosition(unsigned(row.get(1))) }),
            None => return Err(TabletError::Indeterminate(format!("{label}: another owner was quicker"))),
        },
    })
}

/// What is the matter with a server that cannot prepare transactions.
pub(super) const NO_PREPARED: &str = "the replica has several servers, and max_prepared_transactions is 0 at this one; run \
     there, and restart it:\nALTER SYSTEM SET max_prepared_transactions = 10;";

/// Ends what owners before left prepared, as the log says; whether the server can prepare transactions at all. Such a
/// transaction holds the progress row, so this comes before the row is taken.
async fn resolve(sql: &mut Sql, leftovers: Leftovers, gids: &str) -> Result<bool, Failure> {
    let prepared = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() ORDER BY prepared";
    for row in sql.query(prepared, &[]).await? {
        let gid: String = row.get(0);
        let Some(found) = release::release_of(gids, &gid) else { continue };
        let how = if release::is_committed(found, leftovers.last) { "COMMIT" } else { "ROLLBACK" };
        sql.text(&format!("{how} PREPARED {}", literal(&gid))).await?;
    }
    Ok(sql.text("SHOW max_prepared_transactions").await?.as_deref() != Some("0"))
}

/// Ends a backend of an owner that is over, so that nothing of it is in work any more; whether it has ended.
async fn end_backend(sql: &mut Sql, backend: i32, started: std::time::SystemTime) -> Result<bool, Failure> {
    let still = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                 WHERE pid = $1 AND backend_start = $2 AND pid <> pg_catalog.pg_backend_pid()";
    let deadline = tokio::time::Instant::now() + BACKEND_ENDS;
    while !sql.query(still, &[&backend, &started]).await?.is_empty() {
        if tokio::time::Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(true)
}
