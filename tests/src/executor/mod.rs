//! The task executor as its callers see it: a client of its API, plain or signed, and pods in which an
//! executor is asked to run something.
//!
//! - [`Client`]: one request per connection, so that an executor that restarts is never asked through a
//!   connection to its predecessor.
//! - [`Signer`]: what the operator does to a request, and what a forger might.
//! - [`Watch`]: the stream of events.
//! - [`ExecutorPod`]: a [`Pod`](crate::pods::Pod) and a client of its executor.
//! - [`host`]: what the machine sees of a pod's processes, which nothing in the pod can forge.

mod client;
pub mod host;
mod pod;
mod signer;
mod watch;

use opensandbox_api::task::{EnvVar, Process, Task};

pub use self::client::{Client, PORT, Reply, Stream};
pub use self::pod::{ExecutorPod, Finished};
pub use self::signer::Signer;
pub use self::watch::Watch;

/// A task that runs this command.
pub fn task(name: &str, argv: &[&str]) -> Task {
    let process = Process {
        command: argv.iter().map(|&argument| argument.to_owned()).collect(),
        ..Process::default()
    };
    Task {
        name: name.to_owned(),
        process: Some(process),
        ..Task::default()
    }
}

/// [`task`] with a UID.
pub fn task_of(name: &str, uid: &str, argv: &[&str]) -> Task {
    Task {
        uid: Some(uid.to_owned()),
        ..task(name, argv)
    }
}

/// A variable with a literal value.
pub fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: value.into(),
        value_from: None,
    }
}
