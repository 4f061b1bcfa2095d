//! The coordinator.

mod decided;
pub mod entry;
pub mod fact;
mod machine;
mod output;

pub use decided::{Applied, Decided, ReadPoint, Work};
pub use entry::{CopyState, Entry, FORMAT_VERSION, Fence, Item, MappedTablet, Outcome, Release, TabletMap};
pub use fact::{ApplyingFact, Fact, InvolvedStream, Involvement, Report};
pub use machine::{Coordinator, Settings};
pub use output::{OpenBranchView, Output, Promise, Refused, StreamOpening};
