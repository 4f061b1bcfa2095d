//! A stream pulled by position: the keeper polls and decodes, one batch ahead of whoever reads the stream.

use super::decode::Decoder;
use super::fault::Faults;
use crate::limits::{BATCH_BYTES, CALL_MS, EMPTY_POLL_PAUSE_MS, LONG_POLL_MS};
use crate::proto::cdc as pb;
use crate::proto::cdc::cdc_service_client::CdcServiceClient;
use crate::source::{Keeper, SourceError, Stream, StreamEvent};
use crate::wal::{OpId, SourceBatch};
use async_trait::async_trait;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Request;
use tonic::transport::Channel;

/// The end that is read.
pub(super) struct CdcStream {
    batches: mpsc::Receiver<Result<SourceBatch, SourceError>>,
    acknowledge: watch::Sender<Option<OpId>>,
    acknowledged: watch::Receiver<OpId>,
    /// Why the stream ended: the keeper says it once.
    ended: Option<SourceError>,
}

/// The end that polls.
struct Poller {
    client: CdcServiceClient<Channel>,
    faults: Faults,
    reader: String,
    decoder: Decoder,
    after: OpId,
    need_schemas: bool,
    batches: mpsc::Sender<Result<SourceBatch, SourceError>>,
    acknowledge: watch::Receiver<Option<OpId>>,
    acknowledged: watch::Sender<OpId>,
}

/// A stream that goes on after this position, and its keeper, which ends when the stream fails or is dropped.
pub(super) fn open(
    client: CdcServiceClient<Channel>,
    faults: Faults,
    reader: String,
    decoder: Decoder,
    after: OpId,
) -> (CdcStream, Keeper) {
    let (batches, receiver) = mpsc::channel(1);
    let (acknowledge, to_acknowledge) = watch::channel(None);
    let (told, acknowledged) = watch::channel(OpId::ZERO);
    let poller = Poller {
        client,
        faults,
        reader,
        decoder,
        after,
        need_schemas: true,
        batches,
        acknowledge: to_acknowledge,
        acknowledged: told,
    };
    (CdcStream { batches: receiver, acknowledge, acknowledged, ended: None }, Box::pin(poller.run()))
}

#[async_trait]
impl Stream for CdcStream {
    async fn next(&mut self) -> Result<StreamEvent, SourceError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let keeper_gone = || Err(SourceError::Retry("the task that polls the CDC service has ended".to_owned()));
        match self.batches.recv().await.unwrap_or_else(keeper_gone) {
            Ok(batch) => Ok(StreamEvent::Batch(batch)),
            Err(error) => {
                self.ended = Some(error.clone());
                Err(error)
            }
        }
    }

    fn acknowledge(&mut self, upto: OpId) {
        self.acknowledge.send_if_modified(|held| {
            let rises = held.is_none_or(|held| held < upto);
            if rises {
                *held = Some(upto);
            }
            rises
        });
    }

    fn acknowledged(&self) -> OpId {
        *self.acknowledged.borrow()
    }
}

impl Poller {
    async fn run(mut self) {
        loop {
            // The place is taken before the poll, so that no more than one batch is ever ahead of the reader.
            let batches = self.batches.clone();
            let Ok(place) = batches.reserve().await else { return };
            let begun = Instant::now();
            let polled = tokio::select! {
                polled = self.poll() => polled,
                () = batches.closed() => return,
            };
            let idle = polled.as_ref().is_ok_and(|batch| batch.records.is_empty());
            let failed = polled.is_err();
            place.send(polled);
            if failed {
                return;
            }
            if idle {
                // A service that waits as it was asked has used this time up.
                tokio::time::sleep_until(begun + Duration::from_millis(EMPTY_POLL_PAUSE_MS)).await;
            }
        }
    }

    async fn poll(&mut self) -> Result<SourceBatch, SourceError> {
        let acknowledge = *self.acknowledge.borrow_and_update();
        let mut request = Request::new(pb::GetCdcRecordsRequest {
            tablet: self.faults.tablet.tablet.clone(),
            reader: self.reader.clone(),
            after: Some(self.after.into()),
            acknowledged: acknowledge.map(Into::into),
            max_bytes: BATCH_BYTES as u64,
            wait_ms: LONG_POLL_MS,
            need_schemas: self.need_schemas,
        });
        request.set_timeout(Duration::from_millis(LONG_POLL_MS + CALL_MS));
        let response = self.client.get_cdc_records(request).await;
        let response = response.map_err(|status| self.faults.status(&status, Some(self.after)))?.into_inner();
        if let Some(position) = acknowledge {
            self.acknowledged.send_replace(position);
        }
        let batch = self.decoder.decode(&self.faults, self.after, response).await?;
        self.need_schemas = false;
        self.after = batch.upto;
        Ok(batch)
    }
}
