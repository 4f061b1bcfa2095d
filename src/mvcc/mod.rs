//! Which version of a key a reader sees, and which versions nobody can see any more. Pure.
//!
//! A tablet keeps several versions of a key. A version carries a [`Stamp`]: its transaction's commit hybrid time, the
//! log position of the decision, the stream it came from, and whether it is a delete. The rules:
//!
//! 1. **A read point sees a version** whose position *and* time lie at or below its own (C3). Among those the newest time
//!    wins, whenever it was applied: a version older than a newer one is kept as history and does not win.
//! 2. **Within one transaction** versions have equal times. A stream's later write replaces its earlier one (same place
//!    in the store), and a write beats another stream's delete: a row that moves between two servers is a delete on
//!    one and an insert on the other, in either order (trace 13).
//! 3. **A truncation** of a table by a stream removes what that stream wrote to it at lower times, for readers who see
//!    the truncation. What other streams wrote stays (trace 30). A key whose newest version was removed is gone; it
//!    does not fall back to an older version.
//! 4. **A turn** says from which place and time on which of a stream's versions of a table count: the rows of the copy that
//!    has its base as their time, and what the stream wrote above that; or nothing. For whoever sees a turn, what does not
//!    count has never been, so keys do fall back behind such a version: another stream's is as new as that one. Copied
//!    rows have position 0. (Tablets of an earlier format hold a truncation at position 0 for each attempt of an initial
//!    copy, which means the same.)
//! 5. **Collection** drops what no reader at or above a horizon can see. Readers below it are refused (C3).

mod collection;
mod visibility;

pub use collection::collectable;
pub use visibility::{Chain, Event, Fate, Offer, Stamp, Truncation, Truncations, TurnAt, history};
