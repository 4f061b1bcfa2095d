//! The long documents.

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("behaviours.md")]
pub mod behaviours {}

#[doc = include_str!("track-record.md")]
pub mod track_record {}

#[doc = include_str!("postgresql.md")]
pub mod postgresql {}
