//! The transaction leader's protocol, as a machine without I/O: it is told facts, and says what must become durable and
//! what must be done. No clock, no task, no randomness; the same inputs give the same outputs.
//!
//! # The problem
//!
//! A source transaction wrote to several source tablets. Each sends its own stream, in order, and the streams run at
//! their own pace. The replica must show the transaction whole or not at all, whoever crashes.
//!
//! # The protocol
//!
//! **Facts first.** A poller stores a run of its stream's writes at the replica tablets as provisional records, waits
//! until they are durable, and only then reports the run's facts: which branches wrote how many records to which replica
//! tablets, which Applying, Commit and Aborted records came ([`Report`]). The facts and the stream's new checkpoint go
//! into the transaction log in one entry. So whatever the log says was received can be applied.
//!
//! **The gate** ([`Missing`]) opens when the transaction's Commit record is known and every involved source tablet has
//! reported its Applying record with the right count. Who is involved is listed by the Commit record where the source
//! has a common clock; PostgreSQL servers do not know each other, so there it is discovered ([`discovery`]). Then the
//! machine appends the **decision**. That append is the commit: nothing else makes a write visible, and the first
//! decision for a transaction counts for ever.
//!
//! **Apply.** Every replica tablet hears the decisions in log order and turns provisional records into versions. That is
//! idempotent, so after a crash it is simply done again. A reader fixes a log position before it reads the first tablet,
//! and each tablet waits until it has heard the log up to there; so two tablets never show it different decisions.
//!
//! **Releases.** A replica tablet of several servers makes them show new decisions together: all prepare, a `Released` entry
//! decides, all commit (`releases`).
//!
//! A tablet that stalls, or that refuses a decision, holds up nothing but itself and what reads it ([`Coordinator::must_stop`]
//! names the streams that carried what it refuses); when too much is held, streams that run ahead are asked to pause, and
//! never one that somebody waits for ([`Coordinator::must_pause`]).
//!
//! **Forget.** When all tablets that it wrote to have durably applied it, and every stream that spoke of it has
//! acknowledged that to its source, nothing of it can come again, and its record goes ([`State`] stays at the size of the outstanding work).
//!
//! # States
//!
//! | [`Status`] | set by | waits for |
//! |---|---|---|
//! | `CREATED` | a Created record or a first write | an Applying or Commit record |
//! | `PENDING` | a Pending record | the same |
//! | `WAITING_TO_COMMIT` | the first Applying or Commit record | its gate; its cut where there is no common clock |
//! | `COMMITTED` | the decision | the replica tablets |
//! | `APPLIED` | the last tablet that has durably applied it | acknowledgement to the source, then it is forgotten |
//! | `ABORTED` | the decision to abort, on the source's word | the same |
//!
//! # Order
//!
//! With a common clock ([`Release::CommonClock`]) a transaction is decided when its gate opens, at the source's commit
//! time, and readers at **safe time** see a prefix of the source's history: safe time is the smallest SafeTime of all
//! streams, and stays below every undecided commit.
//!
//! Without one, [`Release::Ordered`] decides the largest consistent **cut**. A transaction's place in a stream reaches from
//! its PREPARE to its COMMIT PREPARED. Each stream keeps its places in a queue ([`Place`]): a PREPARE at the front is
//! passed freely; a commit at the front is passed when its transaction is decided, and that may happen once its gate is
//! open and all its PREPAREs are passed. Whoever prepares everything before committing anything cannot make a circle of
//! such waits (the real time of each first commit satisfies every one of them), so passing greedily reaches the largest
//! cut, and the order of the decisions keeps every order that a stream shows. [`Release::Atomic`] decides at the gate; a
//! transaction then only waits for earlier ones that wrote one of its keys.
//!
//! # Copies, and streams that come and go
//!
//! Tables are copied, and copied again, while everything else goes on: `copies` has the rule and its reasons. A stream
//! that the log does not know **joins**: its tables are copied and its stream is pulled, and nothing of it is seen; then
//! rounds ask its server, too, and the start fence is taken for it; once that is passed and everything is decided that any
//! stream carried by then, all of its tables are shown in one entry, at a named time above safe time ([`Joining`]). A
//! transaction that was decided without its branch there, because it committed before rounds asked that server, has ended
//! there before that entry: whoever sees one half sees the other. A stream that the configuration does not name any more
//! **leaves**: its rows are hidden from that entry on, and branches that it did not end are discarded.
//!
//! # Recovery
//!
//! State is a fold over the log's entries: [`State`] holds what the log says and nothing else, and is changed by
//! folding items only. A live machine folds an item in the moment in which it says it, so it runs ahead of the log by
//! the entries on their way, and everything that leaves it carries the position that must be durable first
//! ([`Promise`]; outputs are held back by the machine itself). If an append does not happen, the machine is thrown away
//! and the next one folds what is there. Therefore:
//!
//! - a crash before the facts are durable: the stream's checkpoint is the old one, the run is read again, and the tablets
//!   drop what they hold by their marks;
//! - a crash after the facts, before the decision: the fold holds the transaction open, its gate is looked at again;
//! - a crash after the decision, before or while it is applied: it stands in the queue of work until every tablet has
//!   said, and the log has kept, that it is applied; all of it is handed out again;
//! - a crash after that: it waits to be forgotten, and forgetting is part of the fold.
//!
//! # Invariants
//!
//! I1 to I6 in [`invariants`], one function each. The costly ones run in tests and in the simulator.

mod applying;
mod check;
mod copies;
mod copying;
mod decided;
mod deciding;
pub mod discovery;
pub mod entry;
mod explain;
pub mod fact;
mod fold;
mod forget;
mod gate;
pub mod invariants;
mod join;
mod joining;
mod machine;
mod output;
mod pressure;
mod pulling;
mod questions;
mod releases;
mod state;
mod stream;
mod transaction;
mod transactions;

pub use copies::{PublishedColumn, PublishedTable, TableCopy};
pub use decided::{Applied, Decided, ReadPoint, Turn, Work};
pub use discovery::Start;
pub use entry::{
    CopyState, Entry, FORMAT_VERSION, Fence, Item, MappedTablet, Outcome, Release, ReleaseId, SNAPSHOT_VERSION,
    TabletMap,
};
pub use explain::{Cause, Explanation, InvolvedView, StreamView, TransactionCounts, Wait};
pub use fact::{ApplyingFact, Fact, InvolvedStream, Involvement, Report};
pub use gate::Missing;
pub use joining::{Absence, Joining};
pub use machine::{Coordinator, Settings};
pub use output::{OpenBranchView, Output, Promise, Refused, StreamOpening};
pub use state::State;
pub use stream::{Place, StreamRecord};
pub use transaction::{Branch, BranchExtra, CommitRecord, Decision, Status, Transaction};
pub use transactions::Transactions;
