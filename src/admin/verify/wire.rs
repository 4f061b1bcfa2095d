//! Events of a verification as messages, and back.

use super::settle::Kind;
use super::{Difference, Event, Progress, Verdict};
use crate::admin::wire::{BadMessage, words};
use crate::proto::admin as proto;
use crate::proto::admin::verify_response::Event as Message;
use crate::wal::HybridTime;

words!(Kind, DifferenceKind, "kind of difference": Missing, Extra, Changed, Twice);

impl From<Event> for proto::VerifyResponse {
    fn from(event: Event) -> Self {
        let message = match event {
            Event::Progress(Progress { phase, source_rows, replica_rows, total }) => {
                Message::Progress(proto::VerifyProgress { phase, source_rows, replica_rows, total })
            }
            Event::Difference(Difference { kind, key, servers, columns }) => Message::Difference(proto::Difference {
                kind: proto::DifferenceKind::from(kind).into(),
                key: key.into_iter().map(|(column, value)| proto::KeyColumn { column, value }).collect(),
                servers,
                columns,
            }),
            Event::Verdict(Verdict { source_rows, replica_rows, differing, more, unsettled, at }) => {
                let at = at.to_u64();
                Message::Verdict(proto::Verdict { source_rows, replica_rows, differing, more, unsettled, at })
            }
        };
        Self { event: Some(message) }
    }
}

impl TryFrom<proto::VerifyResponse> for Event {
    type Error = BadMessage;

    fn try_from(response: proto::VerifyResponse) -> Result<Self, BadMessage> {
        Ok(match response.event.ok_or(BadMessage::Unknown("event of a verification"))? {
            Message::Progress(proto::VerifyProgress { phase, source_rows, replica_rows, total }) => {
                Self::Progress(Progress { phase, source_rows, replica_rows, total })
            }
            Message::Difference(difference) => Self::Difference(Difference {
                kind: difference.kind().try_into()?,
                key: difference.key.into_iter().map(|key| (key.column, key.value)).collect(),
                servers: difference.servers,
                columns: difference.columns,
            }),
            Message::Verdict(proto::Verdict { source_rows, replica_rows, differing, more, unsettled, at }) => {
                let at = HybridTime::from_u64(at);
                Self::Verdict(Verdict { source_rows, replica_rows, differing, more, unsettled, at })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_as_they_were() {
        let progress = Progress { phase: "narrowing".into(), source_rows: 1, replica_rows: 2, total: Some(3) };
        let key = vec![("id".into(), "4".into())];
        let difference = Difference { kind: Kind::Extra, key, servers: vec!["a".into()], columns: vec!["c".into()] };
        let verdict = Verdict {
            source_rows: 5,
            replica_rows: 6,
            differing: 7,
            more: true,
            unsettled: vec!["8".into()],
            at: HybridTime::from_u64(9),
        };
        for event in [Event::Progress(progress), Event::Difference(difference), Event::Verdict(verdict)] {
            assert_eq!(Event::try_from(proto::VerifyResponse::from(event.clone())).unwrap(), event);
        }
        assert!(Event::try_from(proto::VerifyResponse::default()).is_err());
    }
}
