//! Carries decisions to one replica tablet.

use super::ended::{Ended, Trouble};
use super::inputs::Inputs;
use super::tablets::{ApplyQueue, Gathered, Tablet};
use crate::coordinator::Decided;
use crate::flow::Backoff;
use crate::limits::{
    ANNOUNCE_AGAIN_MS, APPLY_BATCH_DECISIONS, RETRY_FIRST_MS, RETRY_LAST_MS, SYNC_AFTER_MS, SYNC_AT_LEAST_EVERY_MS,
};
use crate::planted::{Bug, planted};
use crate::tablet::{Applied, ApplyBatch, TabletError};
use crate::wal::{Epoch, LogPosition, TransactionId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// One replica tablet's executor: hands it every decision in log order, one batch at a time, while the next one gathers.
/// Decisions are kept until the tablet has applied them durably, so that one which lost its memory is told again.
pub(super) struct Executor {
    pub(super) tablet: Tablet,
    pub(super) queue: Arc<ApplyQueue>,
    pub(super) inputs: Inputs,
    pub(super) log_id: String,
    pub(super) owner: Epoch,
    /// Whether a key has one writer: no clock orders two.
    pub(super) one_writer: bool,
    /// What the tablet has durably applied, by the log at first: it can never hold less (C14).
    pub(super) applied: LogPosition,
    /// The entry whose decisions the tablet refused.
    pub(super) refused: Option<LogPosition>,
}

impl Executor {
    /// Runs until the queue is closed and the tablet has applied all of it durably.
    pub(super) async fn run(mut self, seed: u64) -> Result<(), Ended> {
        let mut backoff =
            Backoff::new(Duration::from_millis(RETRY_FIRST_MS), Duration::from_millis(RETRY_LAST_MS), seed);
        let mut kept = VecDeque::new();
        loop {
            let (cause, wait) = match self.session(&mut kept, &mut backoff).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Ended(ended)) => return Err(ended),
                // What only somebody can mend is tried again, too: so it goes on by itself once it is mended.
                Err(Trouble::Retry(cause) | Trouble::Fenced(cause)) => ((cause, false), backoff.next_wait()),
                Err(Trouble::Stop(cause)) => ((cause, true), backoff.next_wait()),
                // The leader says which streams stand still for a decision that is refused.
                Err(Trouble::StandStill(cause)) => ((cause, false), backoff.next_wait()),
            };
            // Once, not at every attempt.
            if self.queue.hold(&self.tablet.name, Some(cause.clone())) {
                warn!(tablet = %self.tablet.name, cause = %cause.0, "decisions wait for the replica tablet");
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.queue.asked_again() => {}
            }
        }
    }

    /// The tablet takes decisions.
    fn takes_decisions(&self) {
        if self.queue.hold(&self.tablet.name, None) {
            info!(tablet = %self.tablet.name, "the replica tablet takes decisions again");
        }
    }

    async fn session(&mut self, kept: &mut VecDeque<Decided>, backoff: &mut Backoff) -> Result<(), Trouble> {
        let mut heard = self.announce(kept).await?;
        let mut synced = Instant::now();
        // A batch up to here was refused, and it is not known which of its entries.
        let mut search = LogPosition(0);
        loop {
            let gathered = self.queue.take_into(kept);
            self.queue.hears(kept.len() - kept.partition_point(|decided| decided.position <= heard));
            if gathered.through > heard {
                let most = if heard < search { 0 } else { APPLY_BATCH_DECISIONS };
                let batch =
                    ApplyBatch { one_writer: self.one_writer, ..batch(self.owner, kept, heard, &gathered, most) };
                let (first, through) = (batch.work.first().map(|decided| decided.position), batch.through);
                match self.tablet.leader.apply(batch).await {
                    Ok(applied) => {
                        backoff.reset();
                        heard = applied.heard;
                        let done = if planted(Bug::DroppedWhenHeard) { applied.heard } else { applied.applied };
                        if self.applied(done, kept).await? {
                            synced = Instant::now();
                        }
                        if self.refused.take_if(|refused| *refused <= applied.heard).is_some() {
                            self.inputs.applied(self.tablet.id, applied).await;
                        }
                        if self.refused.is_none() {
                            self.takes_decisions();
                        }
                    }
                    // Entry by entry the one is found that it refuses.
                    Err(TabletError::Refused(_)) if first.is_some_and(|first| first < through) => search = through,
                    Err(error @ TabletError::Refused(_)) => {
                        return Err(self.refuses(through, None, error.to_string()).await);
                    }
                    Err(TabletError::RefusedWrite(write)) => {
                        let refused = self.refuses(write.position, Some(write.transaction), write.to_string()).await;
                        self.queue.refuse(*write);
                        return Err(refused);
                    }
                    // It holds less than before when it started again, and more when an answer was lost.
                    Err(TabletError::HeardOther { heard: other, .. }) => {
                        heard = if planted(Bug::HeardIsAssumed) { gathered.through } else { other };
                        self.check(other)?;
                    }
                    Err(error) => return Err(self.trouble(&error)),
                }
                if synced.elapsed() < Duration::from_millis(SYNC_AT_LEAST_EVERY_MS) {
                    continue;
                }
            } else if kept.is_empty() {
                if self.refused.is_none() {
                    self.takes_decisions();
                }
                if gathered.closing {
                    return Ok(());
                }
                tokio::select! {
                    biased;
                    () = self.queue.moved() => {}
                    () = sleep(Duration::from_millis(ANNOUNCE_AGAIN_MS)) => heard = self.announce(kept).await?,
                }
                continue;
            } else if !gathered.closing {
                tokio::select! {
                    biased;
                    () = self.queue.moved() => continue,
                    () = sleep(Duration::from_millis(SYNC_AFTER_MS)) => {}
                }
            }
            synced = Instant::now();
            if !kept.is_empty() {
                let Applied { heard: now_heard, applied } =
                    self.tablet.leader.sync().await.map_err(|error| self.trouble(&error))?;
                heard = if planted(Bug::HeardIsAssumed) { heard } else { now_heard };
                self.applied(applied, kept).await?;
            }
        }
    }

    /// Announces this owner, and answers how far the tablet has heard the log.
    async fn announce(&mut self, kept: &mut VecDeque<Decided>) -> Result<LogPosition, Trouble> {
        let announced = self.tablet.leader.announce(&self.log_id, self.tablet.id, self.owner).await;
        let announced = announced.map_err(|error| self.trouble(&error))?;
        self.applied(announced.applied, kept).await?;
        Ok(announced.heard)
    }

    /// The tablet has durably applied the log up to here: what lies below need not be kept. Whether that is news.
    async fn applied(&mut self, applied: LogPosition, kept: &mut VecDeque<Decided>) -> Result<bool, Trouble> {
        self.check(applied)?;
        let done = kept.partition_point(|decided| decided.position <= applied);
        kept.drain(..done);
        let news = applied > self.applied;
        if news {
            self.applied = applied;
            self.inputs.applied(self.tablet.id, Applied { heard: applied, applied }).await;
        }
        Ok(news)
    }

    fn check(&self, held: LogPosition) -> Result<(), Trouble> {
        if held >= self.applied {
            return Ok(());
        }
        Err(Trouble::Stop(format!(
            "replica tablet {} holds the log up to {held} only, but had durably applied it up to {}: it lost \
             acknowledged writes; bring its folder back, or set up the replica again from a new copy",
            self.tablet.name, self.applied
        )))
    }

    /// The tablet refuses an entry's decisions, or one transaction of it.
    async fn refuses(&mut self, at: LogPosition, transaction: Option<TransactionId>, cause: String) -> Trouble {
        self.refused = Some(at);
        self.inputs.refused(self.tablet.id, at, transaction, cause.clone()).await;
        Trouble::StandStill(format!("replica tablet {}: {cause}", self.tablet.name))
    }

    /// What an error means for this owner: a tablet that has seen a higher epoch ends it.
    fn trouble(&self, error: &TabletError) -> Trouble {
        match error {
            TabletError::Fenced { held } => Trouble::Ended(Ended::Fenced(format!(
                "replica tablet {} has seen owner epoch {held}, this one's is {}",
                self.tablet.name, self.owner
            ))),
            error => self.tablet.trouble(error),
        }
    }
}

/// What follows `heard`, cut at a position so that one call stays short: about `most` decisions, or one entry's.
fn batch(owner: Epoch, kept: &VecDeque<Decided>, heard: LogPosition, gathered: &Gathered, most: usize) -> ApplyBatch {
    let from = kept.partition_point(|decided| decided.position <= heard);
    let (mut to, mut through, mut safe) = (kept.len(), gathered.through, gathered.safe);
    if let Some(last) = kept.get(from + most) {
        through = last.position;
        to = kept.partition_point(|decided| decided.position <= through);
    }
    if to < kept.len() {
        // It rests on decisions that this batch leaves out: the tablet's own WAL would promise too much.
        safe = None;
    }
    let work = kept.range(from..to).cloned().collect();
    ApplyBatch { owner, follows: heard, through, safe, one_writer: false, work }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{ReadPoint, Work};
    use crate::wal::HybridTime;

    #[test]
    fn a_batch_that_is_cut_does_not_tell_a_safe_time_that_it_has_not_reached() {
        let last = APPLY_BATCH_DECISIONS as u64 + 10;
        let decided = |at| Decided { position: LogPosition(at), work: Work::Discard { branches: Vec::new() } };
        let kept: VecDeque<_> = (1..=last).map(decided).collect();
        let safe = Some(ReadPoint { position: LogPosition(last), time: HybridTime::from_micros(100) });
        let gathered = Gathered { through: LogPosition(last), safe, ..Gathered::default() };
        let first = batch(Epoch(1), &kept, LogPosition(0), &gathered, APPLY_BATCH_DECISIONS);
        assert_eq!((first.work.len() as u64, first.safe), (first.through.0, None));
        assert!(first.through < gathered.through);
        let rest = batch(Epoch(1), &kept, first.through, &gathered, APPLY_BATCH_DECISIONS);
        assert_eq!((rest.through, rest.safe), (gathered.through, safe));
    }
}
