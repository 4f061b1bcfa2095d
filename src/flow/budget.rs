//! How many bytes of records may be on their way (C10).

/// A byte budget that streams share. Half of it is cut into equal shares, one a stream, which nobody else can take: so
/// a stream that a waiting transaction needs, or that holds safe time back, always gets on, however far the others ran
/// ahead. The other half goes to whoever comes first.
///
/// Bytes are taken after a batch came, because nobody knows its size before. So a stream may exceed its allowance by one
/// batch; and a batch of any size passes when its stream holds nothing else.
#[derive(Debug)]
pub struct Budget {
    share: usize,
    pool: usize,
    used: Vec<usize>,
}

impl Budget {
    /// A budget of `total` bytes for this many streams.
    #[must_use]
    pub fn new(total: usize, streams: usize) -> Self {
        Self { share: total / 2 / streams.max(1), pool: total - total / 2, used: vec![0; streams] }
    }

    /// Whether the stream may pull another batch. An unknown stream may not.
    #[must_use]
    pub fn may_pull(&self, stream: usize) -> bool {
        let Some(&used) = self.used.get(stream) else { return false };
        used < self.share.max(1) || self.pool_used() < self.pool
    }

    /// The stream holds this many bytes more.
    pub fn take(&mut self, stream: usize, bytes: usize) {
        if let Some(used) = self.used.get_mut(stream) {
            *used += bytes;
        }
    }

    /// The stream holds this many bytes less.
    pub fn give_back(&mut self, stream: usize, bytes: usize) {
        if let Some(used) = self.used.get_mut(stream) {
            *used = used.saturating_sub(bytes);
        }
    }

    /// What one stream holds, in bytes.
    #[must_use]
    pub fn held_by(&self, stream: usize) -> usize {
        self.used.get(stream).copied().unwrap_or_default()
    }

    /// What all streams hold, in bytes.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.used.iter().sum()
    }

    /// What streams hold beyond their shares.
    fn pool_used(&self) -> usize {
        self.used.iter().map(|used| used.saturating_sub(self.share)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nobody_starves_and_the_total_is_kept(
            streams in 1_usize..6,
            steps in proptest::collection::vec((0_usize..6, 1_usize..100, any::<bool>()), 0..300),
        ) {
            let total = 1000;
            let mut budget = Budget::new(total, streams);
            let mut held = vec![Vec::new(); streams];
            for (stream, bytes, give) in steps {
                let stream = stream % streams;
                if give {
                    if let Some(bytes) = held[stream].pop() {
                        budget.give_back(stream, bytes);
                    }
                } else if budget.may_pull(stream) {
                    budget.take(stream, bytes);
                    held[stream].push(bytes);
                }
                prop_assert!(budget.in_use() < total + streams * 100, "one batch a stream above the total at most");
                for (stream, held) in held.iter().enumerate() {
                    prop_assert!(!held.is_empty() || budget.may_pull(stream), "a stream without bytes may always pull");
                }
            }
            for (stream, held) in held.into_iter().enumerate() {
                budget.give_back(stream, held.into_iter().sum());
            }
            prop_assert_eq!(budget.in_use(), 0);
        }
    }
}
