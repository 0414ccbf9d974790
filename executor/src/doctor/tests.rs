use clap::Parser as _;

use super::*;
use crate::pod::fake::{Fake, UID, id, usual};

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    config: Config,
}

fn config(arguments: &str) -> Config {
    let all = std::iter::once("task-executor").chain(arguments.split_ascii_whitespace());
    Command::try_parse_from(all).unwrap().config
}

fn status(uid: u32, effective: &str) -> String {
    format!(
        "TracerPid:\t0\nUid:\t{uid} {uid} {uid} {uid}\nGid:\t0 0 0 0\nGroups:\t\n\
         CapInh:\t0\nCapPrm:\t{effective}\nCapEff:\t{effective}\nCapBnd:\t{effective}\nCapAmb:\t0\n\
         NoNewPrivs:\t0\nSeccomp:\t2\n"
    )
}

/// Root with the runtime's usual capabilities.
const USUAL: &str = "00000000a80425fb";
/// And `SYS_PTRACE`: the recipe.
const TRACING: &str = "00000000a80c25fb";

fn pod(own: &str) -> Fake {
    let fake = usual(|c| format!("/kubepods/pod{UID}/{}", id(c)));
    fake.file(7, "status", own);
    fake.file(20, "status", &status(1000, "0"));
    fake
}

fn examine_fake(fake: &Fake, arguments: &str) -> Report {
    examine(&Proc::at(fake.path()), &config(arguments), |_| Vec::new())
}

fn possible(report: &Report) -> Vec<&str> {
    let ways = report.modes.iter().filter(|way| way.possible);
    ways.map(|way| way.mode).collect()
}

#[test]
fn the_recipe_allows_injection_and_chroot() {
    let report = examine_fake(&pod(&status(0, TRACING)), "--main-container-name=sandbox");
    assert!(report.works, "{report}");
    assert_eq!(possible(&report), ["inject", "chroot"]);
    assert_eq!(report.problem, None);
    assert_eq!(report.pod_uid.as_deref(), Some(UID));
    assert!(
        report
            .executor
            .effective_capabilities
            .contains(&"SYS_PTRACE".to_owned())
    );
    let chosen: Vec<_> = report.containers.iter().filter(|c| c.chosen).collect();
    assert_eq!(
        (chosen.len(), chosen[0].pid, chosen[0].uid),
        (1, Some(20), Some(1000))
    );
    assert_eq!(report.kernel.cgroup.as_deref(), Some("v2"));
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let fake = pod(&status(0, USUAL));
    let report = examine_fake(&fake, "");
    assert!(!report.works && possible(&report).is_empty(), "{report}");
    let text = report.to_string();
    for part in [
        "add SYS_PTRACE to",
        "mode inject",
        "not possible",
        "no task can run",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_nodes_settings_close_injection_alone() {
    for (path, value) in [("yama/ptrace_scope", "3"), ("memfd_noexec", "2")] {
        let fake = pod(&status(0, TRACING));
        fake.tunable(path, value);
        let report = examine_fake(&fake, "");
        assert_eq!(possible(&report), ["chroot"], "{path}");
        assert!(report.works);
        assert!(!examine_fake(&fake, "--mode=inject").works);
    }
}

#[test]
fn a_traced_or_stopped_sandbox_is_said() {
    let fake = pod(&status(0, TRACING));
    fake.file(
        20,
        "status",
        &status(1000, "0").replace("TracerPid:\t0", "TracerPid:\t9"),
    );
    let cgroup = format!("/kubepods/pod{UID}/{}", id('a'));
    fake.process_in_state(20, 0, 200, &cgroup, 'T');
    let report = examine_fake(&fake, "");
    let needs = report.modes[0].needs.join("; ");
    assert!(
        needs.contains("traced by process 9") && needs.contains("stopped"),
        "{needs}"
    );
    assert_eq!(possible(&report), ["chroot"]);
}

#[test]
fn a_namespace_that_is_not_shared_is_the_problem() {
    let fake = Fake::new();
    let cgroup = format!("/kubepods/pod{UID}/{}", id('e'));
    fake.process(1, 0, 100, &cgroup);
    fake.process(7, 0, 100, &cgroup);
    fake.readable(7, "", UID, "task-executor");
    fake.file(7, "status", &status(0, TRACING));
    let report = examine_fake(&fake, "--main-container-name=sandbox");
    assert!(!report.works);
    let problem = report.problem.unwrap();
    assert!(problem.contains("shareProcessNamespace: true"), "{problem}");
    let here = examine_fake(&fake, "");
    assert!(here.works, "{here}");
    assert_eq!(possible(&here), ["in-container"]);
}

#[test]
fn what_injection_itself_finds_counts() {
    let fake = pod(&status(0, TRACING));
    let found = |pid: i32| vec![format!("process {pid} is of another architecture")];
    let report = examine(&Proc::at(fake.path()), &config(""), found);
    assert_eq!(possible(&report), ["chroot"]);
    assert_eq!(
        report.modes[0].needs,
        ["process 20 is of another architecture"]
    );
}

#[test]
fn another_pod_uid_than_the_one_seen_is_said() {
    let report = examine_fake(&pod(&status(0, TRACING)), "--pod-uid=mistyped");
    assert_eq!(report.other_pod_uid_seen.as_deref(), Some(UID));
    assert!(report.to_string().contains("correct --pod-uid"));
}

#[test]
fn who_may_give_orders_is_said() {
    let key = STANDARD.encode([1; 32]);
    for (arguments, part) in [
        ("--auth=none", "whoever reaches the port"),
        ("", "set TASK_EXECUTOR_VERIFICATION_KEY"),
        ("--verification-key=abc", "not 32 bytes"),
        (
            &format!("--verification-key={key}"),
            "signed by the operator",
        ),
    ] {
        let text = authentication(&config(arguments));
        assert!(text.contains(part), "{arguments}: {text}");
    }
}

#[test]
fn without_proc_the_report_says_so() {
    let empty = tempfile::tempdir().unwrap();
    let report = examine(&Proc::at(empty.path()), &config(""), |_| Vec::new());
    assert!(!report.works && report.problem.is_some());
}

#[test]
fn the_report_is_json_too() {
    let report = examine_fake(&pod(&status(0, TRACING)), "");
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(value["works"], true);
    assert_eq!(value["modes"][0]["mode"], "inject");
    assert_eq!(value["containers"][0]["name"], "sandbox");
}
