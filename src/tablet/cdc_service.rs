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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Address;
    use crate::proto::cdc::cdc_record::Record;
    use crate::proto::cdc::cdc_service_client::CdcServiceClient;
    use crate::tablet::change_log::{ChangePage, NotRunning};
    use crate::tablet::grpc::Tablets;
    use crate::tablet::server::serve;
    use crate::wal::SourceTransactionId;
    use async_trait::async_trait;
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tonic::transport::Channel;

    /// One tablet, "t1", whose records are the numbers up to what was written; those up to 3 are gone.
    struct Numbers {
        written: watch::Sender<u64>,
        acknowledged: Mutex<Option<OpId>>,
    }

    fn record(index: u64) -> pb::CdcRecord {
        let safe_time = pb::SafeTime { hybrid_time: index };
        pb::CdcRecord { at: Some(pb::OpId { term: 1, index }), record: Some(Record::SafeTime(safe_time)) }
    }

    #[async_trait]
    impl ChangeLog for Numbers {
        async fn tablets(&self) -> Result<Vec<String>, ChangeLogError> {
            Ok(vec!["t1".to_owned()])
        }

        async fn read(&self, request: ReadChanges) -> Result<ChangePage, ChangeLogError> {
            if request.tablet != "t1" {
                return Err(ChangeLogError::NotFound(request.tablet));
            }
            if request.after < OpId::new(1, 3) {
                return Err(ChangeLogError::Gone { after: request.after, oldest: OpId::new(1, 3) });
            }
            if request.acknowledged.is_some() {
                *self.acknowledged.lock().unwrap() = request.acknowledged;
            }
            let mut written = self.written.subscribe();
            let more = written.wait_for(|written| *written > request.after.index);
            let written = tokio::time::timeout(request.wait, more).await;
            let last = written.map_or(request.after.index, |written| *written.unwrap());
            let records = (request.after.index + 1..=last).map(record).collect();
            let schemas = if request.need_schemas { vec![pb::Schema::default()] } else { Vec::new() };
            Ok(ChangePage { records, upto: OpId::new(1, last), schemas })
        }

        async fn check_transactions(
            &self,
            tablet: &str,
            transactions: Vec<SourceTransactionId>,
        ) -> Result<NotRunning, ChangeLogError> {
            assert_eq!(tablet, "t1");
            Ok(NotRunning { transactions, as_of: OpId::new(1, *self.written.borrow()) })
        }
    }

    /// The log with this many records written, and a client of its service. Dropping the sender shuts the server down.
    async fn served(written: u64) -> (Arc<Numbers>, CdcServiceClient<Channel>, oneshot::Sender<()>) {
        let log = Arc::new(Numbers { written: watch::Sender::new(written), acknowledged: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (shut_down, down) = oneshot::channel();
        tokio::spawn(serve(listener, Tablets::new(), Some(log.clone()), async { drop(down.await) }));
        (log, CdcServiceClient::new(Address::from(&url).channel().unwrap()), shut_down)
    }

    fn after(index: u64) -> pb::GetCdcRecordsRequest {
        pb::GetCdcRecordsRequest {
            tablet: "t1".to_owned(),
            reader: "replica-1".to_owned(),
            after: Some(pb::OpId { term: 1, index }),
            wait_ms: LONG_POLL_MS_MAX,
            ..pb::GetCdcRecordsRequest::default()
        }
    }

    #[tokio::test]
    async fn records_are_served_as_they_are_held() {
        let (log, mut client, _up) = served(5).await;
        let request = pb::GetCdcRecordsRequest {
            acknowledged: Some(pb::OpId { term: 1, index: 2 }),
            need_schemas: true,
            ..after(3)
        };
        let page = client.get_cdc_records(request).await.unwrap().into_inner();
        assert_eq!(page.records, [record(4), record(5)]);
        assert_eq!((page.upto, page.schemas.len()), (Some(pb::OpId { term: 1, index: 5 }), 1));
        assert!(page.sent_at_micros > 0);
        assert_eq!(*log.acknowledged.lock().unwrap(), Some(OpId::new(1, 2)));
        let tablets = client.list_tablets(pb::ListTabletsRequest {}).await.unwrap().into_inner().tablets;
        assert_eq!(tablets, ["t1"]);
    }

    #[tokio::test]
    async fn a_poll_waits_for_a_record() {
        let (log, mut client, _up) = served(5).await;
        let poll = client.get_cdc_records(after(5));
        let write = async {
            while log.written.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
            log.written.send_replace(6);
        };
        let (page, ()) = tokio::join!(poll, write);
        assert_eq!(page.unwrap().into_inner().records, [record(6)]);
        let at_once = pb::GetCdcRecordsRequest { wait_ms: 0, ..after(6) };
        let page = client.get_cdc_records(at_once).await.unwrap().into_inner();
        assert_eq!((page.records.len(), page.upto), (0, Some(pb::OpId { term: 1, index: 6 })));
    }

    #[tokio::test]
    async fn a_newer_poll_of_a_reader_ends_the_older() {
        let (log, client, _up) = served(5).await;
        let (mut older, mut other, mut newer) = (client.clone(), client.clone(), client);
        let polling = |readers: usize| {
            let log = log.clone();
            async move {
                while log.written.receiver_count() < readers {
                    tokio::task::yield_now().await;
                }
            }
        };
        let another = pb::GetCdcRecordsRequest { reader: "replica-2".to_owned(), ..after(5) };
        let newest = async {
            polling(2).await;
            newer.get_cdc_records(after(4)).await
        };
        let (first, another, newest) = tokio::join!(
            async {
                let ended = older.get_cdc_records(after(5)).await;
                log.written.send_replace(6);
                ended
            },
            other.get_cdc_records(another),
            newest
        );
        assert_eq!(first.unwrap_err().code(), Code::Aborted);
        assert_eq!(another.unwrap().into_inner().records, [record(6)], "another reader's poll goes on");
        assert!(newest.unwrap().into_inner().records.starts_with(&[record(5)]));
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_said_by_its_status() {
        let (_log, mut client, _up) = served(5).await;
        let gone = client.get_cdc_records(after(2)).await.unwrap_err();
        assert_eq!(gone.code(), Code::OutOfRange);
        assert!(gone.message().contains("1.2") && gone.message().contains("1.3"), "{gone}");
        let elsewhere = pb::GetCdcRecordsRequest { tablet: "t9".to_owned(), ..after(5) };
        assert_eq!(client.get_cdc_records(elsewhere).await.unwrap_err().code(), Code::NotFound);
        for reader in [String::new(), "r".repeat(CDC_READER_BYTES_MAX + 1)] {
            let nobody = pb::GetCdcRecordsRequest { reader, ..after(5) };
            assert_eq!(client.get_cdc_records(nobody).await.unwrap_err().code(), Code::InvalidArgument);
        }
        let transactions = vec![pb::SourceTransactionId::default(); CHECK_TRANSACTIONS_MAX + 1];
        let many = pb::CheckTransactionsRequest { tablet: "t1".to_owned(), transactions };
        assert_eq!(client.check_transactions(many).await.unwrap_err().code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn transactions_are_checked_at_a_position() {
        let (_log, mut client, _up) = served(5).await;
        let transaction = pb::SourceTransactionId { id: "x1".into(), incarnation: 2 };
        let request = pb::CheckTransactionsRequest { tablet: "t1".to_owned(), transactions: vec![transaction.clone()] };
        let answer = client.check_transactions(request).await.unwrap().into_inner();
        assert_eq!(answer.not_running, [transaction]);
        assert_eq!(answer.as_of, Some(pb::OpId { term: 1, index: 5 }));
    }

    #[tokio::test]
    async fn a_server_that_is_shut_down_lets_its_calls_end() {
        let (log, mut client, up) = served(5).await;
        let poll = client.get_cdc_records(after(5));
        let shut_down = async {
            while log.written.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
            drop(up);
            tokio::task::yield_now().await;
            log.written.send_replace(6);
        };
        let (page, ()) = tokio::join!(poll, shut_down);
        assert_eq!(page.unwrap().into_inner().records, [record(6)]);
        client.list_tablets(pb::ListTabletsRequest {}).await.unwrap_err();
    }

    #[test]
    fn an_ended_poll_leaves_nothing_behind() {
        let polls = Polls::default();
        let (first, mut first_ends) = polls.begin("t1", "replica-1").unwrap();
        let (second, _second_ends) = polls.begin("t1", "replica-1").unwrap();
        assert!(first_ends.try_recv().is_err_and(|ended| ended == oneshot::error::TryRecvError::Closed));
        drop(first);
        assert_eq!(polls.lock().newest.len(), 1, "the older one does not remove the newer");
        drop(second);
        assert!(polls.lock().newest.is_empty());
    }
}
