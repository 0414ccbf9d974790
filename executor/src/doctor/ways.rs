//! Which ways into the sandbox container are open, and what the others lack.

use super::{Kernel, Way};
use crate::config::ModeSetting;
use crate::launch::chroot;
use crate::pod::Main;
use crate::pod::proc::Proc;
use crate::pod::status::{Status, capability};

pub(super) fn ways(
    proc: &Proc,
    setting: ModeSetting,
    own: Option<&Status>,
    here: bool,
    main: Option<&Main>,
    no_target: Option<&String>,
    kernel: &Kernel,
) -> Vec<Way> {
    let common = || -> Vec<String> {
        if here {
            vec!["tasks run in this container: start the executor as a sidecar".to_owned()]
        } else {
            no_target.cloned().into_iter().collect()
        }
    };
    let target = main.and_then(|main| proc.status(main.pid));
    let mut injection = common();
    let mut by_chroot = common();
    if let Some(main) = main {
        if let (Some(own), Some(target)) = (own, &target) {
            injection.extend(injection_needs(proc, own, main, target, kernel));
            let missing = chroot::missing(own, target);
            by_chroot.extend(missing.iter().map(|need| {
                let name = capability::name(need.capability);
                format!("{name}, {}: {}", need.purpose, add(&name))
            }));
        } else {
            let pid = main.pid;
            let unreadable = format!("process {pid} cannot be examined; it may just have ended");
            injection.push(unreadable.clone());
            by_chroot.push(unreadable);
        }
        if main.environment.is_none() {
            let unreadable = "the environment of the sandbox's main process cannot be read";
            let may_trace = own.is_some_and(|own| {
                capability::has(own.capabilities.effective, capability::SYS_PTRACE)
            });
            // The file is the sandbox user's, and root without this is anybody.
            let lacks = if may_trace {
                "DAC_OVERRIDE"
            } else {
                "SYS_PTRACE"
            };
            let need = format!("{unreadable}: {}", add(lacks));
            injection.push(need.clone());
            by_chroot.push(need);
        }
    }
    let in_container = if here {
        Vec::new()
    } else {
        vec!["start the executor in the sandbox container, with --mode=in-container".to_owned()]
    };
    let sidecar = matches!(setting, ModeSetting::Auto | ModeSetting::Sidecar);
    let way = |mode, allowed, needs: Vec<String>| Way {
        mode,
        allowed,
        possible: needs.is_empty(),
        needs,
    };
    vec![
        way(
            "inject",
            sidecar || setting == ModeSetting::Inject,
            injection,
        ),
        way(
            "chroot",
            sidecar || setting == ModeSetting::Chroot,
            by_chroot,
        ),
        way(
            "in-container",
            matches!(setting, ModeSetting::Auto | ModeSetting::InContainer),
            in_container,
        ),
    ]
}

/// What injection needs, as far as `/proc` tells. Only trying tells of the sandbox's seccomp filter.
fn injection_needs(
    proc: &Proc,
    own: &Status,
    main: &Main,
    target: &Status,
    kernel: &Kernel,
) -> Vec<String> {
    let mut needs = Vec::new();
    let scope = kernel.yama_ptrace_scope.as_deref().unwrap_or("0");
    let same_rights = own.uids == target.uids
        && own.gids == target.gids
        && target.capabilities.permitted & !own.capabilities.permitted == 0;
    let may_trace = capability::has(own.capabilities.effective, capability::SYS_PTRACE);
    let allowed = may_trace || (same_rights && scope == "0");
    if !allowed {
        needs.push(format!(
            "SYS_PTRACE, to trace the sandbox's main process: {}",
            add("SYS_PTRACE")
        ));
    }
    if scope == "3" {
        needs.push(
            "tracing is switched off on this node (kernel.yama.ptrace_scope=3): set 2 or less, or use --mode=chroot"
                .to_owned(),
        );
    }
    if kernel.memfd_noexec.as_deref() == Some("2") {
        needs.push(
            "memory files are not executable on this node (vm.memfd_noexec=2): set 1 or less, or use --mode=chroot"
                .to_owned(),
        );
    }
    if target.tracer != 0 {
        needs.push(format!(
            "the sandbox's main process is traced by process {}: end that",
            target.tracer
        ));
    }
    if proc
        .stat(main.pid)
        .is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    {
        needs.push(format!(
            "the sandbox's main process is stopped: kill -CONT {}",
            main.pid
        ));
    }
    needs
}

fn add(name: &str) -> String {
    format!(
        "run the executor as root and add {name} to securityContext.capabilities.add of its container"
    )
}
