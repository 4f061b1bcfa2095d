//! Memory is bounded: what is on its way never takes more than the budget and a batch for each stream.

/// What does not hold, if anything.
pub fn broken((used, total): (usize, usize), streams: usize, largest_batch: usize) -> Option<String> {
    let most = total + streams * largest_batch;
    (used > most).then(|| format!("bounded: {used} bytes are on their way, the budget is {total}"))
}
