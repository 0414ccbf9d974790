//! aarch64. Compiled; nobody has run it yet.
//!
//! Unlike x86_64, the kernel rewinds an interrupted call when it *enters* the signal path: the thread is
//! seen at the `svc` instruction with the arguments in place, and whether the call is begun again, ends
//! with `EINTR` or becomes `restart_syscall` is decided on the way out from what it remembered at entry.
//! So before the last time through that path the thread is made to look as if it had just left the
//! call with the code which that call uses.

use nix::errno::Errno;
use nix::libc;

use crate::sys::ptrace::{self, Registers};

/// `e_machine` of its programs.
pub(in crate::inject) const MACHINE: u16 = 183;
/// For people.
pub(in crate::inject) const NAME: &str = "aarch64";
/// `svc #0`
pub(in crate::inject) const INSTRUCTION: &[u8] = &[0x01, 0x00, 0x00, 0xd4];

// Kernel-internal results of an interrupted call, `include/linux/errno.h`.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// Where the instruction may be, judging by the registers: a rewound thread stands at it, one that
/// finished its call behind it.
pub(in crate::inject) fn instruction_nearby(registers: &Registers) -> [u64; 2] {
    [registers.pc, registers.pc.wrapping_sub(4)]
}

/// Where the thread stands.
pub(in crate::inject) fn program_counter(registers: &Registers) -> u64 {
    registers.pc
}

/// Moves the thread.
pub(in crate::inject) fn set_program_counter(registers: &mut Registers, to: u64) {
    registers.pc = to;
}

/// Has a stopped thread make a call next, by the instruction at `at`, with all else as in `base`.
pub(in crate::inject) fn prepare_call(
    tid: i32,
    base: &Registers,
    at: u64,
    number: i64,
    arguments: [u64; 6],
) -> Result<(), Errno> {
    let mut registers = *base;
    registers.pc = at;
    registers.regs[8] = number.cast_unsigned();
    registers.regs[..6].copy_from_slice(&arguments);
    ptrace::set_registers(tid, &registers)?;
    ptrace::set_system_call(tid, -1)
}

/// What a call returned, of a thread that leaves it.
pub(in crate::inject) fn result(registers: &Registers) -> i64 {
    registers.regs[0].cast_signed()
}

/// Before a thread that leaves a call is led into the signal path for the last time. `at` is where the
/// calls were made.
pub(in crate::inject) fn prepare_leave(tid: i32, saved: &Registers, at: u64) -> Result<(), Errno> {
    if saved.pc != at {
        ptrace::set_registers(tid, saved)?;
        return ptrace::set_system_call(tid, -1);
    }
    let mut leaving = *saved;
    leaving.pc = saved.pc.wrapping_add(4);
    leaving.regs[0] = interrupted(saved).wrapping_neg().cast_unsigned();
    ptrace::set_registers(tid, &leaving)?;
    ptrace::set_system_call(tid, i32::try_from(saved.regs[8]).unwrap_or(-1))
}

/// The code with which the call that a thread was rewound to had been interrupted.
fn interrupted(saved: &Registers) -> i64 {
    const FUTEX_COMMAND: u64 = 0x7f;
    let [_, second, _, fourth] = [saved.regs[0], saved.regs[1], saved.regs[2], saved.regs[3]];
    match saved.regs[8].cast_signed() {
        libc::SYS_nanosleep | libc::SYS_restart_syscall => ERESTART_RESTARTBLOCK,
        // Until an absolute time it is just called again.
        libc::SYS_clock_nanosleep if second & 1 == 0 => ERESTART_RESTARTBLOCK,
        // FUTEX_WAIT and FUTEX_WAIT_BITSET with a time limit.
        libc::SYS_futex if matches!(second & FUTEX_COMMAND, 0 | 9) && fourth != 0 => {
            ERESTART_RESTARTBLOCK
        }
        libc::SYS_clock_nanosleep
        | libc::SYS_rt_sigsuspend
        | libc::SYS_ppoll
        | libc::SYS_pselect6
        | libc::SYS_msgrcv
        | libc::SYS_msgsnd => ERESTARTNOHAND,
        _ => ERESTARTSYS,
    }
}
