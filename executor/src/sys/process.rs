//! Making processes, replacing their program, and learning how they ended.
//!
//! For the agent, which has one thread. A fork copies only the thread that calls it: locks that others
//! held stay locked in the copy forever. [`SingleThread`] is the proof that there are no others.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use crate::agent::protocol::Exit;

/// Proof that this process has one thread, and that nothing in it starts another.
#[derive(Debug)]
pub struct SingleThread(());

impl SingleThread {
    /// For a program at its start that will not start threads: what it calls while it holds this must
    /// not. Where `/proc` can be read, that there are no others now is checked.
    ///
    /// # Errors
    ///
    /// There are several threads (`EBUSY`).
    pub fn at_program_start() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads > 1 {
            Err(Errno::EBUSY.into())
        } else {
            Ok(Self(()))
        }
    }
}

/// Starts a copy of this process that runs `child` and then ends with the code that it returns. Nothing
/// that the caller holds is dropped in the copy, and a panic there does not reach the caller's frames.
///
/// Returns the process ID of the copy.
///
/// # Errors
///
/// No process can be made (`EAGAIN`, `ENOMEM`).
pub fn fork(_proof: &SingleThread, child: impl FnOnce() -> u8) -> io::Result<i32> {
    // SAFETY: this process has one thread (the proof), so no lock is held by a thread that the copy
    // lacks, and the copy may go on as any program does.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            // Also ends the process when `child` unwinds.
            let _end = EndOnDrop(70);
            let code = child();
            end(code)
        }
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

struct EndOnDrop(u8);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        end(self.0)
    }
}

fn end(code: u8) -> ! {
    // SAFETY: takes an integer and does not return; nothing of this process is used afterwards.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Arguments and environment of a program to become, laid out as the kernel wants them.
pub struct Image {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    // What the pointers above point into: a string does not move when its owner does.
    _strings: (Vec<CString>, Vec<CString>),
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Both may be secret.
        f.debug_struct("Image").finish_non_exhaustive()
    }
}

impl Image {
    /// Lays them out. Everything is allocated here.
    pub fn new(arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        let pointers = |strings: &[CString]| {
            let pointers = strings.iter().map(|string| string.as_ptr());
            pointers.chain([std::ptr::null()]).collect()
        };
        let argv = pointers(&arguments);
        let envp = pointers(&environment);
        Self {
            argv,
            envp,
            _strings: (arguments, environment),
        }
    }

    /// Becomes the program at `path`. Returns only if that failed, with the reason.
    pub fn execute(&self, path: &CStr) -> Errno {
        let (argv, envp) = (self.argv.as_ptr(), self.envp.as_ptr());
        // SAFETY: `path` ends with NUL; both arrays end with a null pointer, and their strings end with
        // NUL and live as long as `self`.
        unsafe { libc::execve(path.as_ptr(), argv, envp) };
        Errno::last()
    }

    /// Becomes the program behind `file`. Returns only if that failed, with the reason.
    pub fn execute_file(&self, file: BorrowedFd<'_>) -> Errno {
        let (argv, envp) = (self.argv.as_ptr(), self.envp.as_ptr());
        let (number, path) = (file.as_raw_fd(), c"".as_ptr());
        // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor, which is open; the arrays are
        // as for `execute`.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                number,
                path,
                argv,
                envp,
                libc::AT_EMPTY_PATH,
            );
        }
        Errno::last()
    }
}

/// What [`wait_any`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// A child has ended and is reaped: its number is free.
    Ended(i32, Exit),
    /// A child was stopped by a signal.
    Stopped(i32),
    /// There are children; none has ended.
    Nothing,
    /// There are no children.
    NoChildren,
}

/// Reaps one child of any kind that has ended, without waiting. The only wait of a process that uses it.
/// Children that were stopped are told of only if `stopped`.
pub fn wait_any(stopped: bool) -> Waited {
    let mut status = 0;
    // `__WALL`: also children of `clone` that send no SIGCHLD when they end.
    let flags = libc::WNOHANG | libc::__WALL | if stopped { libc::WUNTRACED } else { 0 };
    // SAFETY: `status` is an integer of ours that outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
    match pid {
        0 => Waited::Nothing,
        pid if pid < 0 => match Errno::last() {
            Errno::ECHILD => Waited::NoChildren,
            _ => Waited::Nothing,
        },
        pid if libc::WIFSTOPPED(status) => Waited::Stopped(pid),
        pid if libc::WIFSIGNALED(status) => Waited::Ended(
            pid,
            Exit::Signal {
                signal: libc::WTERMSIG(status),
                core_dumped: libc::WCOREDUMP(status),
            },
        ),
        pid => Waited::Ended(pid, Exit::Code(libc::WEXITSTATUS(status))),
    }
}

/// Closes every descriptor of this process from 3 on that is not in `keep`.
///
/// For a process that has just begun (a new program, a copy): owners of what is closed here, such as
/// those that a copy inherited in its memory, must never be used or dropped afterwards.
pub fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep.into_iter().chain([u32::MAX]) {
        if kept > first {
            // The last range reaches to the end of the table.
            let last = if kept == u32::MAX { u32::MAX } else { kept - 1 };
            if close_range(first, last, 0).is_err() {
                close_listed(first, last);
            }
        }
        first = first.max(kept.saturating_add(1));
    }
}

/// Marks every descriptor from 3 on close-on-exec. Best effort: all of ours are anyway.
pub fn close_all_on_exec() {
    let _ = close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: takes integers and touches no memory of ours. That nobody uses what is closed is the
    // duty of the callers of this module, which say so.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// For kernels and filters without `close_range`.
fn close_listed(first: u32, last: u32) {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| (first..=last).contains(number))
        .collect();
    for number in numbers {
        let Ok(number) = RawFd::try_from(number) else {
            continue;
        };
        // SAFETY: takes an integer. As for `close_range`. That of the directory is closed already.
        let _ = unsafe { libc::close(number) };
    }
}

/// Moves a descriptor to `number`, close-on-exec, closing what was there.
///
/// # Errors
///
/// `number` is beyond the limit (`EBADF`).
pub fn place(fd: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() == number {
        return Ok(fd);
    }
    // SAFETY: takes integers and touches no memory of ours; `fd` is open. What was open at `number`
    // must not be in use: callers place at numbers that they have closed before, or that are 0 to 2.
    let result = unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) };
    Errno::result(result)?;
    super::fd::inherited(number)
}

/// Gives every signal its default effect: dispositions that are "ignore" survive an exec. Also those that
/// C libraries keep for themselves and do not let a program change.
pub fn default_signals() {
    // As the kernel has it: all fields zero are the default action, no flags, no mask.
    const DEFAULT: [u64; 8] = [0; 8];
    const MASK_BYTES: usize = 8;
    let old = std::ptr::null_mut::<u64>();
    for signal in 1..=libc::SIGRTMAX() {
        let action = DEFAULT.as_ptr();
        // SAFETY: `action` points to more zeros than the structure has bytes, the null pointer says that
        // the old one is not wanted, and the mask size is the kernel's. Installs no handler, so nothing
        // runs at a signal. Numbers that cannot be changed are refused.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, action, old, MASK_BYTES);
        }
    }
}

/// Sends a signal to the process group that the process behind `pidfd` leads or led, also when that
/// process is gone and its number is another's.
///
/// # Errors
///
/// The group is empty (`ESRCH`); the kernel is older than 6.9 (`EINVAL`) or a filter refuses.
pub fn signal_group_led_by(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;
    let info = std::ptr::null::<libc::siginfo_t>();
    let (number, flags) = (pidfd.as_raw_fd(), PIDFD_SIGNAL_PROCESS_GROUP);
    // SAFETY: a null `info` is allowed and means what `kill` sends; the rest are integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, signal, info, flags) };
    Errno::result(result).map(drop)
}
