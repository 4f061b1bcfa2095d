//! The coordinator.

pub mod entry;
pub mod fact;

pub use entry::{CopyState, Entry, FORMAT_VERSION, Fence, Item, MappedTablet, Outcome, Release, TabletMap};
pub use fact::{ApplyingFact, Fact, InvolvedStream, Involvement, Report};
