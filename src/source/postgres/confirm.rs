//! What a PostgreSQL server may be told to forget, pure.

use crate::planted::{Bug, planted};
use crate::wal::{OpId, SourceBatch};

/// How far a connection is: what was handed over, what of it is acknowledged. Only end positions are ever told, because a
/// transaction that begins below one is not sent again, and only what is acknowledged: so the log holds every position that
/// a slot has, and whoever finds the slot ahead of the log holds an older log (see `Server::can_resume`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Confirmable {
    /// How far the stream was known to have come when the last batch was handed over.
    head: OpId,
    acknowledged: OpId,
}

impl Confirmable {
    /// A batch was handed over.
    pub fn handed_over(&mut self, batch: &SourceBatch) {
        self.head = self.head.max(batch.head);
    }

    /// Everything at or below this position is durable at the replica and in the log.
    pub fn acknowledge(&mut self, upto: OpId) {
        self.acknowledged = self.acknowledged.max(upto);
    }

    /// The highest position that was acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> OpId {
        self.acknowledged
    }

    /// Up to where the server may forget. `None` while there is nothing to say.
    #[must_use]
    pub fn confirm(&self) -> Option<u64> {
        if planted(Bug::KeepaliveConfirms) {
            return Some(self.acknowledged.term.max(self.head.term));
        }
        (self.acknowledged.index == u64::MAX).then_some(self.acknowledged.term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_confirmed_before_it_is_acknowledged() {
        let batch = |upto, head| SourceBatch {
            upto: OpId::end_of_term(upto),
            head: OpId::end_of_term(head),
            ..SourceBatch::default()
        };
        let mut told = Confirmable::default();
        told.handed_over(&batch(20, 0));
        told.handed_over(&batch(30, 40));
        assert_eq!(told.confirm(), None);
        told.acknowledge(OpId::end_of_term(20));
        assert_eq!(told.confirm(), Some(20));
        told.acknowledge(OpId::end_of_term(30));
        assert_eq!(told.confirm(), Some(30), "the log does not hold the keepalive at 40");
        told.acknowledge(OpId::new(30, 2));
        assert_eq!(told.acknowledged(), OpId::end_of_term(30));
    }
}
