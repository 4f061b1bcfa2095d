//! The `untorn` binary: arguments, configuration and logging first, then the async runtime.

use clap::Parser;
use std::io;
use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};
use untorn::bench::{self, Bench};
use untorn::cli::{self, Cli, Command, Failure, SourceCommand};
use untorn::config::{self, Configuration, TracingConfig};
use untorn::tablet::engine::Worker;
use untorn::{demo, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Two providers are linked, so rustls would not choose by itself. It is an error only if one was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    run(Cli::parse().command).unwrap_or_else(|failure| {
        eprintln!("{failure}");
        ExitCode::from(failure.exit_code())
    })
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    let mut out = io::BufWriter::new(io::stdout());
    match command {
        Command::Demo(args) => {
            // Only what went wrong is logged, and nothing while the screen is on, unless RUST_LOG asks for more.
            let filter = if demo::show::is_interactive(args.format) { "off" } else { "warn" };
            log(&std::env::var("RUST_LOG").unwrap_or_else(|_| filter.into()))?;
            let start = async |plan| demo::pipeline::Pipeline::start(plan, thread).await;
            return Ok(runtime()?.block_on(demo::run(args, start)));
        }
        Command::Run(args) => {
            let config = Configuration::load(&args.config, &config::process_vars())?.daemon()?;
            telemetry::start(&config.tracing).map_err(|error| Failure::Failed(error.to_string()))?;
            runtime()?.block_on(cli::run(config, thread))?;
        }
        Command::Tablet(args) => {
            let config = Configuration::load(&args.config, &config::process_vars())?.tablet_server()?;
            telemetry::start(&config.tracing).map_err(|error| Failure::Failed(error.to_string()))?;
            runtime()?.block_on(cli::tablet(config, thread))?;
        }
        Command::Check(args) => runtime()?.block_on(cli::check(&args, &mut out))?,
        Command::Status(args) => runtime()?.block_on(cli::status(&args, &mut out))?,
        Command::Top(args) => runtime()?.block_on(cli::top(&args))?,
        Command::LogLevel(args) => runtime()?.block_on(cli::log_level(&args, &mut out))?,
        Command::Explain(args) => runtime()?.block_on(cli::explain(&args, &mut out))?,
        Command::Skip(args) => runtime()?.block_on(cli::skip(&args, &mut out))?,
        Command::Retry(args) => runtime()?.block_on(cli::retry(&args, &mut out))?,
        Command::Bench(Bench::Race(args)) => {
            let raced = runtime()?.block_on(bench::race::race(&args, &mut out));
            raced.map_err(|error| Failure::Failed(error.to_string()))?;
        }
        Command::Bench(Bench::Torn(args)) => {
            let raced = runtime()?.block_on(bench::torn::torn(&args, &mut out));
            raced.map_err(|error| Failure::Failed(error.to_string()))?;
        }
        Command::Bench(Bench::Embedded(args)) => {
            let measured = runtime()?.block_on(bench::embedded::embedded(&args, &mut out, thread));
            measured.map_err(|error| Failure::Failed(error.to_string()))?;
        }
        Command::Scan(args) => runtime()?.block_on(cli::scan(&args, &mut out))?,
        Command::Recopy(args) => runtime()?.block_on(cli::recopy(&args, &mut out))?,
        Command::Source(SourceCommand::Drop(args)) => {
            log(&std::env::var("RUST_LOG").unwrap_or_else(|_| "warn,untorn::audit=info".into()))?;
            runtime()?.block_on(cli::drop_slots(&args, &mut out))?;
        }
        Command::Verify(args) => {
            let equal = runtime()?.block_on(cli::verify(&args, &mut out))?;
            return Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a storage worker on a thread of its own.
fn thread(worker: Worker) -> io::Result<()> {
    std::thread::Builder::new().name(worker.name()).spawn(|| worker.run()).map(|_| ())
}

fn log(filter: &str) -> Result<(), Failure> {
    telemetry::start(&TracingConfig { json: false, filter: filter.to_owned() })
        .map_err(|error| Failure::Failed(error.to_string()))
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("the async runtime could not start: {error}")))
}
