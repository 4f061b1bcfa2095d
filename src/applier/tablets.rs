//! The replica tablets as the applier's tasks share them.

use super::ended::Trouble;
use crate::coordinator::{Decided, ReadPoint, TabletMap};
use crate::tablet::{RefusedWrite, TabletError, TabletLeader};
use crate::wal::{LogPosition, ReplicaTabletId, SourceTabletId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, watch};

/// A replica tablet of the configuration.
#[derive(Clone)]
pub struct NamedTablet {
    /// Its name.
    pub name: String,
    /// The first key that it holds, where the map is cut by key ranges.
    pub from_key: Option<Vec<u8>>,
    /// Where its leader is reached.
    pub leader: Arc<dyn TabletLeader>,
}

/// The replica tablets of the configuration, and where they live.
#[derive(Clone)]
pub struct Tablets {
    named: Arc<[NamedTablet]>,
    here: bool,
}

/// One replica tablet under the log's number.
#[derive(Clone)]
pub(super) struct Tablet {
    pub(super) id: ReplicaTabletId,
    pub(super) name: String,
    pub(super) leader: Arc<dyn TabletLeader>,
    here: bool,
    /// The names of streams, where an error may speak of one.
    streams: Arc<[(String, SourceTabletId)]>,
}

impl Tablets {
    /// Tablets in the map's order. `here` says whether they live in this process, which must end when one's storage fails.
    #[must_use]
    pub fn new(tablets: impl IntoIterator<Item = NamedTablet>, here: bool) -> Self {
        Self { named: tablets.into_iter().collect(), here }
    }

    /// The tablets of the configuration.
    pub(super) fn named(&self) -> &[NamedTablet] {
        &self.named
    }

    /// The map that the configuration asks for: names, and first keys where it is cut by ranges.
    pub(super) fn cut(&self) -> Vec<(String, Option<Vec<u8>>)> {
        self.named.iter().map(|tablet| (tablet.name.clone(), tablet.from_key.clone())).collect()
    }

    /// The tablets of a map, in its order.
    ///
    /// # Errors
    /// The map names a tablet that the configuration does not.
    pub(super) fn of(&self, map: &TabletMap) -> Result<Vec<Tablet>, String> {
        let tablets = map.tablets.iter().map(|mapped| {
            let named = self.named.iter().find(|named| named.name == mapped.name).ok_or_else(|| {
                format!(
                    "the log's map names replica tablet {:?}, which is not in the configuration; add it to \
                     [[replica.tablets]]",
                    mapped.name
                )
            })?;
            let (name, leader) = (mapped.name.clone(), Arc::clone(&named.leader));
            Ok(Tablet { id: mapped.id, name, leader, here: self.here, streams: Arc::default() })
        });
        tablets.collect()
    }
}

impl Tablet {
    /// The same, which knows streams by name.
    pub(super) fn knowing(self, streams: &Arc<[(String, SourceTabletId)]>) -> Self {
        Self { streams: Arc::clone(streams), ..self }
    }

    /// What an error of this tablet means for whoever met it.
    pub(super) fn trouble(&self, error: &TabletError) -> Trouble {
        if let TabletError::WrittenTwice { table, key, first } = error {
            let named = self.streams.iter().find(|(_, stream)| stream == first);
            let first = named.map_or_else(|| first.to_string(), |(name, _)| name.clone());
            return Trouble::Stop(format!(
                "key {key} of {table} was written here and on {first}, and nothing says in which order: delete one of the \
                 two rows on {first}, after which this stream goes on; or leave the table out on one of the two servers"
            ));
        }
        Trouble::of_tablet(&self.name, self.here, error)
    }
}

/// Decisions on their way from the leader to one replica tablet: at most the machine's window of them.
#[derive(Debug, Default)]
pub(super) struct ApplyQueue {
    state: Mutex<Gathered>,
    moved: Notify,
    /// Set by the executor while the tablet does not take decisions; status and explain show it.
    held: watch::Sender<Option<Hold>>,
    /// A transaction that the tablet refuses, from the call that met it to the executor's next word.
    refused: Mutex<Option<RefusedWrite>>,
    again: Notify,
    /// Decisions that were handed over, and that the tablet has not heard.
    unheard: watch::Sender<usize>,
}

/// Why a replica tablet does not take decisions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// The tablet's name.
    pub tablet: String,
    /// Why.
    pub cause: String,
    /// It takes nothing at all until somebody mends it. Where it refuses a decision, the leader knows which streams stop.
    pub stopped: bool,
    /// The write that it refuses, if that is it.
    pub refused: Option<RefusedWrite>,
}

/// What gathered while the tablet was busy.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// The decisions, positions rising.
    pub(super) work: VecDeque<Decided>,
    /// Every decision at or below this one that concerns the tablet was handed over.
    pub(super) through: LogPosition,
    /// The newest safe point at or below `through`.
    pub(super) safe: Option<ReadPoint>,
    /// No more will come.
    pub(super) closing: bool,
}

impl ApplyQueue {
    /// Hands decisions over, all of them up to `through`.
    pub(super) fn hand_over(&self, work: &mut Vec<Decided>, through: LogPosition, safe: Option<ReadPoint>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if work.is_empty() && state.through == through {
            return;
        }
        self.unheard.send_modify(|unheard| *unheard += work.len());
        state.work.extend(work.drain(..));
        state.through = through;
        state.safe = safe;
        drop(state);
        self.moved.notify_one();
    }

    /// No more will come: the executor ends once the tablet has applied everything durably.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.moved.notify_one();
    }

    /// Moves everything that gathered behind `kept`.
    pub(super) fn take_into(&self, kept: &mut VecDeque<Decided>) -> Gathered {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        kept.append(&mut state.work);
        Gathered { work: VecDeque::new(), ..*state }
    }

    /// The tablet has not heard so many of the decisions that were taken.
    pub(super) fn hears(&self, left: usize) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.unheard.send_replace(left + state.work.len());
    }

    /// Decisions that the tablet has not heard, where it takes any.
    pub(super) fn unheard(&self) -> usize {
        if self.held.borrow().is_some() { 0 } else { *self.unheard.borrow() }
    }

    /// Waits until no more than so many are left that the tablet has not heard.
    pub(super) async fn hears_down_to(&self, left: usize) {
        // The sender lives as long as this.
        self.unheard.subscribe().wait_for(|unheard| *unheard <= left).await.ok();
    }

    /// Waits until something was handed over.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Says why the tablet does not take decisions, or that it does; whether that is news.
    pub(super) fn hold(&self, tablet: &str, trouble: Option<(String, bool)>) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        let hold = trouble.map(|(cause, stopped)| Hold { tablet: tablet.to_owned(), cause, stopped, refused });
        self.held.send_if_modified(|held| {
            let news = *held != hold;
            *held = hold;
            news
        })
    }

    /// The tablet refuses this write.
    pub(super) fn refuse(&self, write: RefusedWrite) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(write);
    }

    /// Why the tablet does not take decisions, if it does not.
    pub(super) fn held(&self) -> Option<Hold> {
        self.held.borrow().clone()
    }

    /// What the tablet refused is to be tried at once.
    pub(super) fn try_again(&self) {
        self.again.notify_one();
    }

    /// Waits for [`Self::try_again`].
    pub(super) async fn asked_again(&self) {
        self.again.notified().await;
    }
}
