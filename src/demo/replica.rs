//! What the demo needs of the replica: read points, reads of its tablets, and why anything waits.

use crate::admin::Inspect;
use crate::admin::explain::Explanation;
use crate::admin::status::Status;
use crate::tablet::{ReadPage, ReadPoint, ReadRequest, TabletError};
use crate::wal::{HybridTime, TableId};
use async_trait::async_trait;
use std::sync::Arc;

/// A running replica.
#[async_trait]
pub trait Replica: Send + Sync {
    /// How many replica tablets there are.
    fn tablets(&self) -> usize;

    /// The log's number of a table; `None` until its name was heard.
    fn table(&self, name: &str) -> Option<TableId>;

    /// Every transaction that is decided; `None` before anything may be shown.
    fn latest(&self) -> Option<ReadPoint>;

    /// The source as it was at safe time; `None` before the first safe point.
    fn safe(&self) -> Option<ReadPoint>;

    /// Waits until safe time is above this one and says what it is: what was committed at or below it is visible to
    /// whoever asks for `safe`. `None` once the replica has ended.
    async fn safe_above(&self, time: HybridTime) -> Option<HybridTime>;

    /// Reads a page from one replica tablet.
    ///
    /// # Errors
    /// See [`TabletError`].
    async fn read(&self, tablet: usize, request: ReadRequest) -> Result<ReadPage, TabletError>;

    /// What the pipeline is doing; `None` once it has ended.
    async fn status(&self) -> Option<Status>;

    /// The transaction that has waited to commit for longest.
    async fn oldest_waiting(&self) -> Option<Explanation>;

    /// What `status`, `explain` and `scan` ask, if they can be served.
    fn inspect(&self) -> Option<Arc<dyn Inspect>>;

    /// Waits until the pipeline ends by itself, and says why.
    async fn failed(&self) -> String;

    /// Stops the pipeline.
    async fn stop(self)
    where
        Self: Sized;
}
