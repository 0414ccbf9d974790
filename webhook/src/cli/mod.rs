//! The rules of the webhook on files, without a cluster: `inject`, `uninject`, `validate`, `explain`.
//!
//! In: files, directories or standard input; multi-document YAML, JSON, Lists. Out: standard output,
//! findings on standard error, an exit status (0 fine, 1 something is wrong with the input, 2 the
//! command cannot be carried out). The steps:
//!
//! ```text
//! input      paths -> bytes
//! split      a YAML stream -> the text of each document
//! yaml json  text -> JSON, as kubectl reads it, and back
//! document   documents and the objects in them, with their places
//! review     what the server would say, in the order of the input
//! inject validate explain   what is done with that
//! output report             documents and findings as text
//! ```
//!
//! Only `input` and this module do I/O. No client, no clock.

mod document;
mod explain;
mod inject;
mod input;
mod json;
mod output;
mod report;
mod review;
mod split;
mod validate;
mod yaml;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Subcommand;

use document::Input;
use input::Files;

pub use explain::Explain;
pub use inject::{Inject, Uninject};
pub use input::Files as InputFiles;
pub use output::Format;
pub use review::Installation;
pub use validate::Validate;

/// What works on files, without a cluster.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the documents with what the webhook would add to their Pools.
    ///
    /// The result is what a fresh cluster stores after `kubectl apply` of the same files. Namespaces
    /// and ConfigMaps opensandbox-images among them take effect for the Pools after them. Documents
    /// of other kinds, and Pools that need nothing, keep their text.
    #[command(after_help = STATUS)]
    Inject(Inject),
    /// Print the documents without what the webhook added to their Pools.
    ///
    /// The annotation sandbox.opensandbox.io/task-executor-injection says what that is; a Pool
    /// without it keeps its text.
    #[command(after_help = STATUS)]
    Uninject(Uninject),
    /// Name everything that the server would refuse or warn about.
    #[command(after_help = STATUS)]
    Validate(Validate),
    /// Say of each Pool whether it gets the executor, who decided, and where each value comes from.
    ///
    /// Of a Pool read from a cluster it says what was added to it:
    /// kubectl get pool NAME -o yaml | opensandbox-webhook explain
    #[command(after_help = STATUS)]
    Explain(Explain),
}

const STATUS: &str = "Exit status: 0 if all is well, 1 if something is wrong with the input, 2 if the command cannot be carried out.";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Fine,
    /// Something is wrong with what was read.
    Findings,
    /// The command could not be carried out.
    Failed,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        match status {
            Status::Fine => Self::from(0),
            Status::Findings => Self::from(1),
            // The status with which clap ends on wrong usage.
            Status::Failed => Self::from(2),
        }
    }
}

/// What a command has to say.
#[derive(Debug)]
struct Done {
    out: String,
    log: String,
    status: Status,
}

/// Carries out a command. Reads files and standard input, writes to standard output and standard
/// error, and gives the exit status.
pub fn run(command: Command) -> ExitCode {
    let Done { out, log, status } = match carry_out(command) {
        Ok(done) => done,
        Err(error) => Done {
            out: String::new(),
            log: chain(&error),
            status: Status::Failed,
        },
    };
    // Nobody is left to tell if standard error is closed.
    let _ = io::stderr().write_all(log.as_bytes());
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(out.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => status.into(),
        // Whoever reads has read enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => status.into(),
        Err(error) => {
            let _ = writeln!(
                io::stderr(),
                "error: cannot write to standard output: {error}"
            );
            Status::Failed.into()
        }
    }
}

fn carry_out(command: Command) -> Result<Done, input::Error> {
    let read = |files: &Files| -> Result<_, input::Error> {
        let (inputs, problems): (Vec<_>, Vec<_>) =
            input::read(files)?.into_iter().map(Input::read).unzip();
        Ok((inputs, problems.into_iter().flatten().collect::<Vec<_>>()))
    };
    Ok(match command {
        Command::Inject(arguments) => {
            let (inputs, problems) = read(&arguments.files)?;
            inject::inject(&arguments, inputs, &problems)
        }
        Command::Uninject(arguments) => {
            let (inputs, problems) = read(&arguments.files)?;
            inject::uninject(&arguments, inputs, &problems)
        }
        Command::Validate(arguments) => {
            let (inputs, problems) = read(&arguments.files)?;
            validate::validate(&arguments, inputs, &problems)
        }
        Command::Explain(arguments) => {
            let (inputs, problems) = read(&arguments.files)?;
            explain::explain(&arguments, inputs, &problems)
        }
    })
}

/// An error with what led to it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = format!("error: {error}");
    let mut next = error.source();
    while let Some(error) = next {
        let _ = write!(text, ": {error}");
        next = error.source();
    }
    text.push('\n');
    text
}
