//! The audit line.

use super::Peer;
use std::fmt::Display;

/// Says, in one event with the target `untorn::audit`, what an operator asked for and how it ended. Call it once for every
/// call that changes something, at its end: `who` from the request's extensions, `what` the call in a few fixed words
/// (`skip`, `recopy`), `subject` what it was about (a transaction, a stream, a table: never a row).
/// No filter hides it.
pub fn audit<T, E: Display>(who: Option<&Peer>, what: &'static str, subject: &str, outcome: &Result<T, E>) {
    let who = who.map_or_else(|| "this process".to_owned(), ToString::to_string);
    match outcome {
        Ok(_) => tracing::info!(target: "untorn::audit", who, what, subject, outcome = "done"),
        Err(error) => tracing::info!(target: "untorn::audit", who, what, subject, outcome = "failed", %error),
    }
}
