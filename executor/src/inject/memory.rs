//! The target's memory, seen from outside.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;

use super::{arch, process};
use crate::sys::ptrace::{self, Registers};

/// Text is searched in pieces of this many bytes.
const PIECE: usize = 64 * 1024;
/// And no more than this many bytes of it: the first library has what is looked for.
const SEARCHED: u64 = 64 * 1024 * 1024;

/// `/proc/PID/mem`
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    /// The thread's folder, which is there also when the main thread has ended.
    folder: String,
}

impl Memory {
    /// Of the process that thread `tid` belongs to.
    pub(super) fn open(pid: i32, tid: i32) -> Result<Self, Errno> {
        let folder = format!("/proc/{pid}/task/{tid}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("{folder}/mem"));
        let file = file.map_err(|error| process::errno(&error))?;
        Ok(Self { file, folder })
    }

    /// Writes all of `bytes`.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.file
            .write_all_at(bytes, at)
            .map_err(|error| process::errno(&error))
    }

    fn read<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    fn word(&self, at: u64) -> Option<u64> {
        self.read(at).map(u64::from_ne_bytes)
    }

    /// Address of a system call instruction: the one a thread in a call stands at, or else one of the
    /// vdso, or else one in any text.
    pub(super) fn find_instruction(&self, registers: &Registers) -> Result<Option<u64>, Errno> {
        const LENGTH: usize = arch::INSTRUCTION.len();
        for at in arch::instruction_nearby(registers) {
            if self
                .read::<LENGTH>(at)
                .is_some_and(|found| found == arch::INSTRUCTION)
            {
                return Ok(Some(at));
            }
        }
        let maps = process::read(&format!("{}/maps", self.folder))?;
        let mut text: Vec<(u64, u64, bool)> = maps.lines().filter_map(executable).collect();
        text.sort_by_key(|(_, _, vdso)| !vdso);
        Ok(text
            .into_iter()
            .find_map(|(start, end, _)| self.search(start, end)))
    }

    fn search(&self, start: u64, end: u64) -> Option<u64> {
        let length = arch::INSTRUCTION.len();
        let end = end.min(start.saturating_add(SEARCHED));
        let mut buffer = vec![0; PIECE];
        let mut at = start;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let got = self.file.read_at(&mut buffer[..wanted], at).ok()?;
            if got < length {
                return None;
            }
            let found = buffer[..got]
                .windows(length)
                .enumerate()
                .position(|(offset, bytes)| bytes == arch::INSTRUCTION && aligned(at, offset));
            if let Some(offset) = found {
                return Some(at + offset as u64);
            }
            // One that lies across the border is seen in the next piece.
            at += (got - (length - 1)) as u64;
        }
        None
    }

    /// Where a thread has to go on if it was stopped inside a restartable sequence: at its abort handler.
    /// The kernel sends it there whenever the thread is interrupted, but not any more once it has seen
    /// the thread elsewhere, as it does during a remote call.
    pub(super) fn leave_restartable_sequence(&self, tid: i32, registers: &mut Registers) {
        // A kernel without restartable sequences, or without the question, has nothing to abort.
        let Ok(Some(area)) = ptrace::restartable_sequence(tid) else {
            return;
        };
        // `struct rseq`: the descriptor's address at 8. `struct rseq_cs`: start at 8, length at 16,
        // abort handler at 24.
        let Some(descriptor) = self.word(area + 8).filter(|address| *address != 0) else {
            return;
        };
        let field = |offset| self.word(descriptor.wrapping_add(offset));
        let (Some(start), Some(length), Some(abort)) = (field(8), field(16), field(24)) else {
            return;
        };
        if arch::program_counter(registers).wrapping_sub(start) < length {
            arch::set_program_counter(registers, abort);
        }
    }
}

fn aligned(at: u64, offset: usize) -> bool {
    // Instructions of four bytes are aligned; shorter ones are not.
    arch::INSTRUCTION.len() != 4 || (at + offset as u64).is_multiple_of(4)
}

/// Start and end of an executable mapping in a line of `/proc/PID/maps`, and whether it is the vdso.
fn executable(line: &str) -> Option<(u64, u64, bool)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    // The vsyscall page can be executed and neither read nor used.
    if !rights.starts_with("r-x") || line.ends_with("[vsyscall]") {
        return None;
    }
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?, line.ends_with("[vdso]")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readable_text_is_searched() {
        let text = "7f00-7f10 r-xp 00000000 00:00 0                    [vdso]";
        assert_eq!(executable(text), Some((0x7f00, 0x7f10, true)));
        let text = "400000-401000 r-xp 00001000 08:01 12   /bin/a [vdso] b";
        assert_eq!(executable(text), Some((0x0040_0000, 0x0040_1000, false)));
        assert_eq!(
            executable("400000-401000 rw-p 00001000 08:01 12   /bin/a"),
            None
        );
        assert_eq!(
            executable("ff00-ff10 --xp 00000000 00:00 0    [vsyscall]"),
            None
        );
    }
}
