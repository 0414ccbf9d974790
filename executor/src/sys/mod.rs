//! The kernel interfaces that have no safe wrapper. The only module with `unsafe`; everything it offers
//! is safe to call, or says in its type what has to hold.

#![expect(
    unsafe_code,
    reason = "kernel interfaces without a safe wrapper; each block has its preconditions"
)]

pub mod capability;
pub mod fd;
pub mod process;
pub mod ptrace;
pub mod spawn;
