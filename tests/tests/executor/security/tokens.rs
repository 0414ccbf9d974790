//! Requests through the pod network with every kind of token but a good one: refused, nothing run.

#![cfg(test)]

use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use opensandbox_api::task::ErrorBody;
use opensandbox_api::token::Claims;
use opensandbox_tests::executor::{Reply, Signer, task};
use opensandbox_tests::node;

use super::{Signed, recipe};

const TARGET: &str = "/setTasks";
/// `{"alg":"none"}` as the head of a token.
const NO_ALGORITHM: &str = "eyJhbGciOiJub25lIn0";
const HOUR: u64 = 3600;

/// What would leave a file if it were run.
fn forgery(name: &str) -> Result<Vec<u8>> {
    let task = task(name, &["touch", &format!("/tmp/forged-{name}")]);
    Ok(serde_json::to_vec(&[task])?)
}

fn refused(what: &str, reply: &Reply) -> Result<()> {
    ensure!(
        reply.status == StatusCode::UNAUTHORIZED,
        "{what}: {} {}",
        reply.status,
        reply.text()
    );
    let body: ErrorBody = serde_json::from_slice(&reply.body)?;
    assert_eq!(body.code, "Unauthorized", "{what}");
    assert!(!body.message.is_empty(), "{what}");
    assert!(reply.headers.contains_key("www-authenticate"), "{what}");
    Ok(())
}

impl Signed<'_> {
    /// A token for this order, except for one thing.
    fn bad_tokens(&self, body: &[u8]) -> Result<Vec<(&'static str, Option<String>)>> {
        let good = || self.signer.sign("POST", TARGET, body);
        let changed =
            |change: fn(&mut Claims)| self.signer.sign_changed("POST", TARGET, body, change);
        let parts = |token: String| token.split('.').map(str::to_owned).collect::<Vec<_>>();
        let (one, other) = (parts(good()?), parts(good()?));
        let foreign_key = Signer::new(Signer::new_key()?, self.pod_uid()?);
        let foreign_pod = Signer::new(
            Arc::clone(&self.key),
            "00000000-0000-0000-0000-000000000000",
        );
        let some = |name, token| (name, Some(token));
        Ok(vec![
            ("none", None),
            some("empty", String::new()),
            some("garbage", "garbage".to_owned()),
            some("dots", "..".to_owned()),
            some("no-signature", format!("{}.{}.", one[0], one[1])),
            some("no-algorithm", format!("{NO_ALGORITHM}.{}.", one[1])),
            some(
                "no-algorithm-signed",
                format!("{NO_ALGORITHM}.{}.{}", one[1], one[2]),
            ),
            some(
                "others-signature",
                format!("{}.{}.{}", one[0], one[1], other[2]),
            ),
            some("foreign-key", foreign_key.sign("POST", TARGET, body)?),
            some("foreign-pod", foreign_pod.sign("POST", TARGET, body)?),
            some(
                "expired",
                changed(|claims| {
                    claims.iat -= HOUR;
                    claims.exp -= HOUR;
                })?,
            ),
            some(
                "future",
                changed(|claims| {
                    claims.iat += HOUR;
                    claims.exp += HOUR;
                })?,
            ),
            some("long", changed(|claims| claims.exp = claims.iat + HOUR)?),
            some(
                "issuer",
                changed(|claims| "somebody".clone_into(&mut claims.iss))?,
            ),
            some("no-pod", changed(|claims| claims.aud.clear())?),
            some("method", self.signer.sign("PUT", TARGET, body)?),
            some("path", self.signer.sign("POST", "/tasks", body)?),
            some("query", self.signer.sign("POST", "/setTasks?x", body)?),
            some("body", self.signer.sign("POST", TARGET, b"[]")?),
        ])
    }

    fn pod_uid(&self) -> Result<String> {
        // Of a token, whose second part says whom it is for; the signer knows it, and this is its
        // only way to tell.
        let mut uid = None;
        self.signer
            .sign_changed("GET", "/", b"", |claims| uid = Some(claims.aud.clone()))?;
        uid.context("a token is for a pod")
    }

    /// Nothing that was refused left a trace.
    async fn nothing_was_run(&self) -> Result<()> {
        let files = fs::read_dir(self.pod.file("/tmp").await?)?;
        let names: Vec<_> = files
            .map(|file| Ok(file?.file_name()))
            .collect::<Result<_>>()?;
        let forged = names
            .iter()
            .filter(|name| name.to_string_lossy().starts_with("forged"));
        assert_eq!(forged.count(), 0, "{names:?}");
        let tasks = self.pod.client().tasks().await?;
        assert!(tasks.iter().all(|task| task.name == "good"), "{tasks:?}");
        Ok(())
    }
}

#[tokio::test]
async fn only_a_good_token_is_good_and_only_once() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("tokens").await?;
    let signed = Signed::start(&node, &namespace, "signed", &recipe().restricted(1000)).await?;
    let client = signed.pod.client();
    let body = forgery("order")?;
    for (what, token) in signed.bad_tokens(&body)? {
        let reply = client
            .send_with("POST", TARGET, &body, token.as_deref())
            .await?;
        refused(what, &reply)?;
    }
    for (method, target) in [
        ("GET", "/getTasks"),
        ("GET", "/tasks"),
        ("GET", "/tasks?watch=true"),
        ("POST", "/tasks"),
        ("GET", "/tasks/good"),
        ("GET", "/tasks/good/logs"),
        ("DELETE", "/tasks/good"),
    ] {
        let reply = client
            .send_with(method, target, &forgery("route")?, None)
            .await?;
        refused(&format!("{method} {target}"), &reply)?;
    }
    // What everybody may ask says nothing about tasks.
    for target in ["/health", "/readyz", "/readyz?verbose", "/metrics"] {
        let reply = client
            .send_with("GET", target, b"", None)
            .await?
            .expect(StatusCode::OK)?;
        assert!(!reply.text().contains("forged"), "{target}");
    }
    signed.nothing_was_run().await?;

    // A good one is good, and then used up: for the same order, for the other pod, after a restart.
    let good = serde_json::to_vec(&[task("good", &["sh", "-c", "echo run >> /tmp/good"])])?;
    client
        .wait_ready(std::time::Duration::from_secs(30))
        .await?;
    client.set_tasks(&[]).await?;
    let token = signed.signer.sign("POST", TARGET, &good)?;
    let send = async || client.send_with("POST", TARGET, &good, Some(&token)).await;
    send().await?.expect(StatusCode::OK)?;
    client
        .wait_ended("good", std::time::Duration::from_secs(30))
        .await?;
    client
        .delete_and_wait("good", std::time::Duration::from_secs(30))
        .await?;
    refused("replayed", &send().await?)?;
    let fresh = signed.signer.sign("POST", TARGET, &body)?;
    signed.pod.crash_executor().await?;
    refused("replayed after a restart", &send().await?)?;
    let reply = client
        .send_with("POST", TARGET, &body, Some(&fresh))
        .await?;
    refused("of the time before the restart", &reply)?;
    assert_eq!(
        fs::read_to_string(signed.pod.file("/tmp/good").await?)?,
        "run\n"
    );
    signed.nothing_was_run().await?;

    let other = Signed::start(&node, &namespace, "other", &recipe().restricted(1000)).await?;
    let reply = other
        .pod
        .client()
        .send_with("POST", TARGET, &good, Some(&token))
        .await?;
    refused("of another pod", &reply)?;
    other.nothing_was_run().await?;
    other.pod.delete().await?;
    signed.pod.delete().await
}

#[tokio::test]
async fn without_a_key_nobody_is_served() -> Result<()> {
    let Some(node) = node::shared().await? else {
        return Ok(());
    };
    let namespace = node.namespace("tokens").await?;
    let recipe = recipe().restricted(1000);
    let pod =
        opensandbox_tests::executor::ExecutorPod::start_unready(&node, &namespace, "none", &recipe);
    let pod = pod.await?;
    let key = Signer::new_key()?;
    let signer = Signer::new(key, pod.uid().await?);
    let body = forgery("no-key")?;
    let client = pod.client();
    opensandbox_tests::wait::until(
        "the executor to listen",
        std::time::Duration::from_secs(30),
        async || {
            Ok(match client.readiness().await {
                Ok(_) => opensandbox_tests::wait::Probe::Done(()),
                Err(error) => opensandbox_tests::wait::Probe::not_yet(error),
            })
        },
    )
    .await?;
    for token in [None, Some(signer.sign("POST", TARGET, &body)?)] {
        let reply = client
            .send_with("POST", TARGET, &body, token.as_deref())
            .await?;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert!(
            reply.text().contains("TASK_EXECUTOR_VERIFICATION_KEY"),
            "{}",
            reply.text()
        );
    }
    assert!(!fs::exists(pod.file("/tmp/forged-no-key").await?)?);
    pod.delete().await
}
