//! x86_64.
//!
//! The kernel begins an interrupted call again on the way out of the signal path, by `rax` (one of the
//! `ERESTART` codes) and `orig_rax` (the call). So both are restored, and the thread leaves by that path.

use nix::errno::Errno;

use crate::sys::ptrace::{self, Registers};

/// `e_machine` of its programs.
pub(in crate::inject) const MACHINE: u16 = 62;
/// For people.
pub(in crate::inject) const NAME: &str = "x86_64";
/// `syscall`
pub(in crate::inject) const INSTRUCTION: &[u8] = &[0x0f, 0x05];

/// Where the instruction may be, judging by the registers: a thread in a call stands behind it.
pub(in crate::inject) fn instruction_nearby(registers: &Registers) -> [u64; 1] {
    [registers.rip.wrapping_sub(2)]
}

/// Where the thread stands.
pub(in crate::inject) fn program_counter(registers: &Registers) -> u64 {
    registers.rip
}

/// Moves the thread.
pub(in crate::inject) fn set_program_counter(registers: &mut Registers, to: u64) {
    registers.rip = to;
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
    // No call to begin again, whatever rax looks like.
    registers.orig_rax = u64::MAX;
    registers.rip = at;
    registers.rax = number.cast_unsigned();
    [
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r10,
        registers.r8,
        registers.r9,
    ] = arguments;
    ptrace::set_registers(tid, &registers)
}

/// What a call returned, of a thread that leaves it.
pub(in crate::inject) fn result(registers: &Registers) -> i64 {
    registers.rax.cast_signed()
}

/// Before a thread that leaves a call is led into the signal path for the last time. `_at` is where the
/// calls were made.
pub(in crate::inject) fn prepare_leave(tid: i32, saved: &Registers, _at: u64) -> Result<(), Errno> {
    ptrace::set_registers(tid, saved)
}
