//! The long documents.

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("behaviours.md")]
pub mod behaviours {}

#[doc = include_str!("track-record.md")]
pub mod track_record {}

#[doc = include_str!("postgresql-replica.md")]
pub mod postgresql_replica {}

#[doc = include_str!("access.md")]
pub mod access {}

#[doc = include_str!("install.md")]
pub mod install {}

#[doc = include_str!("running.md")]
pub mod running {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("dashboards.md")]
pub mod dashboards {}

#[doc = include_str!("runbook.md")]
pub mod runbook {}

#[doc = include_str!("troubleshooting.md")]
pub mod troubleshooting {}

#[doc = include_str!("postgresql.md")]
pub mod postgresql {}
