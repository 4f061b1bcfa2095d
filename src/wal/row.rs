//! Rows and the shapes of tables.

use super::TableId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One column's value in a row. Values travel as PostgreSQL's text form, whatever the source, so that what arrives is
/// what is kept; only the surfaces that print JSON look at the type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// The value's text form.
    Text(Bytes),
    /// The source did not send it because it did not change (TOAST). Filled when the transaction is applied, from the
    /// newest earlier write of the old key in the same stream.
    Unchanged,
}

/// A row: one cell a column, in the order of the schema version it was written under.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Which version of the table's schema the cells follow.
    pub schema_version: u32,
    /// The cells.
    pub cells: Vec<Cell>,
}

/// One column of a table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    /// Its name, unquoted.
    pub name: String,
    /// PostgreSQL's name of the type: `int8`, `text`, `timestamptz`, … Others are printed as text.
    pub type_name: String,
    /// Whether it is part of the key.
    pub key: bool,
}

/// The shape of a table at one version. The log numbers tables and versions; equal shapes get equal versions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableSchema {
    /// The log's number of the table.
    pub table: TableId,
    /// `schema.table`, unquoted.
    pub name: String,
    /// Counts up with every change of the columns.
    pub version: u32,
    /// The columns in order.
    pub columns: Vec<Column>,
}
