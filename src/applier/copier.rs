//! The initial copy of a stream's tables, from its new slot's snapshot.

use super::ended::Trouble;
use super::leader::{StreamOpened, StreamState};
use super::poller::Poller;
use super::tablets::Tablet;
use crate::coordinator::CopyState;
use crate::metrics::{STREAM, STREAM_COPIED_ROWS};
use crate::router::Router;
use crate::source::{Catalog, CopyEvent, NewSlot};
use crate::tablet::CopyBatch;
use crate::wal::{Key, OpId, Row, TableSchema};
use ::metrics::counter;
use futures::future::try_join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// How often the copy's progress is said.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// One running copy.
struct Copy<'a> {
    poller: &'a Poller,
    opened: &'a StreamOpened,
    tablets: &'a [Tablet],
    router: Router,
    /// This attempt's number: the puller's epoch, which is above that of every attempt before.
    attempt: u32,
    snapshot: OpId,
    rows: u64,
    total: Option<u64>,
    said: Instant,
}

/// A table in work.
struct Table {
    schema: TableSchema,
    rows: u64,
    /// Whether each tablet has heard that this attempt began.
    begun: bool,
}

/// Creates a stream's slot and copies what came before it. The slot counts as standing only once every row is durable:
/// its snapshot dies with the connection, so a copy that was cut off begins again with a new slot.
pub(super) async fn create_slot(
    poller: &Poller,
    opened: &StreamOpened,
    tablets: &[Tablet],
    catalog: Arc<dyn Catalog>,
) -> Result<(), Trouble> {
    let slot = poller.side.source.create_slot(catalog).await?;
    let (start, identity) = match slot {
        None => (OpId::ZERO, String::new()),
        Some(NewSlot { start, identity, copy }) => {
            let attempt = u32::try_from(opened.puller.0)
                .map_err(|_| Trouble::Stop("this stream was opened more often than attempts can be numbered".into()))?;
            let mut running = Copy {
                poller,
                opened,
                tablets,
                router: Router::new(opened.map.clone()),
                attempt,
                snapshot: start,
                rows: 0,
                total: None,
                said: Instant::now(),
            };
            running.say().await?;
            running.run(copy).await?;
            info!(stream = %poller.side.name, rows = running.rows, "the initial copy is done");
            (start, identity)
        }
    };
    poller.side.source.slot_stands();
    Ok(poller.leader.slot(opened.stream, opened.puller, start, &identity).await?)
}

impl Copy<'_> {
    async fn run(&mut self, mut copy: Box<dyn crate::source::CopyReader>) -> Result<(), Trouble> {
        let mut table: Option<Table> = None;
        let mut event = copy.next().await?;
        while let Some(now) = event {
            match now {
                CopyEvent::Table { schema, estimate } => {
                    let running = CopyState::Running { attempt: self.attempt, snapshot: self.snapshot };
                    self.poller.leader.copy(self.opened.stream, self.opened.puller, &schema.name, running).await?;
                    if let Some(estimate) = estimate {
                        self.total = Some(self.total.unwrap_or(0) + estimate);
                    }
                    table = Some(Table { schema, rows: 0, begun: false });
                    event = copy.next().await?;
                }
                CopyEvent::Rows(rows) => {
                    let Some(table) = &mut table else { return Err(out_of_order("rows")) };
                    table.rows += rows.len() as u64;
                    self.rows += rows.len() as u64;
                    counter!(STREAM_COPIED_ROWS, STREAM => self.poller.side.name.clone()).increment(rows.len() as u64);
                    // The next rows are read while these are stored.
                    let (_, next) = tokio::try_join!(self.send(table, rows, false), async { Ok(copy.next().await?) })?;
                    table.begun = true;
                    event = next;
                    self.say_sometimes().await?;
                }
                CopyEvent::End => {
                    let Some(ended) = table.take() else { return Err(out_of_order("an end")) };
                    self.send(&ended, Vec::new(), true).await?;
                    let done = CopyState::Done { attempt: self.attempt, snapshot: self.snapshot, rows: ended.rows };
                    self.poller.leader.copy(self.opened.stream, self.opened.puller, &ended.schema.name, done).await?;
                    event = copy.next().await?;
                }
            }
        }
        self.say().await
    }

    /// Sends rows to their tablets. Every tablet hears the begin and the end of a table, rows or none.
    async fn send(&self, table: &Table, rows: Vec<(Key, Row)>, last: bool) -> Result<(), Trouble> {
        let mut routed: Vec<Vec<(Key, Row)>> = vec![Vec::new(); self.tablets.len()];
        for (key, row) in rows {
            let id = self.router.route(table.schema.table, &key);
            let place = self.tablets.iter().position(|tablet| Some(tablet.id) == id);
            let Some(place) = place else { return Err(Trouble::Stop("the map names no replica tablets".into())) };
            routed[place].push((key, row));
        }
        let parts = self.tablets.iter().zip(routed).map(|(tablet, rows)| async move {
            if rows.is_empty() && table.begun && !last {
                return Ok(());
            }
            let batch = CopyBatch {
                stream: self.opened.stream,
                owner: self.opened.owner,
                puller: self.opened.puller,
                attempt: self.attempt,
                first: !table.begun,
                last,
                schema: table.schema.clone(),
                rows,
            };
            tablet.leader.copy_rows(batch).await.map_err(|error| tablet.trouble(&error))
        });
        try_join_all(parts).await.map(|_| ())
    }

    async fn say_sometimes(&mut self) -> Result<(), Trouble> {
        if self.said.elapsed() < SAID_EVERY {
            return Ok(());
        }
        self.say().await
    }

    async fn say(&mut self) -> Result<(), Trouble> {
        self.said = Instant::now();
        let (rows, total) = (self.rows, self.total);
        self.poller.side.note(|progress| (progress.copied_rows, progress.copy_total) = (rows, total));
        let state = StreamState::Copying { rows, total };
        Ok(self.poller.tell(self.opened.stream, self.opened.puller, state).await?)
    }
}

fn out_of_order(what: &str) -> Trouble {
    Trouble::Stop(format!("the copy brought {what} without a table"))
}
