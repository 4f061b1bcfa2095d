//! Copies of tables while people read the server: a table that is added, a source server that joins, a table that is copied
//! again.
//!
//! Readers come by themselves and see every row that is there. So a copy is made beside them, in the staging part
//! ([`crate::tablet::engine::Engine::overlay`]): the copied rows, and what their stream writes to the table meanwhile above
//! them. The moment in which it is shown is a place in the transaction log ([`Turn::Shown`]). A group of decisions ends there,
//! and its transaction also puts the whole part in its place: what was there of it goes, what the copy came to by then
//! comes. So nobody sees a part of a copy, nor a transaction by half because of one.
//!
//! From a place on at which nothing is seen of a stream's part of a table ([`Turn::Hidden`]) the stream's writes to it are
//! not carried to the server. Rows that stand there stay as they are until a copy takes their place, because nothing can
//! keep them from readers; those of a server that has left stay for good.
//!
//! The server does not say which rows came from which stream (`untorn.writers` only says which streams wrote to a table).
//! So a part can take its own place only where no other part of the table is seen; where one is, the copied rows are added, and
//! a row that is there already is refused. Nobody asks for such a copy: see `Coordinator::may_be_replaced`.

use super::apply::{GroupError, is_refusal};
use super::net::newest;
use super::sessions::Sessions;
use super::shape::Shape;
use super::statements::Refusal;
use super::{PostgresTablet, Server};
use crate::coordinator::{Decided, ReadPoint, Turn, Work};
use crate::limits::PAGE_BYTES;
use crate::tablet::store::Store;
use crate::tablet::{ReadRequest, TabletError};
use crate::wal::{HybridTime, LogPosition, SourceTabletId, TableId};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

/// Streams' parts of tables.
pub(super) type Parts = BTreeSet<(TableId, SourceTabletId)>;

/// A part of a table that is seen otherwise from a place in the log on.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartShown {
    pub(super) position: LogPosition,
    table: TableId,
    stream: SourceTabletId,
    /// Whether a copy is shown from there on, or nothing.
    shown: bool,
}

/// The changes of what is seen among these decisions, in order.
pub(super) fn parts_shown(work: &[Decided]) -> Vec<PartShown> {
    let shown = work.iter().filter_map(|Decided { position, work }| match work {
        Work::Turn { stream, table, turn } => {
            let shown = match turn {
                Turn::Begun { .. } => return None,
                Turn::Shown { .. } => true,
                Turn::Hidden { .. } => false,
            };
            Some(PartShown { position: *position, table: *table, stream: *stream, shown })
        }
        Work::Commit { .. } | Work::Discard { .. } => None,
    });
    shown.collect()
}

impl<S: Store> PostgresTablet<S> {
    /// Hears decisions for the copies that are on their way.
    pub(super) async fn overlay(&self, server: &mut Server, work: &[Decided]) -> Result<(), TabletError> {
        if server.copying || work.iter().any(|decided| matches!(decided.work, Work::Turn { .. })) {
            server.copying = self.staging.overlay(work.to_vec()).await?;
        }
        Ok(())
    }

    /// The parts that are not seen, as of the last group.
    pub(super) fn hidden(&self) -> Arc<Parts> {
        Arc::clone(&self.hidden.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The server has come to a place at which it shows other parts than before, or was there when it was opened.
    pub(super) fn find_hidden(&self, through: LogPosition) {
        let mut hidden = Parts::new();
        for (table, stream, turn) in self.staging.turns() {
            if turn.position > through {
                continue;
            }
            match turn.base {
                Some(_) => hidden.remove(&(table, stream)),
                None => hidden.insert((table, stream)),
            };
        }
        *self.hidden.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(hidden);
    }

    /// Puts a copy in its place, with the transaction that is open.
    pub(super) async fn show(&self, session: &mut Sessions, part: PartShown) -> Result<(), GroupError> {
        let PartShown { position, table, stream, shown: true } = part else { return Ok(()) };
        // Whatever its entry decided, before or after it showed the copy, becomes visible with it.
        let read = ReadPoint { position, time: HybridTime::MAX };
        if !self.shapes().keys().any(|(known, _)| *known == table) {
            if !self.staging.learned().await?.iter().any(|schema| schema.table == table) {
                // Nobody has ever described it here: it has no rows.
                return Ok(());
            }
            self.find_shapes(session, &[(table, 0)]).await?;
        }
        let shapes = self.shapes();
        let Some(shape) = newest(&shapes, table) else { return Ok(()) };
        let at = session.at(&shape.schema.name)?;
        let writers = at.all_writers_of(table).await?;
        let hidden = self.hidden();
        let is_shared = writers.iter().any(|other| *other != stream && !hidden.contains(&(table, *other)));
        if writers.is_empty() {
            at.refuse_rows(shape).await?;
        } else if !is_shared {
            let statement = format!("DELETE FROM {}", shape.quoted);
            let emptied = at.execute(&statement, &[]).await;
            emptied.map_err(|failure| Refusal { failure, statement })?;
            at.forget_writers_of(table).await?;
        }
        at.write_by(shape, &BTreeSet::from([stream]), false).await?;
        let mut after = None;
        loop {
            let request = ReadRequest { table, at: read, key: None, after, history: false, max_bytes: PAGE_BYTES };
            let page = self.staging.read_copied(request).await?;
            let rows = page.rows.iter().filter(|row| row.stream == stream).filter_map(|row| row.row.as_ref());
            let versions: BTreeSet<u32> = rows.clone().map(|row| row.schema_version).collect();
            for version in versions {
                let shape = self.shape(session, table, version).await?;
                let rows = rows.clone().filter(|row| row.schema_version == version);
                let at = session.at(&shape.schema.name)?;
                at.copy_rows(&shape, rows).await.map_err(|refusal| not_shown(at.label(), &shape, refusal))?;
            }
            match page.more_after {
                None => return Ok(()),
                more => after = more,
            }
        }
    }

    /// A shape, found if it is not known.
    async fn shape(&self, session: &mut Sessions, table: TableId, version: u32) -> Result<Arc<Shape>, GroupError> {
        if !self.shapes().contains_key(&(table, version)) {
            self.find_shapes(session, &[(table, version)]).await?;
        }
        let shapes = self.shapes();
        let found = shapes.get(&(table, version)).or_else(|| newest(&shapes, table));
        let gone = || TabletError::Poisoned(format!("the shape of table {table} version {version} is gone"));
        Ok(Arc::clone(found.ok_or_else(gone)?))
    }
}

/// What the server says to rows of a copy. It is not a transaction's, so nobody can skip it.
fn not_shown(label: &str, shape: &Shape, refusal: Refusal) -> GroupError {
    if !is_refusal(&refusal.failure) {
        return refusal.into();
    }
    let Refusal { failure, .. } = refusal;
    let mut what = format!("{label}: a copy of table {} cannot be shown: {}", shape.quoted, failure.message);
    if failure.code == "23505" {
        what.push_str(
            "; rows of this source server are there from an earlier time, or another server has the same key: delete them \
             there, and run untorn retry",
        );
    }
    GroupError::Tablet(TabletError::Refused(what))
}
