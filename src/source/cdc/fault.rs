//! What is wrong with a service, in words that name the stream, the place and the mend.

use super::CdcTablet;
use crate::proto::transport::describe;
use crate::source::SourceError;
use crate::wal::OpId;
use std::fmt::Display;
use tonic::{Code, Status};

/// Words for faults of one stream's service.
#[derive(Clone)]
pub struct Faults {
    /// The stream's tablet.
    pub tablet: CdcTablet,
}

impl Faults {
    /// The service broke the protocol in its answer to `call`: the stream stops by name.
    pub(super) fn stop(&self, call: &str, fault: impl Display) -> SourceError {
        let CdcTablet { name, url, tablet } = &self.tablet;
        SourceError::Stop(format!(
            "stream {name}: tablet {tablet:?} of the CDC service at {url} breaks the protocol in {call}: {fault}; nothing \
             of that answer was taken; mend the service, then retry the stream"
        ))
    }

    /// A record that cannot be taken, or its place.
    pub(super) fn record(&self, at: OpId, fault: impl Display) -> SourceError {
        self.stop(&format!("GetCdcRecords at {at}"), fault)
    }

    /// A record names a tablet of the source that the configuration does not.
    pub(super) fn unread(&self, at: OpId, unread: &str) -> SourceError {
        let CdcTablet { name, url, .. } = &self.tablet;
        SourceError::Stop(format!(
            "stream {name}: the record at {at} of the CDC service at {url} names tablet {unread:?}, which no \
             [[source.tablets]] entry reads; nothing of that answer was taken; add an entry for it, then start again"
        ))
    }

    /// A call that ended with a status; `after` is the position that was asked for, if one was.
    pub(super) fn status(&self, status: &Status, after: Option<OpId>) -> SourceError {
        let CdcTablet { name, url, tablet } = &self.tablet;
        let text = status.message();
        let call = after.map_or("CheckTransactions".to_owned(), |after| format!("GetCdcRecords after {after}"));
        match status.code() {
            // What tonic says of an answer that it does not take has no code of its own.
            Code::OutOfRange if text.contains("message length too large") => self.stop(&call, text),
            Code::Internal if text.starts_with("failed to decode Protobuf message") => self.stop(&call, text),
            Code::DataLoss => self.stop(&call, text),
            Code::OutOfRange => SourceError::Stop(format!(
                "stream {name}: the checkpoint is gone from tablet {tablet:?} of the CDC service at {url} ({call}: \
                 {text}); the replica needs a new copy of this source"
            )),
            Code::NotFound => SourceError::Stop(format!(
                "stream {name}: the CDC service at {url} has no tablet {tablet:?} ({text}); correct `url` or `tablet` \
                 of the [[source.tablets]] entry"
            )),
            Code::InvalidArgument | Code::Unimplemented | Code::FailedPrecondition => SourceError::Stop(format!(
                "stream {name}: the server at {url} refuses {call} ({}); check that `url` is the address of a \
                 CDC service that knows this version of the protocol",
                describe(status)
            )),
            _ => SourceError::Retry(format!(
                "stream {name}: the CDC service at {url} does not answer {call} ({}); it is asked again",
                describe(status)
            )),
        }
    }
}
