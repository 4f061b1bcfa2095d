//! Rows of a table at one read point, and how they are printed: a JSON object a line, or CSV as PostgreSQL's COPY
//! writes it.

use super::timestamp;
use crate::wal::{Column, HybridTime};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::fmt::Write;
use std::str::FromStr;

/// Which read point a scan asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ScanAt {
    /// A prefix of the source's history, complete.
    #[default]
    Safe,
    /// Everything decided by now.
    Latest,
    /// A hybrid time.
    Time(HybridTime),
}

impl FromStr for ScanAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "safe" => Ok(Self::Safe),
            "latest" => Ok(Self::Latest),
            time => {
                time.parse().map(Self::Time).map_err(|_| "write safe, latest or a hybrid time (a number)".to_owned())
            }
        }
    }
}

/// Why a scan gave no rows, or not all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// There is no safe point yet, or the process is just starting.
    #[error("not ready: {0}")]
    NotReady(String),
    /// The replica has no such table.
    #[error("no table {0}")]
    UnknownTable(String),
    /// The read point lies above safe time, or below what is still kept apart.
    #[error("{0}")]
    NotServed(String),
    /// As many scans as are served at once are running.
    #[error("{0} scans are running; try again when one is done")]
    Busy(usize),
    /// A tablet failed, or does not answer.
    #[error("{0}")]
    Failed(String),
}

/// One row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanRow {
    /// One text form a column; `None` is NULL.
    pub cells: Vec<Option<Bytes>>,
    /// When its newest version was committed.
    pub time: HybridTime,
}

/// The rows of a table at one read point.
pub struct Scan {
    /// The table's newest columns, which every row follows.
    pub columns: Vec<Column>,
    /// The rows, a page at a time ([`crate::limits::PAGE_BYTES`]); an error ends them.
    pub rows: BoxStream<'static, Result<Vec<ScanRow>, ScanError>>,
}

/// A cell that cannot be printed faithfully.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: the value is not UTF-8")]
pub struct BadCell {
    column: String,
}

/// How a type's text form becomes JSON.
#[derive(Clone, Copy)]
enum JsonForm {
    Number,
    Bool,
    Json,
    Timestamp,
    TimestampWithZone,
    Date,
    Text,
}

impl JsonForm {
    fn of(type_name: &str) -> Self {
        match type_name {
            "int2" | "int4" | "int8" | "float4" | "float8" => Self::Number,
            "bool" => Self::Bool,
            "json" | "jsonb" => Self::Json,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::TimestampWithZone,
            "date" => Self::Date,
            _ => Self::Text,
        }
    }
}

/// Prints rows of one table as JSON objects.
pub struct JsonRows {
    /// For each column its name as a JSON string, and its form.
    columns: Vec<(String, JsonForm)>,
    names: Vec<String>,
    with_time: bool,
}

impl JsonRows {
    /// A printer for these columns; `with_time` adds `_hybrid_time`.
    #[must_use]
    pub fn new(columns: &[Column], with_time: bool) -> Self {
        let quoted = |column: &Column| (quote(&column.name), JsonForm::of(&column.type_name));
        Self {
            columns: columns.iter().map(quoted).collect(),
            names: columns.iter().map(|column| column.name.clone()).collect(),
            with_time,
        }
    }

    /// Adds a row, and a line's end, to `out`.
    ///
    /// # Errors
    /// A cell that is not UTF-8, which PostgreSQL does not send.
    pub fn row(&self, row: &ScanRow, out: &mut String) -> Result<(), BadCell> {
        out.push('{');
        for (i, (name, form)) in self.columns.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(name);
            out.push(':');
            match row.cells.get(i).and_then(Option::as_ref) {
                None => out.push_str("null"),
                Some(cell) => {
                    let text = std::str::from_utf8(cell).map_err(|_| BadCell { column: self.names[i].clone() })?;
                    value(text, *form, out);
                }
            }
        }
        if self.with_time {
            let comma = if self.columns.is_empty() { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = match row.time {
                UNKNOWN => write!(out, "{comma}\"_hybrid_time\":null"),
                time => write!(out, "{comma}\"_hybrid_time\":\"{time}\""),
            };
        }
        out.push_str("}\n");
        Ok(())
    }
}

/// The time of a row whose replica keeps none.
const UNKNOWN: HybridTime = HybridTime::MIN;

/// A text as a JSON string.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn value(text: &str, form: JsonForm, out: &mut String) {
    let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    match form {
        // NaN and the infinities are no JSON numbers, and become strings; so does one with white space around it.
        JsonForm::Number
            if text.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
                && text.ends_with(|last: char| last.is_ascii_digit())
                && is_json() =>
        {
            out.push_str(text);
        }
        JsonForm::Bool if text == "t" => out.push_str("true"),
        JsonForm::Bool if text == "f" => out.push_str("false"),
        // As it is; line ends can only stand between its tokens.
        JsonForm::Json if is_json() => out.extend(text.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c })),
        JsonForm::Timestamp => out.push_str(&quote(&timestamp::iso(text).unwrap_or_else(|| text.to_owned()))),
        JsonForm::TimestampWithZone => {
            out.push_str(&quote(&timestamp::iso_utc(text).unwrap_or_else(|| text.to_owned())))
        }
        JsonForm::Date => out.push_str(&quote(&timestamp::iso_date(text).unwrap_or_else(|| text.to_owned()))),
        _ => out.push_str(&quote(text)),
    }
}

/// Adds a row, and a line's end, to `out` as `COPY … TO … (FORMAT csv)` writes it; with a time, as a last column.
pub fn csv_row(row: &ScanRow, with_time: bool, out: &mut Vec<u8>) {
    let alone = row.cells.len() + usize::from(with_time) == 1;
    for (i, cell) in row.cells.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let Some(cell) = cell else { continue };
        // An empty text is quoted to tell it from NULL, `\.` alone because it would end the data.
        let quoted = cell.is_empty() || cell.iter().any(|b| b"\",\r\n".contains(b)) || (alone && &cell[..] == b"\\.");
        if !quoted {
            out.extend_from_slice(cell);
            continue;
        }
        out.push(b'"');
        for &byte in cell {
            if byte == b'"' {
                out.push(b'"');
            }
            out.push(byte);
        }
        out.push(b'"');
    }
    if with_time {
        if !row.cells.is_empty() {
            out.push(b',');
        }
        if row.time != UNKNOWN {
            out.extend_from_slice(row.time.to_string().as_bytes());
        }
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(type_name: &str, cell: Option<&str>) -> String {
        let columns = [Column { name: "c".into(), type_name: type_name.into(), key: false }];
        let cells = vec![cell.map(|text| Bytes::copy_from_slice(text.as_bytes()))];
        let mut out = String::new();
        JsonRows::new(&columns, false).row(&ScanRow { cells, time: HybridTime::MIN }, &mut out).unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out} is JSON");
        out.strip_prefix("{\"c\":").unwrap().strip_suffix("}\n").unwrap().to_owned()
    }

    #[test]
    fn golden_json_of_every_common_type() {
        let table = [
            ("int2", "-32768", "-32768"),
            ("int4", "0", "0"),
            ("int8", "9223372036854775807", "9223372036854775807"),
            ("float4", "1.5", "1.5"),
            ("float8", "1e+20", "1e+20"),
            ("float8", "1.2345678901234567e-07", "1.2345678901234567e-07"),
            ("float8", "NaN", "\"NaN\""),
            ("float8", "Infinity", "\"Infinity\""),
            ("float4", "-Infinity", "\"-Infinity\""),
            ("numeric", "12345678901234567890.000100", "\"12345678901234567890.000100\""),
            ("numeric", "NaN", "\"NaN\""),
            ("bool", "t", "true"),
            ("bool", "f", "false"),
            ("text", "", "\"\""),
            ("text", "a \"quoted\"\nline \\ and ü", "\"a \\\"quoted\\\"\\nline \\\\ and ü\""),
            ("varchar", "true", "\"true\""),
            ("json", "{\"b\": 1.00,\n \"a\":\t[null]}", "{\"b\": 1.00,  \"a\":\t[null]}"),
            ("jsonb", "{\"n\": 123456789012345678901234567890}", "{\"n\": 123456789012345678901234567890}"),
            ("jsonb", "\"text\"", "\"text\""),
            ("bytea", "\\xdeadbeef", "\"\\\\xdeadbeef\""),
            ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\""),
            ("timestamptz", "2024-02-29 23:59:59.123456+00", "\"2024-02-29T23:59:59.123456+00:00\""),
            ("timestamptz", "2024-03-01 01:29:59+05:30", "\"2024-02-29T19:59:59+00:00\""),
            ("timestamptz", "infinity", "\"infinity\""),
            ("timestamp", "2024-02-29 23:59:59.5", "\"2024-02-29T23:59:59.5\""),
            ("date", "0044-03-15 BC", "\"-0043-03-15\""),
            ("time", "23:59:59.5", "\"23:59:59.5\""),
            ("interval", "1 mon 2 days 03:04:05", "\"1 mon 2 days 03:04:05\""),
            ("_int4", "{1,NULL,3}", "\"{1,NULL,3}\""),
            ("oid", "42", "\"42\""),
        ];
        for (type_name, text, expected) in table {
            assert_eq!(json(type_name, Some(text)), expected, "{type_name} {text}");
            assert_eq!(json(type_name, None), "null");
        }
    }

    #[test]
    fn what_is_not_its_type_is_a_string() {
        // A line's end is white space to JSON, and a value never spans lines.
        assert_eq!(json("int8", Some("0\n")), "\"0\\n\"");
        assert_eq!(json("int4", Some("[1]")), "\"[1]\"");
        assert_eq!(json("int4", Some("")), "\"\"");
        assert_eq!(json("json", Some("{")), "\"{\"");
        assert_eq!(json("bool", Some("maybe")), "\"maybe\"");
    }

    #[test]
    fn rows_are_lines_in_column_order() {
        let column = |name: &str| Column { name: name.into(), type_name: "int4".into(), key: false };
        let rows = JsonRows::new(&[column("z"), column("a \"b\"")], true);
        let mut out = String::new();
        let cells = vec![Some(Bytes::from_static(b"1")), None];
        rows.row(&ScanRow { cells, time: HybridTime::from_u64(7) }, &mut out).unwrap();
        assert_eq!(out, "{\"z\":1,\"a \\\"b\\\"\":null,\"_hybrid_time\":\"7\"}\n");
        let bad = ScanRow { cells: vec![Some(Bytes::from_static(b"\xff")), None], time: HybridTime::MIN };
        assert_eq!(rows.row(&bad, &mut out), Err(BadCell { column: "z".into() }));
    }

    fn csv(cells: &[Option<&str>], with_time: bool) -> String {
        let cells = cells.iter().map(|cell| cell.map(|text| Bytes::copy_from_slice(text.as_bytes()))).collect();
        let mut out = Vec::new();
        csv_row(&ScanRow { cells, time: HybridTime::from_u64(7) }, with_time, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn csv_as_copy_writes_it() {
        assert_eq!(csv(&[Some("1"), None, Some(""), Some("t")], false), "1,,\"\",t\n");
        assert_eq!(
            csv(&[Some("a,b"), Some("say \"hi\""), Some("two\nlines"), Some(" x ")], false),
            "\"a,b\",\"say \"\"hi\"\"\",\"two\nlines\", x \n"
        );
        assert_eq!(csv(&[Some("\\.")], false), "\"\\.\"\n");
        assert_eq!(csv(&[Some("\\."), Some("\\xff")], false), "\\.,\\xff\n");
        assert_eq!(csv(&[None], false), "\n");
        assert_eq!(csv(&[Some("1"), None], true), "1,,7\n");
    }

    #[test]
    fn read_points_are_read() {
        assert_eq!("safe".parse(), Ok(ScanAt::Safe));
        assert_eq!("latest".parse(), Ok(ScanAt::Latest));
        assert_eq!("42".parse(), Ok(ScanAt::Time(HybridTime::from_u64(42))));
        assert!("yesterday".parse::<ScanAt>().is_err());
    }
}
