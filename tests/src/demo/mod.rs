//! `cargo demo`: the main job end to end, on a real Kubernetes that it starts, or on a cluster of the
//! user's (`--context`). Each step shows something and checks it; the exit status is 0 only if all of
//! them held, 1 if one did not, 130 after Ctrl-C. Whatever the end, what it started is stopped, and
//! what it put into a cluster of the user's is removed.
//!
//! ```text
//! mod         arguments, clean end            session  order of events
//! place       a cluster of ours, with a node  context  a cluster of the user's: may the demo play there?
//! release     installed by Helm               deployment  the webhook in its pods
//! removal     what a run adds to a cluster of the user's, and takes away
//! stage       kubectl, shown and checked      steps, sandboxes  what is shown
//! diff        written and stored, as lines    live, numbers     tables
//! terminal    standard output                 signals  Ctrl-C
//! ```

mod context;
mod deployment;
mod diff;
mod live;
mod numbers;
mod place;
mod release;
mod removal;
mod sandboxes;
mod session;
mod signals;
mod stage;
mod steps;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::signal::Signal;

use self::session::Session;
use self::signals::Signals;
use self::terminal::Terminal;

/// Builds that were interrupted end within this.
const BUILDS_END: Duration = Duration::from_secs(10);

/// A tour: OpenSandbox is installed on a real Kubernetes that this starts on this machine and stops again, a
/// ten-line Pool becomes a working one, and sandboxes run tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo demo", version)]
struct Arguments {
    /// Use a cluster of yours: a context of your kubeconfig, or the current one if no name is given.
    /// Installs what is missing there, and removes it again.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    context: Option<String>,
    /// Kubeconfig with the context.
    #[arg(long, value_name = "FILE", requires = "context")]
    kubeconfig: Option<PathBuf>,
    /// Image of the webhook for a cluster with nodes.
    #[arg(long, value_name = "IMAGE", requires = "context")]
    webhook_image: Option<String>,
    /// Leave everything running at the end, until Ctrl-C, and say how to use it.
    #[arg(long)]
    keep: bool,
    /// Show the commands that only check something, and the webhook's log.
    #[arg(long)]
    verbose: bool,
    /// No colours; there are none in a file or pipe, or with the variable NO_COLOR.
    #[arg(long)]
    no_color: bool,
}

/// The program: reads its arguments, plays, cleans up.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let terminal = Terminal::new(arguments.no_color, arguments.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal.failed(&format!("no runtime: {error}")).ok();
            return ExitCode::FAILURE;
        }
    };
    let status = runtime.block_on(run(&arguments, &terminal));
    runtime.shutdown_timeout(BUILDS_END);
    ExitCode::from(status)
}

/// How the play ended.
enum End {
    Held,
    Failed(anyhow::Error),
    Interrupted(Signal),
}

async fn run(arguments: &Arguments, terminal: &Terminal) -> u8 {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            terminal.failed(&format!("{error:#}")).ok();
            return 1;
        }
    };
    let mut session = Session::default();
    let played = tokio::select! {
        biased;
        signal = signals.next() => End::Interrupted(signal),
        result = Box::pin(session.play(arguments, terminal)) => match result {
            Ok(()) => End::Held,
            Err(error) => End::Failed(error),
        },
    };
    // Standard output may be closed by now; that must not keep anything from being cleaned up.
    let status = match &played {
        End::Held if arguments.keep => {
            if session.stay(terminal).is_ok() && session.needs_this_process() {
                signals.next().await;
            }
            0
        }
        End::Held => 0,
        End::Failed(error) => {
            terminal.failed(&format!("{error:#}")).ok();
            1
        }
        End::Interrupted(signal) => {
            terminal.note(&format!("\n{signal}: cleaning up")).ok();
            signals::interrupt_children();
            128 + u8::try_from(*signal as i32).unwrap_or_default()
        }
    };
    if matches!(played, End::Failed(_)) || arguments.verbose {
        session.show_log(terminal, arguments.verbose).await.ok();
    }
    let begin = Instant::now();
    let closed = tokio::select! {
        result = Box::pin(session.close(terminal)) => result,
        signal = signals.next() => Err(anyhow::anyhow!("{signal} again: not everything is removed")),
    };
    // The processes, their directory, and the login that the removal needed.
    drop(session);
    match closed {
        Ok(false) => {}
        Ok(true) => drop(terminal.done("all of it was stopped and removed", begin)),
        Err(error) => {
            terminal.failed(&format!("clean up: {error:#}")).ok();
            return status.max(1);
        }
    }
    status
}
