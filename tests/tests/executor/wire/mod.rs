//! Upstream's API request by request, as bytes, with `--auth=none`: what upstream's controller and
//! client see. One task at a time, as upstream has it, where that matters.

#![cfg(test)]

mod hostile;
mod raw;
mod watch;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opensandbox_tests::executor::ExecutorPod;
use opensandbox_tests::node;
use opensandbox_tests::pods::{Recipe, SANDBOX};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use self::raw::{Reply, call, exchange};

const BOUND: Duration = Duration::from_mins(1);

#[tokio::test]
async fn every_route_answers_as_upstreams() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("wire").await?;
    let recipe = Recipe::new(["serve", "--auth=none", "--max-tasks=1"]).restricted(1000);
    let pod = ExecutorPod::start(&node, &namespace, "wire", &recipe).await?;
    let to = pod.client().address();
    fixed_answers(to).await?;
    bodies(to).await?;
    one_task(&pod, to).await?;
    refusals(to).await?;
    lists(to).await?;
    controller(to).await?;
    pod.delete().await
}

/// Answers that depend on nothing.
async fn fixed_answers(to: SocketAddr) -> Result<()> {
    for (request, status, kind, body) in [
        ("GET /health", 200, JSON, "{\"status\":\"healthy\"}\n"),
        ("HEAD /health", 200, JSON, ""),
        ("GET /getTasks", 200, JSON, "[]\n"),
        ("GET /getTasks?x=y", 200, JSON, "[]\n"),
        ("GET /%67etTasks", 200, JSON, "[]\n"),
        ("GET /tasks/none", 404, JSON, NO_TASK),
        ("DELETE /tasks/none", 204, "", ""),
        ("GET /", 404, TEXT, "404 page not found\n"),
        ("GET /nothing", 404, TEXT, "404 page not found\n"),
        ("POST /nothing", 404, TEXT, "404 page not found\n"),
        ("GET /getTasks/", 404, TEXT, "404 page not found\n"),
        ("GET /tasks/", 404, TEXT, "404 page not found\n"),
        ("GET /tasks/a/b", 404, TEXT, "404 page not found\n"),
        ("GET /setTasks", 405, TEXT, "Method Not Allowed\n"),
        ("PUT /setTasks", 405, TEXT, "Method Not Allowed\n"),
        ("POST /getTasks", 405, TEXT, "Method Not Allowed\n"),
        ("POST /health", 405, TEXT, "Method Not Allowed\n"),
        ("PUT /tasks", 405, TEXT, "Method Not Allowed\n"),
        ("PATCH /tasks/a", 405, TEXT, "Method Not Allowed\n"),
    ] {
        let reply = call(to, request, b"").await?;
        let seen = (
            reply.status,
            reply.header("content-type").unwrap_or_default(),
            reply.text(),
        );
        assert_eq!(seen, (status, kind, body.to_owned()), "{request}");
    }
    for (request, allow) in [
        ("GET /setTasks", "POST"),
        ("POST /getTasks", "GET, HEAD"),
        ("PATCH /tasks/a", "DELETE, GET, HEAD"),
    ] {
        let reply = call(to, request, b"").await?;
        assert_eq!(reply.header("allow"), Some(allow), "{request}");
        assert_eq!(
            reply.header("x-content-type-options"),
            Some("nosniff"),
            "{request}"
        );
    }
    for (request, location) in [
        ("GET //getTasks", "/getTasks"),
        ("POST /./setTasks", "/setTasks"),
        ("GET /tasks/../getTasks?a=b", "/getTasks?a=b"),
    ] {
        let reply = call(to, request, b"").await?;
        let seen = (reply.status, reply.header("location"));
        assert_eq!(seen, (301, Some(location)), "{request}");
    }
    Ok(())
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const NO_TASK: &str =
    "{\"code\":\"Not Found\",\"message\":\"task not found: task none not found\"}\n";

/// A body arrives however HTTP/1.1 lets it arrive.
async fn bodies(to: SocketAddr) -> Result<()> {
    let head = "POST /setTasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    for (about, rest) in [
        ("a length", "Content-Length: 2\r\n\r\n[]"),
        (
            "chunks",
            "Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n",
        ),
        (
            "another type",
            "content-type: text/plain\r\ncontent-length: 4\r\n\r\nnull",
        ),
        (
            "a question before",
            "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n[]",
        ),
    ] {
        let reply = exchange(to, format!("{head}{rest}").as_bytes()).await;
        let reply = reply.context(about)?;
        // An interim answer may come first.
        let good = reply.status == 200 || (reply.status == 100 && reply.text().contains(" 200 "));
        assert!(good, "{about}: {} {}", reply.status, reply.text());
    }
    // Two requests on one connection, as Go's client sends them.
    let two = "GET /getTasks HTTP/1.1\r\nHost: x\r\n\r\n\
               GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut stream = tokio::net::TcpStream::connect(to).await?;
    tokio::io::AsyncWriteExt::write_all(&mut stream, two.as_bytes()).await?;
    let mut answers = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answers);
    tokio::time::timeout(BOUND, read)
        .await
        .context("no end")??;
    assert_eq!(
        answers.matches("HTTP/1.1 200 OK\r\n").count(),
        2,
        "{answers}"
    );
    Ok(())
}

/// The life of a task.
async fn one_task(pod: &ExecutorPod<'_>, to: SocketAddr) -> Result<()> {
    let script = "trap '' TERM; while [ ! -e /tmp/one ]; do sleep 0.05; done; exit 3";
    let process = json!({
        "command": ["sh", "-c", script], "args": ["x"], "env": [{"name": "A", "value": "1"}],
        "workingDir": "/tmp", "timeoutSeconds": 600,
    });
    let task = json!({"name": "one", "process": process});
    let reply = call(to, "POST /tasks", &bytes(&task)).await?;
    let running = json!({
        "name": "one", "process": process,
        "processStatus": {"running": {"startedAt": "TIME"}},
    });
    check(&reply, 201, &running)?;
    check(&call(to, "GET /tasks/one", b"").await?, 200, &running)?;
    check(
        &call(to, "GET /getTasks", b"").await?,
        200,
        &json!([running]),
    )?;
    let length = call(to, "HEAD /tasks/one", b"").await?;
    ensure!(length.status == 200 && length.body.is_empty(), "{length:?}");

    // The name is taken, and so is the only place.
    let reply = call(to, "POST /tasks", &bytes(&task)).await?;
    error(&reply, 500, "Internal Server Error", "already exists")?;
    let other = json!({"name": "two", "process": {"command": ["true"]}});
    let reply = call(to, "POST /tasks", &bytes(&other)).await?;
    error(&reply, 500, "Internal Server Error", "active")?;
    check(
        &call(to, "GET /getTasks", b"").await?,
        200,
        &json!([running]),
    )?;

    // Ordered again it stays as it is, though the order differs.
    let changed = json!([{"name": "one", "process": {"command": ["true"]}}]);
    let reply = call(to, "POST /setTasks", &bytes(&changed)).await?;
    check(&reply, 200, &json!([running]))?;

    // No other task can run, so the file comes from outside.
    pod.exec_ok(SANDBOX, &["touch", "/tmp/one"]).await?;
    ended(to, "one").await?;
    let terminated = json!({
        "name": "one", "process": process,
        "processStatus": {"terminated": {
            "exitCode": 3, "reason": "Failed", "startedAt": "TIME", "finishedAt": "TIME",
        }},
    });
    check(&call(to, "GET /tasks/one", b"").await?, 200, &terminated)?;
    // Its end stays what it is.
    let first = call(to, "GET /tasks/one", b"").await?.text();
    assert_eq!(call(to, "GET /tasks/one", b"").await?.text(), first);
    assert_eq!(call(to, "DELETE /tasks/one", b"").await?.status, 204);
    gone(to, "one").await
}

async fn refusals(to: SocketAddr) -> Result<()> {
    let with = |process: Value| json!({"name": "bad", "process": process});
    for (body, status, part) in [
        (json!({}), 400, "task name is required"),
        (json!(null), 400, "task name is required"),
        (
            json!({"name": "", "process": {"command": ["true"]}}),
            400,
            "task name is required",
        ),
        (
            json!({"name": "a/b", "process": {"command": ["true"]}}),
            400,
            "slash",
        ),
        (json!({"name": "bad"}), 500, "process"),
        (with(json!({"command": []})), 500, "command"),
        (with(json!({"command": null})), 500, "command"),
        (
            json!({"name": "bad", "podTemplateSpec": {"spec": {}}}),
            500,
            "podTemplateSpec",
        ),
        (
            with(
                json!({"command": ["true"], "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}),
            ),
            400,
            "valueFrom",
        ),
        (with(json!({"command": ["true", "a\u{0}b"]})), 400, "NUL"),
        (with(json!({"command": "true"})), 400, ""),
        (json!([]), 400, ""),
        (json!("text"), 400, ""),
    ] {
        let reply = call(to, "POST /tasks", &bytes(&body)).await?;
        let code = if status == 400 {
            "Bad Request"
        } else {
            "Internal Server Error"
        };
        error(&reply, status, code, part).with_context(|| body.to_string())?;
    }
    for body in [
        "",
        "{",
        "[1]",
        "{}",
        "nonsense",
        "[{\"name\":1}]",
        "\u{feff}[]",
        "[{]",
    ] {
        let reply = call(to, "POST /setTasks", body.as_bytes()).await?;
        error(&reply, 400, "Bad Request", "").with_context(|| body.to_owned())?;
    }
    check(&call(to, "GET /getTasks", b"").await?, 200, &json!([]))
}

/// `setTasks` is the whole truth.
async fn lists(to: SocketAddr) -> Result<()> {
    for body in [
        "[]",
        "null",
        " [ ] \n",
        "[null]",
        "[{}]",
        "[{\"name\":\"\"}]",
    ] {
        let reply = call(to, "POST /setTasks", body.as_bytes()).await?;
        check(&reply, 200, &json!([])).with_context(|| body.to_owned())?;
    }
    // One name, two orders: one task, and one run.
    let twice = json!([
        {"name": "twice", "process": {"command": ["sh", "-c", "echo first >> /tmp/twice"]}},
        {"name": "twice", "process": {"command": ["sh", "-c", "echo second >> /tmp/twice"]}},
    ]);
    let reply = call(to, "POST /setTasks", &bytes(&twice)).await?;
    assert_eq!(names(&reply.json()?), ["twice"]);
    ended(to, "twice").await?;
    set_and_wait(to, &json!([])).await?;
    let printed = run(to, "lines", "cat /tmp/twice").await?;
    assert_eq!(printed, "second\n");

    // What nobody can run is told, and the others run.
    let mixed = json!([
        {"name": "fine", "process": {"command": ["true"]}},
        {"name": "bad", "podTemplateSpec": {"spec": {}}},
        {"name": "worse"},
    ]);
    let reply = call(to, "POST /setTasks", &bytes(&mixed)).await?;
    error(&reply, 500, "Internal Server Error", "podTemplateSpec")?;
    let listed = call(to, "GET /getTasks", b"").await?.json()?;
    assert_eq!(names(&listed), ["fine"]);
    ended(to, "fine").await?;

    // More than there are places for: they wait for their turn.
    let sleeps = json!([
        {"name": "first", "process": {"command": ["sleep", "2"]}},
        {"name": "second", "process": {"command": ["sleep", "0.2"]}},
        {"name": "third", "process": {"command": ["sh", "-c", "exit 7"]}},
    ]);
    let reply = call(to, "POST /setTasks", &bytes(&sleeps)).await?;
    let listed = reply.json()?;
    assert_eq!(reply.status, 200, "{listed}");
    let waiting: Vec<_> = listed
        .as_array()
        .context("a list")?
        .iter()
        .filter(|task| task.pointer("/processStatus/waiting/reason") == Some(&json!("Pending")))
        .collect();
    assert!(!waiting.is_empty(), "{listed}");
    let third = ended(to, "third").await?;
    assert_eq!(
        third.pointer("/processStatus/terminated/exitCode"),
        Some(&json!(7))
    );
    for name in ["first", "second"] {
        let task = ended(to, name).await?;
        assert_eq!(
            task.pointer("/processStatus/terminated/exitCode"),
            Some(&json!(0))
        );
    }
    set_and_wait(to, &json!([])).await
}

/// What upstream's controller sends: the one task every three seconds until it has ended, then none
/// until there is none.
async fn controller(to: SocketAddr) -> Result<()> {
    let task = json!([{
        "name": "sandbox-0",
        "process": {"command": ["/bin/sh", "-c", "echo run >> /tmp/runs; sleep 0.5"], "env": null},
        "processStatus": null,
    }]);
    let mut polls = 0;
    let last = wait::until("the end of the task", BOUND, async || {
        let set = call(to, "POST /setTasks", &bytes(&task)).await?;
        ensure!(set.status == 200, "{}", set.text());
        polls += 1;
        let tasks = call(to, "GET /getTasks", b"").await?.json()?;
        ensure!(names(&tasks) == ["sandbox-0"], "{tasks}");
        let task = tasks.get(0).cloned().unwrap_or_default();
        let ended = task.pointer("/processStatus/terminated").is_some();
        Ok(if ended {
            Probe::Done(task)
        } else {
            Probe::not_yet(task)
        })
    })
    .await?;
    assert!(polls > 1, "it was over at once");
    let terminated = last
        .pointer("/processStatus/terminated")
        .context("an end")?;
    assert_eq!(terminated.get("exitCode"), Some(&json!(0)));
    assert_eq!(terminated.get("reason"), Some(&json!("Succeeded")));
    // Until it is released it is ordered again and again, and runs no second time.
    for _ in 0..5 {
        let reply = call(to, "POST /setTasks", &bytes(&task)).await?;
        assert_eq!(without_ours(&reply.json()?), without_ours(&json!([last])));
    }
    set_and_wait(to, &json!([])).await?;
    assert_eq!(run(to, "runs", "cat /tmp/runs").await?, "run\n");

    // A task that does not want to end is told of until it is gone; and then another may come.
    let stubborn = json!([{"name": "stubborn", "process": {
        "command": ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
        "gracePeriodSeconds": 2,
    }}]);
    call(to, "POST /setTasks", &bytes(&stubborn)).await?;
    wait::until("ready", BOUND, async || {
        let output = call(to, "GET /tasks/stubborn/logs", b"").await?.text();
        Ok(if output == "ready\n" {
            Probe::Done(())
        } else {
            Probe::not_yet(output)
        })
    })
    .await?;
    let reply = call(to, "POST /setTasks", b"[]").await?;
    assert_eq!(names(&reply.json()?), ["stubborn"]);
    set_and_wait(to, &json!([])).await?;
    assert_eq!(run(to, "next", "echo next").await?, "next\n");
    Ok(())
}

/// Sends this list until the executor has no other tasks.
async fn set_and_wait(to: SocketAddr, list: &Value) -> Result<()> {
    wait::until("the list", BOUND, async || {
        let reply = call(to, "POST /setTasks", &bytes(list)).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        let told = names(&reply.json()?);
        Ok(if told == names(list) {
            Probe::Done(())
        } else {
            Probe::not_yet(told.join(" "))
        })
    })
    .await
}

/// Runs a script and returns what it printed.
async fn run(to: SocketAddr, name: &str, script: &str) -> Result<String> {
    let task = json!({"name": name, "process": {"command": ["sh", "-c", script]}});
    let reply = call(to, "POST /tasks", &bytes(&task)).await?;
    ensure!(reply.status == 201, "{}", reply.text());
    ended(to, name).await?;
    let output = call(to, &format!("GET /tasks/{name}/logs"), b"")
        .await?
        .text();
    call(to, &format!("DELETE /tasks/{name}"), b"").await?;
    gone(to, name).await?;
    Ok(output)
}

async fn ended(to: SocketAddr, name: &str) -> Result<Value> {
    wait::until(&format!("the end of {name}"), BOUND, async || {
        let task = call(to, &format!("GET /tasks/{name}"), b"").await?.json()?;
        let ended = task.pointer("/processStatus/terminated").is_some();
        Ok(if ended {
            Probe::Done(task)
        } else {
            Probe::not_yet(task)
        })
    })
    .await
}

async fn gone(to: SocketAddr, name: &str) -> Result<()> {
    wait::until(&format!("{name} to be gone"), BOUND, async || {
        let reply = call(to, &format!("GET /tasks/{name}"), b"").await?;
        Ok(if reply.status == 404 {
            Probe::Done(())
        } else {
            Probe::not_yet(reply.text())
        })
    })
    .await
}

/// The answer has this status, and its body is this, with `TIME` for times, and without our fields.
fn check(reply: &Reply, status: u16, expected: &Value) -> Result<()> {
    let body = without_ours(&reply.json()?);
    ensure!(
        (reply.status, &body) == (status, expected),
        "{} {body}, not {status} {expected}",
        reply.status
    );
    Ok(())
}

/// What upstream would have sent: without `outcome`, and times as `TIME` if they are times.
fn without_ours(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| *name != "outcome")
            .map(|(name, value)| {
                let time = name.ends_with("At") && value.as_str().is_some_and(is_time);
                let value = if time {
                    json!("TIME")
                } else {
                    without_ours(value)
                };
                (name.clone(), value)
            })
            .collect(),
        Value::Array(list) => list.iter().map(without_ours).collect(),
        other => other.clone(),
    }
}

fn is_time(text: &str) -> bool {
    text.len() == 20 && text.parse::<jiff::Timestamp>().is_ok()
}

/// The answer is an error in upstream's shape, and its message contains this.
fn error(reply: &Reply, status: u16, code: &str, part: &str) -> Result<()> {
    let body = reply.json()?;
    let message = body
        .get("message")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let fields = body.as_object().map_or(0, serde_json::Map::len);
    let good = reply.status == status
        && fields == 2
        && body.get("code") == Some(&json!(code))
        && !message.is_empty()
        && message.contains(part);
    ensure!(good, "{} {body}, not {status} with {part:?}", reply.status);
    Ok(())
}

fn names(tasks: &Value) -> Vec<String> {
    let tasks = tasks.as_array().into_iter().flatten();
    let mut names: Vec<_> = tasks
        .filter_map(|task| Some(task.get("name")?.as_str()?.to_owned()))
        .collect();
    names.sort_unstable();
    names
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
