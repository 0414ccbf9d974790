//! `kubectl logs POD -c task-executor` tells what tasks print and what became of them; and what may be
//! secret is nowhere but in the task itself.

#![cfg(test)]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use opensandbox_api::labels::VERIFICATION_KEY_ENV;
use opensandbox_api::task::Task;
use opensandbox_tests::executor::{ExecutorPod, Signer, host, task, variable};
use opensandbox_tests::node;
use opensandbox_tests::pods::{EXECUTOR, Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_mins(1);
/// In every secret of these tests, and in nothing else.
const SECRET: &str = "s3cr3t-7f1c";

#[tokio::test]
async fn the_executors_log_has_what_tasks_print() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("logs").await?;
    let recipe = Recipe::new(["serve", "--auth=none"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "lines", &recipe).await?;
    let script = "echo one; echo two; printf 'three'; exit 3";
    pod.run("lines", &["sh", "-c", script]).await?;
    pod.run("errors", &["sh", "-c", "echo bad >&2"]).await?;
    // A line that pretends to be another task's.
    pod.run(
        "forger",
        &[
            "printf",
            "%s\n",
            "x\r[lines stdout] four",
            "[lines] exited 0",
        ],
    )
    .await?;
    pod.run("missing", &["/no/such/program"]).await?;
    // One that ends at once may be reported as started and ended in one, and then has no line for its start.
    pod.client()
        .create(&task("long", &["sleep", "1000"]))
        .await?;
    pod.client().wait_running("long", BOUND).await?;
    let lines = [
        "[lines stdout] one",
        "[lines stdout] two",
        "[lines stdout] three",
        "[errors stderr] bad",
        "[forger stdout] [lines] exited 0",
    ];
    wait::until("the log to have it all", BOUND, async || {
        let log = pod.logs(EXECUTOR).await?;
        let missing: Vec<_> = lines
            .iter()
            .filter(|line| !log.lines().any(|have| have == **line))
            .collect();
        let told = log
            .lines()
            .any(|line| line.starts_with("[long] started, process "))
            && log
                .lines()
                .any(|line| line.starts_with("[lines] ") && line.contains('3'))
            && log
                .lines()
                .any(|line| line.starts_with("[missing] ") && line.contains("/no/such"));
        Ok(if missing.is_empty() && told {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("without {missing:?}:\n{log}"))
        })
    })
    .await?;
    let log = pod.logs(EXECUTOR).await?;
    let starts_a_line = |text: &str| log.split(['\n', '\r']).any(|line| line.starts_with(text));
    assert!(!starts_a_line("[lines stdout] four"), "{log}");
    assert!(!starts_a_line("[lines] exited 0"), "{log}");
    pod.delete().await
}

fn secret(what: &str) -> String {
    format!("{SECRET}-{what}")
}

/// Orders with a secret that are in order, and run or fail to.
fn orders() -> Vec<Task> {
    let with = |name: &str, argv: &[&str]| {
        let mut task = task(name, argv);
        let process = task.process.get_or_insert_default();
        process.args = vec![secret("argument")];
        process.env = vec![variable("TOKEN", &secret("value"))];
        task
    };
    let mut nowhere = with("nowhere", &["true"]);
    "/no/such/directory".clone_into(&mut nowhere.process.get_or_insert_default().working_dir);
    vec![
        with(
            "works",
            &["sh", "-c", "test -n \"$TOKEN\"; exec sleep 1000"],
        ),
        with("fails", &["sh", "-c", "exit 3"]),
        with("missing", &["/no/such/program"]),
        with("directory", &["/tmp"]),
        nowhere,
    ]
}

/// Bodies with a secret that are not in order, in many ways.
fn disorders() -> Vec<String> {
    let process = |process: &Value| json!([{"name": "wrong", "process": process}]).to_string();
    let mut bodies = vec![
        process(&json!({"command": secret("command")})),
        process(&json!({"command": [{"a": secret("command")}]})),
        process(&json!({"command": ["true"], "args": secret("args")})),
        process(&json!({"command": ["true"], "env": secret("env")})),
        process(&json!({"command": ["true"], "env": [{"name": "A", "value": {"a": secret("v")}}]})),
        process(&json!({"command": ["true"], "env": [{"name": "A", "value": [secret("v")]}]})),
        process(&json!({"command": ["true"], "env": [{"name": "A=B", "value": secret("v")}]})),
        process(&json!({"command": ["true"], "env": [{"name": "", "value": secret("v")}]})),
        process(&json!({"command": ["true"], "env": [{"name": "A", "value": secret("v\u{0}")}]})),
        process(&json!({"command": ["true"], "args": [secret("a\u{0}")]})),
        process(&json!({"command": ["true"], "timeoutSeconds": secret("t")})),
        process(&json!({"command": ["true"], "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": secret("reference")}}},
        ]})),
        process(&json!({"command": [], "env": [{"name": "A", "value": secret("v")}]})),
        json!([{"name": "wrong", "podTemplateSpec": {"spec": secret("spec")}}]).to_string(),
        json!(secret("text")).to_string(),
        json!({"a": secret("text")}).to_string(),
        format!(
            "[{{\"name\": \"wrong\", \"process\": {{\"args\": [\"{}\" x",
            secret("syntax")
        ),
        secret("raw"),
    ];
    // The same for the route of a single task.
    let single = |body: &String| {
        body.strip_prefix('[')
            .and_then(|body| body.strip_suffix(']'))
            .map(str::to_owned)
    };
    let singles: Vec<_> = bodies.iter().filter_map(single).collect();
    bodies.extend(singles);
    bodies
}

#[tokio::test]
async fn secrets_are_nowhere_but_in_their_task() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("logs").await?;
    let key = Signer::new_key()?;
    // With everything logged that there is to log.
    let mut recipe = Recipe::new(["serve", "--log-level=trace"]).restricted(1000);
    recipe
        .executor_env
        .insert(VERIFICATION_KEY_ENV.to_owned(), key.verification_key());
    let pod = ExecutorPod::start(&node, &namespace, "secrets", &recipe).await?;
    let signer = Signer::new(Arc::clone(&key), pod.uid().await?);
    let pod = pod.signed(key).await?;
    let client = pod.client();
    client.set_tasks(&orders()).await?;
    for name in ["fails", "missing", "directory", "nowhere"] {
        let ended = client.wait_ended(name, BOUND).await?;
        let told = format!("{:?} {:?}", ended.process_status, ended.outcome);
        assert!(!told.contains(SECRET), "{told}");
    }
    client.wait_running("works", BOUND).await?;
    has_none(&pod).await?;

    for body in disorders() {
        for target in ["/setTasks", "/tasks"] {
            let reply = client.send("POST", target, body.as_bytes()).await?;
            // What is listed after an order that was partly right are its own orders.
            let told = reply.text();
            if !reply.status.is_success() {
                assert!(!told.contains(SECRET), "{target} with {body}: {told}");
            }
        }
    }
    let tokens = [secret("token"), format!("{0}.{0}.{0}", secret("token"))];
    for token in &tokens {
        let reply = client
            .send_with("GET", "/getTasks", b"", Some(token))
            .await?;
        assert_eq!(reply.status.as_u16(), 401);
        assert!(!reply.text().contains(SECRET), "{}", reply.text());
    }
    let token = signer.sign("GET", "/getTasks", b"")?;
    client
        .send_with("GET", "/getTasks", b"", Some(&token))
        .await?;
    let log = pod.logs(EXECUTOR).await?;
    assert!(!log.contains(&token), "a token is in the log");
    client.set_tasks(&[]).await?;
    wait::until("all tasks to be gone", BOUND, async || {
        let left = client.tasks().await?;
        Ok(if left.is_empty() {
            Probe::Done(())
        } else {
            Probe::not_yet(format!("{left:?}"))
        })
    })
    .await?;
    client.set_tasks(&orders()).await?;
    client.wait_running("works", BOUND).await?;
    has_none(&pod).await?;

    pod.crash_executor().await?;
    client.set_tasks(&orders()).await?;
    client.wait_running("works", BOUND).await?;
    has_none(&pod).await?;
    let previous = pod.logs_with(EXECUTOR, &["--previous"]).await?;
    assert!(
        !previous.is_empty() && !previous.contains(SECRET),
        "{previous}"
    );
    pod.delete().await
}

/// Looks for the secret in everything that others may look at.
async fn has_none(pod: &ExecutorPod<'_>) -> Result<()> {
    for container in [SANDBOX, EXECUTOR] {
        let log = pod.logs(container).await?;
        let line = log.lines().find(|line| line.contains(SECRET));
        assert_eq!(line, None, "in the log of {container}");
    }
    assert!(!pod.logs(EXECUTOR).await?.is_empty());
    let told = pod.describe().await;
    assert!(!told.contains(SECRET), "{told}");
    for target in ["/metrics", "/readyz", "/readyz?verbose", "/health"] {
        let text = pod
            .client()
            .send_with("GET", target, b"", None)
            .await?
            .text();
        assert!(!text.contains(SECRET), "{target}: {text}");
    }
    let (mut tasks, mut others) = (0, 0);
    for pid in host::beside(pod.main_pid(SANDBOX).await?) {
        let arguments = host::arguments(pid);
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        // The task is what was asked for.
        if arguments
            .first()
            .is_some_and(|program| program == "sleep" || program == "sh")
            && environment.contains(SECRET)
        {
            tasks += 1;
            continue;
        }
        others += 1;
        assert!(!arguments.join(" ").contains(SECRET), "{arguments:?}");
        assert!(
            !environment.contains(SECRET),
            "the environment of {arguments:?}"
        );
    }
    assert!(tasks == 1 && others >= 4, "{tasks} tasks, {others} others");
    pod.processes_with("sleep")
        .await?
        .first()
        .context("the main process")?;
    Ok(())
}
