//! Copies of tables beside a replica whose versions live elsewhere ([`super::elsewhere`]): while one is on its way, what its
//! stream writes to the table becomes versions here, too, above the copied rows. So what the copy comes to is read here, by
//! the rules of an embedded tablet, at the moment in which it is shown; then it is carried to the other place at once.
//!
//! Nothing here takes provisional records away: the other place needs them. So a decision that is told again after a crash
//! finds them, and becomes the same versions again.

use super::Engine;
use super::apply::{Applying, Step};
use super::fill::Filling;
use super::read;
use super::state::{Branch, State};
use super::worker::Answered;
use crate::coordinator::{Decided, Turn, Work};
use crate::limits::APPLY_BYTES;
use crate::mvcc::TurnAt;
use crate::tablet::keys::{self, VersionKey};
use crate::tablet::store::{Space, Store};
use crate::tablet::{ReadPage, ReadRequest, TabletError};
use crate::wal::{BranchId, LogPosition, SourceTabletId, TableId};
use std::sync::Arc;

/// What a stream brings of a table, and when readers began to see another part of it.
pub type PartTurn = (TableId, SourceTabletId, TurnAt);

impl<S: Store> Engine<S> {
    /// Hears decisions for the copies that are on their way; answers whether any is, after them.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn overlay(&self, mut work: Vec<Decided>) -> Result<bool, TabletError> {
        // An entry becomes visible as a whole: what it shows or hides holds after everything that it decides.
        work.sort_by_key(|Decided { position, work }| {
            let place = match work {
                Work::Turn { turn: Turn::Begun { .. }, .. } => 0,
                Work::Commit { .. } | Work::Discard { .. } => 1,
                Work::Turn { turn: Turn::Shown { .. } | Turn::Hidden { .. }, .. } => 2,
            };
            (*position, place)
        });
        self.call(Answered::Now, move |state| state.overlay(&work)).await
    }

    /// Whether a copy is on its way.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn is_copying(&self) -> Result<bool, TabletError> {
        self.call(Answered::Now, |state| Ok(!state.copying.is_empty())).await
    }

    /// Every turn that was told, by table and stream, oldest first.
    #[must_use]
    pub fn turns(&self) -> Vec<PartTurn> {
        self.shared.truncations().turns().collect()
    }

    /// Reads what a copy comes to, whatever has been heard since.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn read_copied(&self, request: ReadRequest) -> Result<ReadPage, TabletError> {
        let shared = Arc::clone(&self.shared);
        self.queue.read(move || read::page(&shared, &request)).await
    }

    /// Deletes some of what the other place has durably: the rows of copies whose turn stands at or below `through`, and
    /// what was written above them. Goes on from `from`, and answers where to go on next; `None` at the end.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn drop_copied(&self, through: LogPosition, from: Vec<u8>) -> Result<Option<Vec<u8>>, TabletError> {
        self.call(Answered::Now, move |state| state.drop_copied(through, from)).await
    }
}

impl<S: Store> State<S> {
    fn overlay(&mut self, work: &[Decided]) -> Result<bool, TabletError> {
        let mut step = Step::default();
        for Decided { position, work } in work {
            match work {
                Work::Turn { stream, table, turn } => {
                    self.turn(&mut step, *position, (*table, *stream), *turn)?;
                    // What comes after it is looked at in its light.
                    self.finish(&mut step)?;
                }
                Work::Commit { transaction, time, branches, .. } => {
                    let copied = |branch: &BranchId| self.copying.keys().any(|(_, stream)| *stream == branch.stream);
                    if branches.iter().any(copied) {
                        // Who else writes a key is found out where the versions are.
                        let applying = Applying::new((*transaction, *time, *position), branches, false);
                        self.overlay_commit(&mut step, applying, branches)?;
                    }
                }
                Work::Discard { .. } => {}
            }
            if step.batch.bytes >= APPLY_BYTES {
                self.finish(&mut step)?;
            }
        }
        self.finish(&mut step)?;
        Ok(!self.copying.is_empty())
    }

    fn overlay_commit(
        &mut self,
        step: &mut Step,
        mut applying: Applying,
        branches: &[BranchId],
    ) -> Result<(), TabletError> {
        let here: Vec<(BranchId, Branch)> =
            branches.iter().filter_map(|&id| Some((id, self.branches.get(&id)?.clone()))).collect();
        let looks_back = here.iter().any(|(_, branch)| branch.looks_back);
        if looks_back {
            applying.filling = Some(Filling::default());
            // It may have been told before, and those versions are no earlier writes.
            self.undo_writes(step, applying.time, &here, &Self::is_copied)?;
        }
        self.each_kept_write(step, &mut applying, &here, &Self::is_copied)?;
        if looks_back {
            for (id, _) in &here {
                step.batch.delete(Space::Undecided, keys::partly_applied(*id));
            }
        }
        Ok(())
    }

    fn is_copied(&self, part: (TableId, SourceTabletId)) -> bool {
        self.copying.contains_key(&part)
    }

    fn drop_copied(&mut self, through: LogPosition, from: Vec<u8>) -> Result<Option<Vec<u8>>, TabletError> {
        let (first, below) = keys::Kind::Version.all();
        let truncations = self.shared.truncations();
        let mut step = Step::default();
        let mut passed = 0;
        let mut next = None;
        for entry in self.store.scan(Space::Versions, &from.max(first), &below) {
            let (key, _) = entry?;
            let key = key.as_ref();
            if passed >= APPLY_BYTES || step.batch.bytes >= APPLY_BYTES {
                next = Some(key.to_vec());
                break;
            }
            let damaged = || TabletError::Poisoned("a version's key is damaged".into());
            let VersionKey { table, time, stream, .. } = VersionKey::parse(key).ok_or_else(damaged)?;
            if truncations.turned_since(table, stream, time, through) {
                step.batch.delete(Space::Versions, key.to_vec());
            } else {
                passed += key.len();
            }
        }
        self.finish(&mut step)?;
        Ok(next)
    }
}
