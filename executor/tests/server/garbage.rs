//! Whatever is sent, the server answers or closes, and goes on.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use task_executor::server::Limits;
use tokio::io::AsyncReadExt;

use crate::harness::{Running, bounded};

/// JSON of any shape, with our fields in it more often than not.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "[\\x00-\\x20]{0,3}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("name".to_owned()),
        Just("process".to_owned()),
        Just("command".to_owned()),
        Just("env".to_owned()),
        Just("value".to_owned()),
        Just("uid".to_owned()),
        Just("timeoutSeconds".to_owned()),
        Just("podTemplateSpec".to_owned()),
        "[a-z]{0,4}",
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[test]
fn bodies_of_any_kind_are_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(Running::open());
    let body = prop_oneof![
        any_json().prop_map(|json| json.to_string()),
        any_json().prop_map(|json| format!("[{json}]")),
        "\\PC{0,80}",
        any_json().prop_map(|json| {
            let mut text = json.to_string();
            text.pop();
            text
        }),
    ];
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&(body, any::<bool>()), |(body, list)| {
            let request = if list {
                "POST /setTasks"
            } else {
                "POST /tasks"
            };
            let answer = runtime.block_on(server.ask(request, &body));
            prop_assert!(
                matches!(answer.status, 200 | 201 | 400 | 500),
                "{}",
                answer.status
            );
            answer.json();
            if serde_json::from_str::<Value>(&body).is_err() {
                prop_assert_eq!(answer.status, 400);
            }
            if answer.status == 500 {
                // Not for what cannot be read, only for tasks that cannot be made.
                prop_assert!(answer.message().contains("failed to create task"));
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn bytes_of_any_kind_end_in_an_answer_or_a_close() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Some of the bytes are a request on a connection that is to be kept.
    let limits = Limits {
        idle: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = runtime.block_on(Running::limited(limits));
    let targets = "(GET|POST|DELETE|HEAD|PUT|X) [/a-z.%?&=*0-9~]{1,30}";
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        targets.prop_map(
            |line| format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
        ),
        "(GET|POST) /getTasks HTTP/[0-9]\\.[0-9]\r\n\\PC{1,50}\r\n\r\n"
            .prop_map(String::into_bytes),
    ];
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&bytes, |bytes| {
            runtime.block_on(async {
                let mut client = server.connect().await;
                let _ = client.send(&bytes).await;
                // A head without an end would be waited for.
                if !bytes.ends_with(b"\r\n\r\n") {
                    let _ = bounded(tokio::io::AsyncWriteExt::shutdown(&mut client.0)).await;
                }
                let mut answer = Vec::new();
                let _ = bounded(client.0.read_to_end(&mut answer)).await;
                prop_assert!(
                    !answer.starts_with(b"HTTP/1.1 5"),
                    "{:?}",
                    String::from_utf8_lossy(&answer)
                );
                Ok(())
            })
        })
        .unwrap();
    let status = runtime.block_on(server.ask("GET /health", "")).status;
    assert_eq!(status, 200);
}
