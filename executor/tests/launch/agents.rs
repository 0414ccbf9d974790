use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::container::{Container, available, wait_until};
use clap::Parser as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode as FileMode;
use nix::unistd::{Gid, Pid, Uid};
use opensandbox_api::task::StartFailure;
use task_executor::agent::protocol::{AGENT_NAME, CONTROL_FD};
use task_executor::config::Config;
use task_executor::launch::remains::{Scope, kill_remains, reap, remains};
use task_executor::launch::{Agent, LaunchError, Mode, is_alive, launch_program};
use task_executor::pod::proc::Proc;
use task_executor::pod::status::{Status, capability};
use task_executor::pod::target::ContainerRef;
use task_executor::sys::fd::pidfd_send_signal;

const EXECUTOR: &str = env!("CARGO_BIN_EXE_task-executor");
/// Root directory of [`be_sandbox`].
const ROOT: &str = "TASK_EXECUTOR_TEST_ROOT";

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

fn config(arguments: &str) -> Config {
    let all = std::iter::once("task-executor").chain(arguments.split_ascii_whitespace());
    Arguments::try_parse_from(all).unwrap().config
}

fn launch(arguments: &str, container: &Container) -> Result<Agent, LaunchError> {
    let wanted = by_id(&format!("containerd://{}", container.id));
    launch_program(Path::new(EXECUTOR), &config(arguments), Some(&wanted))
}

fn by_id(text: &str) -> ContainerRef {
    ContainerRef::parse(text).unwrap()
}

/// A shell of user 1000, without capabilities.
fn shell() -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=1000",
            "--regid=1000",
            "--groups=1000,2000",
            "--no-new-privs",
        ])
        .args(["--inh-caps=-all", "--bounding-set=-all", "--"])
        .args(["sh", "-c", "echo ready; read line"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("SANDBOX", "yes")
        .current_dir("/usr");
    command
}

fn status(pid: i32) -> Status {
    Proc::default().status(pid).unwrap()
}

fn end(agent: &Agent) {
    let _ = pidfd_send_signal(agent.pidfd.as_fd(), nix::libc::SIGKILL);
    ended(agent);
}

fn ended(agent: &Agent) {
    wait_until("the agent has ended", || {
        reap(&Proc::default(), None).unwrap();
        !Path::new(&format!("/proc/{}", agent.pid)).exists()
    });
}

#[test]
fn an_agent_is_injected_once_and_found_afterwards() {
    if !available() {
        return;
    }
    let container = Container::start(shell());
    let agent = launch("--mode=inject", &container).unwrap();
    assert_eq!((agent.mode, agent.found), (Mode::Injected, false));
    assert!(
        container.pids().contains(&agent.pid),
        "in the container's cgroup"
    );
    assert_eq!(agent.container_id.as_deref(), Some(container.id.as_str()));
    assert!(agent.environment.contains(&b"SANDBOX=yes".to_vec()));
    let target = agent.target.as_ref().unwrap();
    assert_eq!(target.pid, container.main_pid());
    assert!(is_alive(target.pid, target.start_time));
    assert_eq!(status(agent.pid).uids, status(container.main_pid()).uids);
    assert_eq!(
        status(agent.pid).capabilities,
        status(container.main_pid()).capabilities
    );

    let pid = agent.pid;
    drop(agent);
    let again = launch("", &container).unwrap();
    assert_eq!(
        (again.mode, again.found, again.pid),
        (Mode::Injected, true, pid)
    );
    end(&again);
    let next = launch("", &container).unwrap();
    assert!(!next.found && next.pid != pid);
    end(&next);
}

/// Changes root, groups and user, then waits.
#[test]
#[ignore = "the main process of a container, started by another test"]
fn be_sandbox() {
    let root = std::env::var(ROOT).unwrap();
    nix::unistd::chroot(Path::new(&root)).unwrap();
    std::env::set_current_dir("/work").unwrap();
    nix::sys::stat::umask(FileMode::from_bits_truncate(0o027));
    nix::unistd::setgroups(&[3001, 3000].map(Gid::from_raw)).unwrap();
    nix::unistd::setgid(Gid::from_raw(1001)).unwrap();
    nix::unistd::setuid(Uid::from_raw(1000)).unwrap();
    let mut output = std::io::stdout().lock();
    output.write_all(b"\nready\n").unwrap();
    output.flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Where a sandbox is rooted.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["work", "proc"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(root.path(), open).unwrap();
    root
}

/// With a mount namespace of its own, as containers have, in which it has a `/proc`.
fn sandbox_in(root: &Path) -> Command {
    let test = std::env::current_exe().unwrap();
    let program = test.to_str().unwrap();
    let script = format!(
        "mount -t proc proc ${ROOT}/proc && exec setpriv --bounding-set=-sys_ptrace,-sys_admin \\
         {program} --exact agents::be_sandbox --ignored --nocapture --test-threads=1"
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .env(ROOT, root);
    command
}

#[test]
fn an_agent_that_enters_by_chroot_has_the_sandboxs_rights_and_no_more() {
    if !available() {
        return;
    }
    let root = root();
    let container = Container::start(sandbox_in(root.path()));
    let agent = launch("--mode=chroot", &container).unwrap();
    assert_eq!((agent.mode, agent.found), (Mode::Chroot, false));
    assert!(
        agent
            .remark
            .as_deref()
            .unwrap()
            .contains("executor's cgroup")
    );

    let (own, target) = (status(agent.pid), status(container.main_pid()));
    assert_eq!((own.uids, own.gids), (target.uids, target.gids));
    assert_eq!(own.groups, target.groups);
    assert_eq!(own.umask, Some(0o027));
    assert_eq!(own.capabilities.permitted, 0);
    assert_eq!(own.capabilities.effective | own.capabilities.inheritable, 0);
    assert_eq!(own.capabilities.ambient, 0);
    let kept = target.capabilities.bounding & !capability::bit(capability::SYS_CHROOT);
    assert_eq!(own.capabilities.bounding, kept);
    assert!(own.no_new_privs);

    let link = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", agent.pid)).unwrap();
    assert_eq!(link("root"), root.path());
    assert_eq!(link("cwd"), root.path().join("work"));
    // Nothing open leads back to where it came from. It may close something meanwhile.
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid)).unwrap();
    let open = open.map(|entry| std::fs::read_link(entry.unwrap().path()));
    let open: Vec<PathBuf> = open.filter_map(Result::ok).collect();
    assert!(open.len() >= 4, "{open:?}");
    let within = |path: &PathBuf| !path.is_dir() || path.starts_with(root.path());
    assert!(open.iter().all(within), "{open:?}");
    end(&agent);
}

#[test]
fn a_root_sandbox_entered_by_chroot_keeps_what_both_have_but_no_way_out() {
    if !available() {
        return;
    }
    let mut main = Command::new("setpriv");
    main.args([
        "--bounding-set=-all,+kill,+sys_chroot",
        "--inh-caps=-all",
        "--",
    ])
    .args(["sh", "-c", "echo ready; read line"]);
    let container = Container::start(main);
    assert_eq!(
        capability::names(status(container.main_pid()).capabilities.effective),
        ["KILL", "SYS_CHROOT"]
    );
    let agent = launch("--mode=chroot", &container).unwrap();
    let capabilities = status(agent.pid).capabilities;
    assert_eq!(capability::names(capabilities.permitted), ["KILL"]);
    assert_eq!(capability::names(capabilities.effective), ["KILL"]);
    assert_eq!(capability::names(capabilities.bounding), ["KILL"]);
    end(&agent);
}

#[test]
fn where_injection_is_refused_chroot_is_tried_and_both_reasons_are_told() {
    if !available() {
        return;
    }
    let container = Container::start(shell());
    let main = container.main_pid();
    kill(Pid::from_raw(main), Signal::SIGSTOP).unwrap();
    let stopped = || Proc::default().stat(main).unwrap().state == 'T';
    wait_until("the main process is stopped", stopped);
    let error = launch("--mode=inject", &container).unwrap_err();
    assert_eq!(error.failure(), StartFailure::InjectionRefused);
    assert!(error.to_string().contains("stopped"), "{error}");
    let agent = launch("--mode=sidecar", &container).unwrap();
    assert_eq!(agent.mode, Mode::Chroot);
    let remark = agent.remark.as_deref().unwrap();
    assert!(
        remark.contains("stopped") && remark.contains("cgroup"),
        "{remark}"
    );
    assert!(stopped(), "it is as it was");
    end(&agent);
}

#[test]
fn an_agent_that_is_a_child_ends_with_its_control_socket() {
    let agent = launch_program(Path::new(EXECUTOR), &config("--mode=in-container"), None).unwrap();
    assert_eq!((agent.mode, agent.found), (Mode::InContainer, false));
    assert!(agent.target.is_none() && agent.remark.is_none());
    let proc = Proc::default();
    assert_eq!(
        proc.first_argument(agent.pid).unwrap(),
        AGENT_NAME.as_bytes()
    );
    let control = std::fs::read_link(format!("/proc/{}/fd/{CONTROL_FD}", agent.pid)).unwrap();
    assert!(
        control.to_string_lossy().starts_with("socket:"),
        "{}",
        control.display()
    );
    let Agent { control, pid, .. } = agent;
    drop(control);
    wait_until("the agent has ended", || {
        reap(&proc, None).unwrap();
        !Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn what_tasks_leave_behind_is_killed_and_nothing_else() {
    if !available() {
        return;
    }
    let container = Container::start(shell());
    // A task: leads a session, and has a descendant that left it and one that lost its parent.
    let mut task = Command::new("sh");
    task.args([
        "-c",
        "read go; exec setsid sh -c 'setsid sleep 1000 & (sleep 1000 &); read end'",
    ]);
    let mut task = container.run(task);
    let proc = Proc::default();
    task.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    wait_until("the task's processes run, and only they", || {
        let pids = container.pids();
        let sleeps = |pid: &i32| proc.first_argument(*pid).as_deref() == Some(b"sleep");
        pids.len() == 4 && pids.iter().filter(|pid| sleeps(pid)).count() == 2
    });
    // It led no group, so it became the leader of the session itself.
    let sessions = [i32::try_from(task.id()).unwrap()];

    let scope = Scope::Container(&container.id);
    assert!(remains(&proc, scope, &[]).unwrap().is_empty());
    assert_eq!(remains(&proc, scope, &sessions).unwrap().len(), 3);
    let killed = kill_remains(&proc, scope, &sessions, Duration::from_secs(30)).unwrap();
    assert_eq!(killed, 3);
    let main = container.main_pid();
    assert!(is_alive(main, proc.stat(main).unwrap().start_time));
    // Another test may have reaped it.
    let _ = task.wait();
}

#[test]
fn a_container_that_is_not_there_is_said() {
    let wanted = ContainerRef::parse(&"0".repeat(64)).unwrap();
    let error = launch_program(Path::new(EXECUTOR), &config("--mode=inject"), Some(&wanted));
    let error = error.unwrap_err();
    // Where no container can be seen at all, that is what is said.
    assert_eq!(error.failure(), StartFailure::NoTarget, "{error}");
}
