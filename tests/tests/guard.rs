//! What a test starts is gone when the test process is, however it ended. Needs no Kubernetes.
#![expect(clippy::tests_outside_test_module, reason = "integration test")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{Guard, Launch, Program};

const BOUND: Duration = Duration::from_secs(30);
/// Tells this program, started again, to be the process that ends.
const VICTIM: &str = "OPENSANDBOX_TEST_VICTIM";
/// Precedes what the victim tells: the guard's process id, its directory, the other process ids.
const TOLD: &str = "victim: ";

/// A process that took something along: a child in a session of its own, which neither a signal to
/// the process nor one to its group reaches.
const RUNAWAY: &str = "setsid sleep 1000 & echo $!; exec sleep 1000";
/// A process that SIGTERM does not end.
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 1000; done";

fn shell(script: &str) -> Launch {
    Launch::new("shell", "/bin/sh").args(["-c", script])
}

/// Whether a process is there and not merely waiting for its parent to notice its end.
fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

async fn wait_until_gone(pids: &[i32], directory: &Path) -> Result<()> {
    wait::until("nothing to be left", BOUND, async || {
        let left: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
        Ok(if !left.is_empty() {
            Probe::not_yet(format!("processes {left:?} live"))
        } else if directory.exists() {
            Probe::not_yet(format!("{} exists", directory.display()))
        } else {
            Probe::Done(())
        })
    })
    .await
}

/// Starts a runaway and a stubborn program; their process ids, and that of the child.
async fn start_difficult_programs(guard: &Guard) -> Result<(Vec<i32>, [Program; 2])> {
    let mut stubborn = shell(STUBBORN);
    stubborn.grace = Duration::from_millis(100);
    let stubborn = guard.run(stubborn).await?;
    stubborn
        .wait_for_line("readiness", BOUND, |line| line == "ready")
        .await?;
    let runaway = guard.run(shell(RUNAWAY)).await?;
    let child = runaway
        .wait_for_line("a process id", BOUND, |_| true)
        .await?;
    Ok((
        vec![stubborn.pid(), runaway.pid(), child.parse()?],
        [stubborn, runaway],
    ))
}

/// Not a test by itself: the process that [`Victim::start`] starts and the tests end.
#[tokio::test]
#[ignore = "started by the other tests"]
async fn victim() -> Result<()> {
    let Ok(how) = std::env::var(VICTIM) else {
        return Ok(());
    };
    let guard = Guard::start().await?;
    let (pids, _programs) = start_difficult_programs(&guard).await?;
    println!(
        "{TOLD}{}",
        serde_json::to_string(&(guard.pid(), guard.directory(), pids))?
    );
    assert!(how != "panic", "as asked");
    std::future::pending().await
}

struct Victim {
    process: Child,
    guard: i32,
    directory: PathBuf,
    pids: Vec<i32>,
}

impl Victim {
    /// Blocks until it has started its programs.
    fn start(how: &str) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--exact", "victim", "--ignored", "--nocapture"])
            .env(VICTIM, how)
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = process.stdout.take().context("standard output is a pipe")?;
        for line in BufReader::new(stdout).lines() {
            // The harness may have written the name of the test before it, on the same line.
            if let Some((_, told)) = line?.split_once(TOLD) {
                let (guard, directory, pids) = serde_json::from_str(told)?;
                return Ok(Self {
                    process,
                    guard,
                    directory,
                    pids,
                });
            }
        }
        bail!("the victim did not start: {}", process.wait()?)
    }

    /// To its whole process group, as Ctrl-C does.
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(killpg(
            Pid::from_raw(i32::try_from(self.process.id())?),
            signal,
        )?)
    }

    async fn leaves_nothing(mut self) -> Result<()> {
        self.process.wait()?;
        self.pids.push(self.guard);
        wait_until_gone(&self.pids, &self.directory).await
    }
}

#[tokio::test]
async fn a_test_that_is_killed_leaves_nothing() -> Result<()> {
    let victim = Victim::start("wait")?;
    victim.signal(Signal::SIGKILL)?;
    victim.leaves_nothing().await
}

#[tokio::test]
async fn a_test_that_is_interrupted_leaves_nothing() -> Result<()> {
    let victim = Victim::start("wait")?;
    victim.signal(Signal::SIGINT)?;
    victim.leaves_nothing().await
}

#[tokio::test]
async fn a_test_that_panics_leaves_nothing() -> Result<()> {
    Victim::start("panic")?.leaves_nothing().await
}

#[tokio::test]
async fn a_guard_that_is_asked_to_end_leaves_nothing() -> Result<()> {
    let guard = Guard::start().await?;
    let (pids, _programs) = start_difficult_programs(&guard).await?;
    kill(Pid::from_raw(i32::try_from(guard.pid())?), Signal::SIGTERM)?;
    wait_until_gone(&pids, guard.directory()).await
}

#[tokio::test]
async fn a_guard_that_is_killed_leaves_nothing() -> Result<()> {
    let guard = Guard::start().await?;
    let (pids, programs) = start_difficult_programs(&guard).await?;
    kill(Pid::from_raw(i32::try_from(guard.pid())?), Signal::SIGKILL)?;
    wait_until_gone(&pids, guard.directory()).await?;
    for program in programs {
        let error = program.wait_for_exit(BOUND).await.err();
        ensure!(error.is_some_and(|error| error.to_string().contains("the guard ended before")));
    }
    ensure!(
        guard.run(shell("true")).await.is_err(),
        "a guard that is gone ran a program"
    );
    Ok(())
}

#[tokio::test]
async fn when_test_and_guard_are_killed_the_next_guard_leaves_nothing() -> Result<()> {
    let mut victim = Victim::start("wait")?;
    let guard = Pid::from_raw(victim.guard);
    // Stopped first, so that it does not see the end of the test.
    kill(guard, Signal::SIGSTOP)?;
    victim.signal(Signal::SIGKILL)?;
    victim.process.wait()?;
    kill(guard, Signal::SIGKILL)?;
    wait::until("the guard to end", BOUND, async || {
        Ok(if is_alive(guard.as_raw()) {
            Probe::not_yet("it lives")
        } else {
            Probe::Done(())
        })
    })
    .await?;
    let next = Guard::start().await?;
    ensure!(
        next.directory().exists(),
        "the directory of a living guard was removed"
    );
    victim.leaves_nothing().await
}

#[tokio::test]
async fn dropping_a_guard_returns_when_all_is_gone() -> Result<()> {
    let guard = Guard::start().await?;
    let directory = guard.directory().to_owned();
    let (pids, programs) = start_difficult_programs(&guard).await?;
    drop(guard);
    ensure!(
        !directory.exists(),
        "{} is still there",
        directory.display()
    );
    let left: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
    ensure!(left.is_empty(), "processes {left:?} live");
    drop(programs);
    Ok(())
}

#[tokio::test]
async fn a_program_that_is_dropped_is_stopped() -> Result<()> {
    let guard = Guard::start().await?;
    let program = guard.run(shell("exec sleep 1000")).await?;
    let pid = program.pid();
    drop(program);
    wait::until("the program to end", BOUND, async || {
        Ok(if is_alive(pid) {
            Probe::not_yet("it lives")
        } else {
            Probe::Done(())
        })
    })
    .await
}

#[tokio::test]
async fn the_end_of_a_program_is_told_with_its_log() -> Result<()> {
    let guard = Guard::start().await?;
    let program = guard
        .run(shell("echo first; echo last >&2; exit 3"))
        .await?;
    let exit = program.wait_for_exit(BOUND).await?;
    ensure!(exit.code == Some(3) && exit.signal.is_none(), "{exit:?}");
    ensure!(exit.log_tail == "first\nlast", "{exit:?}");

    let error = program
        .wait_for_line("more", BOUND, |line| line == "more")
        .await;
    let error = error.err().context("there is no such line")?.to_string();
    ensure!(error == format!("shell {exit}"), "{error}");

    let program = guard.run(shell("exec sleep 1000")).await?;
    ensure!(program.rss_bytes()? > 0);
    let exit = program.kill().await?;
    ensure!(exit.signal == Some(Signal::SIGKILL as i32), "{exit:?}");
    ensure!(program.rss_bytes().is_err());
    Ok(())
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_told() -> Result<()> {
    let guard = Guard::start().await?;
    let program = guard
        .run(Launch::new("nothing", "/nonexistent/program"))
        .await?;
    let exit = program.wait_for_exit(BOUND).await?;
    ensure!(
        exit.log_tail.contains("start /nonexistent/program"),
        "{exit}"
    );
    Ok(())
}

#[tokio::test]
async fn programs_of_a_higher_rank_end_first() -> Result<()> {
    let guard = Guard::start().await?;
    // Outside of the guard's directory, which is gone when the order can be read.
    let order = tempfile::NamedTempFile::new()?;
    let mut programs = Vec::new();
    for (name, rank) in [("tests", 10), ("store", 1), ("server", 2)] {
        let path = order.path().display();
        let script = format!(
            "trap 'echo {name} >> {path}; exit' TERM; echo ready; while :; do sleep 0.01; done"
        );
        let program = guard
            .run(Launch {
                rank,
                ..shell(&script)
            })
            .await?;
        program
            .wait_for_line("readiness", BOUND, |line| line == "ready")
            .await?;
        programs.push(program);
    }
    drop(guard);
    let order = std::fs::read_to_string(order.path())?;
    ensure!(order == "tests\nserver\nstore\n", "{order}");
    Ok(())
}
