//! Tasks that fork faster than one can look. Bounded in number, since a machine is shared: chains in
//! which each process starts the next one and ends.

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::node;
use opensandbox_tests::pods::{Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};

use super::{BOUND, left_as, marked_task, ready};
use crate::observer::Observer;
use crate::processes::{marked, zombies};
use crate::settings::number;

/// Twenty chains of forks, a session for each process, SIGTERM ignored.
const FORKS: &str = r"
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b'ready\n')
for _ in range(20):
    if os.fork() == 0: break
else:
    while True: signal.pause()
while True:
    if os.fork(): os._exit(0)
    os.setsid()
";
/// The same without a process that stays.
const FORKS_ALONE: &str = r"
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b'ready\n')
for _ in range(20):
    if os.fork() == 0: break
while True:
    if os.fork(): os._exit(0)
    os.setsid()
";
/// Chains in which each process is another program.
const PROGRAMS: &str = r#"
trap '' TERM
[ "$1" = first ] && echo ready
for i in $(seq ${2:-1}); do setsid sh "$0" next >/dev/null 2>&1 & done
"#;
/// A tree that grows again wherever it is cut: each process keeps two children, up to 4 levels.
const TREE: &str = r"
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b'ready\n')
def keep(level):
    if level: os.setsid()
    children = set()
    while True:
        while level < 4 and len(children) < 2:
            child = os.fork()
            if child == 0: return keep(level + 1)
            children.add(child)
        if level == 4:
            time.sleep(0.01)
            os._exit(0)
        children.discard(os.wait()[0])
keep(0)
";

#[tokio::test]
async fn storms_of_forks_are_stopped() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("storm").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "storm", &recipe).await?;
    let program = format!("cat > /tmp/programs.sh <<'END'{PROGRAMS}END\n");
    pod.exec_ok(SANDBOX, &["sh", "-c", &program]).await?;
    let before = pod.host_pids(SANDBOX).await?;
    let observer = Observer::start(pod.client()).await?;
    for round in 0..number("OPENSANDBOX_STORM_ROUNDS", 2) {
        for (kind, argv) in [
            ("forks", vec!["python3", "-c", FORKS]),
            ("forks-alone", vec!["python3", "-c", FORKS_ALONE]),
            ("programs", vec!["sh", "/tmp/programs.sh", "first", "10"]),
            ("tree", vec!["python3", "-c", TREE]),
        ] {
            let name = format!("{kind}-{round}");
            let grace = i64::try_from(round % 2)?;
            let stopped = storm(&pod, &observer, &name, &argv, grace).await;
            if let Err(error) = stopped {
                let log = pod.executor_log_tail().await;
                return Err(error.context(log)).context(name);
            }
        }
    }
    left_as(&pod, &before).await?;
    assert_eq!(zombies(&pod).await?, Vec::<String>::new());
    assert_eq!(pod.run_ok("after", &["echo", "fine"]).await?, "fine\n");
    pod.delete().await
}

async fn storm(
    pod: &ExecutorPod<'_>,
    observer: &Observer,
    name: &str,
    argv: &[&str],
    grace: i64,
) -> Result<()> {
    let client = pod.client();
    let (ordered, mark) = marked_task(pod, name, argv, grace).await?;
    client.create(&ordered).await?;
    ready(client, name).await?;
    // It rages: there are processes now that were not there before.
    let first = marked(&mark);
    wait::until("new processes", BOUND, async || {
        let new = marked(&mark).difference(&first).count();
        Ok(if new >= 5 {
            Probe::Done(())
        } else {
            Probe::not_yet(new)
        })
    })
    .await?;
    // Meanwhile others are served.
    pod.run_ok(&format!("{name}-meanwhile"), &["true"]).await?;
    client.delete(name).await?;
    observer.gone(name, BOUND).await?;
    let left = marked(&mark);
    ensure!(left.is_empty(), "said to be gone with {left:?}");
    Ok(())
}
