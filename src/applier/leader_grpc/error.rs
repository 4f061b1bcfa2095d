//! [`LeaderError`] as a status and back: the error itself travels in the status' binary details.

use super::super::leader::LeaderError;
use crate::proto::transaction as pb;
use crate::proto::transaction::leader_error::Error;
use crate::proto::transport::describe;
use crate::proto::wire::Malformed;
use prost::Message;
use tonic::{Code, Status};

/// The status that carries this error. Its code serves those who do not know the details.
pub fn to_status(error: LeaderError) -> Status {
    let code = match &error {
        LeaderError::OutOfOrder { .. } => Code::FailedPrecondition,
        LeaderError::Fenced(_) => Code::Aborted,
        LeaderError::Stop(_) => Code::InvalidArgument,
        LeaderError::Refused(_) => Code::FailedPrecondition,
        LeaderError::Unavailable(_) => Code::Unavailable,
    };
    let text = error.to_string();
    let error = match error {
        LeaderError::OutOfOrder { held, follows } => {
            Error::OutOfOrder(pb::OutOfOrder { held: Some(held.into()), follows: Some(follows.into()) })
        }
        LeaderError::Fenced(why) => Error::Fenced(why),
        LeaderError::Stop(why) => Error::Stop(why),
        LeaderError::Refused(why) => Error::Refused(why),
        LeaderError::Unavailable(why) => Error::Unavailable(why),
    };
    Status::with_details(code, text, pb::LeaderError { error: Some(error) }.encode_to_vec().into())
}

/// The status of a request that does not say what it must.
pub fn malformed(fault: Malformed) -> Status {
    to_status(LeaderError::Stop(fault.to_string()))
}

/// The error that a status carries. One without the details is no leader's answer.
pub fn from_status(status: &Status) -> LeaderError {
    let details = pb::LeaderError::decode(status.details()).unwrap_or_default();
    let typed = || -> Option<LeaderError> {
        Some(match details.error? {
            Error::OutOfOrder(error) => {
                LeaderError::OutOfOrder { held: error.held?.into(), follows: error.follows?.into() }
            }
            Error::Fenced(why) => LeaderError::Fenced(why),
            Error::Stop(why) => LeaderError::Stop(why),
            Error::Refused(why) => LeaderError::Refused(why),
            Error::Unavailable(why) => LeaderError::Unavailable(why),
        })
    };
    typed().unwrap_or_else(|| LeaderError::Unavailable(describe(status)))
}
