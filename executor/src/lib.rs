//! The task executor: runs tasks inside the sandbox container of its pod.
//!
//! Two processes of this one program share the work:
//!
//! - `serve`, in the sidecar (or, in-container, beside the tasks): finds the sandbox container
//!   ([`pod`]), brings an agent into it ([`launch`], [`inject`]), keeps the list of tasks ([`engine`]),
//!   reads what they print ([`output`]) and answers on port 5758 ([`server`]);
//! - the [`agent`], one per sandbox container: the parent of every task in it. It outlives the
//!   executor's container, and so do the tasks and their results.
//!
//! `run` is `serve` with a command beside it, the sandbox's own; `install` copies the programs to where that
//! container finds them ([`main_process`], [`mod@install`]). `doctor` says what a pod allows and why.

pub mod agent;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod engine;
pub mod inject;
pub mod install;
pub mod kernel_file;
pub mod launch;
pub mod main_process;
pub mod metrics;
pub mod output;
pub mod pod;
pub mod serve;
pub mod server;
pub mod sys;
