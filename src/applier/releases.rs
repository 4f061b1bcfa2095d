//! The log's word on releases, for replica tablets of this process.

use super::inputs::{Input, Inputs};
use super::leader::LeaderError;
use crate::coordinator::ReleaseId;
use crate::tablet::{Releases, TabletError};
use crate::wal::{LogPosition, ReplicaTabletId};
use async_trait::async_trait;

#[async_trait]
impl Releases for Inputs {
    async fn last(&self, tablet: ReplicaTabletId) -> Result<Option<ReleaseId>, TabletError> {
        self.ask(|reply| Input::LastRelease { tablet, reply }).await.map_err(unknown)
    }

    async fn decide(
        &self,
        tablet: ReplicaTabletId,
        release: ReleaseId,
        through: LogPosition,
    ) -> Result<(), TabletError> {
        self.ask(|reply| Input::Prepared { tablet, release, through, reply }).await.map_err(unknown)
    }
}

/// Whether it was decided is known once the log is read again.
fn unknown(error: LeaderError) -> TabletError {
    TabletError::Indeterminate(format!("the decision on a release: {error}"))
}
