//! What must hold after every input, one function each. Debug assertions, property tests and the simulator share them.

use super::entry::{Outcome, Release};
use super::machine::Coordinator;
use super::state::{Piece, State};

/// The first invariant that is broken, by its number and text, or `None`. In debug builds the machine asserts the cheap
/// ones after every input; [`all_broken`] looks at every transaction.
#[must_use]
pub fn broken(coordinator: &Coordinator) -> Option<String> {
    let state = &coordinator.state;
    [positions(state), safe_time(state), work(state)].into_iter().flatten().next()
}

/// Every invariant, the costly ones too.
#[must_use]
pub fn all_broken(coordinator: &Coordinator) -> Vec<String> {
    let state = &coordinator.state;
    [positions(state), safe_time(state), work(state), gate(state), undecided(state), forgotten(state)]
        .into_iter()
        .flatten()
        .collect()
}

/// I1: `acknowledged <= checkpoint <= head` in every stream: C4 as the log sees it.
#[must_use]
pub fn positions(state: &State) -> Option<String> {
    let bad = state.streams.iter().find(|s| s.acknowledged > s.checkpoint || s.checkpoint > s.head)?;
    Some(format!(
        "I1: stream {}: acknowledged {}, checkpoint {}, head {}",
        bad.name, bad.acknowledged, bad.checkpoint, bad.head
    ))
}

/// I2: safe time stays below every undecided commit (C9).
#[must_use]
pub fn safe_time(state: &State) -> Option<String> {
    let (_, safe) = state.safe?;
    let (first, id) = state.undecided.first()?;
    (state.release == Release::CommonClock && *first <= safe)
        .then(|| format!("I2: safe time {safe} is not below {id}, undecided at {first}"))
}

/// I3: work for the tablets stands in log order, behind what all have applied, and its transactions are held.
#[must_use]
pub fn work(state: &State) -> Option<String> {
    let (front, back) = (state.work.front()?, state.work.back()?);
    if front.0 > back.0 || back.0 > state.position {
        return Some(format!("I3: work from {} to {}, log at {}", front.0, back.0, state.position));
    }
    match &front.1 {
        Piece::Decided(id) if state.transactions.get(*id).is_none_or(|t| t.decision.is_none()) => {
            Some(format!("I3: the work of {id} is waited for, and it is not held as decided"))
        }
        _ => None,
    }
}

/// I4: no decision to commit without the Commit record and every involved Applying record (C1).
#[must_use]
pub fn gate(state: &State) -> Option<String> {
    let committed =
        |t: &&super::transaction::Transaction| matches!(t.decision.map(|d| d.outcome), Some(Outcome::Commit(_)));
    let bad = state.transactions.iter().filter(committed).find(|t| {
        let Some(commit) = &t.commit else { return true };
        match &commit.listed {
            Some(listed) => listed.iter().any(|involved| {
                let split = state.stream(involved.stream).is_some_and(|s| !s.children.is_empty());
                !split && !t.branches.iter().any(|b| b.stream == involved.stream && b.applying)
            }),
            None => !commit.discovered || t.branches.iter().any(|b| !b.applying && !b.bystander),
        }
    })?;
    Some(format!("I4: {} ({}) is committed and its gate is not open", bad.id, bad.source))
}

/// I5: exactly the transactions with a Commit record and no decision are undecided.
#[must_use]
pub fn undecided(state: &State) -> Option<String> {
    let waiting = state.transactions.iter().filter(|t| t.decision.is_none() && t.commit.is_some()).count();
    (waiting != state.undecided.len()).then(|| format!("I5: {waiting} wait, {} are noted", state.undecided.len()))
}

/// I6: what is finished, acknowledged and below safe time is forgotten (C13).
#[must_use]
pub fn forgotten(state: &State) -> Option<String> {
    let kept = state.transactions.iter().find(|t| {
        let Some(decision) = t.decision else { return false };
        let below_safe = match (state.release, decision.outcome) {
            (Release::CommonClock, Outcome::Commit(time)) => state.safe.is_some_and(|(_, safe)| time <= safe),
            _ => true,
        };
        t.applied && below_safe && state.is_told(t)
    })?;
    Some(format!("I6: {} ({}) is finished and still held", kept.id, kept.source))
}
