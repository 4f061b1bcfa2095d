//! Sources that fall silent, and connections that break or stand still.

use super::faults::Kind;
use super::world::World;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use untorn::source::SourceError;

/// Until when a connection stands still. Whoever waits for it may be interrupted, and waits on when it comes again.
#[derive(Default)]
pub struct Stall(Option<Instant>);

impl Stall {
    /// Breaks now and then; stands still now and then, so that streams are met in any order.
    ///
    /// # Errors
    /// The connection was lost.
    pub async fn pass(&mut self, world: &World) -> Result<(), SourceError> {
        if world.strikes(Kind::ConnectionLost, 0.02) {
            return Err(SourceError::Retry("the connection was lost".into()));
        }
        if self.0.is_none() && world.strikes(Kind::ReorderStreams, 0.05) {
            let millis = world.chance(|chance| chance.skewed(10, 8_000));
            self.0 = Some(Instant::now() + Duration::from_millis(millis));
        }
        if let Some(until) = self.0 {
            tokio::time::sleep_until(until).await;
            self.0 = None;
        }
        Ok(())
    }
}

/// Until when a source neither sends nor answers.
#[derive(Default)]
pub struct Silence(watch::Sender<Option<Instant>>);

impl Silence {
    /// From now on, for so long; what was said before no longer counts.
    pub fn lasts(&self, millis: u64) {
        self.0.send_replace(Some(Instant::now() + Duration::from_millis(millis)));
    }

    /// Waits until it is over.
    pub async fn is_over(&self) {
        let mut watched = self.0.subscribe();
        loop {
            let until = *watched.borrow_and_update();
            let Some(until) = until.filter(|until| *until > Instant::now()) else { return };
            timeout_at(until, watched.changed()).await.ok();
        }
    }
}
