//! Capability sets of the calling thread. nix has no wrapper for them.

use std::io;

use nix::libc;

/// The sets that `capset` sets, as bit masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// Permitted.
    pub permitted: u64,
    /// Effective: a subset of the permitted.
    pub effective: u64,
    /// Inheritable.
    pub inheritable: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two words per set.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the capabilities of the calling thread. Ambient ones that are no longer permitted and
/// inheritable go by themselves.
///
/// # Errors
///
/// A set has one that the thread may not have (`EPERM`).
pub fn set(sets: Sets) -> io::Result<()> {
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let words = [0, 32].map(|shift| Words {
        effective: word(sets.effective, shift),
        permitted: word(sets.permitted, shift),
        inheritable: word(sets.inheritable, shift),
    });
    // SAFETY: the header is a whole `cap_user_header_t`, writable or not: the kernel writes to it only
    // for another version. `words` has the two elements that this version reads. Both live until the
    // call returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) };
    check(result)
}

/// Takes a capability out of the bounding set of the calling thread.
///
/// # Errors
///
/// `SETPCAP` is missing (`EPERM`), or the kernel does not know the capability (`EINVAL`).
pub fn drop_from_bounding_set(number: u32) -> io::Result<()> {
    let number = libc::c_ulong::from(number);
    // SAFETY: this option takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, NONE, NONE, NONE) };
    check(libc::c_long::from(result))
}

/// Empties the ambient set of the calling thread.
///
/// # Errors
///
/// The kernel is older than 4.3 (`EINVAL`).
pub fn clear_ambient() -> io::Result<()> {
    let option = libc::PR_CAP_AMBIENT;
    let clear = libc::c_ulong::from(libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs());
    // SAFETY: this option takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(option, clear, NONE, NONE, NONE) };
    check(libc::c_long::from(result))
}

/// Puts a capability that is permitted and inheritable into the ambient set of the calling thread.
///
/// # Errors
///
/// It is not both (`EPERM`).
pub fn raise_ambient(number: u32) -> io::Result<()> {
    let number = libc::c_ulong::from(number);
    let option = libc::PR_CAP_AMBIENT;
    let raise = libc::c_ulong::from(libc::PR_CAP_AMBIENT_RAISE.unsigned_abs());
    // SAFETY: this option takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(option, raise, number, NONE, NONE) };
    check(libc::c_long::from(result))
}

/// Unused arguments must be zero, as `unsigned long`.
const NONE: libc::c_ulong = 0;

#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
const fn word(set: u64, shift: u32) -> u32 {
    (set >> shift) as u32
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
