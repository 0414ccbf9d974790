//! A task is what `kubectl exec` into the sandbox container is: in ids, capabilities, seccomp, control
//! groups, namespaces, limits, directory. And the sandbox's main process does not notice: in whatever
//! state it is met, it goes on untraced, with the descriptors and the memory that it had.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::executor::host::{self, Traces};
use opensandbox_tests::pods::{Recipe, SANDBOX, threads_of};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{images, node};
use serde_json::json;

/// Short waits, on a busy machine.
const BOUND: Duration = Duration::from_secs(30);
/// Prints in a shell what the mode `identity` of the program of [`images::TOOL`] prints.
const IDENTITY: &str = r#"
for file in status cgroup limits oom_score_adj; do echo "== $file"; cat /proc/self/$file; done
echo "== mounts"; wc -l < /proc/self/mountinfo
echo "== namespaces"; for of in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$of; done
echo "== ids"; id
echo "== umask"; umask
echo "== directory"; pwd
"#;
/// Fields of `/proc/self/status` that say who a process is and what it may.
const FIELDS: [&str; 15] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "Mems_allowed",
    "CoreDumping",
];
/// No signal.
const NONE: &str = "0000000000000000";

/// Who a process says it is: a text for each section, the fields of its status among them.
type Identity = BTreeMap<String, String>;

fn identity(text: &str) -> Result<Identity> {
    let mut sections = Identity::new();
    for section in text.split("== ").skip(1) {
        let (title, body) = section.split_once('\n').context("a section has a title")?;
        sections.insert(title.to_owned(), body.trim().to_owned());
    }
    let status = sections.remove("status").context("there is a status")?;
    for line in status.lines() {
        let (field, value) = line.split_once(':').with_context(|| line.to_owned())?;
        let known = FIELDS.contains(&field) || field == "SigBlk" || field == "SigIgn";
        if known {
            sections.insert(field.to_owned(), value.trim().to_owned());
        }
    }
    ensure!(sections.len() > FIELDS.len(), "more is printed: {text}");
    Ok(sections)
}

/// A sandbox that tasks are run in.
struct Case {
    name: &'static str,
    recipe: Recipe,
    /// Its image has nothing but a program that prints its identity.
    is_tool: bool,
    /// The main process prints a line when it is what it is to be, and is busy from then on.
    is_busy: bool,
}

impl Case {
    fn probe(&self) -> [&'static str; 3] {
        if self.is_tool {
            [images::TOOL_PROGRAM, "identity", ""]
        } else {
            ["sh", "-c", IDENTITY]
        }
    }

    /// `None` where no node can be had.
    async fn check(self) -> Result<()> {
        let Some(node) = node::shared().await? else {
            return Ok(());
        };
        let namespace = node.namespace("identity").await?;
        let pod = ExecutorPod::start(&node, &namespace, self.name, &self.recipe).await?;
        self.check_pod(&pod)
            .await
            .with_context(|| format!("sandbox {}", self.name))?;
        pod.delete().await
    }

    async fn check_pod(&self, pod: &ExecutorPod<'_>) -> Result<()> {
        if self.is_busy && !self.is_tool {
            wait::until("the main process to be up", BOUND, async || {
                let up = pod.logs(SANDBOX).await?.contains("up");
                Ok(if up {
                    Probe::Done(())
                } else {
                    Probe::not_yet("it printed nothing")
                })
            })
            .await?;
        }
        let main = pod.main_pid(SANDBOX).await?;
        let expected = identity(&pod.exec_ok(SANDBOX, &self.probe()).await?)?;
        self.is_the_sandboxs(pod, "first", &expected).await?;
        let before = traces(main)?;
        self.untouched(main, &before);

        // Once more: a second agent, injected into a process that has met one.
        pod.crash_agent().await?;
        self.is_the_sandboxs(pod, "second", &expected).await?;
        let after = traces(main)?;
        self.untouched(main, &after);
        self.same(&before, &after);

        assert_eq!(pod.main_pid(SANDBOX).await?, main);
        assert_eq!(pod.status(SANDBOX).await?.restart_count, 0);
        wait::until("no process to be left that has ended", BOUND, async || {
            let zombies = pod.zombies().await?;
            Ok(if zombies.is_empty() {
                Probe::Done(())
            } else {
                Probe::not_yet(format!("{zombies:?}"))
            })
        })
        .await?;
        if self.is_busy {
            goes_on(main).await?;
        }
        Ok(())
    }

    /// A task and `kubectl exec` are the same.
    async fn is_the_sandboxs(
        &self,
        pod: &ExecutorPod<'_>,
        name: &str,
        expected: &Identity,
    ) -> Result<()> {
        let mut expected = expected.clone();
        let mut task = identity(&pod.run_ok(name, &self.probe()).await?)?;
        for signals in ["SigBlk", "SigIgn"] {
            assert_eq!(task.remove(signals).as_deref(), Some(NONE), "{signals}");
            expected.remove(signals);
        }
        assert_eq!(task, expected);
        Ok(())
    }

    /// The main process runs, and nothing shows that something was done to it.
    fn untouched(&self, main: i32, traces: &Traces) {
        assert_eq!(traces.tracer, 0);
        for thread in threads_of(main) {
            let state = host::stat(thread).map(|stat| stat.state);
            assert!(
                matches!(state, Some('S' | 'R')),
                "thread {thread}: {state:?}"
            );
        }
        assert!(!traces.maps.contains("memfd"), "{}", traces.maps);
        let left = traces
            .descriptors
            .iter()
            .any(|(_, target)| target.contains("memfd"));
        assert!(!left, "{:?}", traces.descriptors);
        if self.is_plain() {
            let numbers: Vec<_> = traces
                .descriptors
                .iter()
                .map(|(number, _)| *number)
                .collect();
            assert_eq!(numbers, [0, 1, 2], "{:?}", traces.descriptors);
            assert!(!traces.maps.contains("rwxp"), "{}", traces.maps);
        }
    }

    fn same(&self, before: &Traces, after: &Traces) {
        if self.is_plain() {
            assert_eq!(before, after);
            return;
        }
        // It works meanwhile, and needs memory.
        assert_eq!(
            (before.start, &before.descriptors, &before.signals),
            (after.start, &after.descriptors, &after.signals)
        );
        assert_eq!(files(&before.maps), files(&after.maps));
    }

    /// It does nothing that changes its memory or descriptors.
    fn is_plain(&self) -> bool {
        self.is_tool || !self.is_busy
    }
}

fn traces(main: i32) -> Result<Traces> {
    host::traces(main).context("the main process lives")
}

fn files(maps: &str) -> BTreeSet<&str> {
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .collect()
}

/// Waits until it has been on a processor some more.
async fn goes_on(main: i32) -> Result<()> {
    let time = || host::stat(main).map_or(0, |stat| stat.user_time);
    let before = time();
    wait::until("the main process to go on", BOUND, async || {
        let more = time().saturating_sub(before);
        Ok(if more > 2 {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{more} ticks"))
        })
    })
    .await
}

fn case(name: &'static str, recipe: Recipe) -> Case {
    Case {
        name,
        recipe,
        is_tool: false,
        is_busy: false,
    }
}

fn recipe() -> Recipe {
    Recipe::new(["serve", "--auth=none"])
}

fn with_command(mut recipe: Recipe, command: &[&str]) -> Recipe {
    recipe.command = Some(
        command
            .iter()
            .map(|&argument| argument.to_owned())
            .collect(),
    );
    recipe
}

#[tokio::test]
async fn in_a_sandbox_of_a_user_with_everything_dropped() -> Result<()> {
    case("restricted", recipe().restricted(1000)).check().await
}

#[tokio::test]
async fn in_a_sandbox_of_root_without_a_filter() -> Result<()> {
    case("root", recipe()).check().await
}

#[tokio::test]
async fn in_a_sandbox_of_root_with_the_runtimes_filter() -> Result<()> {
    let mut recipe = recipe();
    recipe.security_context = json!({"seccompProfile": {"type": "RuntimeDefault"}});
    case("root-filtered", recipe).check().await
}

#[tokio::test]
async fn in_a_sandbox_with_groups() -> Result<()> {
    let mut recipe = recipe().restricted(1000);
    recipe.security_context["runAsGroup"] = json!(2000);
    recipe.pod_extra =
        json!({"securityContext": {"supplementalGroups": [3000, 4000], "fsGroup": 5000}});
    case("groups", recipe).check().await
}

#[tokio::test]
async fn in_a_sandbox_without_a_shell() -> Result<()> {
    Case {
        is_tool: true,
        ..case("distroless", recipe().restricted(1000).tool(&["sleep"]))
    }
    .check()
    .await
}

#[tokio::test]
async fn beside_busy_threads() -> Result<()> {
    Case {
        is_tool: true,
        is_busy: true,
        ..case("threads", recipe().restricted(1000).tool(&["threads", "8"]))
    }
    .check()
    .await
}

#[tokio::test]
async fn beside_a_main_process_that_is_busy_in_user_space() -> Result<()> {
    Case {
        is_tool: true,
        is_busy: true,
        ..case("spin", recipe().restricted(1000).tool(&["spin"]))
    }
    .check()
    .await
}

#[tokio::test]
async fn beside_python_with_threads() -> Result<()> {
    const PROGRAM: &str = "
import threading
def turn():
    while True: sum(range(1000))
for _ in range(4): threading.Thread(target=turn).start()
print('up', flush=True)
";
    let recipe = with_command(recipe().restricted(1000), &["python3", "-c", PROGRAM]);
    Case {
        is_busy: true,
        ..case("python", recipe)
    }
    .check()
    .await
}

#[tokio::test]
async fn beside_node_with_workers() -> Result<()> {
    const PROGRAM: &str = "
const {Worker} = require('worker_threads');
let started = 0;
for (let i = 0; i < 4; i++) {
    const worker = new Worker('let n = 0; for (;;) n++', {eval: true});
    worker.on('online', () => { if (++started == 4) console.log('up'); });
}
";
    let recipe = with_command(recipe().restricted(1000), &["node", "-e", PROGRAM]);
    Case {
        is_busy: true,
        ..case("node", recipe)
    }
    .check()
    .await
}
