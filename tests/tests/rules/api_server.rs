//! The same comparison with the real API server, by dry-run, with no webhook in the way.

use futures::StreamExt as _;
use opensandbox_tests::cluster;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::Value;

use crate::{by_rust, cases, specs};

/// Calls under way at once.
const PARALLEL: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_gives_the_same_verdict_as_rust() -> anyhow::Result<()> {
    let Some(cluster) = cluster::shared().await? else {
        return Ok(());
    };
    cluster
        .kubectl(&["apply", "--server-side", "-k", &crate_path("config/crd")])
        .await?;
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=30s",
        ])
        .await?;
    let client = cluster.client().await?;
    let namespace = cluster.namespace("rules", &[]).await?;
    let path = format!(
        "/apis/sandbox.opensandbox.io/v1alpha1/namespaces/{}",
        namespace.name
    );

    let mut runner = TestRunner::default();
    let count = cases(1000);
    let objects = (0..count).map(|index| {
        let strategy = match index % 5 {
            0 | 2 => specs::pools(),
            4 => specs::expiring(),
            _ => specs::batch_sandboxes(),
        };
        strategy
            .new_tree(&mut runner)
            .expect("a strategy without filters")
            .current()
    });
    let verdicts = futures::stream::iter(objects)
        .map(|object| {
            let (client, path) = (client.clone(), path.clone());
            async move {
                let refusal = dry_run(&client, &path, &object).await?;
                Ok::<_, anyhow::Error>((object, refusal))
            }
        })
        .buffer_unordered(PARALLEL);
    let mut verdicts = std::pin::pin!(verdicts);
    let (mut allowed, mut refused) = (0u32, 0u32);
    while let Some(verdict) = verdicts.next().await {
        let (object, refusal) = verdict?;
        let rust = by_rust(&object, None);
        anyhow::ensure!(
            rust.is_empty() == refusal.is_none(),
            "rust: {rust:?}\nAPI server: {refusal:?}\n{object}"
        );
        if refusal.is_some() {
            refused += 1;
        } else {
            allowed += 1;
        }
    }
    anyhow::ensure!(
        allowed > count / 10 && refused > count / 10,
        "one-sided cases: {allowed} allowed, {refused} refused"
    );
    namespace.delete().await
}

/// The reason for which the API server refuses an object, if it does.
async fn dry_run(
    client: &kube::Client,
    path: &str,
    object: &Value,
) -> anyhow::Result<Option<String>> {
    let plural = if object["kind"] == "Pool" {
        "pools"
    } else {
        "batchsandboxes"
    };
    let request = http::Request::post(format!("{path}/{plural}?dryRun=All"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(object)?)?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 422 || status.code == 400 => {
            Ok(Some(status.message.clone()))
        }
        Err(error) => Err(error.into()),
    }
}

/// A path in the repository.
fn crate_path(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}
