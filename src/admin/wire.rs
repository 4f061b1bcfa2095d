//! The model as messages, and back.

use super::explain::{Cause, Explanation, Involved, TransactionStatus, WaitsFor};
use super::scan::ScanRow;
use super::status::{
    BadPosition, CopyPhase, CopyStatus, Position, Role, State, Status, StreamStatus, TransactionCounts,
};
use crate::proto::admin as proto;
use crate::wal::{Column, Epoch, HybridTime};
use bytes::Bytes;

/// A message that this build does not understand.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    /// A word from a newer daemon, or none.
    #[error("the daemon sent an unknown {0}; run the untorn that it runs")]
    Unknown(&'static str),
    /// A position that is none.
    #[error(transparent)]
    Position(#[from] BadPosition),
}

/// Both ways between one of the model's words and its number on the wire.
macro_rules! words {
    ($model:ident, $message:ident, $what:literal: $($word:ident),*) => {
        impl From<$model> for proto::$message {
            fn from(word: $model) -> Self {
                match word {
                    $($model::$word => Self::$word),*
                }
            }
        }

        impl TryFrom<proto::$message> for $model {
            type Error = BadMessage;

            fn try_from(word: proto::$message) -> Result<Self, BadMessage> {
                match word {
                    $(proto::$message::$word => Ok(Self::$word),)*
                    proto::$message::Unspecified => Err(BadMessage::Unknown($what)),
                }
            }
        }
    };
}

pub(super) use words;

words!(Role, Role, "role": Leader, Standby);
words!(State, StreamState, "stream state": Copying, Running, Stopped, Waiting);
words!(CopyPhase, CopyState, "copy state": Pending, Running, Done);
words!(TransactionStatus, TransactionStatus, "transaction status":
    Created, Pending, WaitingToCommit, Committed, Applied, Aborted);
words!(Cause, Cause, "cause":
    Applying, Commit, Discovery, StartFence, Cut, EarlierWrite, GidInUse, Copy, Apply, StoppedStream, NotPolled,
    BackPressure, Log);

impl From<Status> for proto::StatusResponse {
    fn from(status: Status) -> Self {
        let counts = status.transactions;
        Self {
            ready: status.ready,
            role: proto::Role::from(status.role).into(),
            epoch: status.epoch.0,
            safe_time: status.safe_time.map(HybridTime::to_u64),
            safe_time_lag_seconds: status.safe_time_lag_seconds,
            held_by: status.held_by,
            streams: status.streams.into_iter().map(Into::into).collect(),
            transactions: Some(proto::TransactionCounts {
                pending: counts.pending,
                waiting_to_commit: counts.waiting_to_commit,
                committed_not_applied: counts.committed_not_applied,
                oldest_waiting_seconds: counts.oldest_waiting_seconds,
                committed_total: counts.committed_total,
                aborted_total: counts.aborted_total,
            }),
        }
    }
}

impl TryFrom<proto::StatusResponse> for Status {
    type Error = BadMessage;

    fn try_from(status: proto::StatusResponse) -> Result<Self, BadMessage> {
        let counts = status.transactions.unwrap_or_default();
        Ok(Self {
            ready: status.ready,
            role: status.role().try_into()?,
            epoch: Epoch(status.epoch),
            safe_time: status.safe_time.map(HybridTime::from_u64),
            safe_time_lag_seconds: status.safe_time_lag_seconds,
            held_by: status.held_by,
            streams: status.streams.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            transactions: TransactionCounts {
                pending: counts.pending,
                waiting_to_commit: counts.waiting_to_commit,
                committed_not_applied: counts.committed_not_applied,
                oldest_waiting_seconds: counts.oldest_waiting_seconds,
                committed_total: counts.committed_total,
                aborted_total: counts.aborted_total,
            },
        })
    }
}

impl From<StreamStatus> for proto::StreamStatus {
    fn from(stream: StreamStatus) -> Self {
        Self {
            name: stream.name,
            state: proto::StreamState::from(stream.state).into(),
            cause: stream.cause,
            received: stream.received.to_string(),
            durable: stream.durable.to_string(),
            checkpointed: stream.checkpointed.to_string(),
            lag_seconds: stream.lag_seconds,
            records_total: stream.records_total,
            copy: Some(proto::CopyStatus {
                state: proto::CopyState::from(stream.copy.state).into(),
                rows: stream.copy.rows,
                total: stream.copy.total,
                tables_done: stream.copy.tables_done,
                tables: stream.copy.tables,
                rows_per_second: stream.copy.rows_per_second,
                eta_seconds: stream.copy.eta_seconds,
                cause: stream.copy.cause,
            }),
        }
    }
}

impl TryFrom<proto::StreamStatus> for StreamStatus {
    type Error = BadMessage;

    fn try_from(stream: proto::StreamStatus) -> Result<Self, BadMessage> {
        let state = stream.state().try_into()?;
        let copy = stream.copy.unwrap_or_default();
        Ok(Self {
            state,
            name: stream.name,
            cause: stream.cause,
            received: stream.received.parse::<Position>()?,
            durable: stream.durable.parse::<Position>()?,
            checkpointed: stream.checkpointed.parse::<Position>()?,
            lag_seconds: stream.lag_seconds,
            records_total: stream.records_total,
            copy: CopyStatus {
                state: copy.state().try_into()?,
                rows: copy.rows,
                total: copy.total,
                tables_done: copy.tables_done,
                tables: copy.tables,
                rows_per_second: copy.rows_per_second,
                eta_seconds: copy.eta_seconds,
                cause: copy.cause,
            },
        })
    }
}

impl From<Explanation> for proto::Explanation {
    fn from(explanation: Explanation) -> Self {
        let involved = |involved: Involved| proto::Involved {
            tablet: involved.tablet,
            applying: involved.applying,
            records: involved.records,
            expected: involved.expected,
            position: involved.position.to_string(),
            lag_seconds: involved.lag_seconds,
        };
        Self {
            transaction: explanation.transaction,
            source_id: explanation.source_id,
            status: proto::TransactionStatus::from(explanation.status).into(),
            since_seconds: explanation.since_seconds,
            commit_known: explanation.commit_known,
            involved: explanation.involved.into_iter().map(involved).collect(),
            waits_for: explanation.waits_for.map(|waits| proto::WaitsFor {
                cause: proto::Cause::from(waits.cause).into(),
                tablet: waits.tablet,
                text: waits.text,
            }),
            behind_it: explanation.behind_it,
        }
    }
}

impl TryFrom<proto::Explanation> for Explanation {
    type Error = BadMessage;

    fn try_from(explanation: proto::Explanation) -> Result<Self, BadMessage> {
        let involved = |involved: proto::Involved| {
            Ok(Involved {
                tablet: involved.tablet,
                applying: involved.applying,
                records: involved.records,
                expected: involved.expected,
                position: involved.position.parse()?,
                lag_seconds: involved.lag_seconds,
            })
        };
        let waits = |waits: proto::WaitsFor| {
            Ok::<_, BadMessage>(WaitsFor { cause: waits.cause().try_into()?, tablet: waits.tablet, text: waits.text })
        };
        Ok(Self {
            status: explanation.status().try_into()?,
            transaction: explanation.transaction,
            source_id: explanation.source_id,
            since_seconds: explanation.since_seconds,
            commit_known: explanation.commit_known,
            involved: explanation.involved.into_iter().map(involved).collect::<Result<_, BadMessage>>()?,
            waits_for: explanation.waits_for.map(waits).transpose()?,
            behind_it: explanation.behind_it,
        })
    }
}

impl From<Column> for proto::Column {
    fn from(column: Column) -> Self {
        Self { name: column.name, type_name: column.type_name, key: column.key }
    }
}

impl From<proto::Column> for Column {
    fn from(column: proto::Column) -> Self {
        Self { name: column.name, type_name: column.type_name, key: column.key }
    }
}

impl From<ScanRow> for proto::ScanRow {
    fn from(row: ScanRow) -> Self {
        // A row has far fewer columns than a u32 counts.
        let nulls = row.cells.iter().zip(0_u32..).filter(|(cell, _)| cell.is_none()).map(|(_, i)| i);
        Self {
            null_columns: nulls.collect(),
            values: row.cells.into_iter().map(Option::unwrap_or_default).collect(),
            hybrid_time: row.time.to_u64(),
        }
    }
}

impl From<proto::ScanRow> for ScanRow {
    fn from(row: proto::ScanRow) -> Self {
        let mut cells: Vec<Option<Bytes>> = row.values.into_iter().map(Some).collect();
        for i in row.null_columns {
            if let Some(cell) = cells.get_mut(i as usize) {
                *cell = None;
            }
        }
        Self { cells, time: HybridTime::from_u64(row.hybrid_time) }
    }
}
