//! The agent: the parent of all tasks in one sandbox container.
//!
//! Two kinds of process, of one thread each: the agent, which talks to the executor ([`service`],
//! [`conversation`]) and remembers ([`records`]), and one [`supervisor`] per task, which is a child of the
//! agent, the parent of the task, and the subreaper of everything the task starts. So whose a process is
//! needs no marks, and a stop can be complete ([`descendants`]). What is done when is decided by
//! [`supervision`], which knows nothing of processes.
//!
//! It lives in the sandbox: in its memory, as its user, within reach of its signals. It waits for nobody,
//! and is small.

pub mod channels;
pub mod connection;
pub mod conversation;
pub mod descendants;
pub mod oom;
pub mod probe;
pub mod processes;
pub mod protocol;
pub mod records;
pub mod service;
pub mod setup;
pub mod start;
pub mod supervision;
pub mod supervisor;
pub mod wait;

use std::process::ExitCode;

use self::service::Service;
use self::setup::Failed;
use crate::sys::process::SingleThread;

/// The program `task-executor-agent`, entered before anything else of this program has run.
/// `arguments` are those after argv 0. Fails with the number of a [`Failed`].
pub fn main(arguments: &[String]) -> ExitCode {
    let ended = setup::set_up(arguments).and_then(|setup| {
        let proof = SingleThread::at_program_start().map_err(|_| Failed::Threads)?;
        let service = Service::new(proof, setup)?;
        service.setup.await_release()?;
        Ok(service)
    });
    match ended {
        Ok(mut service) => {
            service.run();
            ExitCode::SUCCESS
        }
        Err(failed) => ExitCode::from(failed as u8),
    }
}
