//! The control group above those of all pods. The guard removes it, see
//! [`Guard::control_group`](crate::Guard::control_group); the kubelet wants it to exist.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::guard::CGROUP_ROOT;

/// Makes it in every hierarchy of version 1, or in the one of version 2.
pub(super) fn make(name: &str) -> Result<()> {
    let root = Path::new(CGROUP_ROOT);
    if root.join("cgroup.controllers").is_file() {
        return make_unified(root, name);
    }
    let mut made = 0;
    for hierarchy in fs::read_dir(root)?.flatten() {
        // Not only directories: one with several controllers has a link for each of them.
        let path = hierarchy.path();
        if path.join("cgroup.procs").is_file() {
            let group = path.join(name);
            fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
            made += 1;
        }
    }
    ensure!(
        made > 0,
        "no control groups are mounted below {CGROUP_ROOT}"
    );
    Ok(())
}

fn make_unified(root: &Path, name: &str) -> Result<()> {
    let read = |file: &str| {
        let path = root.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let enabled = read("cgroup.subtree_control")?;
    let enabled: Vec<_> = enabled.split_whitespace().collect();
    for controller in ["cpu", "cpuset", "memory", "pids"] {
        if !enabled.contains(&controller) {
            fs::write(
                root.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )
            .with_context(|| {
                format!(
                    "enable the controller {controller} below {CGROUP_ROOT} (in a container, \
                         processes first have to move out of the root group)"
                )
            })?;
        }
    }
    let group = root.join(name);
    fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))
}
