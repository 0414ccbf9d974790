//! The local cluster itself: a real API server, users, namespaces, restarts, and nothing left behind.
#![expect(clippy::tests_outside_test_module, reason = "integration test")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use opensandbox_tests::cluster::{client_of, shared, start_or_skip};
use opensandbox_tests::component::{ETCD, KUBE_API_SERVER};
use opensandbox_tests::wait::{self, Probe};
use opensandbox_tests::{LocalCluster, Settings, TestNamespace, kubernetes};

const BOUND: Duration = Duration::from_secs(30);
/// Tells this program, started again, to be the process that is killed.
const VICTIM: &str = "OPENSANDBOX_TEST_VICTIM";
/// Precedes what the victim tells.
const TOLD: &str = "victim: ";

async fn create_config_map(namespace: &TestNamespace, name: &str) -> Result<()> {
    let config_map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        data: Some(BTreeMap::from([("key".to_owned(), "value".to_owned())])),
        ..Default::default()
    };
    namespace
        .api::<ConfigMap>()
        .create(&PostParams::default(), &config_map)
        .await?;
    Ok(())
}

async fn whoami(cluster: &LocalCluster, kubeconfig: &Path) -> Result<(String, Vec<String>)> {
    let mut command = cluster.kubectl_command(kubeconfig);
    let output = command
        .args(["auth", "whoami", "-o", "json"])
        .output()
        .await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let review: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| stderr.into_owned())?;
    let user = review
        .pointer("/status/userInfo/username")
        .cloned()
        .unwrap_or_default();
    let groups = review
        .pointer("/status/userInfo/groups")
        .cloned()
        .unwrap_or_default();
    Ok((
        serde_json::from_value(user)?,
        serde_json::from_value(groups)?,
    ))
}

#[tokio::test]
async fn api_server_is_ready_and_of_the_pinned_version() -> Result<()> {
    let Some(cluster) = shared().await? else {
        return Ok(());
    };
    let ready = cluster.kubectl(&["get", "--raw", "/readyz"]).await?;
    ensure!(ready == "ok", "{ready}");
    let versions = cluster.kubectl(&["version", "--output", "json"]).await?;
    let versions: serde_json::Value = serde_json::from_str(&versions)?;
    // Somebody's own programs may be of another version.
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        for side in ["/clientVersion/gitVersion", "/serverVersion/gitVersion"] {
            let version = versions.pointer(side).and_then(|version| version.as_str());
            ensure!(version == Some(kubernetes::VERSION), "{side}: {version:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn kubectl_applies_its_input_and_tells_why_it_failed() -> Result<()> {
    let Some(cluster) = shared().await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("kubectl", &[]).await?;
    let apply = ["apply", "--namespace", &namespace.name, "--filename", "-"];
    let object = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}}"#;
    let printed = cluster.kubectl_with_input(&apply, object).await?;
    ensure!(printed == "configmap/applied created\n", "{printed}");
    namespace.api::<ConfigMap>().get("applied").await?;

    let error = cluster
        .kubectl_with_input(&apply, "kind: Nonsense")
        .await
        .err();
    let error = error.context("nonsense was applied")?.to_string();
    ensure!(error.starts_with("kubectl apply --namespace"), "{error}");
    ensure!(error.contains("apiVersion not set"), "{error}");
    Ok(())
}

#[tokio::test]
async fn namespaces_keep_tests_apart() -> Result<()> {
    let Some(cluster) = shared().await? else {
        return Ok(());
    };
    let one = cluster
        .namespace("apart", &[("example.com/which", "one")])
        .await?;
    let other = cluster.namespace("apart", &[]).await?;
    ensure!(one.name != other.name && one.name.starts_with("apart-"));
    create_config_map(&one, "same-name").await?;
    create_config_map(&other, "same-name").await?;
    create_config_map(&one, "another").await?;
    for (namespace, count) in [(&one, 2), (&other, 1)] {
        let config_maps = namespace
            .api::<ConfigMap>()
            .list(&ListParams::default())
            .await?;
        ensure!(config_maps.items.len() == count, "{}", namespace.name);
    }
    let labelled = [
        "get",
        "namespaces",
        "--selector",
        "example.com/which=one",
        "--output",
        "name",
    ];
    ensure!(cluster.kubectl(&labelled).await? == format!("namespace/{}\n", one.name));
    one.delete().await?;
    other.delete().await
}

#[tokio::test]
async fn a_user_may_do_what_roles_allow_and_no_more() -> Result<()> {
    let Some(cluster) = shared().await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("users", &[]).await?;
    let user = "system:serviceaccount:opensandbox-system:somebody";
    let groups = [
        "system:serviceaccounts",
        "system:serviceaccounts:opensandbox-system",
    ];
    let kubeconfig = cluster.kubeconfig_for(user, &groups)?;
    let (name, member_of) = whoami(&cluster, &kubeconfig).await?;
    ensure!(name == user, "{name}");
    for group in groups.into_iter().chain(["system:authenticated"]) {
        ensure!(
            member_of.iter().any(|member_of| member_of == group),
            "{member_of:?}"
        );
    }

    let client = client_of(&kubeconfig).await?;
    let config_maps = kube::Api::<ConfigMap>::namespaced(client, &namespace.name);
    match config_maps.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        other => bail!("expected to be forbidden, got {other:?}"),
    }
    let namespace_flag = format!("--namespace={}", namespace.name);
    let role = [
        "create",
        "role",
        "readers",
        "--verb=list",
        "--resource=configmaps",
    ];
    cluster
        .kubectl(&[role.as_slice(), &[&namespace_flag]].concat())
        .await?;
    // For the second of the groups, which is the one that is hard to get into a certificate.
    let group = format!("--group={}", groups[1]);
    let binding = ["create", "rolebinding", "readers", "--role=readers", &group];
    cluster
        .kubectl(&[binding.as_slice(), &[&namespace_flag]].concat())
        .await?;
    // The API server learns of the role from its own watch.
    wait::until("the role to take effect", BOUND, async || {
        Ok(match config_maps.list(&ListParams::default()).await {
            Ok(_) => Probe::Done(()),
            Err(error) => Probe::not_yet(error),
        })
    })
    .await?;
    match config_maps.delete("any", &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        other => bail!("expected to be forbidden, got {other:?}"),
    }
}

#[tokio::test]
async fn a_service_account_logs_in_with_its_token() -> Result<()> {
    let Some(cluster) = shared().await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("accounts", &[]).await?;
    let missing = cluster
        .service_account_kubeconfig(&namespace.name, "robot")
        .await;
    ensure!(missing.is_err(), "there is no such account yet");
    cluster
        .kubectl(&[
            "create",
            "serviceaccount",
            "robot",
            "--namespace",
            &namespace.name,
        ])
        .await?;
    let kubeconfig = cluster
        .service_account_kubeconfig(&namespace.name, "robot")
        .await?;
    let (user, groups) = whoami(&cluster, &kubeconfig).await?;
    ensure!(
        user == format!("system:serviceaccount:{}:robot", namespace.name),
        "{user}"
    );
    ensure!(
        groups.contains(&format!("system:serviceaccounts:{}", namespace.name)),
        "{groups:?}"
    );
    Ok(())
}

#[tokio::test]
async fn restarts_keep_the_data() -> Result<()> {
    let settings = Settings {
        audit: true,
        ..Settings::default()
    };
    let Some(cluster) = start_or_skip(settings).await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("restart", &[]).await?;
    create_config_map(&namespace, "kept").await?;

    cluster.stop_api_server().await?;
    let error = cluster.kubectl(&["get", "--raw", "/readyz"]).await.err();
    let error = error.context("a stopped API server answered")?.to_string();
    ensure!(error.contains("refused"), "{error}");
    cluster.start_api_server().await?;
    namespace.api::<ConfigMap>().get("kept").await?;

    cluster.kill(KUBE_API_SERVER).await?;
    cluster.kill(ETCD).await?;
    cluster.resume(ETCD).await?;
    cluster.resume(KUBE_API_SERVER).await?;
    namespace.api::<ConfigMap>().get("kept").await?;

    let audit = std::fs::read_to_string(cluster.audit_log().context("it was asked for")?)?;
    let created = audit
        .lines()
        .find(|line| line.contains(&namespace.name) && line.contains(r#""verb":"create""#));
    let created = created.context("the creation is not in the audit log")?;
    ensure!(
        created.contains(r#""username":"administrator""#),
        "{created}"
    );
    Ok(())
}

#[tokio::test]
async fn an_api_server_that_cannot_start_tells_why() -> Result<()> {
    let settings = Settings {
        api_server_args: vec!["--no-such-flag".to_owned()],
        ..Settings::default()
    };
    match start_or_skip(settings).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => bail!("it started"),
        Err(error) => {
            let error = format!("{error:#}");
            ensure!(error.contains("kube-apiserver ended with code"), "{error}");
            ensure!(error.contains("unknown flag: --no-such-flag"), "{error}");
            Ok(())
        }
    }
}

/// Not a test by itself: the process that the next test starts and kills.
#[tokio::test]
#[ignore = "started by another test"]
async fn victim() -> Result<()> {
    if std::env::var_os(VICTIM).is_none() {
        return Ok(());
    }
    let Some(cluster) = start_or_skip(Settings::default()).await? else {
        return Ok(());
    };
    let told = (
        cluster.guard().directory(),
        cluster.guard().pid(),
        cluster.pids().await,
    );
    println!("{TOLD}{}", serde_json::to_string(&told)?);
    std::future::pending().await
}

#[tokio::test]
async fn a_test_that_is_killed_leaves_no_cluster() -> Result<()> {
    // Whether there can be one is found out, and said, here.
    let Some(_) = shared().await? else {
        return Ok(());
    };
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = victim.stdout.take().context("standard output is a pipe")?;
    let told = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once(TOLD).map(|(_, told)| told.to_owned()));
    victim.kill()?;
    victim.wait()?;
    let (directory, guard, mut pids): (PathBuf, i32, Vec<i32>) =
        serde_json::from_str(&told.context("the victim started no cluster")?)?;
    ensure!(pids.len() == 2, "{pids:?}");
    pids.push(guard);
    wait::until("nothing to be left", BOUND, async || {
        let left: Vec<_> = pids
            .iter()
            .filter(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/stat"))
                    .is_ok_and(|stat| !stat.contains(") Z "))
            })
            .collect();
        Ok(if left.is_empty() && !directory.exists() {
            Probe::Done(())
        } else {
            Probe::not_yet(format!(
                "processes {left:?}, directory: {}",
                directory.exists()
            ))
        })
    })
    .await
}
