//! The process that does nothing: proof that a process can be started here.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::protocol::{Exit, NOOP_NAME, Stage, StartFault};
use super::start::{Outcome, Program, outcome};
use crate::sys::process::SingleThread;

/// Probes that may run at once.
const MAX_PROBES: usize = 16;

/// The probes that run.
#[derive(Debug)]
pub struct Probes {
    /// This program, kept open: in a container its file need not be reachable by a name.
    program: Program,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    pid: i32,
    number: u64,
    result: OwnedFd,
}

impl Probes {
    /// None yet.
    ///
    /// # Errors
    ///
    /// This program cannot be opened.
    pub fn new() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let file = open("/proc/self/exe", flags, Mode::empty())?;
        let name = std::ffi::CString::new(NOOP_NAME)?;
        Ok(Self {
            program: Program::open(file, name),
            running: Vec::new(),
        })
    }

    /// Starts one.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(&mut self, proof: &SingleThread, number: u64) -> Result<(), StartFault> {
        if self.running.len() >= MAX_PROBES {
            return Err(StartFault {
                stage: Stage::Fork,
                errno: Errno::EAGAIN as i32,
            });
        }
        let (pid, result) = self.program.start(proof, None)?;
        self.running.push(Running {
            pid,
            number,
            result,
        });
        Ok(())
    }

    /// Whether that child is a probe.
    pub fn has(&self, pid: i32) -> bool {
        self.running.iter().any(|probe| probe.pid == pid)
    }

    /// A child ended: if it was a probe, its number and what failed.
    pub fn ended(&mut self, pid: i32, exit: Exit) -> Option<(u64, Option<StartFault>)> {
        let place = self.running.iter().position(|probe| probe.pid == pid)?;
        let probe = self.running.swap_remove(place);
        let failure = match (outcome(probe.result.as_fd()), exit) {
            (Outcome::Failed(fault), _) => Some(fault),
            (_, Exit::Code(0)) => None,
            // It was killed, or is not what it should be.
            _ => Some(StartFault {
                stage: Stage::Exec,
                errno: Errno::ECHILD as i32,
            }),
        };
        Some((probe.number, failure))
    }
}
