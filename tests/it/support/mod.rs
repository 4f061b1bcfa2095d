//! What several modules of this test need.

pub mod daemon;
pub mod postgres;
pub mod replay;
pub mod tables;
