//! The coordinator.

mod check;
mod decided;
pub mod discovery;
pub mod entry;
pub mod fact;
mod fold;
mod forget;
mod gate;
pub mod invariants;
mod join;
mod machine;
mod output;
mod state;
mod stream;
mod transaction;
mod transactions;

pub use decided::{Applied, Decided, ReadPoint, Work};
pub use discovery::Start;
pub use entry::{CopyState, Entry, FORMAT_VERSION, Fence, Item, MappedTablet, Outcome, Release, TabletMap};
pub use fact::{ApplyingFact, Fact, InvolvedStream, Involvement, Report};
pub use gate::Missing;
pub use machine::{Coordinator, Settings};
pub use output::{OpenBranchView, Output, Promise, Refused, StreamOpening};
pub use state::State;
pub use stream::{Place, StreamRecord};
pub use transaction::{Branch, CommitRecord, Decision, Status, Transaction};
pub use transactions::Transactions;
