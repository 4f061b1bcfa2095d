//! Why a transaction waits: what the leader's machine knows, and what the pullers say of it.

use super::Inspected;
use crate::admin::explain::{Cause, Explanation, Involved, WaitsFor};
use crate::applier::leader::StreamState;
use crate::coordinator::{self, Coordinator, Wait};
use crate::wal::{HybridTime, SourceTabletId};
use std::sync::Arc;

impl Inspected {
    pub(super) fn explanation(&self, explained: Explained) -> Explanation {
        let Explained { explanation, now, names, tablet } = explained;
        let name = |stream: SourceTabletId| {
            names
                .iter()
                .find(|(number, _)| *number == stream)
                .map_or_else(|| stream.to_string(), |(_, name)| name.clone())
        };
        let involved = explanation.involved.iter().map(|involved| Involved {
            tablet: name(involved.stream),
            applying: involved.applying,
            records: involved.records,
            expected: involved.expected,
            position: self.position(involved.position),
            lag_seconds: self.answer_age(involved.stream, &name(involved.stream), now),
        });
        let waits_for = explanation.waits_for.map(|wait| {
            let stream = wait.stream();
            let tablet = stream.map(name).or(tablet);
            let waits = WaitsFor { cause: wait.cause(), tablet, text: explanation.text.clone() };
            match stream {
                Some(stream) => self.because_of_puller(stream, &name(stream), waits),
                None => waits,
            }
        });
        Explanation {
            transaction: explanation.id.to_string(),
            source_id: explanation.source_id,
            status: explanation.status,
            since_seconds: explanation.since.seconds_behind(now),
            commit_known: explanation.commit_known,
            involved: involved.collect(),
            waits_for,
            behind_it: explanation.behind_it,
        }
    }

    /// A stream that sends nothing may be one that nobody pulls, or whose writes no tablet takes.
    fn because_of_puller(&self, stream: SourceTabletId, name: &str, waits: WaitsFor) -> WaitsFor {
        if matches!(waits.cause, Cause::StoppedStream | Cause::Copy) {
            return waits;
        }
        match self.inspector.stream_state(stream, name) {
            StreamState::NotPolled => {
                WaitsFor { cause: Cause::NotPolled, text: format!("{}; nobody pulls {name}", waits.text), ..waits }
            }
            StreamState::Waiting { cause } => WaitsFor {
                cause: Cause::NotPolled,
                text: format!("{}; {name} cannot be pulled: {cause}", waits.text),
                ..waits
            },
            StreamState::BackPressure { tablet } => WaitsFor {
                cause: Cause::BackPressure,
                text: format!("{}; {name} is held up because its writes wait for {tablet}", waits.text),
                tablet: Some(tablet),
            },
            StreamState::Stopped { cause } => WaitsFor {
                cause: Cause::StoppedStream,
                text: format!("{}; {name} has stopped: {cause}", waits.text),
                ..waits
            },
            StreamState::Copying { .. } | StreamState::Running => waits,
        }
    }
}

/// What one look finds of one transaction.
pub(super) struct Explained {
    explanation: coordinator::Explanation,
    now: HybridTime,
    names: Arc<Vec<(SourceTabletId, String)>>,
    /// The replica tablet that it waits for.
    tablet: Option<String>,
}

pub(super) fn explained(coordinator: &Coordinator, now: HybridTime, transaction: &str) -> Vec<Explained> {
    let names: Vec<_> = coordinator.state().streams.iter().map(|s| (s.stream, s.name.clone())).collect();
    let names = Arc::new(names);
    let one = |explanation: coordinator::Explanation| Explained {
        tablet: match explanation.waits_for {
            Some(Wait::Apply(tablet)) => Some(coordinator.tablet_name(tablet).to_owned()),
            _ => None,
        },
        explanation,
        now,
        names: Arc::clone(&names),
    };
    coordinator.explain(transaction).into_iter().map(one).collect()
}
