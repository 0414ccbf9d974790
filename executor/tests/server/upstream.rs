//! Upstream's routes, request by request.

use serde_json::{Value, json};

use crate::harness::Running;

const TASK: &str = r#"{"name":"a","process":{"command":["true"]}}"#;

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|task| task["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn routes_in_the_order_a_controller_uses_them() {
    let server = Running::open().await;
    let mut client = server.connect().await;
    let mut ask = async |request: &str, body: &str| client.ask(request, body).await.unwrap();

    let none = ask("GET /getTasks", "").await;
    assert_eq!((none.status, none.text()), (200, "[]\n"));
    assert_eq!(none.header("content-type"), Some("application/json"));
    assert_eq!(ask("POST /setTasks", "null").await.text(), "[]\n");

    let set = ask(
        "POST /setTasks",
        &format!(r#"[{TASK},{{"name":""}},null,{{"x":1}}]"#),
    )
    .await;
    assert_eq!(set.status, 200);
    let expected = json!([{
        "name": "a", "process": {"command": ["true"]},
        "processStatus": {"waiting": {"reason": "Pending"}},
    }]);
    assert_eq!(set.json(), expected);
    for list in [
        "GET /getTasks",
        "GET /tasks",
        "GET /tasks?watch=false",
        "GET /getTasks?x=%zz",
    ] {
        assert_eq!(ask(list, "").await.json(), expected, "{list}");
    }
    let changed = TASK.replace("true", "false");
    let again = ask("POST /setTasks", &format!("[{changed}]")).await;
    assert_eq!(
        again.json(),
        expected,
        "a task that is there stays as it is"
    );

    let created = ask("POST /tasks", &TASK.replace(r#""a""#, r#""b""#)).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.json()["name"], "b");
    assert_eq!(
        created.json()["processStatus"]["waiting"]["reason"],
        "Pending"
    );
    let exists = ask("POST /tasks", TASK).await;
    assert_eq!(
        (exists.status, exists.message().as_str()),
        (500, "failed to create task: task a already exists")
    );
    assert_eq!(exists.json()["code"], "Internal Server Error");

    assert_eq!(ask("GET /tasks/a", "").await.json()["name"], "a");
    let missing = ask("GET /tasks/no", "").await;
    assert_eq!(
        (missing.status, missing.message().as_str()),
        (404, "task not found: task no not found")
    );
    assert_eq!(missing.json()["code"], "Not Found");

    for _ in 0..2 {
        let deleted = ask("DELETE /tasks/a", "").await;
        assert_eq!((deleted.status, deleted.text()), (204, ""));
    }
    assert_eq!(names(&ask("GET /getTasks", "").await.json()), ["b"]);
    let replaced = ask(
        "POST /setTasks",
        r#"[{"name":"c","process":{"command":["x"]}}]"#,
    )
    .await;
    assert_eq!(names(&replaced.json()), ["c"]);
    assert_eq!(
        ask("GET /health", "").await.text(),
        "{\"status\":\"healthy\"}\n"
    );
    assert_eq!(server.tasks.created(), ["a", "b", "c"]);
}

#[tokio::test]
async fn bad_bodies_are_answered_in_upstreams_shape() {
    let server = Running::open().await;
    for (path, body, status, message) in [
        (
            "/setTasks",
            "",
            400,
            "invalid request body: it ends before its JSON does",
        ),
        (
            "/setTasks",
            "nonsense",
            400,
            "invalid request body: it is not JSON",
        ),
        (
            "/setTasks",
            "{}",
            400,
            "invalid request body: it needs a list",
        ),
        (
            "/setTasks",
            r#"[{"name":1}]"#,
            400,
            "invalid request body: it needs a string",
        ),
        ("/tasks", "[]x", 400, "invalid request body: it "),
        ("/tasks", "null", 400, "task name is required"),
        (
            "/tasks",
            r#"{"process":{"command":["x"]}}"#,
            400,
            "task name is required",
        ),
        (
            "/tasks",
            r#"{"name":"a/b","process":{"command":["x"]}}"#,
            400,
            "name contains a slash",
        ),
        (
            "/tasks",
            r#"{"name":"a"}"#,
            500,
            "failed to create task: process is missing",
        ),
        (
            "/tasks",
            r#"{"name":"a","process":{}}"#,
            500,
            "failed to create task: process.command is empty",
        ),
        (
            "/tasks",
            r#"{"name":"a","podTemplateSpec":{}}"#,
            500,
            "failed to create task: podTemplateSpec",
        ),
        (
            "/tasks",
            r#"{"name":"unlucky","process":{"command":["x"]}}"#,
            500,
            "failed to create task: no such sandbox",
        ),
        (
            "/tasks",
            r#"{"name":"a","process":{"command":["x"],"env":[{"name":"K","valueFrom":{}}]}}"#,
            400,
            r#"process.env[0] ("K") has valueFrom"#,
        ),
    ] {
        let answer = server.ask(&format!("POST {path}"), body).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(
            answer.message().starts_with(message),
            "{body}: {}",
            answer.message()
        );
    }
    assert!(server.tasks.created().is_empty());
}

#[tokio::test]
async fn set_tasks_applies_what_it_can_and_names_the_rest() {
    let server = Running::open().await;
    let old = r#"{"name":"old","process":{"command":["x"]}}"#;
    assert_eq!(
        server
            .ask("POST /setTasks", &format!("[{old}]"))
            .await
            .status,
        200
    );
    let list = r#"[{"name":"old","process":{"command":["\u0000"]}},{"name":"none"},
        {"name":"new","process":{"command":["x"],"args":["ü"]}},{"name":"n/a","process":{"command":["x"]}},
        {"name":"twice"},{"name":"twice","process":{"command":["last"]}}]"#;
    let answer = server.ask("POST /setTasks", list).await;
    assert_eq!(answer.status, 500);
    let message = answer.message();
    let lines: Vec<_> = message.lines().collect();
    assert_eq!(lines.len(), 2, "{message}");
    assert!(
        lines[0]
            .starts_with("failed to sync tasks: failed to create task none: process is missing")
    );
    assert!(lines[1].starts_with("failed to create task n/a: name contains a slash"));
    assert_eq!(server.tasks.created(), ["old", "new", "twice"]);
    let list = server.ask("GET /getTasks", "").await.json();
    assert_eq!(
        names(&list),
        ["old", "new", "twice"],
        "the one that was there stays"
    );
    assert_eq!(list[2]["process"]["command"], json!(["last"]));
}

#[tokio::test]
async fn strings_come_back_as_they_were() {
    let server = Running::open().await;
    let long = "x".repeat(100 * 1024);
    let task = json!({"name": "näme 名", "unknown": {"deep": [[[]]]}, "process": {
        "command": ["echo", "\u{1F600}\n\t\"\\\u{7f}", long], "args": null,
        "env": [{"name": "A", "value": "<&>"}, {"name": "B"}], "workingDir": "/tmp/ü", "timeoutSeconds": -1,
    }});
    let created = server.ask("POST /tasks", &task.to_string()).await;
    assert_eq!(created.status, 201);
    let created = created.json();
    assert_eq!(created["process"]["command"], task["process"]["command"]);
    assert_eq!(created["process"]["env"], task["process"]["env"]);
    assert_eq!(created["process"]["workingDir"], "/tmp/ü");
    assert_eq!(created["process"]["timeoutSeconds"], -1);
    assert!(created.get("unknown").is_none());
    let path = "/tasks/n%C3%A4me%20%E5%90%8D";
    assert_eq!(server.ask(&format!("GET {path}"), "").await.json(), created);
    assert_eq!(server.ask(&format!("DELETE {path}"), "").await.status, 204);
    assert!(
        server
            .ask("GET /tasks/%ff", "")
            .await
            .message()
            .contains("not found")
    );
}

#[tokio::test]
async fn other_paths_and_methods_are_answered_as_go_answers_them() {
    let server = Running::open().await;
    let text = Some("text/plain; charset=utf-8");
    for path in ["/", "/nope", "/getTasks/", "/tasks/", "/tasks/a/b"] {
        let answer = server.ask(&format!("GET {path}"), "").await;
        assert_eq!(
            (answer.status, answer.text()),
            (404, "404 page not found\n"),
            "{path}"
        );
        assert_eq!(answer.header("content-type"), text);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    for (request, allow) in [
        ("POST /getTasks", "GET, HEAD"),
        ("GET /setTasks", "POST"),
        ("PUT /tasks/a", "DELETE, GET, HEAD"),
        ("DELETE /tasks", "GET, HEAD, POST"),
        ("POST /health", "GET, HEAD"),
    ] {
        let answer = server.ask(request, "").await;
        assert_eq!(
            (answer.status, answer.text()),
            (405, "Method Not Allowed\n"),
            "{request}"
        );
        assert_eq!(answer.header("allow"), Some(allow));
        assert_eq!(answer.header("content-type"), text);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    let moved = server.ask("GET //getTasks?a=1&b=%3C", "").await;
    assert_eq!(
        (moved.status, moved.header("location")),
        (301, Some("/getTasks?a=1&b=%3C"))
    );
    assert_eq!(
        moved.text(),
        "<a href=\"/getTasks?a=1&amp;b=%3C\">Moved Permanently</a>.\n\n"
    );
    assert_eq!(
        moved.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let moved = server.ask("POST /x/../setTasks", "[]").await;
    assert_eq!(
        (moved.status, moved.header("location"), moved.text()),
        (301, Some("/setTasks"), "")
    );
    let bad = server.ask("GET /tasks/%zz", "").await;
    assert_eq!((bad.status, bad.text()), (400, "400 Bad Request"));
    assert_eq!(server.ask("OPTIONS *", "").await.status, 200);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = Running::open().await;
    server.tasks.add("a");
    for path in [
        "/getTasks",
        "/tasks",
        "/tasks?watch=true",
        "/tasks/a",
        "/tasks/no",
        "/health",
        "/readyz",
    ] {
        let get = server
            .ask(&format!("GET {}", path.replace("?watch=true", "")), "")
            .await;
        let mut client = server.connect().await;
        for _ in 0..2 {
            // Twice, which shows that nothing follows the head.
            let head = client.ask(&format!("HEAD {path}"), "").await.unwrap();
            assert_eq!(head.status, get.status, "{path}");
            assert_eq!(
                head.header("content-length"),
                get.header("content-length"),
                "{path}"
            );
        }
    }
    let mut client = server.connect().await;
    for _ in 0..2 {
        assert_eq!(
            client
                .ask("HEAD /tasks/a/logs?follow=true", "")
                .await
                .unwrap()
                .status,
            200
        );
    }
}

#[tokio::test]
async fn readiness_and_metrics_are_told() {
    let server = Running::open().await;
    let ready = server.ask("GET /readyz", "").await;
    assert_eq!(ready.status, 200);
    assert_eq!(
        ready.json(),
        json!({"ready": true, "mode": "inject", "reason": "ready"})
    );
    server.tasks.set_ready(false);
    let unready = server.ask("GET /readyz?verbose", "").await;
    assert_eq!(unready.status, 503);
    assert_eq!(unready.json()["reason"], "ptrace is refused");
    assert_eq!(unready.json()["details"], json!({"ptrace": false}));
    assert_eq!(server.ask("GET /health", "").await.status, 200);
    let metrics = server.ask("GET /metrics", "").await;
    assert!(
        metrics
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let text = metrics.text();
    assert!(text.contains("\ntask_executor_ready 0\n"), "{text}");
    let line = r#"task_executor_http_requests_total{route="readyz",code="503"} 1"#;
    assert!(text.lines().any(|have| have == line), "{text}");
}
