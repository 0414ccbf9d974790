//! The admission webhook of OpenSandbox pools, and the same rules offline.

#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Json,
    Text,
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
    panic_without_words();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another crypto provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve::run(serve))
}

/// A panic's message can quote the object under review, and with it a secret: only its place is logged.
fn panic_without_words() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place = place.as_deref(), "panic; please report it");
    }));
}

fn start_log(format: Option<LogFormat>, level: &str) {
    let terminal = std::io::stderr().is_terminal();
    let filter = tracing_subscriber::EnvFilter::try_new(level);
    let rejected = filter.as_ref().err().map(ToString::to_string);
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    }) {
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .init(),
        LogFormat::Text => log.with_ansi(terminal).init(),
    }
    if let Some(error) = rejected {
        tracing::warn!(level, error, "the log level cannot be read; using info");
    }
}
