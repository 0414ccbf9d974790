//! What a task is given is what it was ordered with, byte by byte, and what Linux cannot take is a
//! clean failure.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::task::{End, StartFailure, Task};
use opensandbox_tests::executor::{ExecutorPod, Stream, task, variable};
use opensandbox_tests::node;
use opensandbox_tests::pods::{Recipe, SANDBOX};

/// Linux takes no longer argument or variable, its end included.
const LONGEST: usize = 128 * 1024;
const BOUND: Duration = Duration::from_mins(1);

#[tokio::test]
async fn arguments_environment_and_directory_are_as_ordered() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("given").await?;
    let mut recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    for (name, value) in [
        ("KEPT", "from the container"),
        ("REPLACED", "old"),
        ("EMPTIED", "old"),
        ("MULTI", "line\nline"),
        // So that the task's environment is larger than what was ordered.
        ("LARGE", &"x".repeat(8 * 1024)),
    ] {
        recipe.env.insert(name.to_owned(), value.to_owned());
    }
    let pod = ExecutorPod::start(&node, &namespace, "given", &recipe).await?;
    arguments(&pod).await?;
    environment(&pod).await?;
    directory(&pod).await?;
    too_much(&pod).await?;
    pod.delete().await
}

/// Prints the arguments it got, each followed by a NUL.
const ARGUMENTS: [&str; 4] = ["sh", "-c", "cat /proc/$$/cmdline", "name"];

async fn arguments(pod: &ExecutorPod<'_>) -> Result<()> {
    let long = "ä".repeat(50_000);
    let longest = "x".repeat(LONGEST - 1);
    for (name, arguments) in [
        ("none", vec![]),
        ("empty", vec!["", "", "x", ""]),
        (
            "odd",
            vec![
                "Grüße 世界 🦀 \u{200b}\u{7}\u{1b}[31m",
                "$HOME `id` $(id) \"'\\ * ; & | > < \n\t\r",
                "--auth=none",
                "%s%n",
            ],
        ),
        ("long", vec![&long, "and", &longest]),
        ("many", vec!["x"; 20_000]),
    ] {
        let mut ordered = task(name, &ARGUMENTS);
        let process = ordered.process.as_mut().context("a process")?;
        process.args = arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        let finished = pod.run_task(&ordered).await?;
        assert_eq!(
            finished.terminated()?.exit_code,
            0,
            "{name}: {:?}",
            finished.task.outcome
        );
        let expected: Vec<u8> = ARGUMENTS
            .iter()
            .chain(&arguments)
            .flat_map(|argument| argument.bytes().chain([0]))
            .collect();
        assert!(
            finished.stdout == expected,
            "arguments of {name} are others"
        );
    }
    Ok(())
}

async fn environment(pod: &ExecutorPod<'_>) -> Result<()> {
    let of_main = std::fs::read(format!("/proc/{}/environ", pod.main_pid(SANDBOX).await?))?;
    let mut expected = entries(&of_main);
    assert_eq!(
        expected.get("KEPT").map(String::as_str),
        Some("from the container")
    );

    let value = "v".repeat(100_000);
    let longest = "v".repeat(LONGEST - 2 - "LONGEST".len());
    let mut ordered = task("environment", &["cat", "/proc/self/environ"]);
    let process = ordered.process.as_mut().context("a process")?;
    process.env = vec![
        variable("REPLACED", "first"),
        variable("REPLACED", "new = \"quoted\" $HOME"),
        variable("EMPTIED", ""),
        variable("ADDED", "Grüße\n世界"),
        variable("lower.case-and dashes", "x"),
        variable("LONG", &value),
        variable("LONGEST", &longest),
    ];
    for variable in &process.env {
        expected.insert(variable.name.clone(), variable.value.expose().to_owned());
    }
    let finished = pod.run_task(&ordered).await?;
    assert_eq!(
        finished.terminated()?.exit_code,
        0,
        "{:?}",
        finished.task.outcome
    );
    let text = String::from_utf8(finished.stdout)?;
    assert_eq!(text.matches('\0').count(), expected.len(), "a name twice");
    assert!(
        entries(text.as_bytes()) == expected,
        "the environment is another"
    );

    // Without any of its own it has the main process's.
    let finished = pod.run("inherited", &["cat", "/proc/self/environ"]).await?;
    assert_eq!(entries(&finished.stdout), entries(&of_main));
    Ok(())
}

fn entries(environ: &[u8]) -> BTreeMap<String, String> {
    String::from_utf8_lossy(environ)
        .split_terminator('\0')
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

async fn directory(pod: &ExecutorPod<'_>) -> Result<()> {
    let of_main = std::fs::read_link(format!("/proc/{}/cwd", pod.main_pid(SANDBOX).await?))?;
    let setup = "mkdir -p '/tmp/a b/ü' && ln -sfn '/tmp/a b/ü' /tmp/link";
    pod.exec_ok(SANDBOX, &["sh", "-c", setup]).await?;
    for (directory, expected) in [
        ("", of_main.to_str().context("a path")?),
        ("/", "/"),
        ("/tmp/a b/ü", "/tmp/a b/ü"),
        ("/tmp/link/.", "/tmp/a b/ü"),
        // From the main process's.
        ("tmp", "/tmp"),
    ] {
        let mut ordered = task("directory", &["readlink", "/proc/self/cwd"]);
        let process = ordered.process.as_mut().context("a process")?;
        directory.clone_into(&mut process.working_dir);
        let finished = pod.run_task(&ordered).await?;
        assert_eq!(finished.stdout_text().trim_end(), expected, "{directory:?}");
    }
    Ok(())
}

/// What is more than Linux takes: nothing runs, and the reason is given.
async fn too_much(pod: &ExecutorPod<'_>) -> Result<()> {
    let client = pod.client();
    let with_arguments = |count: usize, length: usize| {
        let mut ordered = task("much", &["sh", "-c", "echo $#", "name"]);
        if let Some(process) = &mut ordered.process {
            process.args = vec!["x".repeat(length); count];
        }
        ordered
    };
    // Close to the 2 MiB that there are.
    let finished = pod.run_task(&with_arguments(20, 100_000)).await?;
    assert_eq!(
        finished.stdout_text(),
        "20\n",
        "{:?}",
        finished.task.outcome
    );

    // Together with what the container has, too much; only the kernel knows.
    let finished = pod.run_task(&with_arguments(21, 99_600)).await?;
    let End::NotStarted { failure, message } = &finished.outcome()?.end else {
        panic!("{:?}", finished.task.outcome);
    };
    assert_eq!(*failure, StartFailure::NotExecutable);
    assert!(message.contains("Argument list too long"), "{message}");
    assert_eq!(finished.terminated()?.exit_code, 126);
    assert!(finished.stdout.is_empty());

    // What can never work is refused at once, by the name of the field and without its value.
    for (ordered, part) in [
        (with_arguments(30, 100_000), "2097152"),
        (with_arguments(1, LONGEST), "process.args[0]"),
    ] {
        let body = serde_json::to_vec(&ordered)?;
        let reply = client.send("POST", "/tasks", &body).await?;
        let text = reply.text();
        assert_eq!(reply.status, 400, "{text}");
        assert!(text.contains(part) && !text.contains("xxxx"), "{text}");
        assert!(client.get("much").await?.is_none());
    }
    // Others go on as if nothing had been.
    let after: Task = task("after", &["echo", "fine"]);
    client.create(&after).await?;
    client.wait_ended("after", BOUND).await?;
    assert_eq!(client.output("after", Stream::Stdout).await?, b"fine\n");
    client.delete_and_wait("after", BOUND).await
}
