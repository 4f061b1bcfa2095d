//! Copies of a stream's tables, beside its poller: the initial ones from the slot's snapshot, and whichever the transaction
//! leader asks for later. Tables are read in parallel, each over a connection of its own; one that was cut off begins again,
//! and no other.

use super::ended::{Ended, Trouble};
use super::leader::{Copied, LeaderError, PullerId, StreamOpened, TransactionLeader};
use super::poller::{LeaderCatalog, asked_to_drain};
use super::streams::StreamSide;
use super::tablets::{Tablet, Tablets};
use crate::flow::{Backoff, Pace};
use crate::limits::{COPY_LOOK_EVERY_MS, RETRY_FIRST_MS, RETRY_LAST_MS, STOPPED_RETRY_MS};
use crate::metrics::{STREAM, STREAM_COPIED_ROWS};
use crate::planted::{Bug, planted};
use crate::router::Router;
use crate::source::{CopyReader, Snapshot, SourceError};
use crate::tablet::{CopyBatch, TabletError};
use crate::wal::{HybridTime, Key, OpId, Row, TableSchema};
use ::metrics::counter;
use futures::future::{BoxFuture, FutureExt, try_join_all};
use futures::stream::{self, StreamExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// How copies are read.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    /// Bytes a second that are read from one server at most; `None`: as fast as it gives them.
    pub rate: Option<u64>,
    /// Tables of one server that are read at once.
    pub parallel: usize,
}

/// One stream's copier.
pub(super) struct Copier {
    pub(super) side: Arc<StreamSide>,
    pub(super) leader: Arc<dyn TransactionLeader>,
    pub(super) tablets: Tablets,
    pub(super) options: CopyOptions,
    pub(super) draining: watch::Receiver<bool>,
}

/// Rows of a table, and about how many bytes they took on the way; `None` after the last.
type Page = Option<(Vec<(Key, Row)>, usize)>;

/// What the leader answers.
type Told<T> = BoxFuture<'static, Result<T, LeaderError>>;

/// Whether there is anything to do later.
enum Next {
    Look,
    Nothing,
}

/// Tables that are copied from one snapshot.
struct Copy<'a> {
    copier: &'a Copier,
    snapshot: Box<dyn Snapshot>,
    base: HybridTime,
    opened: Arc<StreamOpened>,
    tablets: Vec<Tablet>,
    router: Router,
    pace: Mutex<Pace>,
    began: Instant,
}

impl Copier {
    /// Copies what is asked for until it is told to drain, or the applier must end.
    pub(super) async fn run(self, seed: u64) -> Result<(), Ended> {
        let mut draining = self.draining.clone();
        tokio::select! {
            ended = self.run_rounds(seed) => ended,
            () = asked_to_drain(&mut draining) => Ok(()),
        }
    }

    async fn run_rounds(&self, seed: u64) -> Result<(), Ended> {
        let mut backoff =
            Backoff::new(Duration::from_millis(RETRY_FIRST_MS), Duration::from_millis(RETRY_LAST_MS), seed);
        let mut said = None;
        loop {
            let round = self.round().await;
            self.side.copy_progress().end();
            let (cause, wait) = match round {
                Ok(Next::Nothing) => return Ok(()),
                Ok(Next::Look) => {
                    backoff.reset();
                    (None, Duration::from_millis(COPY_LOOK_EVERY_MS))
                }
                Err(Trouble::Ended(ended)) => return Err(ended),
                Err(Trouble::Retry(cause) | Trouble::Fenced(cause)) => (Some(cause), backoff.next_wait()),
                Err(Trouble::Stop(cause) | Trouble::StandStill(cause)) => {
                    (Some(cause), Duration::from_millis(STOPPED_RETRY_MS))
                }
            };
            if let Some(cause) = cause.as_ref().filter(|_| said != cause) {
                warn!(stream = %self.side.name, %cause, "a copy is begun again");
            }
            self.side.copy_progress().cause.clone_from(&cause);
            said = cause;
            tokio::select! {
                () = sleep(wait) => {}
                () = self.side.to_copy() => {}
            }
        }
    }

    async fn round(&self) -> Result<Next, Trouble> {
        let Some(opened) = self.side.opened() else { return Ok(Next::Look) };
        if let Some((base, snapshot)) = self.side.take_snapshot() {
            let tables = snapshot.tables().iter().map(|table| table.published.name.clone()).collect();
            return self.copy(opened, base, snapshot, tables).await;
        }
        if !opened.slot_stands {
            return Ok(Next::Look);
        }
        let published = match self.side.source.publication().await {
            Ok(Some(published)) => published,
            Ok(None) => return Ok(Next::Nothing),
            Err(error) => {
                // The stream's own connection says the same, louder.
                debug!(stream = %self.side.name, %error, "the publication could not be looked at");
                return Ok(Next::Look);
            }
        };
        let (tables, flushed) = published;
        let wanted = self.tell(|leader, puller| {
            let tables = tables.clone();
            async move { leader.published(puller, flushed, tables).await }.boxed()
        });
        let wanted = wanted.await?;
        if wanted.is_empty() {
            return Ok(Next::Look);
        }
        let base = self.tell(|leader, puller| {
            let tables = wanted.clone();
            async move { leader.copy_begun(puller, tables).await }.boxed()
        });
        let base = base.await?;
        let snapshot = self.side.source.snapshot().await?;
        self.copy(opened, base, snapshot, wanted).await
    }

    /// Tells the leader something in the name of this stream's puller, which may be another by the time it is heard.
    async fn tell<T>(&self, tell: impl Fn(Arc<dyn TransactionLeader>, PullerId) -> Told<T>) -> Result<T, Trouble> {
        loop {
            let Some(opened) = self.side.opened() else {
                // It is being opened again.
                sleep(Duration::from_millis(RETRY_FIRST_MS)).await;
                continue;
            };
            let puller = PullerId { stream: opened.stream, epoch: opened.puller };
            match tell(Arc::clone(&self.leader), puller).await {
                Err(LeaderError::Fenced(_)) if self.side.opened().is_none_or(|now| now.puller != opened.puller) => {}
                answer => return Ok(answer?),
            }
        }
    }

    /// Copies tables, and says of each when it is durable. The first trouble is the answer, after all have ended.
    async fn copy(
        &self,
        opened: Arc<StreamOpened>,
        base: HybridTime,
        snapshot: Box<dyn Snapshot>,
        tables: Vec<String>,
    ) -> Result<Next, Trouble> {
        let copy = Copy {
            copier: self,
            base,
            tablets: self.tablets.of(&opened.map).map_err(Trouble::Stop)?,
            router: Router::new(opened.map.clone()),
            pace: Mutex::new(Pace::new(self.options.rate)),
            began: Instant::now(),
            snapshot,
            opened,
        };
        for table in &tables {
            let found = copy.snapshot.tables().iter().find(|known| known.published.name == *table);
            self.side.copy_progress().expect(table, found.and_then(|table| table.estimate));
        }
        let copies: Vec<_> = tables.iter().map(|table| copy.table(table).boxed()).collect();
        let ended: Vec<_> = stream::iter(copies).buffer_unordered(self.options.parallel.max(1)).collect().await;
        let troubles: Vec<Trouble> = ended.into_iter().filter_map(Result::err).collect();
        let ends = |trouble: &Trouble| matches!(trouble, Trouble::Ended(_));
        let first = troubles.iter().find(|trouble| ends(trouble)).or(troubles.first());
        first.map_or(Ok(Next::Look), |trouble| Err(trouble.clone()))
    }
}

/// The next rows of a table.
async fn page(reader: &mut dyn CopyReader) -> Result<Page, SourceError> {
    let page = reader.next().await;
    if planted(Bug::CutOffCopyCounts) { Ok(page.unwrap_or_default()) } else { page }
}

impl Copy<'_> {
    async fn table(&self, table: &str) -> Result<(), Trouble> {
        let Copier { side, leader, .. } = self.copier;
        let catalog = LeaderCatalog { leader: Arc::clone(leader), stream: self.opened.stream };
        let mut reader = self.snapshot.read(table, Arc::new(catalog)).await?;
        let schema = reader.schema().clone();
        let mut copied = 0;
        let mut next = page(reader.as_mut()).await?;
        while let Some((rows, bytes)) = next {
            copied += rows.len() as u64;
            counter!(STREAM_COPIED_ROWS, STREAM => side.name.clone()).increment(rows.len() as u64);
            self.took(table, rows.len() as u64);
            let wait = self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, self.began.elapsed());
            sleep(wait).await;
            // The next rows are read while these are stored.
            let (_, following) =
                tokio::try_join!(self.send(&schema, rows, false), async { Ok(page(reader.as_mut()).await?) })?;
            next = following;
        }
        // Every tablet hears the end, rows or none.
        self.send(&schema, Vec::new(), !planted(Bug::CopyEndUnheard)).await?;
        let snapshot: OpId = self.snapshot.position();
        let done = Copied { table: table.to_owned(), base: self.base, snapshot, rows: copied };
        let told = self.copier.tell(|leader, puller| {
            let done = done.clone();
            async move { leader.copied(puller, done).await }.boxed()
        });
        told.await?;
        info!(stream = %side.name, table, rows = copied, "a table is copied");
        Ok(())
    }

    /// Counts rows of a table, and says now and then how far all of them are.
    fn took(&self, table: &str, rows: u64) {
        let name = &self.copier.side.name;
        let mut progress = self.copier.side.copy_progress();
        progress.took(table, rows, self.began.elapsed());
        if progress.is_to_be_said(self.began.elapsed()) {
            let (rows, total) = progress.rows();
            let (rate, left) = (progress.rate, progress.seconds_left());
            info!(stream = %name, rows, about = total, rows_per_second = rate, seconds_left = left, "tables are being copied");
        }
    }

    /// Sends rows to their tablets.
    async fn send(&self, schema: &TableSchema, rows: Vec<(Key, Row)>, last: bool) -> Result<(), Trouble> {
        let mut routed: Vec<Vec<(Key, Row)>> = vec![Vec::new(); self.tablets.len()];
        for (key, row) in rows {
            let id = self.router.route(schema.table, &key);
            let place = self.tablets.iter().position(|tablet| Some(tablet.id) == id);
            let Some(place) = place else { return Err(Trouble::Stop("the map names no replica tablets".into())) };
            routed[place].push((key, row));
        }
        let parts = self.tablets.iter().zip(routed).map(|(tablet, rows)| async move {
            if rows.is_empty() && !last {
                return Ok(());
            }
            let (stream, owner) = (self.opened.stream, self.opened.owner);
            let batch = CopyBatch { stream, owner, base: self.base, last, schema: schema.clone(), rows };
            tablet.leader.copy_rows(batch).await.map_err(|error| {
                if matches!(error, TabletError::Fenced { .. }) {
                    // A stream that has nothing to store does not meet the new owner by itself.
                    self.copier.side.open_again(format!("replica tablet {}: {error}", tablet.name));
                }
                tablet.trouble(&error)
            })
        });
        try_join_all(parts).await.map(|_| ())
    }
}
