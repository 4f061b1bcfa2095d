//! The loop of the source's users: it paces the workload by what the pipeline takes.

use super::bank::Bank;
use super::progress::Progress;
use super::universe::{Step, Universe};
use super::workload::{Committed, Workload};
use crate::limits::DEMO_HISTORY_BYTES;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Transactions of one step: enough to share the step's SafeTime records, few enough to leave in a moment.
const STEP: usize = 64;
/// A step begins when there is room for so many.
const STEP_LEAST: usize = 16;
/// An idle source gives a sign of life this often.
const IDLE: Duration = Duration::from_millis(5);

/// Opens the accounts, waits until the replica shows them, and offers transfers until it is told to stop, then ends what
/// is open. Returns early when the oracle is full.
pub async fn offer(
    mut workload: Workload,
    universe: &Universe,
    bank: &Mutex<Bank>,
    progress: &Progress,
    mut stop: watch::Receiver<bool>,
) {
    let bank = || bank.lock().unwrap_or_else(PoisonError::into_inner);
    let mut step = Step::new(universe.names().len());
    let mut committed: Vec<Committed> = Vec::with_capacity(STEP);

    committed.push(workload.opening(&mut bank(), &mut step));
    progress.committed(&committed);
    universe.append(&mut step);
    loop {
        if progress.numbers(false).in_flight == 0 {
            progress.begin();
            break;
        }
        tokio::select! {
            () = progress.more_room() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }

    while !*stop.borrow() {
        tokio::select! {
            () = universe.room() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        let mut room = progress.room();
        if room < STEP_LEAST {
            // Woken when transactions become visible; the time out is the idle source's sign of life.
            room = match timeout(IDLE, progress.more_room()).await {
                Ok(()) if progress.room() < STEP_LEAST => continue,
                Ok(()) => progress.room(),
                Err(_) => 0,
            };
        }
        committed.clear();
        let full = {
            let mut bank = bank();
            workload.step(room.min(STEP), &mut bank, &mut step, &mut committed);
            bank.history_bytes() > DEMO_HISTORY_BYTES
        };
        progress.committed(&committed);
        universe.append(&mut step);
        if full {
            tracing::warn!("the history that the auditor compares with is full, the workload ends here");
            break;
        }
        tokio::task::yield_now().await;
    }
    committed.clear();
    workload.finish(&mut bank(), &mut step, &mut committed);
    progress.committed(&committed);
    universe.append(&mut step);
}
