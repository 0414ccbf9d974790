//! The program and its arguments, as they are laid into the target.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::sendfile::sendfile;
use nix::sys::stat::{Mode, fchmod};

use super::process;
use crate::sys::fd;

/// The program is copied in pieces of this many bytes at most.
const AT_ONCE: usize = 1 << 30;

/// Which side an error is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillError {
    /// The program cannot be read.
    Program(Errno),
    /// The memfd cannot be had, written or sealed.
    Memfd(Errno),
}

/// Nobody may read it, so the kernel does not let what executes it be read either.
pub(super) const MODE: u32 = 0o111;

/// Copies `program` into the memfd that is descriptor `number` of the target, and seals it: nobody, the
/// target included, can change it afterwards. Says whether it has [`MODE`] as well: it is the target's user
/// who may set that, and we only with `CAP_FOWNER`.
pub(super) fn fill(pid: i32, tid: i32, number: i32, program: &File) -> Result<bool, FillError> {
    let memfd = open(pid, tid, number).map_err(FillError::Memfd)?;
    copy(program, &memfd)?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(memfd.as_fd(), FcntlArg::F_ADD_SEALS(seals)).map_err(FillError::Memfd)?;
    Ok(fchmod(&memfd, Mode::from_bits_truncate(MODE)).is_ok())
}

/// Within the kernel: through a buffer of ours it takes a sixth longer.
fn copy(program: &File, memfd: &File) -> Result<(), FillError> {
    // Afterwards it could not be told on which side an error is.
    program
        .read_at(&mut [0], 0)
        .map_err(|error| FillError::Program(process::errno(&error)))?;
    let mut at = 0;
    while sendfile(memfd, program, Some(&mut at), AT_ONCE).map_err(FillError::Memfd)? > 0 {}
    Ok(())
}

/// The target's own open file if the kernel gives it to us: opened anew, the file would count as open for
/// writing, and not be executed while any child of ours that is about to execute still has it.
fn open(pid: i32, tid: i32, number: i32) -> Result<File, Errno> {
    let taken = fd::pidfd_open(pid).and_then(|pidfd| fd::pidfd_getfd(pidfd.as_fd(), number));
    if let Ok(taken) = taken {
        return Ok(File::from(taken));
    }
    let path = format!("/proc/{pid}/task/{tid}/fd/{number}");
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| process::errno(&error))
}

/// Everything that calls in the target point to, for a mapping at an address not known yet.
#[derive(Debug)]
pub(super) struct Strings {
    /// Offsets of the texts, argv first, with a 0 after argv and after envp.
    pointers: Vec<Option<usize>>,
    argv: usize,
    text: Vec<u8>,
}

impl Strings {
    /// Lays out argument and environment lists, and a name for the memfd. None may contain a NUL.
    pub(super) fn new(argv: &[Vec<u8>], envp: &[Vec<u8>], name: &str) -> Self {
        // Offset 0 is the name, and its end an empty text.
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let mut pointers = Vec::with_capacity(argv.len() + envp.len() + 2);
        for list in [argv, envp] {
            for entry in list {
                pointers.push(Some(text.len()));
                text.extend_from_slice(entry);
                text.push(0);
            }
            pointers.push(None);
        }
        Self {
            pointers,
            argv: argv.len(),
            text,
        }
    }

    /// Bytes needed.
    pub(super) fn len(&self) -> u64 {
        (self.pointers.len() * size_of::<u64>() + self.text.len()) as u64
    }

    /// The bytes, for a mapping at `base`.
    pub(super) fn bytes(&self, base: u64) -> Vec<u8> {
        let text = self.name(base);
        let mut bytes =
            Vec::with_capacity(self.pointers.len() * size_of::<u64>() + self.text.len());
        for offset in &self.pointers {
            let pointer = offset.map_or(0, |offset| text + offset as u64);
            bytes.extend_from_slice(&pointer.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.text);
        bytes
    }

    /// Address of the name.
    pub(super) fn name(&self, base: u64) -> u64 {
        base + (self.pointers.len() * size_of::<u64>()) as u64
    }

    /// Address of an empty text: the end of whatever text is last.
    pub(super) fn empty(&self, base: u64) -> u64 {
        self.name(base) + self.text.len() as u64 - 1
    }

    /// Addresses of the argument list and the environment.
    pub(super) fn lists(&self, base: u64) -> (u64, u64) {
        (base, base + ((self.argv + 1) * size_of::<u64>()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_lead_to_their_texts() {
        const BASE: u64 = 0x7000;
        let list = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        let argv: Vec<Vec<u8>> = list(&["one", ""]);
        let envp: Vec<Vec<u8>> = list(&["A=b"]);
        let strings = Strings::new(&argv, &envp, "name");
        let bytes = strings.bytes(BASE);
        assert_eq!(bytes.len() as u64, strings.len());
        let offset = |at: u64| usize::try_from(at - BASE).unwrap();
        let text = |at: u64| {
            let rest = &bytes[offset(at)..];
            rest[..rest.iter().position(|byte| *byte == 0).unwrap()].to_vec()
        };
        let word = |at: u64, index: usize| {
            let start = offset(at) + index * 8;
            u64::from_ne_bytes(bytes[start..start + 8].try_into().unwrap())
        };
        let (arguments, environment) = strings.lists(BASE);
        assert_eq!(text(strings.name(BASE)), b"name");
        assert_eq!(text(strings.empty(BASE)), b"");
        assert_eq!(text(word(arguments, 0)), b"one");
        assert_eq!(text(word(arguments, 1)), b"");
        assert_eq!(word(arguments, 2), 0);
        assert_eq!(text(word(environment, 0)), b"A=b");
        assert_eq!(word(environment, 1), 0);
    }
}
