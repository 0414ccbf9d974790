//! What a node needs of the machine besides programs: rights, and a place for its files.

use std::path::PathBuf;

use anyhow::Result;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use super::Unavailable;

/// Where the node's directory is, if not with other temporary files.
const BASES: [&str; 1] = ["/dev/shm"];
/// Capabilities by number, see capabilities(7): for links and firewalls, and for namespaces and mounts.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// # Errors
/// This process may not do what a node does.
pub(super) fn check_rights() -> Result<(), Unavailable> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing_rights(nix::unistd::geteuid().is_root(), &status);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Unavailable::new(format!(
        "this process lacks {}.\nRemedies: run the tests as root of a machine or of a virtual machine; \
         or in a privileged container, with TMPDIR on a volume.",
        missing.join(" and ")
    )))
}

fn missing_rights(root: bool, status: &str) -> Vec<&'static str> {
    if !root {
        return vec!["the user root"];
    }
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let effective = effective.unwrap_or_default();
    let missing = CAPABILITIES
        .iter()
        .filter(|(number, _)| effective >> number & 1 == 0);
    missing.map(|(_, name)| *name).collect()
}

/// A directory that containers can have their file systems in: overlays of overlays are refused. On a
/// disk if possible, since the memory of a container includes what it writes to memory.
pub(super) fn base_directory() -> Result<PathBuf> {
    let temporary = std::env::temp_dir();
    let candidates = std::iter::once(temporary).chain(BASES.map(PathBuf::from));
    // What is below these is another directory to the node.
    let candidates: Vec<_> = candidates
        .filter(|path| !["/var", "/run"].iter().any(|own| path.starts_with(own)))
        .filter_map(|path| {
            let kind = statfs(&path).ok()?.filesystem_type();
            (kind != OVERLAYFS_SUPER_MAGIC).then_some((kind == TMPFS_MAGIC, path))
        })
        .collect();
    let best = candidates.into_iter().min_by_key(|(memory, _)| *memory);
    let (_, path) = best.ok_or_else(|| {
        Unavailable::new(
            "containers need a directory that is not on an overlay.\n\
             Remedies: set TMPDIR to one; in a container, to a volume.",
        )
    })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_that_are_missing_are_named() {
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(missing_rights(true, all).is_empty());
        assert_eq!(missing_rights(false, all), ["the user root"]);
        // What a container has that is not privileged.
        let few = "CapEff:\t00000000a80425fb\n";
        assert_eq!(
            missing_rights(true, few),
            ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]
        );
    }
}
