//! What the fold knows of one stream.

use super::copies::TableCopy;
use super::joining::Joining;
use crate::wal::{Epoch, HybridTime, OpId, ReplicaTabletId, SourceTabletId, TransactionId};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A place in a stream that the cut must pass, in stream order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A PREPARE: passed freely; from then on the branch lies inside the cut.
    Prepare {
        /// Whose.
        transaction: TransactionId,
        /// Which branch of this stream.
        opened: OpId,
    },
    /// A COMMIT PREPARED or an ordinary commit: passed once its transaction is decided.
    Commit {
        /// Whose.
        transaction: TransactionId,
    },
}

/// What the fold knows of one stream: `acknowledged <= checkpoint <= head`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// The log's number.
    pub stream: SourceTabletId,
    /// Its name in the configuration.
    pub name: String,
    /// It left: its end was reached, and nothing more will come.
    pub left: bool,
    /// The tablets that go on in its place, after a split.
    pub children: Vec<SourceTabletId>,
    /// The highest puller epoch given out.
    pub puller: Epoch,
    /// Resume strictly after this position.
    pub checkpoint: OpId,
    /// How far it is known to have come; at or above the checkpoint.
    pub head: OpId,
    /// What was acknowledged to the source.
    pub acknowledged: OpId,
    /// Its newest SafeTime record, or the time at which it joined.
    pub safe_time: HybridTime,
    /// A SafeTime record has come since it joined.
    pub safe_time_heard: bool,
    /// What the log says was stored at each replica tablet, by tablet.
    pub stored: Vec<(ReplicaTabletId, OpId)>,
    /// Where its slot starts, once it stands.
    pub slot: Option<OpId>,
    /// What tells its server from another.
    pub identity: String,
    /// How far the copy of each table is, by name.
    pub copies: Vec<TableCopy>,
    /// How far it is on its way in; `None` once it takes part.
    pub joining: Option<Joining>,
    /// Places that the cut has not passed (`release = "ordered"`).
    pub places: VecDeque<Place>,
    /// Positions to acknowledge before a transaction may be forgotten, in the order in which they were heard.
    pub unacknowledged: VecDeque<(OpId, TransactionId)>,
}

impl StreamRecord {
    /// It left because the configuration does not name it any more: nothing that it carries is taken. One whose end was
    /// reached left, too, and still says what it acknowledges.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.left && self.children.is_empty()
    }

    pub(super) fn new(stream: SourceTabletId, name: String, at: HybridTime) -> Self {
        Self {
            stream,
            name,
            left: false,
            children: Vec::new(),
            puller: Epoch(0),
            checkpoint: OpId::ZERO,
            head: OpId::ZERO,
            acknowledged: OpId::ZERO,
            safe_time: at,
            safe_time_heard: false,
            stored: Vec::new(),
            slot: None,
            identity: String::new(),
            copies: Vec::new(),
            joining: None,
            places: VecDeque::new(),
            unacknowledged: VecDeque::new(),
        }
    }

    /// Notes what was stored at a tablet.
    pub(super) fn note_stored(&mut self, tablet: ReplicaTabletId, at: OpId) {
        match self.stored.binary_search_by_key(&tablet, |(t, _)| *t) {
            Ok(found) => self.stored[found].1 = self.stored[found].1.max(at),
            Err(place) => self.stored.insert(place, (tablet, at)),
        }
    }
}
