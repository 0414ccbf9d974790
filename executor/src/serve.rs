//! The program's command line, and its parts put together.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use opensandbox_api::token::SKEW_SECONDS;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::unix_millis;
use crate::config::{AuthSetting, Config};
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::pod::Pod;
use crate::pod::proc::Proc;
use crate::{doctor, server};

/// What is left of the pod's 30 s when tasks have been told to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(20);
/// A container that starts within 3 s of its pod, in clock ticks of 10 ms, has had no predecessor.
const FIRST_START_TICKS: u64 = 300;

/// Runs tasks inside the sandbox container of this pod.
#[derive(Debug, Parser)]
#[command(
    name = "task-executor",
    version,
    about,
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API on port 5758; what is done without a command too.
    Serve(Box<Serve>),
    /// Say what this pod allows and why.
    Doctor(Box<Doctor>),
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    config: Config,
    /// Format of the log, which goes to standard error; absent means text on a terminal, else JSON.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// What is logged: a level (error, warn, info, debug, trace) or a filter.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log_level: String,
}

#[derive(Debug, Args)]
struct Doctor {
    #[command(flatten)]
    config: Config,
    /// Form of the report.
    #[arg(long, short, value_enum, default_value_t = doctor::Output::Text)]
    output: doctor::Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

/// Everything that is not the agent.
pub fn main() -> ExitCode {
    let Arguments { command, serve } = Arguments::parse();
    let serve = match command {
        Some(Command::Doctor(doctor)) => return doctor::main(&doctor.config, doctor.output),
        Some(Command::Serve(serve)) => *serve,
        None => serve,
    };
    start_log(serve.log_format, &serve.log_level);
    panic_without_words();
    match run(serve.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    // One thread: what there is to do is small, and this process shares its node with sandboxes.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.listen_addr)
        .await
        .with_context(|| format!("listen on {} (--listen-addr)", config.listen_addr))?;
    let metrics = Arc::new(Metrics::default());
    let engine = Engine::new(config.clone(), Arc::clone(&metrics))?;
    let auth = authentication(&config);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %config.listen_addr,
        auth = ?config.auth,
        "started"
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let reaper = tokio::spawn(crate::launch::reap());
    let keeper = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.run().await })
    };
    let state = server::ServerState {
        tasks: Arc::new(engine.clone()),
        auth,
        metrics,
        limits: server::Limits::default(),
    };
    server::serve(listener, state, stop).await;
    engine.shut_down(SHUTDOWN_PATIENCE).await;
    keeper.abort();
    reaper.abort();
    Ok(())
}

fn authentication(config: &Config) -> server::Auth {
    if config.auth == AuthSetting::None {
        tracing::warn!("whoever reaches the port may run tasks in the sandbox (--auth=none)");
    }
    let proc = Proc::default();
    let pod = Pod::read(&proc, config.pod_uid.as_deref()).ok();
    let uid = pod.and_then(|pod| pod.uid);
    // What a predecessor in this pod has seen is not known: orders of its time are refused.
    let mut issued_after = unix_millis() / 1000;
    if may_have_predecessor(&proc) {
        issued_after += SKEW_SECONDS;
    }
    let key = config.verification_key.as_deref();
    server::Auth::new(config.auth, key, uid.as_deref(), issued_after)
}

/// Whether this container started so much later than the pod that it may not be the first of its name.
fn may_have_predecessor(proc: &Proc) -> bool {
    let own = proc.own_pid().ok().and_then(|pid| proc.stat(pid));
    match (own, proc.stat(1)) {
        (Some(own), Some(first)) => {
            own.start_time.saturating_sub(first.start_time) > FIRST_START_TICKS
        }
        _ => true,
    }
}

/// A panic's message can quote a task, and with it a secret: only its place is logged.
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
