//! Whether one row really differs, while the load goes on. Pure.
//!
//! The two sides are never read at the same moment, so a row that somebody just wrote looks different. It is decided
//! from the row's history at the replica, in a **window** of two read points around one moment of the source:
//!
//! 1. Fix read point *before*. Wait until every transaction that is open on a server now has ended there. So whatever
//!    *before* shows has ended at its server: a transaction is visible at the replica while a server still has it
//!    prepared (the first COMMIT PREPARED of any server decides), and a commit is in the stream before its own server
//!    shows it (longer where it waits for a standby); both count as open there.
//! 2. Read the row from its server, and then that server's flush position, behind a commit of our own.
//! 3. Wait until every stream has passed that position and everything committed by then is decided and shown: read point
//!    *after*.
//!
//! Everything shown at *before* had been committed when the source was read, and everything the source showed is shown
//! at *after*. The replica keeps a row's committed values in the order in which the source committed them. So a right
//! replica holds the value that was read among those that the row had from *before* to *after*; one that does not has
//! lost, invented or mixed up a write. That is no guess: **a difference is never reported because of load**.
//!
//! **And a difference that stays is never missed.** Say a row is wrong at the replica and nobody writes it. Its history
//! in the window is that one wrong value, which is not what the server shows. If somebody does write it, an older value
//! of the window may equal the server's by chance; such a row is looked at again, and by then a write has mended it or
//! the window holds the wrong value alone.
//!
//! A PostgreSQL server as the replica keeps no history: it is read at the two moments instead, and what a row was between them
//! is not known. A row that differs from its server and was the same at both is looked at more often before it is told.

use crate::wal::SourceTabletId;

/// A value that a row had at the replica, as its history says; `None` is a delete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// Its digest.
    pub value: Option<u128>,
    /// The stream that brought it.
    pub stream: SourceTabletId,
    /// Whether the read point *before* shows it.
    pub before: bool,
}

/// What the servers showed of a row.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// The row's digest, once for each server that has it.
    pub values: Vec<u128>,
    /// Everything that was open on the servers after *before* had ended when they were read.
    pub quiet: bool,
}

/// What a row turns out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// The same on both sides.
    Same,
    /// The server's value is among those of the window, but not the newest: the row moves. Look again.
    Moving,
    /// It cannot be told now: a transaction that is visible here may not have ended there, or the row is on its way
    /// from one server to another. Look again.
    Unsettled,
    /// It differs.
    Different(Kind),
}

/// How a row differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The source has it, the replica does not.
    Missing,
    /// The replica has it, the source does not.
    Extra,
    /// Both have it, with other values.
    Changed,
    /// Several servers have it.
    Twice,
}

/// Judges a row by its history, newest first, which reaches from *after* to what *before* shows and below.
#[must_use]
pub fn judge(history: &[Version], observed: &Observed) -> Judgement {
    let base = history.iter().position(|version| version.before);
    let window = base.map_or(history, |base| &history[..=base]);
    let newest = history.first().and_then(|version| version.value);
    let many_streams = window.windows(2).any(|pair| pair[0].stream != pair[1].stream);
    let moves_between_servers = window.len() > 1 && many_streams;
    let shown = match observed.values[..] {
        [] => None,
        [value] => Some(value),
        _ if moves_between_servers || !observed.quiet => return Judgement::Unsettled,
        _ => return Judgement::Different(Kind::Twice),
    };
    if shown == newest {
        return Judgement::Same;
    }
    // Before its first value a row was not there.
    let absent_at_first = base.is_none() && shown.is_none();
    if absent_at_first || window.iter().any(|version| version.value == shown) {
        return Judgement::Moving;
    }
    let below = base.and_then(|base| history.get(base + 1)).and_then(|version| version.value);
    if moves_between_servers || (!observed.quiet && base.is_some() && below == shown) {
        return Judgement::Unsettled;
    }
    Judgement::Different(match (shown, newest) {
        (Some(_), None) => Kind::Missing,
        (None, _) => Kind::Extra,
        (Some(_), Some(_)) => Kind::Changed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SourceTabletId = SourceTabletId(0);
    const B: SourceTabletId = SourceTabletId(1);

    /// A history, newest first: values (0 is a delete), and how many of them *before* does not show.
    fn history(values: &[u128], after: usize) -> Vec<Version> {
        let version = |(place, value): (usize, &u128)| Version {
            value: (*value != 0).then_some(*value),
            stream: A,
            before: place >= after,
        };
        values.iter().enumerate().map(version).collect()
    }

    fn shown(values: &[u128]) -> Observed {
        Observed { values: values.to_vec(), quiet: true }
    }

    #[test]
    fn a_row_that_nobody_writes_is_the_same_or_differs() {
        assert_eq!(judge(&history(&[7, 6], 0), &shown(&[7])), Judgement::Same);
        assert_eq!(judge(&history(&[0, 6], 0), &shown(&[])), Judgement::Same);
        assert_eq!(judge(&[], &shown(&[])), Judgement::Same);
        assert_eq!(
            judge(&history(&[7, 6], 0), &shown(&[6])),
            Judgement::Different(Kind::Changed),
            "an old value is wrong"
        );
        assert_eq!(judge(&history(&[7], 0), &shown(&[])), Judgement::Different(Kind::Extra));
        assert_eq!(judge(&history(&[0, 6], 0), &shown(&[6])), Judgement::Different(Kind::Missing));
        assert_eq!(judge(&[], &shown(&[6])), Judgement::Different(Kind::Missing));
        assert_eq!(judge(&history(&[7], 0), &shown(&[7, 7])), Judgement::Different(Kind::Twice));
    }

    #[test]
    fn a_row_in_motion_is_judged_by_every_value_of_its_window() {
        let written = history(&[9, 8, 7, 6], 2);
        for value in [8, 7] {
            assert_eq!(judge(&written, &shown(&[value])), Judgement::Moving);
        }
        assert_eq!(judge(&written, &shown(&[9])), Judgement::Same);
        assert_eq!(judge(&written, &shown(&[6])), Judgement::Different(Kind::Changed), "older than the window");
        assert_eq!(judge(&written, &shown(&[5])), Judgement::Different(Kind::Changed), "a write was lost");
        assert_eq!(judge(&history(&[9, 8], 2), &shown(&[])), Judgement::Moving, "it was not there yet");
        assert_eq!(judge(&history(&[9, 0, 7], 2), &shown(&[])), Judgement::Moving);
        assert_eq!(judge(&history(&[9, 8, 7], 2), &shown(&[])), Judgement::Different(Kind::Extra));
        assert_eq!(judge(&history(&[0, 7], 1), &shown(&[7])), Judgement::Moving, "it is deleted since");
    }

    #[test]
    fn what_may_not_have_ended_at_its_server_is_no_difference() {
        let open = |values: &[u128]| Observed { values: values.to_vec(), quiet: false };
        assert_eq!(judge(&history(&[7, 6], 0), &open(&[6])), Judgement::Unsettled);
        assert_eq!(judge(&history(&[7], 0), &open(&[])), Judgement::Unsettled);
        assert_eq!(judge(&history(&[0, 6], 0), &open(&[6])), Judgement::Unsettled);
        assert_eq!(judge(&history(&[7, 6, 5], 0), &open(&[5])), Judgement::Different(Kind::Changed), "its locks held");
    }

    #[test]
    fn a_row_that_goes_from_server_to_server_is_looked_at_again() {
        let mut moved = history(&[7, 6], 1);
        moved[0].stream = B;
        assert_eq!(judge(&moved, &shown(&[])), Judgement::Unsettled);
        assert_eq!(judge(&moved, &shown(&[6, 7])), Judgement::Unsettled);
        moved[0].before = true;
        assert_eq!(judge(&moved, &shown(&[])), Judgement::Different(Kind::Extra), "it has arrived");
    }
}
