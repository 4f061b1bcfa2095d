//! The CDC service over any [`ChangeLog`].

use super::change_log::{ChangeLog, ChangeLogError, ReadChanges};
use crate::limits::{
    BATCH_BYTES, CDC_POLLS_MAX, CDC_READER_BYTES_MAX, CHECK_TRANSACTIONS_MAX, GRPC_MESSAGE_BYTES_MAX, LONG_POLL_MS_MAX,
};
use crate::proto::cdc as pb;
use crate::proto::cdc::cdc_service_server::{CdcService, CdcServiceServer};
use crate::wal::OpId;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};

/// A service of this log's tablets. Of one reader's polls of one tablet only the newest is in work: a newer one ends it
/// with ABORTED, so that a poll left behind by a lost connection holds nothing.
#[must_use]
pub fn cdc_service(log: Arc<dyn ChangeLog>) -> CdcServiceServer<impl CdcService> {
    CdcServiceServer::new(Service { log, polls: Polls::default() })
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

struct Service {
    log: Arc<dyn ChangeLog>,
    polls: Polls,
}

#[tonic::async_trait]
impl CdcService for Service {
    async fn list_tablets(
        &self,
        _: Request<pb::ListTabletsRequest>,
    ) -> Result<Response<pb::ListTabletsResponse>, Status> {
        let tablets = self.log.tablets().await.map_err(status)?;
        Ok(Response::new(pb::ListTabletsResponse { tablets }))
    }

    async fn get_cdc_records(
        &self,
        request: Request<pb::GetCdcRecordsRequest>,
    ) -> Result<Response<pb::GetCdcRecordsResponse>, Status> {
        let request = request.into_inner();
        if request.reader.is_empty() || request.reader.len() > CDC_READER_BYTES_MAX {
            return Err(Status::invalid_argument(format!("`reader` must have 1 to {CDC_READER_BYTES_MAX} bytes")));
        }
        let (_poll, superseded) = self.polls.begin(&request.tablet, &request.reader)?;
        let read = self.log.read(ReadChanges {
            tablet: request.tablet,
            reader: request.reader,
            after: request.after.map(OpId::from).unwrap_or_default(),
            acknowledged: request.acknowledged.map(OpId::from),
            max_bytes: usize::try_from(request.max_bytes).unwrap_or(BATCH_BYTES).clamp(1, GRPC_MESSAGE_BYTES_MAX / 4),
            wait: Duration::from_millis(request.wait_ms.min(LONG_POLL_MS_MAX)),
            need_schemas: request.need_schemas,
        });
        let page = tokio::select! {
            page = read => page.map_err(status)?,
            _ = superseded => return Err(Status::aborted("a newer poll of this reader took this one's place")),
        };
        let response = pb::GetCdcRecordsResponse {
            records: page.records,
            upto: Some(page.upto.into()),
            sent_at_micros: micros_now(),
            schemas: page.schemas,
        };
        let bytes = response.encoded_len();
        if bytes > GRPC_MESSAGE_BYTES_MAX {
            let from = response.records.first().and_then(|record| record.at).map(OpId::from).unwrap_or_default();
            return Err(Status::data_loss(format!(
                "the records from {from} take {bytes} bytes, above the {GRPC_MESSAGE_BYTES_MAX} of a message"
            )));
        }
        Ok(Response::new(response))
    }

    async fn check_transactions(
        &self,
        request: Request<pb::CheckTransactionsRequest>,
    ) -> Result<Response<pb::CheckTransactionsResponse>, Status> {
        let request = request.into_inner();
        if request.transactions.len() > CHECK_TRANSACTIONS_MAX {
            return Err(Status::invalid_argument(format!(
                "`transactions` has {}, at most {CHECK_TRANSACTIONS_MAX} may be asked for at once",
                request.transactions.len()
            )));
        }
        let transactions = request.transactions.into_iter().map(Into::into).collect();
        let answer = self.log.check_transactions(&request.tablet, transactions).await.map_err(status)?;
        Ok(Response::new(pb::CheckTransactionsResponse {
            not_running: answer.transactions.iter().map(Into::into).collect(),
            as_of: Some(answer.as_of.into()),
        }))
    }
}

fn status(error: ChangeLogError) -> Status {
    let code = match error {
        ChangeLogError::NotFound(_) => Code::NotFound,
        ChangeLogError::Gone { .. } => Code::OutOfRange,
        ChangeLogError::Unavailable(_) => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

fn micros_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A tablet's and a reader's name.
type PollKey = (String, String);

/// The polls in work: the newest of each reader at each tablet.
#[derive(Clone, Default)]
struct Polls(Arc<Mutex<PollTable>>);

#[derive(Default)]
struct PollTable {
    /// Counts the polls ever begun, so that no two share a number.
    begun: u64,
    /// Each poll's number, and what ends it when it is dropped.
    newest: BTreeMap<PollKey, (u64, oneshot::Sender<()>)>,
}

/// A poll in work; it leaves the table when it is dropped.
struct Poll {
    polls: Polls,
    key: PollKey,
    number: u64,
}

impl Polls {
    fn lock(&self) -> MutexGuard<'_, PollTable> {
        // Nothing that holds the lock can leave the table half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a poll and ends the one in whose place it comes. The receiver is ready when this one's place is taken.
    fn begin(&self, tablet: &str, reader: &str) -> Result<(Poll, oneshot::Receiver<()>), Status> {
        let key = (tablet.to_owned(), reader.to_owned());
        let (end, superseded) = oneshot::channel();
        let mut table = self.lock();
        if table.newest.len() >= CDC_POLLS_MAX && !table.newest.contains_key(&key) {
            return Err(Status::resource_exhausted(format!("{CDC_POLLS_MAX} polls are in work here; try again later")));
        }
        table.begun += 1;
        let number = table.begun;
        table.newest.insert(key.clone(), (number, end));
        drop(table);
        Ok((Poll { polls: self.clone(), key, number }, superseded))
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let mut table = self.polls.lock();
        if table.newest.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            table.newest.remove(&self.key);
        }
    }
}
