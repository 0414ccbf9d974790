//! Certificates from files, laid out and swapped as kubelet does it, by an issuer and an injector that
//! the test plays: good pairs are taken over, others are not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use opensandbox_tests::LocalCluster;
use opensandbox_tests::credentials::{Authority, Identity};
use opensandbox_tests::installation::{Installation, NAME};
use opensandbox_tests::wait::{self, Probe};
use serde_json::{Value, json};

use crate::load::Load;
use crate::peer::{self, Certificate, certificates};
use crate::site::{BOUND, Rounds, Site, YOUNG, cluster, settings};

const NAMES: [&str; 3] = [
    "opensandbox-webhook.opensandbox-system.svc",
    "127.0.0.1",
    "0.0.0.0",
];
/// Files are read every second. Long enough that a complaint which is repeated at each reading shows.
const SEVERAL_READINGS: Duration = Duration::from_millis(2500);

/// A directory as kubelet mounts a Secret: links to `..data/FILE`, and `..data` a link to the version.
struct Mount {
    directory: PathBuf,
    versions: u32,
}

impl Mount {
    fn new(directory: &Path) -> Result<Self> {
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), directory.join(name))?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            versions: 0,
        })
    }

    /// A new version, taken over by one rename.
    fn swap(&mut self, certificate: &str, key: &str) -> Result<()> {
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        let content = self.directory.join(&version);
        fs::create_dir(&content)?;
        fs::write(content.join("tls.crt"), certificate)?;
        fs::write(content.join("tls.key"), key)?;
        symlink(&version, self.directory.join("..data_tmp"))?;
        fs::rename(
            self.directory.join("..data_tmp"),
            self.directory.join("..data"),
        )?;
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        Ok(fs::remove_file(self.directory.join("..data"))?)
    }

    /// One file of the present version, in place: not what kubelet does, but others.
    fn overwrite(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.directory.join("..data").join(name), text)?)
    }
}

fn leaf(identity: &Identity) -> Result<Certificate> {
    certificates(identity.certificate.as_bytes())?
        .into_iter()
        .next()
        .context("a certificate")
}

/// Sets every bundle, as cert-manager's injector does, once there are configurations.
async fn inject(cluster: &LocalCluster, authorities: &[&Authority]) -> Result<()> {
    let bundle: String = authorities
        .iter()
        .map(|authority| authority.pem())
        .collect();
    let bundle = ByteString(bundle.into_bytes());
    for kind in [
        "mutatingwebhookconfiguration",
        "validatingwebhookconfiguration",
    ] {
        let found = wait::until("the configurations", BOUND, async || {
            Ok(
                match cluster.kubectl(&["get", kind, NAME, "-o", "json"]).await {
                    Ok(found) => Probe::Done(found),
                    Err(error) => Probe::not_yet(error),
                },
            )
        });
        let found: Value = serde_json::from_str(&found.await?)?;
        let count = found["webhooks"].as_array().map_or(0, Vec::len);
        let patch: Vec<Value> = (0..count)
            .map(|index| json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle }))
            .collect();
        cluster
            .kubectl(&[
                "patch",
                kind,
                NAME,
                "--type=json",
                "--patch",
                &json!(patch).to_string(),
            ])
            .await?;
    }
    Ok(())
}

/// Waits until this leaf is served.
async fn serves(site: &Site, authority: &Authority, identity: &Identity) -> Result<()> {
    let roots = certificates(authority.pem().as_bytes())?;
    let wanted = leaf(identity)?;
    wait::until("the new certificate to be served", BOUND, async || {
        Ok(
            match peer::served(site.webhook.replicas()[0].https, &roots).await {
                Ok(found) if found == wanted => Probe::Done(()),
                Ok(_) => Probe::not_yet("another one is served"),
                Err(error) => Probe::not_yet(format!("{error:#}")),
            },
        )
    })
    .await
    .with_context(|| site.logs())
}

/// Complaints about the files in the log so far.
fn complaints(site: &Site) -> Result<Vec<String>> {
    let log = site.webhook.replicas()[0].program.log()?;
    let mut complaints = Vec::new();
    for line in log
        .lines()
        .filter(|line| line.contains("\"certificate files\"") && line.contains("WARN"))
    {
        let line: Value = serde_json::from_str(line)?;
        let error = line
            .pointer("/fields/error")
            .or_else(|| line.get("error"))
            .and_then(Value::as_str);
        complaints.push(error.context("a complaint says why")?.to_owned());
    }
    Ok(complaints)
}

/// The files are no good now: that is said once, in these words, and what was served is served on.
async fn endured(
    site: &Site,
    load: &Load,
    said: usize,
    words: &str,
    served: (&Authority, &Identity),
) -> Result<()> {
    wait::until("a complaint", BOUND, async || {
        let complaints = complaints(site)?;
        Ok(if complaints.len() > said {
            Probe::Done(())
        } else {
            Probe::not_yet("it said nothing")
        })
    })
    .await
    .with_context(|| site.logs())?;
    // Not to wait for something: that it is not said again takes time to see.
    tokio::time::sleep(SEVERAL_READINGS).await;
    let complaints = complaints(site)?;
    ensure!(
        complaints.len() == said + 1 && complaints[said].contains(words),
        "expected {words:?} once: {complaints:?}"
    );
    let (status, body) = site.webhook.replicas()[0].get("/readyz").await?;
    ensure!(status == 200, "{words}: not ready: {body}");
    serves(site, served.0, served.1).await?;
    load.more(20).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_taken_over_whole_or_not_at_all_without_a_failed_call() -> Result<()> {
    let Some(cluster) = cluster(false).await? else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let mut mount = Mount::new(directory.path())?;
    let mut issuer = Authority::generate()?;
    let mut served = issuer.server("webhook", &NAMES)?;
    mount.swap(&served.certificate, &served.key)?;
    let files = format!("--tls-cert-dir={}", directory.path().display());
    let settings = settings(1, &["--tls-mode=files", &files, YOUNG]);
    // It is not ready before somebody publishes the authority, and that is not its task.
    let authorities = [&issuer];
    let (webhook, ()) = tokio::try_join!(
        Installation::install(&cluster, settings),
        inject(&cluster, &authorities)
    )?;
    let site = Site::new(cluster, webhook).await?;
    ensure!(site.kept().await?.is_none(), "this mode needs no Secret");
    let pid = site.webhook.replicas()[0].program.pid();
    let load = site.load().await?;
    let mut said = complaints(&site)?.len();
    let mut rounds = Rounds::begin()?;
    while rounds.again(1) {
        let renewed = issuer.server("webhook", &NAMES)?;
        mount.swap(&renewed.certificate, &renewed.key)?;
        serves(&site, &issuer, &renewed).await?;
        load.more(20).await?;

        let fresh = issuer.server("webhook", &NAMES)?;
        let now = (&issuer, &renewed);
        // The new certificate with the old key.
        mount.swap(&fresh.certificate, &renewed.key)?;
        endured(&site, &load, said, "certificate and key do not fit", now).await?;
        // Half of a certificate.
        mount.overwrite("tls.crt", &fresh.certificate[..fresh.certificate.len() / 2])?;
        endured(&site, &load, said + 1, "tls.crt", now).await?;
        mount.overwrite("tls.crt", &fresh.certificate)?;
        // Half of a key.
        mount.overwrite("tls.key", &fresh.key[..fresh.key.len() / 2])?;
        wait::until("a complaint about the key", BOUND, async || {
            let last = complaints(&site)?.pop().unwrap_or_default();
            Ok(if last.contains("cannot read the key") {
                Probe::Done(())
            } else {
                Probe::not_yet(last)
            })
        })
        .await?;
        said = complaints(&site)?.len();
        mount.remove()?;
        endured(&site, &load, said, "cannot read", now).await?;
        mount.swap(&fresh.certificate, &fresh.key)?;
        serves(&site, &issuer, &fresh).await?;

        // Another authority: published beside the old one, then used, then alone.
        let successor = Authority::generate()?;
        served = successor.server("webhook", &NAMES)?;
        inject(&site.cluster, &[&issuer, &successor]).await?;
        load.more(100).await?;
        mount.swap(&served.certificate, &served.key)?;
        serves(&site, &successor, &served).await?;
        load.more(50).await?;
        inject(&site.cluster, &[&successor]).await?;
        load.more(100).await?;
        site.ready().await?;
        issuer = successor;
        said = complaints(&site)?.len();
    }
    serves(&site, &issuer, &served).await?;
    ensure!(
        site.webhook.replicas()[0].program.pid() == pid
            && site.webhook.replicas()[0].program.exit().is_none()
    );
    load.end(
        &format!("files: {} rounds of 3 good and 4 bad states", rounds.done()),
        &site.cluster,
    )
    .await
}
