//! A release over several servers, pure: what is done next, and what becomes of what a crash left prepared.
//!
//! 1. Every server prepares its part (PREPARE TRANSACTION). One that refuses, or is lost, rolls the release back at all.
//! 2. The decision is appended to the transaction log. From the moment it is asked for, only the log says what it is.
//! 3. Once it is durable, every server commits its part (COMMIT PREPARED). None of them can refuse any more.
//!
//! Whoever comes after a crash ends the sessions of the owner before, so that nothing more is prepared, and then commits
//! what is prepared of the last release in the log and rolls back everything else ([`is_committed`]). A release begins only
//! after the one before has ended everywhere, so no older one can be left that was decided.

use crate::coordinator::ReleaseId;
use crate::wal::Epoch;

/// What is done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// This server prepares its part.
    Prepare(usize),
    /// The decision is appended.
    Decide,
    /// This server commits what it has prepared.
    Commit(usize),
}

/// A release on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    servers: usize,
    /// How many steps were done: a prepare a server, the decision, a commit a server.
    done: usize,
    /// The decision was asked for.
    asked: bool,
}

impl Release {
    /// One of so many servers.
    #[must_use]
    pub fn new(servers: usize) -> Self {
        Self { servers, done: 0, asked: false }
    }

    /// One that is over.
    #[must_use]
    pub fn over() -> Self {
        Self { servers: 0, done: 1, asked: true }
    }

    /// What is done next; `None` once all have committed.
    #[must_use]
    pub fn next(&self) -> Option<Step> {
        match self.done {
            done if done < self.servers => Some(Step::Prepare(done)),
            done if done == self.servers => Some(Step::Decide),
            done => Some(done - self.servers - 1).filter(|server| *server < self.servers).map(Step::Commit),
        }
    }

    /// The next step begins.
    pub fn begin(&mut self) {
        self.asked |= self.next() == Some(Step::Decide);
    }

    /// The step was done.
    pub fn did(&mut self) {
        self.done += 1;
    }

    /// The servers that have prepared their part and are to roll it back; `None` once that is for the log to say.
    #[must_use]
    pub fn roll_back(&self) -> Option<std::ops::Range<usize>> {
        (!self.asked).then_some(0..self.done)
    }
}

/// Whether a prepared part is committed, or rolled back.
#[must_use]
pub fn is_committed(prepared: ReleaseId, last: Option<ReleaseId>) -> bool {
    last == Some(prepared)
}

/// What tells the prepared transactions of one log at one server from all others there.
#[must_use]
pub fn gid_prefix(log_id: &str, server: &str) -> String {
    format!("untorn {log_id} {server} ")
}

/// The gid of one server's part.
#[must_use]
pub fn gid(prefix: &str, release: ReleaseId) -> String {
    format!("{prefix}{}.{}", release.epoch.0, release.number)
}

/// The release of a gid with this prefix; `None` where it is somebody else's.
#[must_use]
pub fn release_of(prefix: &str, gid: &str) -> Option<ReleaseId> {
    let (epoch, number) = gid.strip_prefix(prefix)?.split_once('.')?;
    Some(ReleaseId { epoch: Epoch(epoch.parse().ok()?), number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Part {
        Before,
        Prepared,
        After,
    }

    /// What lasts.
    #[derive(Clone, Debug)]
    struct World {
        parts: Vec<Part>,
        last: Option<ReleaseId>,
    }

    const THIS: ReleaseId = ReleaseId { epoch: Epoch(4), number: 2 };

    impl World {
        fn new(servers: usize) -> Self {
            Self { parts: vec![Part::Before; servers], last: Some(ReleaseId { epoch: Epoch(4), number: 1 }) }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Prepare(server) => self.parts[server] = Part::Prepared,
                Step::Decide => {
                    assert!(self.parts.iter().all(|part| *part == Part::Prepared), "decided before all are prepared");
                    self.last = Some(THIS);
                }
                Step::Commit(server) => {
                    assert_eq!(self.last, Some(THIS), "committed before it was decided");
                    self.parts[server] = Part::After;
                }
            }
        }

        /// A successor resolves the first so many servers.
        fn resolve(&mut self, servers: usize) {
            let committed = is_committed(THIS, self.last);
            for part in self.parts.iter_mut().take(servers).filter(|part| **part == Part::Prepared) {
                *part = if committed { Part::After } else { Part::Before };
            }
        }

        fn check(&self) {
            let whole = if self.last == Some(THIS) { Part::After } else { Part::Before };
            assert!(self.parts.iter().all(|part| *part == whole), "torn: {self:?}");
        }
    }

    #[test]
    fn whatever_step_is_the_last_all_servers_end_alike() {
        for servers in 1..=4 {
            for crash in 0..=2 * servers + 1 {
                // Whether the step at the crash happened, or was only begun.
                for happened in [false, true] {
                    for resolved_first in 0..=servers {
                        let (mut world, mut release) = (World::new(servers), Release::new(servers));
                        for _ in 0..crash {
                            release.begin();
                            world.take(release.next().expect("a step"));
                            release.did();
                        }
                        if let Some(step) = release.next().filter(|_| happened) {
                            world.take(step);
                        }
                        // The first successor crashes, too.
                        world.resolve(resolved_first);
                        world.resolve(servers);
                        world.check();
                    }
                }
            }
        }
    }

    #[test]
    fn a_refusal_rolls_back_what_was_prepared_and_never_what_may_be_decided() {
        for servers in 2..=4 {
            for at in 0..=2 * servers {
                let (mut world, mut release) = (World::new(servers), Release::new(servers));
                for _ in 0..at {
                    release.begin();
                    world.take(release.next().expect("a step"));
                    release.did();
                }
                release.begin();
                match release.roll_back() {
                    Some(prepared) => {
                        assert!(at < servers, "rolled back although the decision was asked for");
                        world.parts[prepared].iter_mut().for_each(|part| *part = Part::Before);
                    }
                    None => world.resolve(servers),
                }
                world.check();
            }
        }
    }

    #[test]
    fn a_gid_names_its_release_and_nobody_elses_is_taken_for_one() {
        let prefix = gid_prefix("log", "reports");
        assert_eq!(gid(&prefix, THIS), "untorn log reports 4.2");
        assert_eq!(release_of(&prefix, &gid(&prefix, THIS)), Some(THIS));
        for foreign in
            ["untorn log reports2 4.2", "untorn other reports 4.2", "transfer-1", "untorn log reports x.2", ""]
        {
            assert_eq!(release_of(&prefix, foreign), None, "{foreign}");
        }
    }
}
