//! The operator's program. See the library for how it is built up.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use opensandbox_operator::shell::{self, End};
use opensandbox_program::{LogFormat, panic_without_words, start_log};

/// Ten thousand pods are many small allocations, and this one is good at them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps pools of sandboxes warm and gives them to BatchSandboxes.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Program {
    #[command(flatten)]
    shell: shell::Arguments,
    /// Format of the log, which goes to standard error; absent means text on a terminal, else JSON.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// What is logged: a level (error, warn, info, debug, trace) or a filter such as
    /// `info,opensandbox_operator=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log_level: String,
}

fn main() -> ExitCode {
    let Program {
        shell,
        log_format,
        log_level,
    } = Program::parse();
    start_log(log_format, &log_level);
    panic_without_words(|place| tracing::error!(place, "panic; please report it"));
    match run(shell) {
        Ok(End::Signal) => ExitCode::SUCCESS,
        Ok(End::LeadershipLost(why)) => {
            tracing::error!(
                why,
                "leadership lost: ending, so that nothing is written twice"
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: shell::Arguments) -> anyhow::Result<End> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let end = runtime.block_on(shell::run(arguments));
    // Whatever still runs must not hold up the end.
    runtime.shutdown_background();
    end
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }
}
