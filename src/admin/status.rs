//! The one status model: what `untorn status`, `/status`, the metrics and every later view show.
//!
//! Its JSON is fixed: hybrid times and epochs are decimal strings, because they do not fit in a double; positions are
//! strings as their source writes them.

use crate::wal::{Epoch, HybridTime, OpId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A position as people write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// `term.index`.
    OpId(OpId),
    /// PostgreSQL's `X/X`.
    Lsn(u64),
}

impl Position {
    /// The position as a number that a gauge can show: the LSN, or the index.
    #[must_use]
    pub fn gauge(self) -> f64 {
        match self {
            Self::OpId(at) => at.index as f64,
            Self::Lsn(lsn) => lsn as f64,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpId(at) => fmt::Display::fmt(at, f),
            Self::Lsn(lsn) => write!(f, "{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF),
        }
    }
}

/// A text that is no position.
#[derive(Debug, thiserror::Error)]
#[error("not a position of the form `term.index` or `X/X`: {0:?}")]
pub struct BadPosition(String);

impl FromStr for Position {
    type Err = BadPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lsn = || {
            let (high, low) = text.split_once('/')?;
            let [high, low] = [high, low].map(|half| u32::from_str_radix(half, 16).ok());
            Some(Self::Lsn(u64::from(high?) << 32 | u64::from(low?)))
        };
        lsn().or_else(|| text.parse().ok().map(Self::OpId)).ok_or_else(|| BadPosition(text.to_owned()))
    }
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Serializes a 64-bit number as a decimal string.
mod decimal {
    use super::{Epoch, HybridTime};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(epoch: &Epoch, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&epoch.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Epoch, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Epoch).map_err(serde::de::Error::custom)
    }

    pub mod optional_time {
        use super::{Deserialize, Deserializer, HybridTime, Serializer};

        pub fn serialize<S: Serializer>(time: &Option<HybridTime>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => serializer.collect_str(time),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HybridTime>, D::Error> {
            let text = Option::<String>::deserialize(deserializer)?;
            text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
        }
    }
}

/// What a process does for its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It owns the transaction records.
    Leader,
    /// Another process owns them: it pulls for that one, or waits for it to be gone.
    Standby,
}

/// What a stream does. Its puller sets it; people and readiness wait for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The initial copy runs.
    Copying,
    /// Records come.
    Running,
    /// Somebody must mend it; `cause` says what.
    Stopped,
    /// It is not pulled right now and will be; `cause` says why.
    Waiting,
}

/// How far the copies of a stream's tables are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyPhase {
    /// Not begun.
    #[default]
    Pending,
    /// Rows come.
    Running,
    /// Every row is durable and readers see it, as far as they are served; or there was nothing to copy.
    Done,
}

/// The copies of a stream's tables.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CopyStatus {
    /// How far it is.
    pub state: CopyPhase,
    /// Rows so far.
    pub rows: u64,
    /// Rows in all, where known.
    pub total: Option<u64>,
    /// How many of its tables are copied, every row durably.
    #[serde(default)]
    pub tables_done: u64,
    /// How many tables it has.
    #[serde(default)]
    pub tables: u64,
    /// Rows a second over the last few seconds; 0 while none come.
    #[serde(default)]
    pub rows_per_second: u64,
    /// How long the rest takes at that rate, where both are known.
    #[serde(default)]
    pub eta_seconds: Option<u64>,
    /// Why the last attempt was cut off.
    #[serde(default)]
    pub cause: Option<String>,
}

/// One stream.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Its name in the configuration.
    pub name: String,
    /// What it does.
    pub state: State,
    /// Why it is not running.
    pub cause: Option<String>,
    /// The last record received.
    pub received: Position,
    /// Everything up to here is durable at the replica and in the log.
    pub durable: Position,
    /// Everything up to here was acknowledged to the source.
    pub checkpointed: Position,
    /// Age of its oldest invisible commit or of its last answer, whichever is greater.
    pub lag_seconds: f64,
    /// Records that this process took from it since it started.
    #[serde(default)]
    pub records_total: u64,
    /// The copies of its tables.
    pub copy: CopyStatus,
}

/// How many transactions wait, and where.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct TransactionCounts {
    /// `CREATED` or `PENDING`.
    pub pending: u64,
    /// `WAITING_TO_COMMIT`.
    pub waiting_to_commit: u64,
    /// `COMMITTED`, and not yet by every replica tablet applied.
    pub committed_not_applied: u64,
    /// Age of the oldest that waits to commit; 0 when none does.
    pub oldest_waiting_seconds: f64,
    /// Committed and handed to the replica tablets, since the leader's process started.
    #[serde(default)]
    pub committed_total: u64,
    /// Aborted and handed to them, since then.
    #[serde(default)]
    pub aborted_total: u64,
}

/// What a daemon does right now.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether reads at `safe` are served.
    pub ready: bool,
    /// What it does for its log.
    pub role: Role,
    /// The epoch of the leader's ownership, as far as this process has heard of one.
    #[serde(with = "decimal")]
    pub epoch: Epoch,
    /// Reads at this time are complete; none before the first safe point. The highest there is, where there is no source.
    #[serde(with = "decimal::optional_time")]
    pub safe_time: Option<HybridTime>,
    /// How far safe time lies behind the wall clock, about 0 when idle.
    pub safe_time_lag_seconds: f64,
    /// The stream that holds safe time back.
    pub held_by: Option<String>,
    /// The streams in the configuration's order.
    pub streams: Vec<StreamStatus>,
    /// The transactions.
    pub transactions: TransactionCounts,
}

impl fmt::Display for Status {
    /// For people: a line on the whole, a table of streams, a line on transactions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = if self.ready { "ready" } else { "not ready" };
        let role = match self.role {
            Role::Leader => "leader",
            Role::Standby => "standby",
        };
        write!(f, "{ready} · {role}, epoch {} · ", self.epoch.0)?;
        match self.safe_time {
            Some(HybridTime::MAX) => f.write_str("no source: a safe read shows the latest")?,
            Some(time) => write!(f, "safe time {time}, {:.1} s behind", self.safe_time_lag_seconds)?,
            None => f.write_str("no safe point yet")?,
        }
        if let Some(stream) = &self.held_by {
            write!(f, ", held by {stream}")?;
        }
        writeln!(f, "\n")?;
        let mut table =
            super::table::Table::new(["STREAM", "STATE", "RECEIVED", "DURABLE", "CHECKPOINTED", "LAG", "COPY"]);
        for stream in &self.streams {
            table.row([
                stream.name.clone(),
                word(stream.state).to_owned(),
                stream.received.to_string(),
                stream.durable.to_string(),
                stream.checkpointed.to_string(),
                format!("{:.1} s", stream.lag_seconds),
                stream.copy.to_string(),
            ]);
        }
        if self.streams.is_empty() {
            writeln!(f, "no streams")?;
        } else {
            write!(f, "{table}")?;
        }
        for stream in &self.streams {
            if let Some(cause) = &stream.copy.cause {
                writeln!(f, "a copy of {} is begun again: {cause}", stream.name)?;
            }
            if let Some(cause) = &stream.cause {
                writeln!(f, "{} is {}: {cause}", stream.name, word(stream.state))?;
            }
        }
        let counts = &self.transactions;
        writeln!(
            f,
            "\ntransactions: {} pending, {} waiting to commit (oldest {:.1} s), {} committed and not applied",
            counts.pending, counts.waiting_to_commit, counts.oldest_waiting_seconds, counts.committed_not_applied
        )
    }
}

impl CopyStatus {
    /// How much of so many rows is copied, as a bar of ten.
    fn bar(&self, total: u64) -> String {
        let tenths = (self.rows.min(total) * 10).checked_div(total).unwrap_or(0) as usize;
        format!("[{}{}]", "=".repeat(tenths), ".".repeat(10 - tenths))
    }
}

impl fmt::Display for CopyStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.state, self.total) {
            (CopyPhase::Pending, _) => f.write_str("pending"),
            (CopyPhase::Running, Some(total)) => write!(f, "{} {} of about {total} rows", self.bar(total), self.rows),
            (CopyPhase::Running, None) => write!(f, "{} rows", self.rows),
            (CopyPhase::Done, _) => write!(f, "done, {} rows", self.rows),
        }?;
        if self.rows_per_second > 0 {
            write!(f, ", {} a second", self.rows_per_second)?;
        }
        self.eta_seconds.map_or(Ok(()), |seconds| write!(f, ", {} min {} s left", seconds / 60, seconds % 60))
    }
}

const fn word(state: State) -> &'static str {
    match state {
        State::Copying => "copying",
        State::Running => "running",
        State::Stopped => "stopped",
        State::Waiting => "waiting",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// A status in which everything that may be absent is there once and absent once.
    pub fn sample() -> Status {
        Status {
            ready: false,
            role: Role::Leader,
            epoch: Epoch(3),
            safe_time: Some(HybridTime::from_u64(u64::MAX - 1)),
            safe_time_lag_seconds: 2.5,
            held_by: Some("shard-b".into()),
            streams: vec![
                StreamStatus {
                    name: "shard-a".into(),
                    state: State::Running,
                    cause: None,
                    received: Position::Lsn(0x1_6B37_4D28),
                    durable: Position::Lsn(0x1_6B37_4D00),
                    checkpointed: Position::Lsn(0),
                    lag_seconds: 0.25,
                    records_total: 41,
                    copy: CopyStatus {
                        state: CopyPhase::Running,
                        rows: 10,
                        total: Some(70),
                        tables_done: 1,
                        tables: 2,
                        rows_per_second: 1,
                        eta_seconds: Some(60),
                        cause: Some("the server went away".into()),
                    },
                },
                StreamStatus {
                    name: "b".into(),
                    state: State::Stopped,
                    cause: Some("the counts do not match".into()),
                    received: Position::OpId(OpId::new(2, 7)),
                    durable: Position::OpId(OpId::new(2, 7)),
                    checkpointed: Position::OpId(OpId::new(1, 9)),
                    lag_seconds: 60.0,
                    records_total: 0,
                    copy: CopyStatus::default(),
                },
            ],
            transactions: TransactionCounts {
                pending: 1,
                waiting_to_commit: 2,
                committed_not_applied: 3,
                oldest_waiting_seconds: 4.5,
                committed_total: 5,
                aborted_total: 6,
            },
        }
    }

    #[test]
    fn golden_json() {
        let mut status = sample();
        let expected = json!({
            "ready": false, "role": "leader", "epoch": "3", "safe_time": "18446744073709551614",
            "safe_time_lag_seconds": 2.5, "held_by": "shard-b",
            "streams": [
                { "name": "shard-a", "state": "running", "cause": null, "received": "1/6B374D28",
                  "durable": "1/6B374D00", "checkpointed": "0/0", "lag_seconds": 0.25, "records_total": 41,
                  "copy": { "state": "running", "rows": 10, "total": 70, "tables_done": 1, "tables": 2,
                            "rows_per_second": 1, "eta_seconds": 60, "cause": "the server went away" } },
                { "name": "b", "state": "stopped", "cause": "the counts do not match", "received": "2.7",
                  "durable": "2.7", "checkpointed": "1.9", "lag_seconds": 60.0, "records_total": 0,
                  "copy": { "state": "pending", "rows": 0, "total": null, "tables_done": 0, "tables": 0,
                            "rows_per_second": 0, "eta_seconds": null, "cause": null } },
            ],
            "transactions": { "pending": 1, "waiting_to_commit": 2, "committed_not_applied": 3,
                              "oldest_waiting_seconds": 4.5, "committed_total": 5, "aborted_total": 6 },
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), status);
        status.safe_time = None;
        status.held_by = None;
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["safe_time"], &json["held_by"]), (&json!(null), &json!(null)));
    }

    #[test]
    fn golden_text() {
        let text = "\
not ready · leader, epoch 3 · safe time 18446744073709551614, 2.5 s behind, held by shard-b

STREAM   STATE    RECEIVED    DURABLE     CHECKPOINTED  LAG     COPY
shard-a  running  1/6B374D28  1/6B374D00  0/0           0.2 s   [=.........] 10 of about 70 rows, 1 a second, 1 min 0 s left
b        stopped  2.7         2.7         1.9           60.0 s  pending
a copy of shard-a is begun again: the server went away
b is stopped: the counts do not match

transactions: 1 pending, 2 waiting to commit (oldest 4.5 s), 3 committed and not applied
";
        assert_eq!(sample().to_string(), text);
    }

    #[test]
    fn a_replica_without_a_source_has_no_safe_time_to_show() {
        let status = Status { safe_time: Some(HybridTime::MAX), held_by: None, streams: Vec::new(), ..sample() };
        assert_eq!(
            status.to_string().lines().next().unwrap(),
            "not ready · leader, epoch 3 · no source: a safe read shows the latest"
        );
    }

    #[test]
    fn positions_are_read_back() {
        for position in [Position::Lsn(0x1_6B37_4D28), Position::OpId(OpId::new(4, 2)), Position::Lsn(u64::MAX)] {
            assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }
        assert!("1/6B374D2800".parse::<Position>().is_err());
        assert!("12".parse::<Position>().is_err());
    }
}
