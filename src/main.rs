//! untorn

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use untorn::demo::{self, DemoArgs};

/// Whole transactions on the replica, or none of them.
#[derive(Parser)]
#[command(name = "untorn", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows whole transactions arriving, in one process and without set-up
    Demo(DemoArgs),
}

fn main() -> ExitCode {
    let Command::Demo(args) = Cli::parse().command;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("untorn: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(demo::run(args, async |plan| {
        demo::pipeline::Pipeline::start(plan, |worker| {
            std::thread::Builder::new().name(worker.name).spawn(worker.run).map(|_| ())
        })
        .await
    }))
}
