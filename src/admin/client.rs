//! The admin surface as the command line reads it.

use super::explain::Explanation;
use super::scan::{ScanAt, ScanRow};
use super::status::Status;
use super::verify;
use super::wire::BadMessage;
use crate::access::Address;
use crate::limits;
use crate::proto::admin as proto;
use crate::proto::admin::admin_service_client::AdminServiceClient;
use crate::wal::Column;
use tonic::Streaming;
use tonic::transport::Channel;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no daemon answers at {url} ({error}); is it running, and is --admin right?")]
    Unreachable {
        /// Where.
        url: String,
        /// The connection's error.
        error: String,
    },
    /// The daemon says no, and why.
    #[error("{0}")]
    Refused(String),
    /// The answer ended before it was complete.
    #[error("the answer was cut off: {0}")]
    CutOff(String),
    /// What was answered cannot be shown.
    #[error("the output failed: {0}")]
    Output(std::io::Error),
    /// The answer cannot be read.
    #[error(transparent)]
    Bad(#[from] BadMessage),
}

/// A connection to a daemon.
pub struct AdminClient(AdminServiceClient<Channel>);

impl AdminClient {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub async fn connect(daemon: impl Into<Address>) -> Result<Self, ClientError> {
        let daemon = daemon.into();
        let unreachable = |error| ClientError::Unreachable { url: daemon.to_string(), error };
        let channel = daemon.connect().await.map_err(unreachable)?;
        Ok(Self(AdminServiceClient::new(channel).max_decoding_message_size(limits::GRPC_ROWS_BYTES_MAX)))
    }

    /// What the daemon does right now.
    ///
    /// # Errors
    /// [`ClientError::Refused`] or [`ClientError::Bad`].
    pub async fn status(&mut self) -> Result<Status, ClientError> {
        let response = self.0.status(proto::StatusRequest {}).await.map_err(refused)?;
        Ok(response.into_inner().try_into()?)
    }

    /// Every transaction that fits; at least one.
    ///
    /// # Errors
    /// [`ClientError::Refused`], also when none fits, or [`ClientError::Bad`].
    pub async fn explain(&mut self, transaction: &str) -> Result<Vec<Explanation>, ClientError> {
        let request = proto::ExplainRequest { transaction: transaction.to_owned() };
        let response = self.0.explain(request).await.map_err(refused)?;
        let explanations = response.into_inner().explanations;
        Ok(explanations.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
    }

    /// Gives up the transaction that the replica refuses: it, and those that wrote the same rows later, each by untorn's id
    /// and the source's.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: it refuses no such transaction.
    pub async fn skip(&mut self, transaction: &str) -> Result<proto::SkipResponse, ClientError> {
        let request = proto::SkipRequest { transaction: transaction.to_owned() };
        Ok(self.0.skip(request).await.map_err(refused)?.into_inner())
    }

    /// Tries again at once what the replica refused or could not take, and streams that stopped: their names.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn retry(&mut self) -> Result<proto::RetryResponse, ClientError> {
        Ok(self.0.retry(proto::RetryRequest {}).await.map_err(refused)?.into_inner())
    }

    /// The transactions that have waited to commit for longest, the oldest first.
    ///
    /// # Errors
    /// [`ClientError::Refused`] or [`ClientError::Bad`].
    pub async fn waiting(&mut self) -> Result<Vec<Explanation>, ClientError> {
        let response = self.0.waiting(proto::WaitingRequest {}).await.map_err(refused)?;
        let explanations = response.into_inner().explanations;
        Ok(explanations.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
    }

    /// Changes what the daemon logs, where a filter is given; answers what stands then.
    ///
    /// # Errors
    /// [`ClientError::Refused`], also when it is no filter.
    pub async fn log_filter(&mut self, filter: Option<&str>) -> Result<String, ClientError> {
        let request = proto::LogFilterRequest { filter: filter.map(str::to_owned) };
        Ok(self.0.log_filter(request).await.map_err(refused)?.into_inner().filter)
    }

    /// Asks for new copies of a source tablet, of a table, or of one's part of the other; answers them, by source tablet
    /// and table.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn recopy(
        &mut self,
        tablet: Option<&str>,
        table: Option<&str>,
    ) -> Result<Vec<(String, String)>, ClientError> {
        let request = proto::RecopyRequest { tablet: tablet.map(str::to_owned), table: table.map(str::to_owned) };
        let response = self.0.recopy(request).await.map_err(refused)?;
        Ok(response.into_inner().tables.into_iter().map(|asked| (asked.tablet, asked.table)).collect())
    }

    /// The tables that can be compared with their sources.
    ///
    /// # Errors
    /// [`ClientError::Refused`], with `not ready: …` before the first safe point.
    pub async fn verify_tables(&mut self) -> Result<Vec<String>, ClientError> {
        Ok(self.0.verify_tables(proto::VerifyTablesRequest {}).await.map_err(refused)?.into_inner().tables)
    }

    /// Compares a table with its sources.
    ///
    /// # Errors
    /// [`ClientError::Refused`], also while another verification runs.
    pub async fn verify(&mut self, table: &str) -> Result<Verification, ClientError> {
        let request = proto::VerifyRequest { table: table.to_owned() };
        Ok(Verification(self.0.verify(request).await.map_err(refused)?.into_inner()))
    }

    /// All rows of a table.
    ///
    /// # Errors
    /// [`ClientError::Refused`], with `not ready: …` before the first safe point.
    pub async fn scan(&mut self, table: &str, at: ScanAt) -> Result<Rows, ClientError> {
        let at = match at {
            ScanAt::Safe => proto::scan_request::At::Safe(proto::Safe {}),
            ScanAt::Latest => proto::scan_request::At::Latest(proto::Latest {}),
            ScanAt::Time(time) => proto::scan_request::At::HybridTime(time.to_u64()),
        };
        let request = proto::ScanRequest { table: table.to_owned(), at: Some(at) };
        let mut parts = self.0.scan(request).await.map_err(refused)?.into_inner();
        match next(&mut parts).await? {
            proto::scan_response::Part::Header(header) => {
                Ok(Rows { columns: header.columns.into_iter().map(Into::into).collect(), parts, received: 0 })
            }
            _ => Err(ClientError::CutOff("it does not begin with a header".into())),
        }
    }
}

/// What a verification says as it comes.
pub struct Verification(Streaming<proto::VerifyResponse>);

impl Verification {
    /// The next event. A verification ends with its verdict.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or [`ClientError::CutOff`] when it ended without a verdict.
    pub async fn next(&mut self) -> Result<verify::Event, ClientError> {
        let message = self.0.message().await.map_err(refused)?;
        Ok(message.ok_or_else(|| ClientError::CutOff("the stream ended without a verdict".into()))?.try_into()?)
    }
}

/// The rows of a scan as they come.
pub struct Rows {
    /// The columns that every row follows.
    pub columns: Vec<Column>,
    parts: Streaming<proto::ScanResponse>,
    received: u64,
}

impl Rows {
    /// The next rows; `None` only when every row has come.
    ///
    /// # Errors
    /// [`ClientError::Refused`] or [`ClientError::CutOff`]: what came so far is a part of the rows.
    pub async fn next(&mut self) -> Result<Option<Vec<ScanRow>>, ClientError> {
        match next(&mut self.parts).await? {
            proto::scan_response::Part::Rows(rows) => {
                self.received += rows.rows.len() as u64;
                Ok(Some(rows.rows.into_iter().map(Into::into).collect()))
            }
            proto::scan_response::Part::End(end) if end.rows == self.received => Ok(None),
            proto::scan_response::Part::End(end) => {
                Err(ClientError::CutOff(format!("{} rows were sent and {} came", end.rows, self.received)))
            }
            proto::scan_response::Part::Header(_) => Err(ClientError::CutOff("a second header came".into())),
        }
    }
}

async fn next(parts: &mut Streaming<proto::ScanResponse>) -> Result<proto::scan_response::Part, ClientError> {
    let part = parts.message().await.map_err(refused)?.and_then(|response| response.part);
    part.ok_or_else(|| ClientError::CutOff("the stream ended without its end".into()))
}

fn refused(status: tonic::Status) -> ClientError {
    match status.code() {
        tonic::Code::Cancelled | tonic::Code::Unknown | tonic::Code::Internal => {
            ClientError::CutOff(status.message().to_owned())
        }
        _ => ClientError::Refused(status.message().to_owned()),
    }
}
