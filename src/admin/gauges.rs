//! The gauges that show the status model: set when somebody scrapes, from the same answer that `status` prints.

use super::status::{Role, State, Status};
use crate::metrics::{
    EPOCH, HELD_BY_NOBODY, OLDEST_WAITING, READY, ROLE, ROLE_INFO, SAFE_TIME, SAFE_TIME_HELD, SAFE_TIME_LAG, STATE,
    STATUS, STREAM, STREAM_CHECKPOINTED, STREAM_DURABLE, STREAM_LAG, STREAM_RECEIVED, STREAM_STATE, TRANSACTIONS,
};
use ::metrics::gauge;

/// Sets every gauge that the status model knows.
pub fn set(status: &Status) {
    for stream in &status.streams {
        let name = || stream.name.clone();
        gauge!(STREAM_RECEIVED, STREAM => name()).set(stream.received.gauge());
        gauge!(STREAM_DURABLE, STREAM => name()).set(stream.durable.gauge());
        gauge!(STREAM_CHECKPOINTED, STREAM => name()).set(stream.checkpointed.gauge());
        gauge!(STREAM_LAG, STREAM => name()).set(stream.lag_seconds);
        for (state, label) in [
            (State::Copying, "copying"),
            (State::Running, "running"),
            (State::Stopped, "stopped"),
            (State::Waiting, "waiting"),
        ] {
            gauge!(STREAM_STATE, STREAM => name(), STATE => label).set(one_if(stream.state == state));
        }
        let holds = status.held_by.as_ref() == Some(&stream.name);
        gauge!(SAFE_TIME_HELD, STREAM => name()).set(one_if(holds));
    }
    gauge!(SAFE_TIME_HELD, STREAM => HELD_BY_NOBODY).set(one_if(status.held_by.is_none()));
    let held = &status.transactions;
    for (label, count) in [
        ("pending", held.pending),
        ("waiting_to_commit", held.waiting_to_commit),
        ("committed", held.committed_not_applied),
    ] {
        gauge!(TRANSACTIONS, STATUS => label).set(count as f64);
    }
    gauge!(OLDEST_WAITING).set(held.oldest_waiting_seconds);
    gauge!(SAFE_TIME).set(status.safe_time.map_or(0.0, |time| time.micros() as f64 / 1e6));
    gauge!(SAFE_TIME_LAG).set(status.safe_time_lag_seconds);
    gauge!(READY).set(one_if(status.ready));
    for (role, label) in [(Role::Leader, "leader"), (Role::Standby, "standby")] {
        gauge!(ROLE_INFO, ROLE => label).set(one_if(status.role == role));
    }
    gauge!(EPOCH).set(status.epoch.0 as f64);
}

fn one_if(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}
