//! Slots: what stands on the server, and how one is created.

use super::decode::{lsn, parse_lsn};
use super::failover::Identity;
use super::wire::Replication;
use crate::limits::FEEDBACK_INTERVAL;
use crate::postgres::{Failure, Sql, Target, literal, quote};
use crate::source::SourceError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The oldest server that decodes prepared transactions for us.
pub const VERSION_MIN: i32 = 150_000;

/// The oldest server whose standbys keep a slot that decodes prepared transactions, where they are told to.
const FAILOVER_FROM: i32 = 180_000;

/// What a server says of itself and of a slot.
#[derive(Debug, Clone)]
pub struct Server {
    /// `server_version_num`.
    pub version: i32,
    /// Its `wal_level`.
    pub wal_level: String,
    /// Whether it is a standby.
    pub standby: bool,
    /// Whether the publication exists.
    pub publication: bool,
    /// How far it has flushed its WAL; zero on a standby.
    pub flushed: u64,
    /// How often to tell the server that we live: its `wal_sender_timeout` leaves room for three times that.
    pub feedback: Duration,
    /// The slot, if it exists.
    pub slot: Option<Slot>,
}

/// A slot that exists.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Its output plugin; empty for a physical slot.
    pub plugin: String,
    /// The process that reads it.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Whether it decodes prepared transactions.
    pub two_phase: bool,
    /// The database that it decodes; empty for a physical slot.
    pub database: String,
    /// Up to where its reader said that it needs nothing again: the server sends nothing below.
    pub confirmed: u64,
}

/// Asks a server for what a stream needs to know of it.
///
/// # Errors
/// What the server said.
pub async fn inspect(sql: &mut Sql, publication: &str, slot: &str) -> Result<Server, Failure> {
    let version = sql.text("SHOW server_version_num").await?.and_then(|text| text.parse().ok()).unwrap_or_default();
    let wal_level = sql.text("SHOW wal_level").await?.unwrap_or_default();
    let standby = sql.text("SELECT pg_catalog.pg_is_in_recovery()").await?.as_deref() == Some("t");
    let flushed = if standby { None } else { sql.text("SELECT pg_catalog.pg_current_wal_flush_lsn()").await? };
    let timeout = sql.text("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'").await?;
    let timeout = timeout.and_then(|text| text.parse().ok()).filter(|&timeout| timeout > 0).map(Duration::from_millis);
    let found = sql.query("SELECT FROM pg_catalog.pg_publication WHERE pubname = $1", &[&publication]).await?;
    let slot = if version < VERSION_MIN {
        None
    } else {
        let rows = sql
            .query(
                "SELECT COALESCE(plugin::text, ''), active_pid, COALESCE(wal_status, ''), two_phase, COALESCE(database::text, ''),
                        COALESCE(confirmed_flush_lsn::text, '')
                 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
                &[&slot],
            )
            .await?;
        rows.first().map(|row| Slot {
            plugin: row.get(0),
            active_pid: row.get(1),
            wal_status: row.get(2),
            two_phase: row.get(3),
            database: row.get(4),
            confirmed: parse_lsn(row.get(5)).unwrap_or_default(),
        })
    };
    Ok(Server {
        version,
        wal_level,
        standby,
        publication: !found.is_empty(),
        flushed: flushed.as_deref().and_then(parse_lsn).unwrap_or_default(),
        feedback: timeout.map_or(FEEDBACK_INTERVAL, |timeout| FEEDBACK_INTERVAL.min(timeout / 3)),
        slot,
    })
}

impl Server {
    /// Whether a stream can be read at all.
    ///
    /// # Errors
    /// The first thing that must be mended, with what to run.
    pub fn suits(&self, server: &str, publication: &str) -> Result<(), SourceError> {
        let fault = if self.version < VERSION_MIN {
            format!("the server's version is {}; PostgreSQL 15 or newer is needed", self.version)
        } else if self.standby {
            "the server is a standby; name the primary in the URL".to_owned()
        } else if self.wal_level != "logical" {
            format!(
                "wal_level is {}, not logical; run ALTER SYSTEM SET wal_level = 'logical'; and restart the server",
                self.wal_level
            )
        } else if !self.publication {
            format!(
                "publication {publication:?} does not exist; run CREATE PUBLICATION {} FOR ALL TABLES;",
                quote(publication)
            )
        } else {
            return Ok(());
        };
        Err(SourceError::Stop(format!("{server}: {fault}")))
    }

    /// Whether the slot still carries what comes after a position.
    ///
    /// # Errors
    /// Why it does not, and what to run.
    pub fn can_resume(&self, server: &str, tablet: &str, name: &str, after: u64) -> Result<(), SourceError> {
        let again = format!("copy this source tablet again: untorn recopy --tablet {tablet}");
        let fault = match &self.slot {
            None => {
                format!("slot {name:?} is gone, and what it would have carried with it; {again}")
            }
            Some(slot) if slot.wal_status == "lost" => format!(
                "slot {name:?} is lost: it held more WAL than max_slot_wal_keep_size, and what came behind it is gone; raise \
                 that setting, and {again}"
            ),
            Some(slot) if slot.plugin != "pgoutput" || !slot.two_phase => format!(
                "slot {name:?} was not created by untorn (plugin {:?}, two-phase {}); choose another name",
                slot.plugin, slot.two_phase
            ),
            Some(Slot { active_pid: Some(pid), .. }) => {
                return Err(SourceError::Retry(format!("{server}: slot {name:?} is in use by process {pid}")));
            }
            Some(_) if self.flushed < after => format!(
                "the server has flushed its WAL up to {} only, below {}, which was taken from it: it has lost \
                 transactions, or it is another server; {again}",
                lsn(self.flushed),
                lsn(after)
            ),
            Some(Slot { confirmed, .. }) if *confirmed > after => format!(
                "slot {name:?} was confirmed up to {}, but this data folder knows only what came up to {}: it is older \
                 than the slot, as a restored backup is, and what lies between is never sent again; bring the newest \
                 data folder back, or {again}",
                lsn(*confirmed),
                lsn(after)
            ),
            Some(_) => return Ok(()),
        };
        Err(SourceError::Stop(format!("{server}: {fault}")))
    }
}

/// A slot that was just created.
pub struct Created {
    /// Its consistent point: it carries every transaction that commits above.
    pub start: u64,
    /// See [`Identity`].
    pub identity: String,
    /// A session whose transaction sees exactly what had committed at that point.
    pub snapshot: Sql,
}

/// Creates the slot; one of that name that nobody reads is dropped first, because its copy was cut off. From the moment
/// on in which the server may have made it, `unfinished` is set: a creation that is cut off goes on at the server.
///
/// # Errors
/// Why it cannot be created, and what to run.
pub async fn create(
    target: &Target,
    publication: &str,
    slot: &str,
    lock_timeout: Duration,
    unfinished: &AtomicBool,
) -> Result<Created, SourceError> {
    let label = target.label();
    let at = |failure: Failure| failure.at(&label);
    let mut sql = target.session().await?;
    let server = inspect(&mut sql, publication, slot).await.map_err(at)?;
    server.suits(&label, publication)?;
    if let Some(old) = server.slot {
        if let Some(pid) = old.active_pid {
            return Err(SourceError::Retry(format!("{label}: slot {slot:?} is in use by process {pid}")));
        }
        if old.plugin != "pgoutput" {
            return Err(SourceError::Stop(format!(
                "{label}: slot {slot:?} belongs to something else (plugin {:?}); choose another name",
                old.plugin
            )));
        }
        sql.query("SELECT pg_catalog.pg_drop_replication_slot($1)", &[&slot]).await.map_err(at)?;
    }
    let failover = if server.version >= FAILOVER_FROM { ", FAILOVER" } else { "" };
    let options = format!("LOGICAL pgoutput (SNAPSHOT 'export', TWO_PHASE{failover})");
    create_as(target, sql, slot, &options, lock_timeout, unfinished).await
}

/// A snapshot with its position: what a slot leaves that goes with its session. Creating one waits until everything has
/// ended that runs or is prepared, and a snapshot is only exported by a slot that waited.
///
/// # Errors
/// As [`create`].
pub async fn snapshot(target: &Target, slot: &str, lock_timeout: Duration) -> Result<Created, SourceError> {
    let sql = target.session().await?;
    let options = "TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')";
    // It goes with its session, so nobody has to clean up after it.
    create_as(target, sql, slot, options, lock_timeout, &AtomicBool::new(false)).await
}

async fn create_as(
    target: &Target,
    mut sql: Sql,
    slot: &str,
    options: &str,
    lock_timeout: Duration,
    unfinished: &AtomicBool,
) -> Result<Created, SourceError> {
    let label = target.label();
    let at = |failure: Failure| failure.at(&label);
    let mut session = target.replication(lock_timeout).await?;
    let identity = Identity::ask(&mut session).await.map_err(at)?.to_string();
    let command = format!("CREATE_REPLICATION_SLOT {} {options}", quote(slot));
    unfinished.store(true, Ordering::Release);
    let row = session.command(&command).await;
    if row.as_ref().is_err_and(|failure| !failure.code.is_empty()) {
        unfinished.store(false, Ordering::Release);
    }
    let row = match row {
        Ok(row) => row,
        // The lock that it waits for is a transaction's own.
        Err(failure) if failure.code == "55P03" => {
            let who = blockers(&mut sql).await.map_err(at)?;
            return Err(SourceError::Retry(format!("{label}: creating slot {slot:?} waits for {who}")));
        }
        Err(failure) => return Err(at(failure)),
    };
    let (Some(Some(start)), Some(Some(snapshot))) = (row.get(1), row.get(2)) else {
        return Err(SourceError::Stop(format!("{label}: the server created slot {slot:?} without a snapshot")));
    };
    let start = parse_lsn(start).ok_or_else(|| {
        SourceError::Stop(format!("{label}: slot {slot:?} starts at {start:?}, which is no position"))
    })?;
    // The snapshot dies with the session's next command, so it is taken over while the session waits.
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", literal(snapshot));
    sql.text(&begin).await.map_err(at)?;
    Ok(Created { start, identity, snapshot: sql })
}

/// A prepared transaction that a slot's creation waits for.
pub struct Orphan {
    /// Its gid, database and age.
    pub text: String,
    /// What ends it, either way.
    pub sql: String,
    /// How long it has been prepared.
    pub age: Duration,
    /// Whether it is in the session's own database.
    pub here: bool,
}

/// The prepared transactions of the server's cluster, oldest first: a slot waits for those of every database.
///
/// # Errors
/// What the server said.
pub async fn prepared(sql: &mut Sql) -> Result<Vec<Orphan>, Failure> {
    let rows = sql
        .query(
            "SELECT gid, database::text, EXTRACT(EPOCH FROM now() - prepared)::float8, database = current_database()
             FROM pg_catalog.pg_prepared_xacts ORDER BY prepared LIMIT 5",
            &[],
        )
        .await?;
    let one = |row: &tokio_postgres::Row| {
        let (gid, database, age, here): (String, String, f64, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let text = format!("prepared transaction {gid:?} of database {database:?}, {age:.0} s old");
        let gid = literal(&gid);
        let elsewhere = if here { String::new() } else { format!(", in database {}", quote(&database)) };
        let sql = format!("ROLLBACK PREPARED {gid}; -- or COMMIT PREPARED {gid};{elsewhere}");
        Orphan { text, sql, age: Duration::from_secs_f64(age.max(0.0)), here }
    };
    Ok(rows.iter().map(one).collect())
}

/// The transactions that keep a slot from being created, oldest first.
async fn blockers(sql: &mut Sql) -> Result<String, Failure> {
    let prepared = prepared(sql).await?;
    if !prepared.is_empty() {
        let one = |orphan: Orphan| format!("{} ({})", orphan.text, orphan.sql);
        return Ok(prepared.into_iter().map(one).collect::<Vec<_>>().join(", "));
    }
    let running = sql
        .query(
            "SELECT pid, EXTRACT(EPOCH FROM now() - xact_start)::float8
             FROM pg_catalog.pg_stat_activity
             WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() ORDER BY xact_start LIMIT 5",
            &[],
        )
        .await?;
    let one = |row: &tokio_postgres::Row| {
        let (pid, age): (i32, Option<f64>) = (row.get(0), row.get(1));
        format!("the transaction of process {pid}, {:.0} s old", age.unwrap_or_default())
    };
    if running.is_empty() {
        return Ok("a transaction that has ended by now".into());
    }
    Ok(running.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Begins to stream from a slot.
///
/// # Errors
/// Why it cannot, and what to run.
pub async fn start(
    target: &Target,
    session: &mut Replication,
    publication: &str,
    slot: &str,
    after: u64,
) -> Result<(), SourceError> {
    let publications = quote(publication).replace('\'', "''");
    let command = format!(
        "START_REPLICATION SLOT {} LOGICAL {} (proto_version '{}', publication_names '{publications}', \
         streaming 'on', two_phase 'on')",
        quote(slot),
        lsn(after),
        super::decode::PROTOCOL_VERSION,
    );
    session.start(&command).await.map_err(|failure| failure.at(&target.label()))
}
