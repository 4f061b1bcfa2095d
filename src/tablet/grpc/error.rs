//! [`TabletError`] as a status and back: the error itself travels in the status' binary details.

use super::super::TabletError;
use crate::proto::tablet as pb;
use crate::proto::tablet::tablet_error::Error;
use crate::proto::transport::describe;
use crate::proto::wire::Malformed;
use crate::wal::{Epoch, LogPosition, SourceTabletId};
use prost::Message;
use tonic::{Code, Status};

/// The status that carries this error. Its code serves those who do not know the details.
pub fn to_status(error: TabletError) -> Status {
    let code = match &error {
        TabletError::OutOfOrder { .. } | TabletError::HeardOther { .. } | TabletError::ChunksLost(_) => {
            Code::FailedPrecondition
        }
        TabletError::Fenced { .. } => Code::Aborted,
        TabletError::Refused(_) | TabletError::RefusedWrite(_) | TabletError::WrittenTwice { .. } => {
            Code::InvalidArgument
        }
        TabletError::TooOld { .. } => Code::OutOfRange,
        TabletError::Indeterminate(_) => Code::Unavailable,
        TabletError::Poisoned(_) => Code::Internal,
    };
    let text = error.to_string();
    let error = match error {
        TabletError::OutOfOrder { held, follows } => {
            Error::OutOfOrder(pb::OutOfOrder { held: Some(held.into()), follows: Some(follows.into()) })
        }
        TabletError::HeardOther { heard, follows } => {
            Error::HeardOther(pb::HeardOther { heard: heard.0, follows: follows.0 })
        }
        TabletError::Fenced { held } => Error::Fenced(held.0),
        TabletError::ChunksLost(why) => Error::ChunksLost(why),
        TabletError::Refused(why) => Error::Refused(why),
        TabletError::RefusedWrite(write) => Error::Refused(write.to_string()),
        TabletError::WrittenTwice { table, key, first } => {
            Error::WrittenTwice(pb::WrittenTwice { table, key, first: first.0 })
        }
        TabletError::TooOld { asked, kept } => Error::TooOld(pb::TooOld { asked, kept }),
        TabletError::Indeterminate(why) => Error::Indeterminate(why),
        TabletError::Poisoned(why) => Error::Poisoned(why),
    };
    Status::with_details(code, text, pb::TabletError { error: Some(error) }.encode_to_vec().into())
}

/// The status of a request that does not say what it must.
pub fn malformed(fault: Malformed) -> Status {
    to_status(TabletError::Refused(fault.to_string()))
}

/// The error that a status carries. One without the details is no tablet's answer, so nothing is known of the call.
pub fn from_status(status: &Status) -> TabletError {
    let details = pb::TabletError::decode(status.details()).unwrap_or_default();
    let typed = || -> Option<TabletError> {
        Some(match details.error? {
            Error::OutOfOrder(error) => {
                TabletError::OutOfOrder { held: error.held?.into(), follows: error.follows?.into() }
            }
            Error::HeardOther(error) => {
                TabletError::HeardOther { heard: LogPosition(error.heard), follows: LogPosition(error.follows) }
            }
            Error::Fenced(held) => TabletError::Fenced { held: Epoch(held) },
            Error::ChunksLost(why) => TabletError::ChunksLost(why),
            Error::Refused(why) => TabletError::Refused(why),
            Error::WrittenTwice(pb::WrittenTwice { table, key, first }) => {
                TabletError::WrittenTwice { table, key, first: SourceTabletId(first) }
            }
            Error::TooOld(pb::TooOld { asked, kept }) => TabletError::TooOld { asked, kept },
            Error::Indeterminate(why) => TabletError::Indeterminate(why),
            Error::Poisoned(why) => TabletError::Poisoned(why),
        })
    };
    typed().unwrap_or_else(|| TabletError::Indeterminate(describe(status)))
}
