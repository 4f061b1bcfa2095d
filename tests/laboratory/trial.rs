//! One try of a campaign, and what many came to.

use super::report::{Options, Report};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// What was exercised: how often each thing happened.
pub type Counts = BTreeMap<&'static str, u64>;

/// The first panic of the try that runs: what failed.
static FAILED: Mutex<Option<String>> = Mutex::new(None);

/// From here on the first panic of a try is kept, whichever task it ends.
pub fn note_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        FAILED.lock().unwrap().get_or_insert_with(|| panic.to_string());
        usual(panic);
    }));
}

/// Runs `n` tries, `together` of them at a time under one seed: what they need is set up once for all of these. The first
/// of a try that panics, in whatever task, has failed, and is replayed by its seed.
pub fn each(options: &Options, n: u64, together: u64, of: impl AsyncFn(u64, u64, &mut Counts)) -> Report {
    let mut report = Report::default();
    let mut counts = Counts::new();
    for seed in options.seed.. {
        let tries = (n - report.n).min(together);
        if tries == 0 {
            break;
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(of(seed, tries, &mut counts))));
        drop(runtime);
        report.n += tries;
        let failed = FAILED.lock().unwrap().take();
        if let Some(what) = failed.or_else(|| ended.err().map(|_| "it panicked without a word".to_owned())) {
            let replay = format!("tests/prove {} --n {tries} --seed {seed}", options.campaign);
            report.failures.push((format!("seed {seed}: {what}"), replay));
        }
        options.say(&format!("{} of {n}, {} failures: {counts:?}", report.n, report.failures.len()));
    }
    report.exercised = counts.into_iter().map(|(what, count)| (what.to_owned(), count.into())).collect();
    report
}

/// Counts one more.
pub fn count(counts: &mut Counts, what: &'static str) {
    *counts.entry(what).or_default() += 1;
}
