//! Why a transaction waits: what `untorn explain` and `/explain/{txn}` say (C12).

use super::status::Position;
use super::table::Table;
pub use crate::coordinator::{Cause, Status as TransactionStatus};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One involved source tablet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Involved {
    /// Its stream's name.
    pub tablet: String,
    /// Whether its Applying record has arrived.
    pub applying: bool,
    /// Write records taken.
    pub records: u64,
    /// Write records that the source says there are, where it does.
    pub expected: Option<u64>,
    /// How far its stream is durable.
    pub position: Position,
    /// Its stream's lag.
    pub lag_seconds: f64,
}

/// What a transaction waits for, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WaitsFor {
    /// What.
    pub cause: Cause,
    /// The stream (under `apply` and `back-pressure`: the replica tablet) that it waits for.
    pub tablet: Option<String>,
    /// One sentence a person understands.
    pub text: String,
}

/// Where a transaction stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// untorn's id.
    pub transaction: String,
    /// The source's id.
    pub source_id: String,
    /// Its status.
    pub status: TransactionStatus,
    /// How long it has had that status.
    pub since_seconds: f64,
    /// Whether its Commit record has arrived.
    pub commit_known: bool,
    /// The source tablets known to be involved.
    pub involved: Vec<Involved>,
    /// What it waits for; `None` when nothing does.
    pub waits_for: Option<WaitsFor>,
    /// How many transactions wait behind it.
    pub behind_it: u64,
}

impl fmt::Display for Explanation {
    /// For people: what it is, what it waits for, a table of the involved tablets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = if self.commit_known { "commit known" } else { "commit not known" };
        writeln!(
            f,
            "{} ({}) is {} for {:.1} s, {commit}",
            self.transaction, self.source_id, self.status, self.since_seconds
        )?;
        match &self.waits_for {
            Some(waits) => {
                let tablet = waits.tablet.as_ref().map(|tablet| format!(" · {tablet}")).unwrap_or_default();
                writeln!(f, "waits for {}{tablet}: {}", waits.cause, waits.text)?;
            }
            None => writeln!(f, "waits for nothing")?,
        }
        if self.behind_it > 0 {
            writeln!(f, "{} transactions wait behind it", self.behind_it)?;
        }
        if self.involved.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(["TABLET", "APPLYING", "RECORDS", "POSITION", "LAG"]);
        for involved in &self.involved {
            let expected = involved.expected.map_or_else(String::new, |expected| format!(" of {expected}"));
            table.row([
                involved.tablet.clone(),
                if involved.applying { "yes" } else { "no" }.to_owned(),
                format!("{}{expected}", involved.records),
                involved.position.to_string(),
                format!("{:.1} s", involved.lag_seconds),
            ]);
        }
        write!(f, "\n{table}")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wal::OpId;
    use serde_json::json;

    /// A transaction that waits for one of two tablets.
    pub fn sample() -> Explanation {
        Explanation {
            transaction: "x12".into(),
            source_id: "order-4711".into(),
            status: TransactionStatus::WaitingToCommit,
            since_seconds: 1.5,
            commit_known: true,
            involved: vec![
                Involved {
                    tablet: "shard-a".into(),
                    applying: true,
                    records: 3,
                    expected: Some(3),
                    position: Position::Lsn(0x10),
                    lag_seconds: 0.5,
                },
                Involved {
                    tablet: "shard-b".into(),
                    applying: false,
                    records: 0,
                    expected: None,
                    position: Position::OpId(OpId::new(1, 2)),
                    lag_seconds: 9.0,
                },
            ],
            waits_for: Some(WaitsFor {
                cause: Cause::Applying,
                tablet: Some("shard-b".into()),
                text: "shard-b has not said that it carried everything.".into(),
            }),
            behind_it: 4,
        }
    }

    #[test]
    fn golden_json() {
        let expected = json!({
            "transaction": "x12", "source_id": "order-4711", "status": "WAITING_TO_COMMIT", "since_seconds": 1.5,
            "commit_known": true,
            "involved": [
                { "tablet": "shard-a", "applying": true, "records": 3, "expected": 3, "position": "0/10",
                  "lag_seconds": 0.5 },
                { "tablet": "shard-b", "applying": false, "records": 0, "expected": null, "position": "1.2",
                  "lag_seconds": 9.0 },
            ],
            "waits_for": { "cause": "applying", "tablet": "shard-b",
                           "text": "shard-b has not said that it carried everything." },
            "behind_it": 4,
        });
        assert_eq!(serde_json::to_value(sample()).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Explanation>(expected).unwrap(), sample());
        let decided = Explanation { waits_for: None, ..sample() };
        assert_eq!(serde_json::to_value(decided).unwrap()["waits_for"], json!(null));
    }

    #[test]
    fn golden_text() {
        let text = "\
x12 (order-4711) is WAITING_TO_COMMIT for 1.5 s, commit known
waits for applying · shard-b: shard-b has not said that it carried everything.
4 transactions wait behind it

TABLET   APPLYING  RECORDS  POSITION  LAG
shard-a  yes       3 of 3   0/10      0.5 s
shard-b  no        0        1.2       9.0 s
";
        assert_eq!(sample().to_string(), text);
    }
}
