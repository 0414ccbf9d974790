//! From an order to a program: what is prepared before a fork, and what the new process does.
//!
//! Start failures reach whoever forked through a pipe that closes when the program is executed: the step
//! in one byte, the kernel's reason in four. Nothing written to it means that the program runs.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdout, getppid, pipe2, setsid};

use super::protocol::{Stage, StartFault, StartOrder};
use crate::sys::process::{Image, SingleThread, close_all_on_exec, fork};

/// Where programs are when the task's environment does not say: as container runtimes have it.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Soft and hard limit of open files.
pub type FileLimits = (rlim_t, rlim_t);

/// A program to run, with everything allocated.
#[derive(Debug)]
pub struct Program {
    image: Image,
    file: ProgramFile,
    directory: Option<CString>,
    /// What the agent raised for itself, to be put back.
    file_limits: Option<FileLimits>,
}

#[derive(Debug)]
enum ProgramFile {
    At(CString),
    /// The places where it may be, in order.
    Search(Vec<CString>),
    Open(OwnedFd),
}

/// What the supervisor of a task needs to know.
#[derive(Debug)]
pub struct Task {
    /// What to run.
    pub program: Program,
    /// Its time limit.
    pub timeout: Option<Duration>,
    /// Its own grace period.
    pub grace: Duration,
}

impl Task {
    /// Reads an order.
    ///
    /// # Errors
    ///
    /// It has no program, or a NUL where none can be.
    pub fn new(order: StartOrder, file_limits: Option<FileLimits>) -> Result<Self, StartFault> {
        let invalid = StartFault {
            stage: Stage::Invalid,
            errno: Errno::EINVAL as i32,
        };
        let StartOrder {
            key: _,
            note: _,
            argv,
            env,
            working_directory,
            timeout_millis,
            grace_millis,
        } = order;
        let file = match argv.first() {
            None => return Err(invalid),
            Some(name) if name.is_empty() || name.contains(&b'/') => {
                ProgramFile::At(CString::new(name.clone()).map_err(|_| invalid)?)
            }
            Some(name) => {
                let places = places(name, search_path(&env)).collect::<Result<_, _>>();
                ProgramFile::Search(places.map_err(|_| invalid)?)
            }
        };
        let strings = |all: Vec<Vec<u8>>| {
            let all = all.into_iter().map(CString::new);
            all.collect::<Result<Vec<_>, _>>().map_err(|_| invalid)
        };
        let directory = working_directory
            .map(CString::new)
            .transpose()
            .map_err(|_| invalid)?;
        Ok(Self {
            program: Program {
                image: Image::new(strings(argv)?, strings(env)?),
                file,
                directory,
                file_limits,
            },
            timeout: timeout_millis.map(Duration::from_millis),
            grace: Duration::from_millis(grace_millis),
        })
    }
}

/// `PATH` of an environment: the first, as `getenv` has it.
fn search_path(environment: &[Vec<u8>]) -> &[u8] {
    let mut paths = environment
        .iter()
        .filter_map(|variable| variable.strip_prefix(b"PATH="));
    paths.next().unwrap_or(DEFAULT_PATH)
}

/// Where `execvp` looks for `name`; an empty entry is the working directory.
fn places<'a>(
    name: &'a [u8],
    path: &'a [u8],
) -> impl Iterator<Item = Result<CString, std::ffi::NulError>> + 'a {
    path.split(|byte| *byte == b':').map(move |directory| {
        let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        CString::new([directory, separator, name].concat())
    })
}

impl Program {
    /// The program in an open file, with one argument and no environment.
    pub fn open(file: OwnedFd, name: CString) -> Self {
        let image = Image::new(vec![name], Vec::new());
        Self {
            image,
            file: ProgramFile::Open(file),
            directory: None,
            file_limits: None,
        }
    }

    /// Starts it as a child in a session of its own. `output` are its standard output and error; without,
    /// it has those of this process. Returns its process ID and the pipe that says how the start went.
    ///
    /// # Errors
    ///
    /// No pipe or no process can be made.
    pub fn start(
        &self,
        proof: &SingleThread,
        output: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    ) -> Result<(i32, OwnedFd), StartFault> {
        let (result, failure) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|errno| StartFault {
                stage: Stage::Pipes,
                errno: errno as i32,
            })?;
        let parent = Pid::this();
        let child = || {
            let fault = self.become_it(parent, output);
            // Nobody to tell if that fails; then the exit code remains.
            let _ = nix::unistd::write(failure.as_fd(), &encode(fault));
            127
        };
        let pid = fork(proof, child).map_err(|error| StartFault {
            stage: Stage::Fork,
            errno: error.raw_os_error().unwrap_or(Errno::EAGAIN as i32),
        })?;
        Ok((pid, result))
    }

    /// Runs in the new process. Allocates nothing.
    fn become_it(
        &self,
        parent: Pid,
        output: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    ) -> StartFault {
        if let Err(errno) = self.set_up(parent, output) {
            return StartFault {
                stage: Stage::Setup,
                errno: errno as i32,
            };
        }
        if let Some(directory) = &self.directory
            && let Err(errno) = chdir(directory.as_c_str())
        {
            return StartFault {
                stage: Stage::WorkingDirectory,
                errno: errno as i32,
            };
        }
        StartFault {
            stage: Stage::Exec,
            errno: self.execute() as i32,
        }
    }

    fn set_up(
        &self,
        parent: Pid,
        output: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    ) -> Result<(), Errno> {
        // Should its supervisor be killed, it must not outlive it, not even when the agent is killed too.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            return Err(Errno::ESRCH);
        }
        setsid()?;
        if let Some((stdout, stderr)) = output {
            dup2_stdout(stdout)?;
            dup2_stderr(stderr)?;
        }
        if let Some((soft, hard)) = self.file_limits {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        close_all_on_exec();
        SigSet::empty().thread_set_mask()
    }

    fn execute(&self) -> Errno {
        match &self.file {
            ProgramFile::At(path) => self.image.execute(path),
            ProgramFile::Open(file) => self.image.execute_file(file.as_fd()),
            ProgramFile::Search(places) => {
                // As `execvp`: one that is there and not allowed is only the reason if none is found.
                let mut reason = Errno::ENOENT;
                for place in places {
                    match self.image.execute(place) {
                        Errno::EACCES => reason = Errno::EACCES,
                        Errno::ENOENT
                        | Errno::ENOTDIR
                        | Errno::ENODEV
                        | Errno::ESTALE
                        | Errno::ETIMEDOUT => {}
                        other => return other,
                    }
                }
                reason
            }
        }
    }
}

const STAGES: [Stage; 4] = [
    Stage::Setup,
    Stage::WorkingDirectory,
    Stage::Exec,
    Stage::Fork,
];

fn encode(fault: StartFault) -> [u8; 5] {
    let stage = STAGES
        .iter()
        .position(|stage| *stage == fault.stage)
        .unwrap_or(0);
    let [a, b, c, d] = fault.errno.to_le_bytes();
    [u8::try_from(stage).unwrap_or(0), a, b, c, d]
}

/// How a start went so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not decided.
    Pending,
    /// The program was executed, or its process was killed before.
    Started,
    /// It was not.
    Failed(StartFault),
}

/// Reads the pipe of [`Program::start`].
pub fn outcome(result: BorrowedFd<'_>) -> Outcome {
    let mut text = [0; 5];
    match nix::unistd::read(result, &mut text) {
        Ok(0) => Outcome::Started,
        Ok(_) => {
            let [stage, errno @ ..] = text;
            let stage = STAGES
                .get(usize::from(stage))
                .copied()
                .unwrap_or(Stage::Setup);
            Outcome::Failed(StartFault {
                stage,
                errno: i32::from_le_bytes(errno),
            })
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Outcome::Pending,
        Err(_) => Outcome::Started,
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::TaskKey;
    use super::*;

    fn order(argv: &[&[u8]], env: &[&[u8]]) -> StartOrder {
        StartOrder {
            key: TaskKey(1),
            note: Vec::new(),
            argv: argv.iter().map(|word| word.to_vec()).collect(),
            env: env.iter().map(|variable| variable.to_vec()).collect(),
            working_directory: None,
            timeout_millis: None,
            grace_millis: 10,
        }
    }

    #[track_caller]
    fn searched(argv: &[&[u8]], env: &[&[u8]]) -> Vec<String> {
        match Task::new(order(argv, env), None).unwrap().program.file {
            ProgramFile::Search(places) => places
                .into_iter()
                .map(|place| place.into_string().unwrap())
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bare_name_is_searched_in_the_path_of_the_task() {
        assert_eq!(searched(&[b"ls"], &[b"PATH=/a:/b/"]), ["/a/ls", "/b//ls"]);
        assert_eq!(
            searched(&[b"ls"], &[b"PATH=:/b", b"PATH=/c"]),
            ["ls", "/b/ls"]
        );
        assert_eq!(searched(&[b"ls"], &[b"PATH="]), ["ls"]);
        assert_eq!(searched(&[b"ls"], &[b"XPATH=/a"]).len(), 6);
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        let task = Task::new(order(&[b"./ls", b"x"], &[]), None).unwrap();
        assert!(matches!(task.program.file, ProgramFile::At(path) if path.as_bytes() == b"./ls"));
    }

    #[test]
    fn what_no_program_can_be_given_is_refused() {
        let mut directory = order(&[b"ls"], &[]);
        directory.working_directory = Some(b"/a\0b".to_vec());
        let orders = [
            order(&[], &[]),
            order(&[b"l\0s"], &[]),
            order(&[b"/bin/ls", b"\0"], &[]),
            order(&[b"ls"], &[b"A=\0"]),
            directory,
        ];
        for order in orders {
            let fault = Task::new(order, None).unwrap_err();
            assert_eq!(
                fault,
                StartFault {
                    stage: Stage::Invalid,
                    errno: 22
                }
            );
        }
    }

    #[test]
    fn faults_survive_the_pipe() {
        let (result, failure) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        assert_eq!(outcome(result.as_fd()), Outcome::Pending);
        let fault = StartFault {
            stage: Stage::WorkingDirectory,
            errno: 20,
        };
        nix::unistd::write(&failure, &encode(fault)).unwrap();
        assert_eq!(outcome(result.as_fd()), Outcome::Failed(fault));
        drop(failure);
        assert_eq!(outcome(result.as_fd()), Outcome::Started);
    }
}
