//! The long documents.

#[doc = include_str!("operations.md")]
pub mod operations {}
