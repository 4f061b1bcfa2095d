//! Conversions between the vocabulary and the messages that several services use. From the wire nothing is taken on
//! trust: what is missing or cannot be is [`Malformed`], which names the field.

use super::cdc as pb;
use crate::wal::{Cell, Column, OpId, Row, SourceTransactionId};
use bytes::Bytes;
use std::borrow::Cow;

/// A message that does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: field `{field}` {fault}")]
pub struct Malformed {
    /// The field, as a path within its message.
    pub field: &'static str,
    /// What is wrong with it.
    pub fault: Cow<'static, str>,
}

impl Malformed {
    /// A fault in this field.
    pub fn new(field: &'static str, fault: impl Into<Cow<'static, str>>) -> Self {
        Self { field, fault: fault.into() }
    }
}

/// The value of a field that must be there.
///
/// # Errors
/// [`Malformed`] when it is not.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or_else(|| Malformed::new(field, "is missing"))
}

/// A position that must be there.
///
/// # Errors
/// [`Malformed`] when it is not.
pub fn op_id(field: &'static str, value: Option<pb::OpId>) -> Result<OpId, Malformed> {
    required(field, value).map(OpId::from)
}

impl From<OpId> for pb::OpId {
    fn from(at: OpId) -> Self {
        Self { term: at.term, index: at.index }
    }
}

impl From<pb::OpId> for OpId {
    fn from(at: pb::OpId) -> Self {
        Self { term: at.term, index: at.index }
    }
}

impl From<&SourceTransactionId> for pb::SourceTransactionId {
    fn from(transaction: &SourceTransactionId) -> Self {
        Self { id: Bytes::copy_from_slice(&transaction.id), incarnation: transaction.incarnation }
    }
}

impl From<pb::SourceTransactionId> for SourceTransactionId {
    fn from(transaction: pb::SourceTransactionId) -> Self {
        Self { id: transaction.id[..].into(), incarnation: transaction.incarnation }
    }
}

impl From<Column> for pb::Column {
    fn from(column: Column) -> Self {
        Self { name: column.name, type_name: column.type_name, key: column.key }
    }
}

impl From<pb::Column> for Column {
    fn from(column: pb::Column) -> Self {
        Self { name: column.name, type_name: column.type_name, key: column.key }
    }
}

impl From<Row> for pb::Row {
    /// The row without an `old_key`.
    fn from(row: Row) -> Self {
        let mut out = Self { schema_version: row.schema_version, ..Self::default() };
        out.values.reserve_exact(row.cells.len());
        for (column, cell) in (0..).zip(row.cells) {
            out.values.push(match cell {
                Cell::Text(text) => text,
                Cell::Null => {
                    out.null_columns.push(column);
                    Bytes::new()
                }
                Cell::Unchanged => {
                    out.unchanged_columns.push(column);
                    Bytes::new()
                }
            });
        }
        out
    }
}

impl TryFrom<pb::Row> for Row {
    type Error = Malformed;

    /// The row; its `old_key` is the caller's to look at first.
    fn try_from(row: pb::Row) -> Result<Self, Malformed> {
        let mut cells: Vec<Cell> = row.values.into_iter().map(Cell::Text).collect();
        let named = [
            ("row.null_columns", row.null_columns, Cell::Null),
            ("row.unchanged_columns", row.unchanged_columns, Cell::Unchanged),
        ];
        for (field, columns, value) in named {
            for column in columns {
                match cells.get_mut(column as usize) {
                    Some(cell @ Cell::Text(_)) if *cell == Cell::Text(Bytes::new()) => *cell = value.clone(),
                    Some(_) => return Err(Malformed::new(field, format!("names column {column}, which has a value"))),
                    None => return Err(Malformed::new(field, format!("names column {column}, which the row has not"))),
                }
            }
        }
        Ok(Self { schema_version: row.schema_version, cells })
    }
}
