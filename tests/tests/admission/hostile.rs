//! Requests that no API server sends, straight to the port of the webhook.

use std::time::Duration;

use anyhow::{Result, ensure};
use opensandbox_tests::wait::{self, Probe};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::direct::{connect, post, raw, sender, status};
use crate::pools::{lacks, pool};
use crate::site::{BOUND, Failures, Site, own, shared};
use crate::support::{anything, cases, pools};

const MUTATE: &str = "/mutate-sandbox-opensandbox-io-v1alpha1-pool";
const PATHS: [&str; 3] = [
    MUTATE,
    "/validate-sandbox-opensandbox-io-v1alpha1-pool",
    "/validate-sandbox-opensandbox-io-v1alpha1-batchsandbox",
];
/// Most that the process may ever hold: the limit of its container in config/webhook, less some. The
/// bound on bodies in flight is 64 MiB; growing buffers may leave as much behind for a moment.
const MOST_MEMORY: u64 = 224 * 1024 * 1024;
/// What it is back to when nobody sends anything.
const CALM_MEMORY: u64 = 112 * 1024 * 1024;

fn review(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "resource": { "group": "sandbox.opensandbox.io", "version": "v1alpha1", "resource": "pools" },
            "namespace": "default",
            "operation": "CREATE",
            "userInfo": { "username": "jane" },
            "object": object,
        },
    })
}

/// It still does its work, for the API server too.
async fn still_serves(site: &Site) -> Result<()> {
    let place = site.place(&[]).await?;
    let stored = place
        .create(&pool("after"), "")
        .await?
        .map_err(anyhow::Error::msg)?;
    ensure!(lacks(&stored).is_empty(), "{:?}", lacks(&stored));
    let memory = site.webhook.replicas()[0].program.rss_bytes()?;
    ensure!(memory < MOST_MEMORY, "{memory} bytes are resident");
    Ok(())
}

#[tokio::test]
async fn what_is_no_review_is_answered_in_the_400s() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    let right = review(&pool("p")).to_string();
    let json_type = "application/json";
    let half = right.len() / 2;
    let mut deep = b"[".repeat(100_000);
    deep.extend(b"]".repeat(100_000));
    let mut other_kind = review(&pool("p"));
    other_kind["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let cases: Vec<(&str, &str, &str, Vec<u8>, u16)> = vec![
        (
            "a right one",
            MUTATE,
            json_type,
            right.clone().into_bytes(),
            200,
        ),
        ("an empty body", MUTATE, json_type, Vec::new(), 400),
        (
            "half of a review",
            MUTATE,
            json_type,
            right.as_bytes()[..half].to_vec(),
            400,
        ),
        ("text", MUTATE, json_type, b"hello".to_vec(), 400),
        ("not UTF-8", MUTATE, json_type, vec![0xff; 64], 400),
        ("null", MUTATE, json_type, b"null".to_vec(), 400),
        ("a list", MUTATE, json_type, b"[]".to_vec(), 400),
        ("an empty object", MUTATE, json_type, b"{}".to_vec(), 400),
        ("deeply nested", MUTATE, json_type, deep, 400),
        (
            "another version",
            MUTATE,
            json_type,
            other_kind.to_string().into_bytes(),
            400,
        ),
        (
            "a pod",
            MUTATE,
            json_type,
            json!({ "apiVersion": "v1", "kind": "Pod" })
                .to_string()
                .into_bytes(),
            400,
        ),
        (
            "no request",
            MUTATE,
            json_type,
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#.to_vec(),
            400,
        ),
        (
            "YAML",
            MUTATE,
            "application/yaml",
            right.clone().into_bytes(),
            415,
        ),
        (
            "a form",
            MUTATE,
            "application/x-www-form-urlencoded",
            right.clone().into_bytes(),
            415,
        ),
        (
            "another path",
            "/mutate",
            json_type,
            right.clone().into_bytes(),
            404,
        ),
        ("9 MiB", MUTATE, json_type, vec![b' '; 9 * 1024 * 1024], 413),
    ];
    for (what, path, content_type, body, expected) in cases {
        let answer = post(&mut sender(site).await?, path, content_type, body).await;
        failures.check(
            answer.as_ref().is_ok_and(|(status, _)| *status == expected),
            || format!("{what}: {answer:?} instead of {expected}"),
        );
    }
    still_serves(site).await?;
    failures.told()
}

#[tokio::test]
async fn objects_of_every_wrong_type_are_denied_in_a_review() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    let mut sender = sender(site).await?;
    for object in [
        json!(null),
        json!(7),
        json!("pool"),
        json!([]),
        json!({}),
        json!({ "metadata": [] }),
        json!({ "metadata": { "name": "p" }, "spec": 3 }),
    ] {
        for path in PATHS {
            let mut review = review(&object);
            if path.ends_with("batchsandbox") {
                review["request"]["resource"]["resource"] = json!("batchsandboxes");
            }
            let (status, body) = post(
                &mut sender,
                path,
                "application/json",
                review.to_string().into_bytes(),
            )
            .await?;
            let answer: Value = serde_json::from_str(&body)?;
            let denied = answer["response"]["allowed"] == json!(false)
                && answer["response"]["uid"] == json!("u-1");
            failures.check(status == 200 && denied, || {
                format!("{path} {object}: {status} {body}")
            });
            let message = answer
                .pointer("/response/status/message")
                .and_then(Value::as_str)
                .unwrap_or_default();
            failures.check(
                message.contains("spec") || message.contains("metadata"),
                || format!("{path} {object}: {message}"),
            );
        }
    }
    // Another resource on this path: the configuration is wrong, and the answer says so.
    let mut other = review(&pool("p"));
    other["request"]["resource"]["resource"] = json!("pods");
    let (_, body) = post(
        &mut sender,
        MUTATE,
        "application/json",
        other.to_string().into_bytes(),
    )
    .await?;
    failures.check(
        body.contains("\"allowed\":false") && body.contains("webhook configuration"),
        || body,
    );
    failures.told()
}

#[tokio::test]
async fn bytes_that_are_no_request_end_the_connection_and_nothing_else() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut failures = Failures::default();
    let head = format!("POST {MUTATE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let announced = |length: u64, body: &str| {
        format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, bool, &[u16])> = vec![
        ("nothing", Vec::new(), true, &[]),
        (
            "no HTTP",
            b"\x16\x03\x01\x02\x00\x01\x00 hello\r\n\r\n".to_vec(),
            false,
            &[400],
        ),
        (
            "a body cut short",
            announced(1000, "{\"apiVersion\":"),
            true,
            &[400],
        ),
        (
            "an announcement of 9 MiB",
            announced(9 * 1024 * 1024, ""),
            false,
            &[413],
        ),
        (
            "an announcement of all there is",
            announced(u64::MAX - 1, ""),
            false,
            &[400, 413, 431],
        ),
        (
            "two lengths",
            format!("{head}content-length: 5\r\ncontent-length: 6\r\n\r\nhello").into_bytes(),
            false,
            &[400],
        ),
        (
            "a wrong chunk",
            format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n").into_bytes(),
            true,
            &[400],
        ),
        (
            "headers without end",
            [head.as_bytes(), &b"x-a: b\r\n".repeat(20_000)].concat(),
            false,
            &[400, 431],
        ),
        (
            "a long path",
            format!("POST /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000)).into_bytes(),
            false,
            &[400, 414, 431, 404],
        ),
        (
            "GET",
            format!("GET {MUTATE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes(),
            false,
            &[405],
        ),
        (
            "DELETE",
            format!("DELETE {MUTATE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .into_bytes(),
            false,
            &[405],
        ),
        // Without its end: closed when the time for headers is over.
        (
            "a head that never ends",
            head.clone().into_bytes(),
            false,
            &[408, 400],
        ),
    ];
    for (what, text, then_close, allowed) in cases {
        let answer = raw(site, &text, then_close).await?;
        let status = status(&answer);
        failures.check(
            status.is_none_or(|status| allowed.contains(&status)),
            || format!("{what}: {answer}"),
        );
    }
    still_serves(site).await?;
    failures.told()
}

/// With an installation of its own, because its memory is measured.
#[tokio::test]
async fn memory_stays_bounded_under_many_large_and_slow_requests() -> Result<()> {
    let Some(site) = own().await? else {
        return Ok(());
    };
    let mut most = 0;
    let mut slow = Vec::new();
    for index in 0..60 {
        let mut stream = connect(&site).await?;
        // Some announce their length, some send chunks; each holds 4 MiB and does not end.
        let framing = if index % 2 == 0 {
            "content-length: 8388608"
        } else {
            "transfer-encoding: chunked"
        };
        let head = format!(
            "POST {MUTATE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{framing}\r\n\r\n"
        );
        let chunk = if index % 2 == 0 {
            String::new()
        } else {
            "400000\r\n".to_owned()
        };
        let body = vec![b' '; 4 * 1024 * 1024];
        let write = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(chunk.as_bytes()).await?;
            stream.write_all(&body).await
        };
        // Where there is no room for a body, it is not taken off the wire.
        tokio::time::timeout(Duration::from_millis(100), write)
            .await
            .map(Result::ok)
            .ok();
        slow.push(stream);
        most = most.max(site.webhook.replicas()[0].program.rss_bytes()?);
    }
    ensure!(most < MOST_MEMORY, "{most} bytes were resident");
    drop(slow);
    for _ in 0..20 {
        // Refused by its length before it is read; the connection may close while it is sent.
        post(
            &mut sender(&site).await?,
            MUTATE,
            "application/json",
            vec![b' '; 9 * 1024 * 1024],
        )
        .await
        .ok();
        most = most.max(site.webhook.replicas()[0].program.rss_bytes()?);
    }
    ensure!(most < MOST_MEMORY, "{most} bytes were resident");
    // The allocator gives back as the program goes on, which it does only while it is asked something.
    wait::until("the memory to be given back", BOUND, async || {
        still_serves(&site).await?;
        let resident = site.webhook.replicas()[0].program.rss_bytes()?;
        Ok(if resident < CALM_MEMORY {
            Probe::Done(())
        } else {
            Probe::not_yet(resident)
        })
    })
    .await
}

/// A review with odd parts here and there.
fn reviews() -> BoxedStrategy<Value> {
    let object = prop_oneof![3 => pools(), 1 => anything()];
    let old = prop_oneof![1 => Just(Value::Null), 2 => pools(), 1 => anything()];
    let operation = select(vec![
        json!("CREATE"),
        json!("UPDATE"),
        json!("UPDATE"),
        json!("DELETE"),
        json!("CONNECT"),
        json!(""),
        json!(1),
    ]);
    let resource = select(vec!["pools", "pools", "batchsandboxes", "pods"]);
    let field = select(vec![
        "uid",
        "resource",
        "namespace",
        "name",
        "operation",
        "userInfo",
        "subResource",
        "dryRun",
        "kind",
        "options",
    ]);
    let spoilt = prop_oneof![4 => Just(None), 1 => (field, anything()).prop_map(Some)];
    (object, old, operation, resource, spoilt)
        .prop_map(|(object, old, operation, resource, spoilt)| {
            let mut review = review(&object);
            review["request"]["oldObject"] = old;
            review["request"]["operation"] = operation;
            review["request"]["resource"]["resource"] = json!(resource);
            if let Some((field, value)) = spoilt {
                review["request"][field] = value;
            }
            review
        })
        .boxed()
}

#[tokio::test]
async fn random_reviews_are_answered_and_never_by_a_failure_of_the_server() -> Result<()> {
    let Some(site) = shared().await? else {
        return Ok(());
    };
    let mut runner = TestRunner::default();
    let strategy = prop_oneof![9 => reviews(), 1 => anything()];
    let mut sender = sender(site).await?;
    let (mut answered, mut refused) = (0_u32, 0_u32);
    for index in 0..cases() as usize {
        let body = strategy
            .new_tree(&mut runner)
            .expect("a strategy without filters")
            .current();
        let (status, answer) = post(
            &mut sender,
            PATHS[index % 3],
            "application/json",
            body.to_string().into_bytes(),
        )
        .await?;
        match status {
            200 => {
                answered += 1;
                let answer: Value = serde_json::from_str(&answer)?;
                let response = &answer["response"];
                ensure!(
                    response["uid"] == body["request"]["uid"] && response["allowed"].is_boolean(),
                    "{body}\n{answer}"
                );
                let denied = response["allowed"] == json!(false);
                ensure!(
                    !denied || response.get("patch").is_none(),
                    "{body}\n{answer}"
                );
                ensure!(
                    denied == response.pointer("/status/message").is_some(),
                    "{body}\n{answer}"
                );
            }
            400 => refused += 1,
            other => anyhow::bail!("{other}: {answer}\n{body}"),
        }
    }
    ensure!(
        answered > refused && refused > 0,
        "one-sided cases: {answered} answered, {refused} refused"
    );
    still_serves(site).await
}
