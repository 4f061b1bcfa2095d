//! The order in which a stream's batches go out.

use crate::wal::OpId;
use std::collections::VecDeque;

/// A poller's window: while one batch is being stored at the replica tablets, the reports of the batches before it are
/// on their way to the log, and the next one gathers. One batch is stored at a time, because each names the position
/// that it follows at its tablets; reports go out in order, several at once.
///
/// It keeps `received >= stored >= durable >= checkpointed` (C4): what came from the source, is durable at the replica
/// tablets, is in the log too, and was acknowledged to the source.
#[derive(Debug)]
pub struct Window {
    received: OpId,
    stored: OpId,
    durable: OpId,
    checkpointed: OpId,
    storing: Option<Sent>,
    reporting: VecDeque<Sent>,
    depth: usize,
}

/// A batch that is on its way.
#[derive(Debug)]
struct Sent {
    upto: OpId,
    bytes: usize,
}

impl Window {
    /// Nothing is on its way, and the log holds this checkpoint. At most `depth` reports are on their way at once.
    #[must_use]
    pub fn new(checkpoint: OpId, depth: usize) -> Self {
        Self {
            received: checkpoint,
            stored: checkpoint,
            durable: checkpoint,
            checkpointed: OpId::ZERO,
            storing: None,
            reporting: VecDeque::new(),
            depth: depth.max(1),
        }
    }

    /// Records up to here came from the source.
    pub fn received(&mut self, upto: OpId) {
        self.received = self.received.max(upto);
    }

    /// Whether a batch may be sent to the tablets now.
    #[must_use]
    pub fn may_store(&self) -> bool {
        self.storing.is_none() && self.reporting.len() < self.depth
    }

    /// A batch goes to the tablets.
    pub fn storing(&mut self, upto: OpId, bytes: usize) {
        debug_assert!(self.may_store(), "one batch at a time");
        debug_assert!(self.stored <= upto && upto <= self.received, "stored <= stored now <= received");
        self.storing = Some(Sent { upto, bytes });
    }

    /// The batch is durable at every tablet that it went to: its report may go out.
    pub fn stored(&mut self) {
        if let Some(sent) = self.storing.take() {
            self.stored = self.stored.max(sent.upto);
            self.reporting.push_back(sent);
        }
        debug_assert!(self.is_ordered(), "C4");
    }

    /// The oldest report is durable in the log: how many bytes are free again.
    ///
    /// # Errors
    /// The log answered another checkpoint than the report's.
    pub fn reported(&mut self, checkpoint: OpId) -> Result<usize, String> {
        let Some(sent) = self.reporting.pop_front() else {
            return Err(format!("the log answered checkpoint {checkpoint}, but nothing was reported"));
        };
        if checkpoint != sent.upto {
            return Err(format!("the log answered checkpoint {checkpoint} to a report up to {}", sent.upto));
        }
        self.durable = self.durable.max(checkpoint);
        debug_assert!(self.is_ordered(), "C4");
        Ok(sent.bytes)
    }

    /// The source was told that it may forget everything up to here.
    pub fn acknowledged(&mut self, upto: OpId) {
        self.checkpointed = self.checkpointed.max(upto);
        debug_assert!(self.is_ordered(), "C4");
    }

    fn is_ordered(&self) -> bool {
        self.received >= self.stored && self.stored >= self.durable && self.durable >= self.checkpointed
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.storing.is_none() && self.reporting.is_empty()
    }

    /// Bytes of all batches that are on their way.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.storing.iter().chain(&self.reporting).map(|sent| sent.bytes).sum()
    }

    /// Received, durable and checkpointed position.
    #[must_use]
    pub fn positions(&self) -> [OpId; 3] {
        [self.received, self.durable, self.checkpointed]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reports_come_back_in_the_order_of_batches(steps in proptest::collection::vec(0_u8..3, 0..200)) {
            let mut window = Window::new(OpId::ZERO, 3);
            let (mut next, mut reported) = (1, 1);
            for step in steps {
                let upto = OpId::new(0, next);
                match step {
                    0 if window.may_store() => {
                        window.received(upto);
                        window.storing(upto, 10);
                        next += 1;
                    }
                    1 => window.stored(),
                    2 if window.stored > window.durable => {
                        prop_assert_eq!(window.reported(OpId::new(0, reported)), Ok(10));
                        window.acknowledged(OpId::new(0, reported));
                        reported += 1;
                    }
                    _ => {}
                }
                let [received, durable, checkpointed] = window.positions();
                prop_assert!(received >= durable && durable >= checkpointed);
                prop_assert_eq!(window.bytes(), 10 * (next - reported) as usize);
                prop_assert!(window.reporting.len() <= 3);
            }
        }
    }

    #[test]
    fn an_answer_to_another_report_is_an_error() {
        let mut window = Window::new(OpId::ZERO, 1);
        assert!(window.reported(OpId::ZERO).is_err());
        window.received(OpId::new(0, 2));
        window.storing(OpId::new(0, 2), 1);
        window.stored();
        assert!(!window.may_store(), "the only report is on its way");
        assert!(window.reported(OpId::new(0, 1)).is_err());
    }
}
