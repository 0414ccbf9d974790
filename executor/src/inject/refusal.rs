//! What the kernel's refusals mean.

use nix::errno::Errno;

use super::failure::Call;

/// What it means for the target that the kernel refused it a call.
pub(super) fn meaning(call: Call, errno: Errno) -> &'static str {
    match (call, errno) {
        (Call::MemfdCreate, Errno::EACCES) => {
            "vm.memfd_noexec is 2, so no memfd may be executed on this node"
        }
        (Call::MemfdCreate, Errno::EMFILE) => {
            "all descriptors that RLIMIT_NOFILE allows it are open"
        }
        (Call::MemfdCreate, Errno::ENFILE) => "the node has no more open files",
        (Call::MemfdCreate, Errno::ENOSYS) => "the kernel has no memfd",
        (Call::Mmap, Errno::ENOMEM) => {
            "no more memory mappings: RLIMIT_AS, vm.max_map_count or memory is exhausted"
        }
        (Call::Mmap, Errno::EAGAIN) => "it locks all its memory, and RLIMIT_MEMLOCK is reached",
        (Call::Clone, Errno::EAGAIN) => {
            "no more processes: RLIMIT_NPROC or the container's pids limit is reached"
        }
        (Call::Clone, Errno::EINVAL) => {
            "it is the first process of a PID namespace, and cannot have siblings"
        }
        (Call::Execveat, Errno::EACCES) => "a security module forbids to execute a memfd",
        (Call::Execveat, Errno::E2BIG) => "arguments and environment are too long",
        (Call::Execveat, Errno::ENOEXEC) => "the program is not one of this architecture",
        (Call::Execveat, Errno::ENOENT) => "the program is not static: its loader is not there",
        (Call::Execveat, Errno::ETXTBSY) => "something keeps the memfd open for writing",
        (_, errno) => errno.desc(),
    }
}
