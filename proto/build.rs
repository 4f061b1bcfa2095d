//! Compiles the protocol files with protox, so that no system `protoc` is needed.

use std::path::PathBuf;

const FILES: [&str; 4] = [
    "proto/untorn/cdc/v1/cdc.proto",
    "proto/untorn/tablet/v1/tablet.proto",
    "proto/untorn/transaction/v1/transaction.proto",
    "proto/untorn/admin/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
