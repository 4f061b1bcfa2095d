//! What several modules of this test need.

pub mod constellation;
pub mod postgres;
pub mod process;
pub mod replay;
pub mod upstream;
