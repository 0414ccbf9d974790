//! The admission webhook of OpenSandbox pools, and the same rules offline.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use opensandbox_program::{LogFormat, panic_without_words, start_log};
use opensandbox_webhook::{cli, serve};

/// A review is many small allocations, and this one is good at them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Turns a minimal Pool into one with the task-executor, and refuses senseless ones with reasons.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve admission reviews to the API server.
    Serve(Box<Serve>),
    #[command(flatten)]
    Offline(cli::Command),
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    arguments: serve::Arguments,
    /// Format of the log, which goes to standard error; absent means text on a terminal, else JSON.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// What is logged: a level (error, warn, info, debug, trace) or a filter such as
    /// `info,opensandbox_webhook=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log_level: String,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Offline(command) => cli::run(command),
        Command::Serve(serve) => {
            let Serve {
                arguments,
                log_format,
                log_level,
            } = *serve;
            if let Err(error) = start(arguments, log_format, &log_level) {
                tracing::error!("{error:#}");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
    }
}

fn start(serve: serve::Arguments, format: Option<LogFormat>, level: &str) -> anyhow::Result<()> {
    start_log(format, level);
    panic_without_words(|place| tracing::error!(place, "panic; please report it"));
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another crypto provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve::run(serve))
}
