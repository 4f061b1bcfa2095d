//! What a PostgreSQL server may be told to forget, pure.

use crate::wal::{OpId, SourceBatch};

/// How far a connection is: what was handed over, what of it is acknowledged. Only end positions are ever told, because a
/// transaction that begins below one is not sent again, and never one inside what was handed over and not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confirmable {
    /// The end of the last batch that was handed over.
    yielded: OpId,
    /// How far the stream was known to have come then.
    head: OpId,
    acknowledged: OpId,
}

impl Confirmable {
    /// For a connection that resumes after a position.
    #[must_use]
    pub fn after(after: OpId) -> Self {
        Self { yielded: after, head: OpId::ZERO, acknowledged: OpId::ZERO }
    }

    /// A batch was handed over.
    pub fn handed_over(&mut self, batch: &SourceBatch) {
        self.yielded = batch.upto;
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

    /// Up to where the server may forget: what is acknowledged, and once everything that was handed over is, also what
    /// carried nothing behind it. `None` while there is nothing to say.
    #[must_use]
    pub fn confirm(&self) -> Option<u64> {
        if self.acknowledged >= self.yielded {
            Some(self.acknowledged.term.min(self.yielded.term).max(self.head.term))
        } else {
            (self.acknowledged.index == u64::MAX).then_some(self.acknowledged.term)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_handed_over_is_confirmed_before_it_is_acknowledged() {
        let batch = |upto, head| SourceBatch {
            upto: OpId::end_of_term(upto),
            head: if head == 0 { OpId::ZERO } else { OpId::end_of_term(head) },
            ..SourceBatch::default()
        };
        let mut told = Confirmable::after(OpId::end_of_term(10));
        assert_eq!(told.confirm(), None);
        told.handed_over(&batch(20, 0));
        told.handed_over(&batch(30, 40));
        told.acknowledge(OpId::end_of_term(20));
        assert_eq!(told.confirm(), Some(20), "the keepalive at 40 stands behind what is not acknowledged");
        told.acknowledge(OpId::end_of_term(30));
        assert_eq!(told.confirm(), Some(40));
        told.acknowledge(OpId::new(30, 2));
        assert_eq!(told.acknowledged(), OpId::end_of_term(30));
    }
}
