//! What several modules of this test need.

pub mod authority;
pub mod constellation;
pub mod daemon;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod replay;
pub mod small_disk;
pub mod tables;
pub mod upstream;
