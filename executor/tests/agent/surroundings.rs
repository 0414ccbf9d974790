//! Containers that lack something: a user with rights, `/dev/null`, memory.

use std::path::PathBuf;

use task_executor::agent::protocol::{Exit, Order, Report, TaskState};

use crate::client::{Agent, shell, task};
use crate::ends::exit;

/// These need to make namespaces and cgroups.
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test} needs root");
    }
    root
}

#[test]
fn an_ordinary_user_without_capabilities_suffices() {
    if !is_root("an agent of another user") {
        return;
    }
    let user =
        "setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set -all";
    let mut agent = Agent::start_under(user.split(' '));
    agent.order(&Order::Probe { number: 1 });
    while agent.probes.is_empty() {
        agent.receive();
    }
    let answer = Report::Probe {
        number: 1,
        failure: None,
    };
    assert_eq!(agent.probes, [answer]);
    let script = "id -u; grep -E '^(CapPrm|CapBnd|NoNewPrivs)' /proc/self/status; \
                  (setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' &); exit 2";
    let key = agent.run(shell(script));
    let lines: Vec<String> = (0..4).map(|_| agent.line(key)).collect();
    let none = "0000000000000000";
    let wanted = [
        "1000".to_owned(),
        format!("CapPrm:\t{none}"),
        format!("CapBnd:\t{none}"),
        "NoNewPrivs:\t1".to_owned(),
    ];
    assert_eq!(lines, wanted);
    agent.wait(key, |task| matches!(task.state, TaskState::Ended { .. }));
    agent.stop(key, Some(100));
    assert_eq!(exit(&agent.wait_gone(key)), Exit::Code(2));
    let key = agent.run(shell("(setsid sleep 1000 &); kill -9 $PPID; sleep 1000"));
    assert!(matches!(agent.wait_gone(key).state, TaskState::Lost { .. }));
}

#[test]
fn an_image_without_dev_null_has_an_empty_standard_input() {
    if !is_root("a container without /dev/null") {
        return;
    }
    let hide = r#"mount -t tmpfs none /dev && exec "$@""#;
    let mut agent = Agent::start_under(["unshare", "-m", "bash", "-c", hide, "bash"]);
    let (task, stdout, _) = agent.finish(shell("wc -c; readlink /proc/self/fd/0 | cut -c1-5"));
    assert_eq!(
        (exit(&task), stdout.as_str()),
        (Exit::Code(0), "0\npipe:\n")
    );
}

/// A cgroup with little memory, as a container has it.
struct Memory {
    directory: PathBuf,
    mount_point: &'static str,
}

impl Memory {
    fn limited() -> Option<Self> {
        let versions = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        for (mount_point, limit) in versions {
            let name = format!("task-executor-test-{}", std::process::id());
            let directory = PathBuf::from(mount_point).join(name);
            if std::fs::create_dir(&directory).is_err() {
                continue;
            }
            let memory = Self {
                directory,
                mount_point,
            };
            if std::fs::write(memory.directory.join(limit), "50000000").is_ok() {
                return Some(memory);
            }
        }
        eprintln!("SKIPPED: no memory cgroup can be made here");
        None
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The kernel lets go of the last process a little after it was reaped.
        crate::client::eventually("the cgroup is empty", || {
            std::fs::remove_dir(&self.directory).ok()
        });
    }
}

#[test]
fn a_task_that_the_kernel_killed_for_memory_is_told_from_others() {
    if !is_root("a memory cgroup") {
        return;
    }
    let Some(memory) = Memory::limited() else {
        return;
    };
    let directory = memory.directory.to_str().unwrap();
    let script = format!(
        r#"echo $$ > {directory}/cgroup.procs && mount --bind {directory} {} && exec "$@""#,
        memory.mount_point
    );
    let container = ["unshare", "-m", "bash", "-c", &script, "bash"];
    let mut agent = Agent::start_under(container);
    let hog = r#"perl -e '$x = "a" x 300_000_000; sleep 1000'"#;
    let killed = Exit::Signal {
        signal: 9,
        core_dumped: false,
    };
    let cases = [
        (format!("exec {hog}"), killed, true),
        ("kill -9 $$".to_owned(), killed, false),
        (format!("{hog}; exit $?"), Exit::Code(137), true),
        ("exit 137".to_owned(), Exit::Code(137), false),
        ("true".to_owned(), Exit::Code(0), false),
    ];
    for (script, wanted, oom) in cases {
        let (task, ..) = agent.finish(shell(&script));
        assert_eq!(exit(&task), wanted, "{script}");
        assert!(
            matches!(task.state, TaskState::Ended { oom_killed, .. } if oom_killed == oom),
            "{script}: {task:?}"
        );
    }
    let (ended, stdout, _) = agent.finish(task(&["echo", "it lives"]));
    assert_eq!(
        (exit(&ended), stdout.as_str()),
        (Exit::Code(0), "it lives\n")
    );
    drop(agent);
}
