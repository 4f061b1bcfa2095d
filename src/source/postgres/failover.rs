//! Whether a stream may go on at the server that answers: it may be the one that it was read from, a standby of it that
//! was promoted, or another one altogether.
//!
//! A promotion begins a new timeline, and its history says at which position it left each earlier one. The log keeps the
//! timeline under which the checkpoint was taken, so it shows whether that position lies on the common part of both. If
//! it lies behind the fork, the replica holds transactions that the promoted standby never received: they exist nowhere
//! else any more, and the standby's own transactions at the same positions would be taken for them.

use super::decode::{lsn, parse_lsn};
use super::error::Failure;
use super::wire::Replication;
use std::fmt;

/// What tells a server, its database and its line of history from others that took its place. Written
/// `system@timeline/database`; a log that was begun before timelines were kept has `system/database`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The cluster's system identifier.
    pub system: String,
    /// The timeline; 0 where it was not kept.
    pub timeline: u32,
    /// The database's name.
    pub database: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system, timeline, database } = self;
        match timeline {
            0 => write!(f, "{system}/{database}"),
            timeline => write!(f, "{system}@{timeline}/{database}"),
        }
    }
}

impl Identity {
    /// From what the log kept.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (server, database) = text.split_once('/').unwrap_or((text, ""));
        let (system, timeline) = server.split_once('@').unwrap_or((server, "0"));
        Self { system: system.to_owned(), timeline: timeline.parse().unwrap_or(0), database: database.to_owned() }
    }

    /// Asks a server who it is.
    ///
    /// # Errors
    /// What the server said.
    pub async fn ask(session: &mut Replication) -> Result<Self, Failure> {
        let row = session.command("IDENTIFY_SYSTEM").await?;
        let part = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
        Ok(Self { system: part(0), timeline: part(1).parse().unwrap_or(0), database: part(3) })
    }

    /// Whether what comes after a position, taken from the server that was `kept`, can be read from this one; `history`
    /// is this one's timeline history, empty for timeline 1.
    ///
    /// # Errors
    /// Why it cannot, what is at risk, and what to do.
    pub fn continues(&self, kept: &Self, history: &str, after: u64) -> Result<(), String> {
        if (&self.system, &self.database) != (&kept.system, &kept.database) {
            return Err(format!(
                "another server answers: {self} instead of {kept}; correct the URL, or drop this source tablet and add it \
                 again"
            ));
        }
        if kept.timeline == 0 || kept.timeline == self.timeline {
            return Ok(());
        }
        if kept.timeline > self.timeline {
            return Err(format!(
                "an old primary answers: it is on timeline {}, and timeline {} was followed already; name the new primary in \
                 the URL, and do not let the old one take writes",
                self.timeline, kept.timeline
            ));
        }
        let Some(left) = left_at(history, kept.timeline) else {
            return Err(format!(
                "the server is on timeline {}, which does not come from timeline {} that was followed; name the server that \
                 does",
                self.timeline, kept.timeline
            ));
        };
        if after > left {
            return Err(format!(
                "a standby was promoted that had not received everything: timeline {} begins at {}, and the replica was taken \
                 up to {}. What committed in between is at the replica and on the old primary only; bring the old \
                 primary back, or copy this source tablet again, which gives it up",
                self.timeline,
                lsn(left),
                lsn(after)
            ));
        }
        Ok(())
    }
}

/// The timeline history of a server, as its file says it.
///
/// # Errors
/// What the server said.
pub async fn history(session: &mut Replication, timeline: u32) -> Result<String, Failure> {
    if timeline <= 1 {
        return Ok(String::new());
    }
    let row = session.command(&format!("TIMELINE_HISTORY {timeline}")).await?;
    Ok(row.get(1).cloned().flatten().unwrap_or_default())
}

/// Where a history left a timeline: each line is a timeline, the position of its end, and why.
fn left_at(history: &str, timeline: u32) -> Option<u64> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse() == Ok(timeline)).then(|| words.next().and_then(parse_lsn)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-01 00:00:00+00\n";

    fn on(timeline: u32) -> Identity {
        Identity { system: "74".into(), timeline, database: "a/b@c".into() }
    }

    #[test]
    fn an_identity_is_kept_as_text() {
        for identity in [on(0), on(7)] {
            assert_eq!(Identity::parse(&identity.to_string()), identity);
        }
        assert_eq!(on(7).to_string(), "74@7/a/b@c");
    }

    #[test]
    fn a_promoted_standby_goes_on_up_to_where_its_line_was_left() {
        assert_eq!(on(3).continues(&on(1), HISTORY, 0x300_0148), Ok(()));
        assert_eq!(on(3).continues(&on(2), HISTORY, 0x4ff_ffff), Ok(()));
        assert_eq!(on(3).continues(&on(3), HISTORY, u64::MAX), Ok(()));
        assert_eq!(on(3).continues(&on(0), HISTORY, 1), Ok(()), "nothing is known of an older log");
        let lost = on(3).continues(&on(1), HISTORY, 0x300_0149).unwrap_err();
        assert!(lost.contains("begins at 0/3000148, and the replica was taken up to 0/3000149"), "{lost}");
        assert!(on(1).continues(&on(2), "", 0).unwrap_err().starts_with("an old primary answers"));
        assert!(on(9).continues(&on(4), HISTORY, 0).unwrap_err().contains("does not come from timeline 4"));
        let other = Identity { system: "75".into(), ..on(1) };
        assert!(
            other.continues(&on(1), "", 0).unwrap_err().starts_with("another server answers: 75@1/a/b@c instead of 74")
        );
    }
}
