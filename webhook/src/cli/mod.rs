//! Offline.
use clap::Subcommand;

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Inject.
    Inject,
}

/// Run.
pub fn run(_: Command) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
