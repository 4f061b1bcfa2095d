//! Watches what each stream's slot holds back at its server: gauges, and warnings before it ends badly.

use super::streams::StreamSide;
use crate::flow::{Forecast, Warning};
use crate::limits::RETENTION_EVERY;
use crate::metrics::{SOURCE_PREPARED_OLDEST, SOURCE_WAL_RETAINED, SOURCE_WAL_SAFE, STREAM};
use ::metrics::gauge;
use tokio::time::Instant;
use tracing::warn;

/// Watches for ever.
pub(super) async fn watch(side: &StreamSide) {
    let (mut forecast, begun) = (Forecast::default(), Instant::now());
    loop {
        // The poller says what ails a server that does not answer.
        if let Ok(Some(seen)) = side.source.retention().await {
            let name = || side.name.clone();
            gauge!(SOURCE_WAL_RETAINED, STREAM => name()).set(seen.retained as f64);
            // Where there is no limit the number is infinite, so that one rule for alarms fits all.
            gauge!(SOURCE_WAL_SAFE, STREAM => name()).set(seen.safe.map_or(f64::INFINITY, |safe| safe as f64));
            gauge!(SOURCE_PREPARED_OLDEST, STREAM => name()).set(seen.prepared_oldest_seconds);
            let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            forecast.look(now, &seen).into_iter().for_each(|warning| say(&side.name, warning));
        }
        tokio::time::sleep(RETENTION_EVERY).await;
    }
}

fn say(stream: &str, warning: Warning) {
    match warning {
        Warning::LostIn { seconds: 0 } => warn!(
            stream,
            "the server may drop this stream's slot at any moment: it holds more WAL than max_slot_wal_keep_size; raise \
             that setting now"
        ),
        Warning::LostIn { seconds } => warn!(
            stream,
            seconds,
            "at this pace the server drops this stream's slot soon, and its tables must be copied again: raise \
             max_slot_wal_keep_size, or see untorn status for what holds the stream up"
        ),
        Warning::Grows { retained } => warn!(
            stream,
            gib = retained >> 30,
            "the server keeps ever more WAL for this stream, until its disk is full: see untorn status for what holds it \
             up, and set max_slot_wal_keep_size"
        ),
        Warning::Prepared { seconds } => warn!(
            stream,
            seconds,
            "a transaction stays prepared on this server, and holds back WAL and every transaction behind it: untorn check \
             --connect names it and the statement that ends it"
        ),
    }
}
