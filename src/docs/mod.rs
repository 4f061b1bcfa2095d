//! The long documents.

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("postgresql.md")]
pub mod postgresql {}
