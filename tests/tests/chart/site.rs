//! A cluster with Helm and a release of the chart. No pods, for want of a node: the programs are started
//! here, with the accounts, arguments and names that the release gives them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use opensandbox_tests::administrator::Administrator;
use opensandbox_tests::cluster::LocalCluster;
use opensandbox_tests::component::free_ports;
use opensandbox_tests::helm::Helm;
use opensandbox_tests::process::{Launch, Program};
use opensandbox_tests::programs;
use serde_json::{Value, json};

use crate::NAMESPACE;

/// Until a program has done its part.
pub(crate) const BOUND: Duration = Duration::from_mins(1);
pub(crate) const CONFIGURATIONS: [&str; 2] = [
    "mutatingwebhookconfiguration",
    "validatingwebhookconfiguration",
];

/// A cluster, and Helm for it.
pub(crate) struct Site<'a> {
    pub(crate) cluster: &'a LocalCluster,
    helm: Helm<'a>,
}

impl<'a> Site<'a> {
    pub(crate) async fn on(cluster: &'a LocalCluster) -> Result<Option<Self>> {
        let helm = Helm::on(cluster).await?;
        Ok(helm.map(|helm| Self { cluster, helm }))
    }

    /// A command line of Helm; CHART stands for ours.
    pub(crate) async fn helm(&self, line: &str) -> Result<String> {
        self.helm.line(line).await
    }

    pub(crate) async fn kubectl(&self, line: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        self.cluster.kubectl(&words).await
    }

    pub(crate) async fn object(&self, line: &str) -> Result<Value> {
        let text = self.kubectl(&format!("get {line} -o json")).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The bundles of a configuration, one a webhook.
    pub(crate) async fn bundles(&self, kind: &str) -> Result<Vec<String>> {
        let configuration = self.object(&format!("{kind} opensandbox-webhook")).await?;
        let webhooks = configuration["webhooks"].as_array().into_iter().flatten();
        let bundle =
            |webhook: &Value| Some(webhook["clientConfig"]["caBundle"].as_str()?.to_owned());
        Ok(webhooks.filter_map(bundle).collect())
    }

    /// The webhook as its pod would run, and with these arguments; ready when this returns.
    pub(crate) async fn webhook(&self, args: &[String]) -> Result<Webhook> {
        let deployment = format!("deployment opensandbox-webhook -n {NAMESPACE}");
        let deployment = self.object(&deployment).await?;
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let path = tokio::task::spawn_blocking(programs::webhook).await??;
        let kubeconfig = Administrator::of(self.cluster)
            .service_account_kubeconfig(NAMESPACE, "opensandbox-webhook")
            .await?;
        let [https, probes] = free_ports()?;
        let given = container["args"].as_array().into_iter().flatten();
        let mut launch = Launch::new("webhook", path)
            .args(given.filter_map(Value::as_str))
            .args([
                format!("--bind-address=127.0.0.1:{https}"),
                format!("--metrics-bind-address=127.0.0.1:{probes}"),
                format!("--kubeconfig={}", kubeconfig.display()),
            ])
            .args(args.iter().cloned())
            .env("POD_NAMESPACE", NAMESPACE);
        for variable in container["env"].as_array().into_iter().flatten() {
            let text = |field: &str| variable[field].as_str();
            if let (Some(name), Some(value)) = (text("name"), text("value")) {
                launch = launch.env(name, value);
            }
        }
        let program = self.cluster.guard().run(launch).await?;
        let url = format!("http://127.0.0.1:{probes}/readyz");
        let ready = program.wait_for_ok(&url, None, BOUND).await;
        ready.with_context(|| program.log().unwrap_or_default())?;
        Ok(Webhook { program, https })
    }

    /// Puts an address in place of the Service, which nobody routes here, or the Service back.
    pub(crate) async fn reach(&self, webhook: Option<&Webhook>) -> Result<()> {
        for kind in CONFIGURATIONS {
            let line = format!("{kind} opensandbox-webhook");
            let mut configuration = self.object(&line).await?;
            let webhooks = configuration["webhooks"].as_array_mut();
            for one in webhooks.into_iter().flatten() {
                let client = one["clientConfig"].as_object_mut();
                let client = client.context("a webhook has a clientConfig")?;
                let (service, url) = (client.remove("service"), client.remove("url"));
                match (webhook, service, url) {
                    (Some(webhook), Some(service), _) => {
                        let path = service["path"].as_str().context("a path")?;
                        let url = format!("https://127.0.0.1:{}{path}", webhook.https);
                        client.insert("url".to_owned(), url.into());
                    }
                    (None, _, Some(url)) => {
                        let url = url.as_str().context("a URL is text")?;
                        let path = url.splitn(4, '/').last().context("a URL has a path")?;
                        let service = json!({
                            "name": "opensandbox-webhook", "namespace": NAMESPACE,
                            "path": format!("/{path}"), "port": 443,
                        });
                        client.insert("service".to_owned(), service);
                    }
                    other => bail!("{line}: unexpected {other:?}"),
                }
            }
            self.cluster
                .kubectl_with_input(&["replace", "-f", "-"], &configuration.to_string())
                .await?;
        }
        Ok(())
    }
}

/// A running webhook.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) program: Program,
    https: u16,
}
