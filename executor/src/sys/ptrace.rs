//! ptrace: what nix does not have, or has only for signals it knows (realtime signals are none).
//!
//! A tracee belongs to the thread that seized it: every call here is made by that thread.

use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void};

/// The general registers, of the architecture that this program is built for.
pub type Registers = libc::user_regs_struct;

// From the kernel's `include/uapi/linux/ptrace.h` and `elf.h`; the type of libc's constants differs
// between C libraries.
const CONT: u16 = 7;
const DETACH: u16 = 17;
const SYSCALL: u16 = 24;
const GETREGSET: u16 = 0x4204;
const SETREGSET: u16 = 0x4205;
const GETSIGMASK: u16 = 0x420a;
const SETSIGMASK: u16 = 0x420b;
const GET_RSEQ_CONFIGURATION: u16 = 0x420f;
const NT_PRSTATUS: usize = 1;
/// Bytes of the kernel's signal set.
const SIGNAL_SET: usize = size_of::<u64>();

/// How a stopped tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Until the next signal or event.
    Freely,
    /// Until the next entry to or exit from a system call, too.
    ToSystemCall,
    /// Untraced.
    Detached,
}

/// Lets a stopped tracee go on. `signal` is delivered if it stands before the delivery of a signal, sent
/// to it if it stands at a system call, ignored at any other event; 0 is none.
///
/// # Errors
///
/// `ESRCH`: it is not a stopped tracee of this thread, or it was killed.
pub fn resume(tid: i32, how: Resume, signal: i32) -> Result<(), Errno> {
    let number = match how {
        Resume::Freely => CONT,
        Resume::ToSystemCall => SYSCALL,
        Resume::Detached => DETACH,
    };
    let signal = usize::try_from(signal).unwrap_or(0);
    // SAFETY: these three requests take the signal as a number and touch no memory of ours.
    unsafe { request(number, tid, 0, signal as *mut c_void) }
}

/// The registers of a stopped tracee; `None` if it runs code of another architecture (32 bits, say).
///
/// # Errors
///
/// As [`resume`].
pub fn registers(tid: i32) -> Result<Option<Registers>, Errno> {
    let mut registers = MaybeUninit::<Registers>::zeroed();
    let mut vector = vector(registers.as_mut_ptr());
    // SAFETY: the vector describes `registers`, which is writable and lives through the call; the kernel
    // writes no more than its length.
    unsafe { request(GETREGSET, tid, NT_PRSTATUS, (&raw mut vector).cast()) }?;
    if vector.iov_len != size_of::<Registers>() {
        return Ok(None);
    }
    // SAFETY: zeroed, then written in full; integers all, so any bytes are a value.
    Ok(Some(unsafe { registers.assume_init() }))
}

/// Sets the registers of a stopped tracee.
///
/// # Errors
///
/// As [`resume`]; `EINVAL` or `EIO` for values that no program may have.
pub fn set_registers(tid: i32, registers: &Registers) -> Result<(), Errno> {
    let mut copy = *registers;
    let mut vector = vector(&raw mut copy);
    // SAFETY: the vector describes `copy`, which lives through the call; the kernel only reads it.
    unsafe { request(SETREGSET, tid, NT_PRSTATUS, (&raw mut vector).cast()) }
}

/// Sets the number of the system call in which a stopped tracee is; -1 is none.
///
/// # Errors
///
/// As [`resume`].
#[cfg(target_arch = "aarch64")]
pub fn set_system_call(tid: i32, number: c_int) -> Result<(), Errno> {
    const NT_ARM_SYSTEM_CALL: usize = 0x404;
    let mut number = number;
    let mut vector = vector(&raw mut number);
    // SAFETY: the vector describes `number`, which lives through the call; the kernel only reads it.
    unsafe { request(SETREGSET, tid, NT_ARM_SYSTEM_CALL, (&raw mut vector).cast()) }
}

/// The blocked signals of a stopped tracee, bit `n - 1` for signal `n`. In a call with a mask of its own
/// (`sigsuspend`, `ppoll`), those that it had before.
///
/// # Errors
///
/// As [`resume`].
pub fn signal_mask(tid: i32) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes as many bytes as the address argument says, which is the size of `mask`.
    unsafe { request(GETSIGMASK, tid, SIGNAL_SET, (&raw mut mask).cast()) }?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped tracee.
///
/// # Errors
///
/// As [`resume`].
pub fn set_signal_mask(tid: i32, mask: u64) -> Result<(), Errno> {
    let mut mask = mask;
    // SAFETY: the kernel reads as many bytes as the address argument says, which is the size of `mask`.
    unsafe { request(SETSIGMASK, tid, SIGNAL_SET, (&raw mut mask).cast()) }
}

/// Address of the restartable-sequence area of a stopped tracee's thread; `None` without one.
///
/// # Errors
///
/// As [`resume`]; `EIO` from a kernel that does not know the request.
pub fn restartable_sequence(tid: i32) -> Result<Option<u64>, Errno> {
    /// `struct ptrace_rseq_configuration`
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        area: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut found = Configuration::default();
    let size = size_of::<Configuration>();
    // SAFETY: the kernel writes at most as many bytes as the address argument says, the size of `found`,
    // whose layout is the kernel's.
    unsafe { request(GET_RSEQ_CONFIGURATION, tid, size, (&raw mut found).cast()) }?;
    Ok((found.area != 0).then_some(found.area))
}

/// Where a signal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `si_code`: positive from the kernel, else from a process.
    pub code: i32,
    /// The process that sent it, by its number where the receiver lives. Means something only if a
    /// process did.
    pub sender: i32,
}

/// Where the signal comes from before whose delivery a tracee stands.
///
/// # Errors
///
/// As [`resume`].
pub fn signal_origin(tid: i32) -> Result<Origin, Errno> {
    let info = nix::sys::ptrace::getsiginfo(nix::unistd::Pid::from_raw(tid))?;
    // SAFETY: the kernel filled the whole structure, and any bytes are a pid.
    let sender = unsafe { info.si_pid() };
    Ok(Origin {
        code: info.si_code,
        sender,
    })
}

/// What a tracee did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has ended with this code.
    Exited(i32),
    /// It was killed by this signal.
    Killed(i32),
    /// It enters or leaves a system call.
    SystemCall,
    /// `PTRACE_EVENT_*`, with the stopping signal for a group stop.
    Event {
        /// Which.
        event: i32,
        /// `SIGTRAP`, or the signal that stops the whole process.
        signal: i32,
    },
    /// Before the delivery of this signal.
    Signal(i32),
}

/// What happened to a tracee; `None` if nothing has.
///
/// # Errors
///
/// `ECHILD`: it is no tracee (any more): it ended, or its process executed another program.
pub fn poll(tid: i32) -> Result<Option<Stop>, Errno> {
    let mut status: c_int = 0;
    // SAFETY: `status` is writable and lives through the call.
    let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::WNOHANG | libc::__WALL) };
    if Errno::result(waited)? == 0 {
        return Ok(None);
    }
    Ok(Some(decode(status)))
}

/// Reads a status of `waitpid` for a tracee with `PTRACE_O_TRACESYSGOOD`.
fn decode(status: c_int) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Killed(libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        0 => Stop::Signal(signal),
        event => Stop::Event { event, signal },
    }
}

/// Sends a signal to one thread.
///
/// # Errors
///
/// `ESRCH`: no such thread; `EPERM`: not ours to signal.
pub fn send_signal(pid: i32, tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
    Errno::result(result).map(drop)
}

fn vector<T>(value: *mut T) -> libc::iovec {
    libc::iovec {
        iov_base: value.cast(),
        iov_len: size_of::<T>(),
    }
}

/// # Safety
///
/// `address` and `data` are what `number` wants: where it reads or writes memory of ours, that memory is
/// valid for it.
unsafe fn request(number: u16, tid: i32, address: usize, data: *mut c_void) -> Result<(), Errno> {
    let address = address as *mut c_void;
    // SAFETY: as the caller promises.
    let result = unsafe { libc::ptrace(number.into(), tid, address, data) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_apart() {
        assert_eq!(decode(7 << 8), Stop::Exited(7));
        assert_eq!(decode(9), Stop::Killed(9));
        assert_eq!(decode((libc::SIGTRAP | 0x80) << 8 | 0x7f), Stop::SystemCall);
        assert_eq!(
            decode(34 << 8 | 0x7f),
            Stop::Signal(34),
            "a realtime signal"
        );
        assert_eq!(
            decode(libc::PTRACE_EVENT_STOP << 16 | libc::SIGSTOP << 8 | 0x7f),
            Stop::Event {
                event: libc::PTRACE_EVENT_STOP,
                signal: libc::SIGSTOP
            }
        );
    }
}
