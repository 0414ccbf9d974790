//! The program's command line, and its parts put together.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use opensandbox_api::token::SKEW_SECONDS;
use opensandbox_program::{LogFormat, Terminated, panic_without_words, start_log};
use tokio::net::TcpListener;

use crate::clock::unix_millis;
use crate::config::{AuthSetting, Config, ModeSetting};
use crate::engine::Engine;
use crate::install::install;
use crate::main_process::{MainProcess, StartError};
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
    /// Start the sandbox's command, and run tasks beside it in the same container.
    Run(Box<Run>),
    /// Copy the programs into a directory that exists, for another container.
    Install {
        /// The directory.
        directory: PathBuf,
    },
    /// Say what this pod allows and why.
    Doctor(Box<Doctor>),
}

/// The environment is the sandbox's here and sets nothing of these.
#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    serve: Serve,
    /// The command, with its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
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

/// Everything that is not the agent.
pub fn main() -> ExitCode {
    let Arguments { command, serve } = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let (serve, command) = match command {
        Some(Command::Doctor(doctor)) => return doctor::main(&doctor.config, doctor.output),
        Some(Command::Serve(serve)) => (*serve, None),
        Some(Command::Run(run)) => {
            let Run { serve, command } = *run;
            (serve, Some(command))
        }
        Some(Command::Install { directory }) => {
            start_log(None, "info");
            return finish(install(&directory).map(|installed| {
                tracing::info!(?installed, "installed");
                ExitCode::SUCCESS
            }));
        }
        None => (serve, None),
    };
    start_log(serve.log_format, &serve.log_level);
    panic_without_words(|place| tracing::error!(place, "panic; please report it"));
    finish(run(serve.config, command))
}

/// The command line. Beside the sandbox's command a variable such as `LISTEN_ADDR` is the sandbox's business.
fn arguments() -> Result<Arguments, clap::Error> {
    let mut command = Arguments::command();
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == "run")
    {
        let no_variable = |argument: clap::Arg| argument.env(None::<&'static str>);
        command = command
            .mut_args(no_variable)
            .mut_subcommand("run", |run| run.mut_args(no_variable));
    }
    Arguments::from_arg_matches(&command.try_get_matches()?)
}

fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        let start = error.downcast_ref::<StartError>();
        start.map_or(ExitCode::FAILURE, |error| ExitCode::from(error.exit_code()))
    })
}

fn run(config: Config, command: Option<Vec<OsString>>) -> anyhow::Result<ExitCode> {
    // One thread: what there is to do is small, and this process shares its node with sandboxes.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .build()?;
    runtime.block_on(serve(config, command))
}

/// What ends this program.
enum End {
    /// The end of the sandbox's main process.
    Main(MainProcess),
    /// A signal.
    Signal(Terminated),
}

/// Serves until this process is told to end; with a command, until that has ended.
async fn serve(mut config: Config, command: Option<Vec<OsString>>) -> anyhow::Result<ExitCode> {
    if command.is_some() {
        config.mode = ModeSetting::InContainer;
    }
    let listener = TcpListener::bind(config.listen_addr)
        .await
        .with_context(|| format!("listen on {} (--listen-addr)", config.listen_addr))?;
    let metrics = Arc::new(Metrics::default());
    let engine = Engine::new(config.clone(), Arc::clone(&metrics))?;
    let auth = authentication(&config);
    let end = match command {
        Some(command) => End::Main(MainProcess::start(&command)?),
        None => End::Signal(Terminated::listen()?),
    };
    let main = match &end {
        End::Main(main) => Some(main.pid()),
        End::Signal(_) => None,
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %config.listen_addr,
        auth = ?config.auth,
        main_process = main,
        "started"
    );
    let reaper = tokio::spawn(crate::launch::reap(main));
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
    let mut code = ExitCode::SUCCESS;
    match end {
        End::Main(main) => {
            let over = async { code = main.over(&engine, SHUTDOWN_PATIENCE).await.into() };
            server::serve(listener, state, over).await;
        }
        End::Signal(mut terminated) => {
            server::serve(listener, state, async move { terminated.wait().await }).await;
            engine.shut_down(SHUTDOWN_PATIENCE).await;
        }
    }
    keeper.abort();
    reaper.abort();
    Ok(code)
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
