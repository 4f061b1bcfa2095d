//! Nothing is acknowledged beyond what is durable: whatever a server may forget is in the log.

use crate::universe::server::Server;
use untorn::wal::OpId;

/// What does not hold, if anything: the log holds the stream up to `held`, and the server may forget what ends at `upto`.
pub fn broken(server: &Server, held: OpId, upto: u64) -> Option<String> {
    let item = server.item_after(if held.index == u64::MAX { held.term } else { held.term.saturating_sub(1) })?;
    (item.end <= upto).then(|| {
        format!("acknowledged: {} may forget {upto}, and the log holds it only up to {held}: {item:?}", server.name)
    })
}
