//! Finding out what became of an append whose answer was lost.

use super::{LogError, TransactionLog};
use crate::wal::{Epoch, LogPosition};

/// What reading back says of an append that ended [`LogError::Indeterminate`] (C6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The position holds this very entry.
    Happened,
    /// The position holds another entry: this one never will be there.
    Not,
    /// The position is still free, so the entry may yet arrive. Append it again at the same position: whichever of the
    /// two lands, it stands there once.
    Open,
}

/// Looks at the position that an append asked for. One owner appends one entry at a time, so an entry of this epoch with
/// these bytes at this position is this append's.
///
/// # Errors
/// As [`TransactionLog::read`].
pub async fn read_back(
    log: &mut dyn TransactionLog,
    position: LogPosition,
    epoch: Epoch,
    entry: &[u8],
) -> Result<Fate, LogError> {
    let page = log.read(position, 1).await?;
    Ok(match page.first() {
        None => Fate::Open,
        Some(held) if held.epoch == epoch && held.entry == entry => Fate::Happened,
        Some(_) => Fate::Not,
    })
}
