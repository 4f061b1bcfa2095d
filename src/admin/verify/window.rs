//! Moments of the servers, and the replica's read points around them ([`super::settle`] says what for).

use super::run::VerifyError;
use crate::applier::leader::StreamState;
use crate::applier::{Inspector, Reader};
use crate::coordinator::{Coordinator, ReadPoint, TableCopy};
use crate::limits::{VERIFY_QUIET, VERIFY_WAIT};
use crate::source::Source;
use crate::wal::{HybridTime, OpId, SourceTabletId, TransactionId};
use futures::future::try_join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often it is looked whether something has happened.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running applier and its servers.
#[derive(Clone)]
pub(super) struct World {
    pub(super) inspector: Inspector,
    pub(super) reader: Reader,
    pub(super) sources: Vec<Arc<dyn Source>>,
}

/// How far the replica is on its way behind some positions.
enum Passed {
    /// This stream has not come so far.
    Not(SourceTabletId, String),
    /// All have; what is not decided of it has a number at or below this one, if there is any.
    Heard(Option<TransactionId>),
    /// Nothing of it is undecided; the largest hybrid time decided.
    Decided(HybridTime),
}

impl World {
    /// The read point that shows a prefix of what was decided.
    pub(super) fn safe(&self) -> Result<ReadPoint, VerifyError> {
        self.reader.safe().map_err(|error| VerifyError::NotReady(error.to_string()))
    }

    /// The stream that copies a table, or joins anew with a part of it: its rows are not shown meanwhile.
    pub(super) async fn copied_by(&self, table: &str) -> Result<Option<String>, VerifyError> {
        let (table, position) = (table.to_owned(), self.safe()?.position);
        let look = move |coordinator: &Coordinator, _| {
            let state = coordinator.state();
            let running = |copy: &TableCopy| copy.table == table && !copy.is_over();
            let mut live = state.streams.iter().filter(|stream| !stream.left);
            let copied = live.find(|stream| stream.copies.iter().any(running)).map(|stream| stream.stream);
            let stream = copied.or_else(|| state.unreadable(&table, position));
            stream.map(|stream| state.stream_name(stream).to_owned())
        };
        self.inspector.look(look).await.map_err(|error| VerifyError::NotReady(error.to_string()))
    }

    /// Waits until everything that is open on the servers has ended there; whether it has, within the time that such
    /// things take.
    pub(super) async fn quiet(&self) -> Result<bool, VerifyError> {
        let ended = self.sources.iter().map(|source| async move {
            let (_, next) = source.open_transactions().await?;
            let begun = Instant::now();
            loop {
                let (oldest, _) = source.open_transactions().await?;
                if oldest >= next {
                    return Ok(true);
                }
                if begun.elapsed() > VERIFY_QUIET {
                    return Ok::<_, VerifyError>(false);
                }
                sleep(LOOK_EVERY).await;
            }
        });
        Ok(try_join_all(ended).await?.into_iter().all(|ended| ended))
    }

    /// Waits until the replica shows everything that the servers show now, and answers a read point that does.
    pub(super) async fn caught_up(&self) -> Result<ReadPoint, VerifyError> {
        let positions = self.sources.iter().map(|source| async move {
            // Behind a commit of our own the flush position covers what others committed without waiting for the disk.
            source.nudge().await?;
            Ok::<_, VerifyError>((source.name().to_owned(), source.flushed().await?.unwrap_or(OpId::ZERO)))
        });
        let positions = Arc::new(try_join_all(positions).await?);
        let begun = Instant::now();
        let mut upto = None;
        let time = loop {
            let asked = Arc::clone(&positions);
            match self.inspector.look(move |coordinator, _| passed(coordinator, &asked, upto)).await {
                Err(error) => return Err(VerifyError::NotReady(error.to_string())),
                Ok(Passed::Decided(time)) => break time,
                Ok(Passed::Heard(last)) => upto = last,
                Ok(Passed::Not(stream, name)) => {
                    if let StreamState::Stopped { cause } = self.inspector.stream_state(stream, &name) {
                        return Err(VerifyError::NotReady(format!("{name} has stopped: {cause}")));
                    }
                }
            }
            self.patience(begun, "streams have not passed what their servers have committed")?;
            sleep(LOOK_EVERY).await;
        };
        loop {
            let safe = self.safe()?;
            if safe.time >= time {
                return Ok(safe);
            }
            self.patience(begun, "the newest decision is not durable")?;
            sleep(LOOK_EVERY).await;
        }
    }

    fn patience(&self, begun: Instant, what: &str) -> Result<(), VerifyError> {
        if begun.elapsed() < VERIFY_WAIT {
            return Ok(());
        }
        Err(VerifyError::NotReady(format!("after {} s {what}; see untorn status", VERIFY_WAIT.as_secs())))
    }
}

/// Whether every stream has passed its position and everything committed by then is decided. A transaction whose commit
/// a stream has carried is known as committed, so whatever may be missing is among the undecided with a Commit record
/// when the last stream has passed; `upto` is the largest number of these.
fn passed(coordinator: &Coordinator, positions: &[(String, OpId)], upto: Option<TransactionId>) -> Passed {
    let state = coordinator.state();
    let short = |(name, at): &&(String, OpId)| coordinator.head(name).is_none_or(|head| head < *at);
    if upto.is_none()
        && let Some((name, _)) = positions.iter().find(short)
    {
        let stream = state.stream_named(name).map_or_else(SourceTabletId::default, |record| record.stream);
        return Passed::Not(stream, name.clone());
    }
    let undecided = state.undecided.iter().map(|(_, id)| *id);
    match undecided.filter(|id| upto.is_none_or(|upto| *id <= upto)).max() {
        None => Passed::Decided(state.last_time),
        last => Passed::Heard(upto.or(last)),
    }
}
