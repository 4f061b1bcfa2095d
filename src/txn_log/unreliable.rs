//! A log behind a bad network: the wrapper that every engine, and everything built on one, is tested through.
//!
//! It does to calls what a network does: some never arrive, of some the answer is lost, and some arrive late, after
//! later calls, even after another owner's. It is seeded: the same seed and the same calls give the same faults.

use super::{LogError, LogRecord, Opened, Snapshot, TransactionLog};
use crate::wal::{Epoch, LogPosition};
use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;

/// How often what goes wrong, each as a probability; what is left goes well.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Faults {
    /// The call never arrives. Half the time the caller knows ([`LogError::Unavailable`]).
    pub lost_request: f64,
    /// The call did what it did, and the caller does not hear of it.
    pub lost_answer: f64,
    /// The append arrives after a later call, or when [`Unreliable::deliver_late`] is called.
    pub late: f64,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self { lost_request: 0.0, lost_answer: 0.0, late: 0.0 };
    /// Every other call goes wrong in some way.
    pub const MANY: Self = Self { lost_request: 0.2, lost_answer: 0.2, late: 0.1 };
    /// Every append arrives late.
    pub const ALL_LATE: Self = Self { lost_request: 0.0, lost_answer: 0.0, late: 1.0 };
}

/// What happens to one call.
enum Fault {
    None,
    LostRequest { known: bool },
    LostAnswer,
    Late,
}

/// An engine behind a bad network.
pub struct Unreliable<L> {
    engine: L,
    rng: SmallRng,
    faults: Faults,
    late: VecDeque<(LogPosition, Epoch, Bytes)>,
}

impl<L: TransactionLog> Unreliable<L> {
    /// Wraps an engine.
    pub fn new(engine: L, faults: Faults, seed: u64) -> Self {
        Self { engine, rng: SmallRng::seed_from_u64(seed), faults, late: VecDeque::new() }
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Delivers everything that is late; answers how many of the appends landed.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] and [`LogError::Damaged`] of the engine: no network hides those.
    pub async fn deliver_late(&mut self) -> Result<usize, LogError> {
        let mut landed = 0;
        while let Some((position, epoch, entry)) = self.late.pop_front() {
            match self.engine.append(position, epoch, entry).await {
                Ok(_) => landed += 1,
                Err(error @ (LogError::Poisoned(_) | LogError::Damaged(_))) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(landed)
    }

    fn fault(&mut self) -> Fault {
        let at = self.rng.random::<f64>();
        let Faults { lost_request, lost_answer, late } = self.faults;
        if at < lost_request {
            Fault::LostRequest { known: self.rng.random() }
        } else if at < lost_request + lost_answer {
            Fault::LostAnswer
        } else if at < lost_request + lost_answer + late {
            Fault::Late
        } else {
            Fault::None
        }
    }

    /// What is late arrives behind about every other call.
    async fn sometimes_deliver(&mut self) -> Result<(), LogError> {
        if !self.late.is_empty() && self.rng.random() {
            self.deliver_late().await?;
        }
        Ok(())
    }
}

fn not_sent(known: bool) -> LogError {
    if known { LogError::Unavailable("injected: not sent".into()) } else { unknown() }
}

fn unknown() -> LogError {
    LogError::Indeterminate("injected: no answer".into())
}

/// An answer that was lost. That storage failed or is damaged is not lost: the next call would say it again.
fn lose<T>(answer: Result<T, LogError>) -> Result<T, LogError> {
    match answer {
        Err(error @ (LogError::Poisoned(_) | LogError::Damaged(_))) => Err(error),
        _ => Err(unknown()),
    }
}

/// Of calls that change nothing, or that a caller only does again, it does not matter what was lost.
fn unavailable<T>(error: LogError) -> Result<T, LogError> {
    match error {
        LogError::Indeterminate(what) => Err(LogError::Unavailable(what)),
        other => Err(other),
    }
}

#[async_trait]
impl<L: TransactionLog> TransactionLog for Unreliable<L> {
    async fn open(&mut self, owner: &str) -> Result<Opened, LogError> {
        let answer = match self.fault() {
            Fault::None | Fault::Late => self.engine.open(owner).await,
            Fault::LostRequest { known } => unavailable(not_sent(known)),
            Fault::LostAnswer => lose(self.engine.open(owner).await).or_else(unavailable),
        };
        self.sometimes_deliver().await?;
        answer
    }

    async fn append(&mut self, expected: LogPosition, epoch: Epoch, entry: Bytes) -> Result<LogPosition, LogError> {
        let (answer, late) = match self.fault() {
            Fault::None => (self.engine.append(expected, epoch, entry).await, None),
            Fault::LostRequest { known } => (Err(not_sent(known)), None),
            Fault::LostAnswer => (lose(self.engine.append(expected, epoch, entry).await), None),
            Fault::Late => (Err(unknown()), Some((expected, epoch, entry))),
        };
        self.sometimes_deliver().await?;
        self.late.extend(late);
        answer
    }

    async fn read(&mut self, from: LogPosition, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        let answer = match self.fault() {
            Fault::None | Fault::Late => self.engine.read(from, max_bytes).await,
            Fault::LostRequest { .. } | Fault::LostAnswer => unavailable(unknown()),
        };
        self.sometimes_deliver().await?;
        answer
    }

    async fn write_snapshot(&mut self, epoch: Epoch, snapshot: Snapshot) -> Result<(), LogError> {
        let answer = match self.fault() {
            Fault::None | Fault::Late => self.engine.write_snapshot(epoch, snapshot).await,
            Fault::LostRequest { known } => Err(not_sent(known)),
            Fault::LostAnswer => lose(self.engine.write_snapshot(epoch, snapshot).await),
        };
        self.sometimes_deliver().await?;
        answer
    }

    async fn read_snapshot(&mut self) -> Result<Option<Snapshot>, LogError> {
        let answer = match self.fault() {
            Fault::None | Fault::Late => self.engine.read_snapshot().await,
            Fault::LostRequest { .. } | Fault::LostAnswer => unavailable(unknown()),
        };
        self.sometimes_deliver().await?;
        answer
    }

    async fn trim(&mut self, epoch: Epoch, up_to: LogPosition) -> Result<(), LogError> {
        let answer = match self.fault() {
            Fault::None | Fault::Late => self.engine.trim(epoch, up_to).await,
            Fault::LostRequest { known } => Err(not_sent(known)),
            Fault::LostAnswer => lose(self.engine.trim(epoch, up_to).await),
        };
        self.sometimes_deliver().await?;
        answer
    }
}
