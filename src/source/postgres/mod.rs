//! PostgreSQL servers as a source: one logical replication slot with two-phase decoding is one stream.
//!
//! What a stream's messages become stands in `assemble`, pure; around it, `stream` keeps the connection alive and
//! tells the server what it may forget, `slot` creates the slot and `copy` reads what came before it.

pub mod assemble;
mod check;
pub mod confirm;
mod copy;
pub mod decode;
mod error;
mod failover;
mod gid;
mod relation;
mod retention;
mod rows;
mod rules;
mod session;
mod slot;
mod stream;
mod transaction;
pub mod tuple;
mod wire;

pub use check::{Checked, Clock};
pub use gid::GidPattern;
pub use retention::Dropped;
pub use rules::{Pattern, Rename, TableRules};

use super::{Catalog, CopyReader, Keeper, NewSlot, Prepared, Resume, Snapshot, Source, SourceError};
use crate::coordinator::PublishedTable;
use crate::flow::Retention;
use crate::limits;
use crate::postgres::{Failure, Sql, Target};
use crate::wal::{HybridTime, Key, OpId, SourceTransactionId};
use assemble::Assembler;
use async_trait::async_trait;
use copy::PostgresSnapshot;
use failover::Identity;
use rand::{RngCore, SeedableRng};
use relation::Published;
use rules::Renaming;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stream::{Positions, PostgresStream, State};
use tokio::sync::mpsc;

/// One `[[source.tablets]]` of a `postgres` source.
#[derive(Clone, Debug)]
pub struct Options {
    /// The source tablet's name.
    pub name: String,
    /// How the server is reached.
    pub url: String,
    /// Where the password stands, if not in the URL.
    pub password_file: Option<PathBuf>,
    /// The publication, which must exist.
    pub publication: String,
    /// The slot, created when missing.
    pub slot: String,
    /// Which published tables are replicated, and under which names.
    pub tables: Arc<TableRules>,
    /// What of a gid names the transaction.
    pub gids: GidPattern,
    /// How long creating the slot waits for any one transaction; [`limits::SLOT_LOCK_TIMEOUT`] unless a test is in a
    /// hurry.
    pub slot_lock_timeout: Duration,
}

/// A PostgreSQL server's database as a source.
pub struct PostgresSource {
    target: Target,
    options: Options,
    /// A session for the questions that come again and again; one asks at a time.
    sql: tokio::sync::Mutex<Option<Sql>>,
    /// The open stream's.
    positions: Mutex<Arc<Positions>>,
    /// A slot was created here, or its creation was cut off, and its copy has not become part of the log.
    unfinished: AtomicBool,
}

impl PostgresSource {
    /// From the configuration. Nothing is connected yet.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(options: Options) -> Result<Self, String> {
        let target = Target::parse(&options.name, &options.url, options.password_file.clone())?;
        Ok(Self {
            target,
            options,
            sql: tokio::sync::Mutex::default(),
            positions: Mutex::default(),
            unfinished: AtomicBool::new(false),
        })
    }

    fn at(&self, failure: &Failure) -> SourceError {
        failure.at(&self.target.label())
    }

    /// Asks the server on the session that is kept for it, unless that has ended meanwhile.
    async fn ask<T>(&self, question: impl AsyncFnOnce(&mut Sql) -> Result<T, Failure>) -> Result<T, SourceError> {
        let mut kept = self.sql.lock().await;
        let alive = kept.take().and_then(Sql::alive);
        let mut sql = match alive {
            Some(sql) => sql,
            None => self.target.session().await?,
        };
        let answer = tokio::time::timeout(limits::CONNECT_TIMEOUT, question(&mut sql)).await;
        let answer = answer.unwrap_or_else(|_| Err(Failure::lost("the server does not answer")));
        if answer.is_ok() {
            *kept = Some(sql);
        }
        answer.map_err(|failure| self.at(&failure))
    }

    fn renaming(&self, catalog: Arc<dyn Catalog>) -> Arc<dyn Catalog> {
        Arc::new(Renaming { catalog, rules: Arc::clone(&self.options.tables) })
    }

    /// What a slot's creation left, to be read from.
    async fn take(&self, holder: Sql, position: u64, own_slot: bool) -> Result<Box<dyn Snapshot>, SourceError> {
        let Options { publication, tables, .. } = &self.options;
        let (target, rules) = (self.target.clone(), Arc::clone(tables));
        Ok(Box::new(PostgresSnapshot::new(target, holder, publication, rules, position, own_slot).await?))
    }

    fn positions(&self) -> std::sync::MutexGuard<'_, Arc<Positions>> {
        self.positions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl Source for PostgresSource {
    fn name(&self) -> &str {
        self.target.name()
    }

    async fn found_slot(&self) -> Result<Option<String>, SourceError> {
        let Options { publication, slot, .. } = &self.options;
        let server = self.ask(async |sql| slot::inspect(sql, publication, slot).await).await?;
        // What else is wrong with it is said when it is to be created or read.
        Ok(server.slot.filter(|found| found.plugin == "pgoutput").map(|found| match found.active_pid {
            Some(pid) => format!("slot {slot:?}, in use by process {pid},"),
            None => format!("slot {slot:?}"),
        }))
    }

    async fn create_slot(&self) -> Result<NewSlot, SourceError> {
        let Options { publication, slot, slot_lock_timeout, .. } = &self.options;
        let created = slot::create(&self.target, publication, slot, *slot_lock_timeout, &self.unfinished).await?;
        let (start, holder) = (created.start, created.snapshot);
        let snapshot = self.take(holder, start, true).await?;
        Ok(NewSlot { start: OpId::end_of_term(start), identity: created.identity, snapshot: Some(snapshot) })
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        let slot = format!("untorn_copy_{:016x}", rand::rngs::SmallRng::from_os_rng().next_u64());
        let created = slot::snapshot(&self.target, &slot, self.options.slot_lock_timeout).await?;
        self.take(created.snapshot, created.start, false).await
    }

    async fn publication(&self) -> Result<Option<(Vec<PublishedTable>, OpId)>, SourceError> {
        let Options { publication, tables: rules, .. } = &self.options;
        let mut look = self.ask(async |sql| relation::published(sql, publication).await).await?;
        let clash = |clash| SourceError::Stop(format!("{}: {clash}", self.target.label()));
        relation::keep(&mut look, rules).map_err(clash)?;
        let tables = look.iter().map(Published::described).collect();
        let flushed = self.flushed().await?.unwrap_or(OpId::ZERO);
        Ok(Some((tables, flushed)))
    }

    async fn open(
        &self,
        resume: Resume,
        catalog: Arc<dyn Catalog>,
    ) -> Result<(Box<dyn super::Stream>, Keeper), SourceError> {
        let Options { publication, slot, gids, slot_lock_timeout, .. } = &self.options;
        let label = self.target.label();
        let mut sql = self.target.session().await?;
        let server = slot::inspect(&mut sql, publication, slot).await.map_err(|failure| self.at(&failure))?;
        server.suits(&label, publication)?;
        let mut session = self.target.replication(*slot_lock_timeout).await?;
        let identity = Identity::ask(&mut session).await.map_err(|failure| self.at(&failure))?;
        if !resume.identity.is_empty() {
            let history =
                failover::history(&mut session, identity.timeline).await.map_err(|failure| self.at(&failure))?;
            let continues = identity.continues(&Identity::parse(&resume.identity), &history, resume.after.term);
            continues.map_err(|why| SourceError::Stop(format!("{label}: {why}")))?;
        }
        // After who answers: a slot that is not there, or a position that it lost, then has its reason.
        server.can_resume(&label, self.target.name(), slot, resume.after.term)?;
        // Within a term the server cannot resume: it sends that transaction again, and the rest is dropped here.
        let after = if resume.after.index == u64::MAX { resume.after.term } else { 0 };
        slot::start(&self.target, &mut session, publication, slot, after).await?;
        let positions = Arc::new(Positions::default());
        *self.positions() = positions.clone();
        let (sender, groups) = mpsc::channel(limits::FRAME_GROUPS);
        let keeper = stream::keep(session, sender, positions.clone(), after, server.feedback);
        let connection = rand::rngs::SmallRng::from_os_rng().next_u64();
        let stream = PostgresStream {
            target: self.target.clone(),
            groups,
            positions,
            catalog: self.renaming(catalog),
            rules: Arc::clone(&self.options.tables),
            sql: Some(sql),
            assembler: Assembler::new(self.target.name(), gids.clone(), connection, &resume),
            state: State::new(),
            identity: identity.to_string(),
        };
        Ok((Box::new(stream), Box::pin(keeper)))
    }

    async fn flushed(&self) -> Result<Option<OpId>, SourceError> {
        let text = self.ask(async |sql| sql.text("SELECT pg_catalog.pg_current_wal_flush_lsn()").await).await?;
        let position = text.as_deref().and_then(decode::parse_lsn).unwrap_or_default();
        self.positions().want(position);
        Ok(Some(OpId::end_of_term(position)))
    }

    async fn prepared(&self) -> Result<Vec<Prepared>, SourceError> {
        let question = "SELECT gid, (EXTRACT(EPOCH FROM prepared) * 1000000)::int8
             FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() ORDER BY prepared";
        let rows = self.ask(async |sql| sql.query(question, &[]).await).await?;
        let one = |row: &tokio_postgres::Row| {
            let gid: String = row.get(0);
            let transaction = SourceTransactionId::first(self.options.gids.transaction(&gid).as_bytes());
            let since = HybridTime::from_micros(u64::try_from(row.get::<_, i64>(1)).unwrap_or_default());
            Prepared { gid, transaction, since }
        };
        Ok(rows.iter().map(one).collect())
    }

    /// A PostgreSQL stream carries the end of every branch that it carries, so nothing is ever left to be asked for.
    async fn not_running(
        &self,
        _transactions: Vec<SourceTransactionId>,
    ) -> Result<(Vec<SourceTransactionId>, OpId), SourceError> {
        Ok((Vec::new(), OpId::ZERO))
    }

    async fn retention(&self) -> Result<Option<Retention>, SourceError> {
        self.held_back().await
    }

    fn slot_stands(&self) {
        self.unfinished.store(false, Ordering::Release);
    }

    async fn abandon_slot(&self) {
        self.drop_unfinished().await;
    }

    async fn published(&self) -> Result<Option<Vec<String>>, SourceError> {
        self.published_names().await.map(Some)
    }

    async fn rows(&self, table: &str, keys: Option<&[Key]>) -> Result<Option<Box<dyn CopyReader>>, SourceError> {
        self.table_rows(table, keys).await
    }

    async fn open_transactions(&self) -> Result<(u64, u64), SourceError> {
        self.open_numbers().await
    }

    async fn nudge(&self) -> Result<(), SourceError> {
        // A standby that does not answer must not hold it up: the message is of no worth once the stream has moved.
        let message = "BEGIN; SET LOCAL synchronous_commit = local;
            SELECT pg_catalog.pg_logical_emit_message(true, 'untorn', ''); COMMIT";
        self.ask(async |sql| sql.text(message).await).await?;
        Ok(())
    }
}
