//! What several modules of this test need.

pub mod postgres;
pub mod replay;
