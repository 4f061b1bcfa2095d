//! The crash laboratory: campaigns over real processes, real disks and real PostgreSQL servers, one file each. The product
//! is the ordinary binary; servers, daemons and disks are those of the integration tests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a campaign that cannot set itself up has failed")]

mod damage;
mod kill;
mod network;
mod oracle;
mod power;
mod proxy;
mod syscalls;
mod trial;

// What the laboratory shares with the integration tests, which use all of it.
#[allow(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../it/log_owners.rs"]
mod log_owners;
#[path = "../it/loop_disk.rs"]
mod loop_disk;
#[allow(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../it/postgres_e2e.rs"]
mod postgres_e2e;
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../it/power_cut.rs"]
mod power_cut;
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../it/power_cut_tablet.rs"]
mod power_cut_tablet;
#[allow(dead_code, reason = "the deterministic campaigns use the rest")]
#[path = "../campaigns/report.rs"]
mod report;
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../it/support/mod.rs"]
mod support;

use report::Campaign;
use std::process::ExitCode;

const CAMPAIGNS: &[Campaign] = &[
    ("crashpoints", syscalls::crashpoints),
    ("damage", damage::run),
    ("io", syscalls::io),
    ("kill", kill::run),
    ("network", network::run),
    ("power", power::run),
];

fn main() -> ExitCode {
    // This program is its own child where a process is needed that dies by the power cut.
    if std::env::args().nth(1).as_deref() == Some(power_cut::APPENDER) {
        tokio::runtime::Runtime::new().unwrap().block_on(power_cut::append());
        return ExitCode::SUCCESS;
    }
    trial::note_panics();
    report::main(CAMPAIGNS)
}
