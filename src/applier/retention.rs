//! What each source keeps for its stream, as metrics: a slot that nobody reads on is lost when its server has no more
//! room for it, and only a new copy helps then.

use super::streams::StreamSide;
use crate::limits::RETENTION_EVERY_MS;
use crate::metrics::{SOURCE_PREPARED, SOURCE_RETAINED, SOURCE_SAFE, STREAM};
use ::metrics::gauge;
use std::sync::Arc;
use std::time::Duration;

/// Looks again and again, until the source says that it cannot say. A server that does not answer keeps its last
/// numbers; its silence shows in its stream's lag.
pub(super) async fn watch(side: Arc<StreamSide>) {
    loop {
        let name = || side.name.clone();
        match side.source.retention().await {
            Ok(Some(kept)) => {
                gauge!(SOURCE_PREPARED, STREAM => name()).set(kept.prepared_seconds);
                if let Some(bytes) = kept.retained_bytes {
                    gauge!(SOURCE_RETAINED, STREAM => name()).set(bytes as f64);
                }
                if let Some(bytes) = kept.safe_bytes {
                    gauge!(SOURCE_SAFE, STREAM => name()).set(bytes as f64);
                }
            }
            Ok(None) => return,
            Err(error) => tracing::debug!(stream = %side.name, %error, "the source does not say what it keeps"),
        }
        tokio::time::sleep(Duration::from_millis(RETENTION_EVERY_MS)).await;
    }
}
