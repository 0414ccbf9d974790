//! What differs between architectures: registers, the system call instruction, how a call that was
//! interrupted is begun again.
//!
//! Each offers the same functions; nothing outside this folder names a register.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::*;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("injection is written for x86_64 and aarch64");
