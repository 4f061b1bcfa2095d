//! What `tests/prove fuzz` feeds with bytes: one program with every target, chosen by a variable of the environment. Without
//! one it prints their names. libFuzzer drives it; it makes its first inputs itself, from valid messages.
//!
//! The crate is compiled with its coverage counted by LLVM's SanitizerCoverage, which the stable compiler has
//! (`tests/fuzz/counted`); a sanitizer of addresses it has not, and a crate without `unsafe` needs none.

#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a property that does not hold is a finding")]

mod configuration;
mod formats;
mod pgoutput;
mod records;
mod services;

use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

/// A decoder, or a service's handlers.
struct Target {
    /// Its name on the command line.
    name: &'static str,
    /// Takes any bytes, and panics where a property does not hold.
    run: fn(&[u8]),
    /// Valid inputs to begin with.
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: &[Target] = &[
    Target { name: "log_entry", run: formats::log_entry, seeds: formats::log_entries },
    Target { name: "log_snapshot", run: formats::log_snapshot, seeds: formats::log_snapshots },
    Target { name: "tablet_store", run: formats::tablet_store, seeds: formats::tablet_values },
    Target { name: "keys", run: formats::keys, seeds: formats::all_keys },
    Target { name: "pgoutput", run: pgoutput::stream, seeds: pgoutput::streams },
    Target { name: "rows", run: records::rows, seeds: records::all_rows },
    Target { name: "cdc_answers", run: records::answers, seeds: records::all_answers },
    Target { name: "cdc_service", run: services::cdc, seeds: services::cdc_calls },
    Target { name: "tablet_service", run: services::tablet, seeds: services::tablet_calls },
    Target { name: "transaction_service", run: services::transaction, seeds: services::transaction_calls },
    Target { name: "admin_service", run: services::admin, seeds: services::admin_calls },
    Target { name: "configuration", run: configuration::file, seeds: configuration::files },
    Target { name: "addresses", run: configuration::address, seeds: configuration::addresses },
];

static CHOSEN: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: choose(), |data: &[u8]| (CHOSEN.get().unwrap().run)(data));

/// The target that `UNTORN_FUZZ` names; its first inputs are written to the folder `UNTORN_FUZZ_SEEDS`.
fn choose() {
    let name = std::env::var("UNTORN_FUZZ").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        exit(i32::from(!name.is_empty()));
    };
    if let Some(folder) = std::env::var_os("UNTORN_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            (target.run)(&seed);
            std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).unwrap();
        }
    }
    let _ = CHOSEN.set(target);
}
