//! Streams of a CDC service: any system that serves `untorn.cdc.v1.CdcService`.
//!
//! A stream is pulled by position with a long poll. The service is trusted in nothing that can be checked: records that
//! go back, repeat, cannot be decoded or contradict what came before stop the stream by name ([`SourceError::Stop`]),
//! with the position and the way to mend it, and nothing of that answer is taken. A service that cannot be reached is
//! asked again later ([`SourceError::Retry`]).

pub mod decode;
pub mod fault;
mod stream;
#[cfg(test)]
mod tests;

use super::{Catalog, Keeper, NewSlot, Resume, Source, SourceError, Stream};
use crate::access::{Address, BadAddress, ClientKeys};
use crate::limits::{CALL_MS, CHECK_TRANSACTIONS_MAX, GRPC_MESSAGE_BYTES_MAX};
use crate::proto::cdc as pb;
use crate::proto::cdc::cdc_service_client::CdcServiceClient;
use crate::proto::wire::op_id;
use crate::wal::{OpId, SourceTransactionId};
use async_trait::async_trait;
use decode::Decoder;
use fault::Faults;
use rand::{RngCore, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tonic::Request;
use tonic::transport::Channel;

/// The streams of a `cdc` source by their tablets' names at the source: `tablet` → `name` of each
/// `[[source.tablets]]`. Commit and Split records name tablets as the source does.
pub type StreamNames = BTreeMap<String, String>;

/// One `[[source.tablets]]` of a `cdc` source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CdcTablet {
    /// The stream's name.
    pub name: String,
    /// The service's address, `http://host:port`, or `https://host:port` with TLS.
    pub url: String,
    /// The tablet's name there.
    pub tablet: String,
}

/// One source tablet behind a CDC service.
pub struct CdcSource {
    tablet: CdcTablet,
    streams: Arc<StreamNames>,
    client: CdcServiceClient<Channel>,
}

impl CdcSource {
    /// A source of this tablet, among all `streams` of the configuration, reached with these keys, if any. To be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn new(
        tablet: CdcTablet,
        keys: Option<Arc<ClientKeys>>,
        streams: Arc<StreamNames>,
    ) -> Result<Self, BadAddress> {
        let client = CdcServiceClient::new(Address::new(&tablet.url, keys).channel()?)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
        Ok(Self { tablet, streams, client })
    }

    fn faults(&self) -> Faults {
        Faults { tablet: self.tablet.clone() }
    }
}

#[async_trait]
impl Source for CdcSource {
    fn name(&self) -> &str {
        &self.tablet.name
    }

    /// A CDC service keeps its records from the first on, or says that they are gone: there is nothing to copy. What is
    /// made is the reader's name, for which it keeps its records from then on. It stands in the log, so that it is the
    /// same whichever process pulls the stream: one more name would keep records that nobody reads.
    async fn create_slot(&self) -> Result<NewSlot, SourceError> {
        let identity = format!("untorn-{:016x}", rand::rngs::SmallRng::from_os_rng().next_u64());
        Ok(NewSlot { start: OpId::ZERO, identity, snapshot: None })
    }

    async fn open(&self, resume: Resume, catalog: Arc<dyn Catalog>) -> Result<(Box<dyn Stream>, Keeper), SourceError> {
        let decoder = Decoder::new(self.streams.clone(), catalog);
        let (stream, keeper) = stream::open(self.client.clone(), self.faults(), resume.identity, decoder, resume.after);
        Ok((Box::new(stream), keeper))
    }

    async fn not_running(
        &self,
        transactions: Vec<SourceTransactionId>,
    ) -> Result<(Vec<SourceTransactionId>, OpId), SourceError> {
        let faults = self.faults();
        let (mut not_running, mut as_of) = (Vec::new(), OpId::ZERO);
        for asked in transactions.chunks(CHECK_TRANSACTIONS_MAX) {
            let mut request = Request::new(pb::CheckTransactionsRequest {
                tablet: self.tablet.tablet.clone(),
                transactions: asked.iter().map(Into::into).collect(),
            });
            request.set_timeout(Duration::from_millis(CALL_MS));
            let answer = self.client.clone().check_transactions(request).await;
            let answer = answer.map_err(|status| faults.status(&status, None))?.into_inner();
            // The stream must pass the highest of the positions before all the answers count.
            let position = op_id("as_of", answer.as_of).map_err(|fault| faults.stop("CheckTransactions", fault))?;
            as_of = as_of.max(position);
            let asked: BTreeSet<&SourceTransactionId> = asked.iter().collect();
            for transaction in answer.not_running.into_iter().map(SourceTransactionId::from) {
                if !asked.contains(&transaction) {
                    let fault = format!("the answer names transaction {transaction}, which was not asked for");
                    return Err(faults.stop("CheckTransactions", fault));
                }
                not_running.push(transaction);
            }
        }
        Ok((not_running, as_of))
    }
}
