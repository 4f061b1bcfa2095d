//! Releases of a replica tablet that writes to several servers: the decision on each is an entry of the log.
//!
//! The servers prepare what they are to show next, the decision is appended, and once it is durable they commit. So the
//! log answers for whatever a crash left prepared: the last release that was decided is committed, every other one is
//! rolled back. One is enough to know, because a release begins only after the one before has ended at every server. A
//! server that refuses to prepare rolls the release back, never the transactions in it: they are decided, and the release
//! is tried again under the next number.

use super::entry::{Item, ReleaseId};
use super::machine::Coordinator;
use super::output::Promise;
use crate::wal::{HybridTime, LogPosition, ReplicaTabletId};

impl Coordinator {
    /// Every server of the tablet has prepared this release, which shows the decisions through a position. They may commit
    /// it once the promise is kept.
    pub fn handle_prepared(
        &mut self,
        now: HybridTime,
        tablet: ReplicaTabletId,
        release: ReleaseId,
        through: LogPosition,
    ) -> Promise<()> {
        self.say(now, Item::Released { tablet, release, through });
        self.promise(())
    }

    /// The last release of the tablet that was decided, once that is durable.
    #[must_use]
    pub fn last_release(&self, tablet: ReplicaTabletId) -> Promise<Option<ReleaseId>> {
        self.promise(self.state.released.get(&tablet).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::Settings;
    use crate::coordinator::entry::{OLDEST_SNAPSHOT, SNAPSHOT_WITH_RELEASES};
    use crate::wal::{Epoch, codec};

    const TABLET: ReplicaTabletId = ReplicaTabletId(0);

    #[test]
    fn a_snapshot_keeps_the_last_release_and_one_of_the_version_before_has_none() {
        let mut coordinator = Coordinator::restore(Settings::default(), None).unwrap();
        let release = |number| ReleaseId { epoch: Epoch(3), number };
        for number in 1..=2 {
            let promise = coordinator.handle_prepared(HybridTime::MIN, TABLET, release(number), LogPosition(7));
            assert!(promise.after > coordinator.durable(), "nobody commits before the decision is durable");
        }
        let (position, bytes) = coordinator.snapshot().unwrap();
        let restored = Coordinator::restore(Settings::default(), Some((position, &bytes))).unwrap();
        assert_eq!(restored.last_release(TABLET).value, Some(release(2)));
        assert_eq!(restored.state(), coordinator.state());
        let state = coordinator.state();
        let before = codec::encode(SNAPSHOT_WITH_RELEASES, &(state, &state.released)).unwrap();
        let restored = Coordinator::restore(Settings::default(), Some((position, &before))).unwrap();
        assert_eq!(restored.last_release(TABLET).value, Some(release(2)));
        let before = codec::encode(OLDEST_SNAPSHOT, state).unwrap();
        let restored = Coordinator::restore(Settings::default(), Some((position, &before))).unwrap();
        assert_eq!(restored.last_release(TABLET).value, None);
    }
}
