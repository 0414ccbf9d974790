//! Where the steps play: one cluster, one namespace, kubectl. Every command that a user is meant to
//! learn is shown as they would type it; what only checks is not shown.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::diff;
use super::terminal::{Terminal, shell};
use crate::administrator::{self, Administrator};
use crate::installation::repository;

/// The namespace that the examples name.
const EXAMPLES_NAMESPACE: &str = "default";

/// What a step did not find as it should be.
#[derive(Debug)]
pub(super) struct Mismatch {
    what: String,
    expected: String,
    found: String,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            expected,
            found,
        } = self;
        write!(f, "{what}\n  expected: {expected}\n  found:    {found}")
    }
}

impl std::error::Error for Mismatch {}

/// A cluster with the webhook, seen by the steps.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) terminal: &'a Terminal,
    pub(super) administrator: Administrator<'a>,
    /// What a user adds to kubectl to get at this cluster.
    pub(super) flags: Vec<String>,
    /// Where the objects go; the examples name `default`.
    pub(super) namespace: String,
    /// The webhook's program.
    pub(super) webhook: PathBuf,
    /// The image that the installation gives to Pools.
    pub(super) image: String,
}

impl Stage<'_> {
    /// The beginning of a kubectl command, as shown.
    fn kubectl_words(&self) -> Vec<String> {
        let mut words = vec!["kubectl".to_owned()];
        words.extend(self.flags.iter().cloned());
        if self.namespace != EXAMPLES_NAMESPACE {
            words.extend(["-n".to_owned(), self.namespace.clone()]);
        }
        words
    }

    fn typed(&self, args: &[&str]) -> String {
        let words = self.kubectl_words();
        shell(words.iter().map(String::as_str).chain(args.iter().copied()))
    }

    /// Runs kubectl, unseen; the exit status is the caller's.
    async fn run(&self, args: &[&str], input: Option<&str>) -> Result<(bool, String, String)> {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(args);
        let output = self.administrator.output(&all, input).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }

    /// Runs kubectl, unseen, and returns what it printed.
    pub(super) async fn quietly(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        self.terminal.aside(&self.typed(args))?;
        let (success, out, err) = self.run(args, input).await?;
        ensure!(success, "{}: {}", self.typed(args), err.trim_end());
        Ok(out)
    }

    /// Shows a command and what kubectl prints, and returns its output.
    async fn show(&self, typed: &str, args: &[&str], input: Option<&str>) -> Result<String> {
        self.terminal.command(typed)?;
        let (success, out, err) = self.run(args, input).await?;
        self.terminal.output(&err)?;
        self.terminal.output(&out)?;
        ensure!(success, "kubectl failed");
        Ok(out)
    }

    /// Runs kubectl for all to see.
    pub(super) async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.show(&self.typed(args), args, None).await
    }

    /// Applies a file of examples/, in the namespace of the stage; returns its text.
    pub(super) async fn apply_example(&self, file: &str) -> Result<String> {
        let text =
            std::fs::read_to_string(repository(file)).with_context(|| format!("read {file}"))?;
        let names = format!("namespace: {EXAMPLES_NAMESPACE}");
        if self.namespace == EXAMPLES_NAMESPACE || !text.contains(&names) {
            let path = repository(file);
            let path = path
                .to_str()
                .context("the path of the repository is not text")?;
            self.show(
                &self.typed(&["apply", "-f", file]),
                &["apply", "-f", path],
                None,
            )
            .await?;
            return Ok(text);
        }
        self.apply_edited(
            &text,
            file,
            &names,
            &format!("namespace: {}", self.namespace),
        )
        .await
    }

    /// Applies a kustomization of examples/, which names its namespaces itself.
    pub(super) async fn apply_kustomization(&self, directory: &str) -> Result<()> {
        let path = repository(directory);
        let path = path
            .to_str()
            .context("the path of the repository is not text")?;
        self.terminal
            .command(&shell(["kubectl", "apply", "-k", directory]))?;
        let applied = self.administrator.kubectl(&["apply", "-k", path]).await?;
        self.terminal.output(&applied)
    }

    /// Applies a file of examples/ with one text in place of another; returns the result.
    pub(super) async fn apply_renamed(&self, file: &str, from: &str, to: &str) -> Result<String> {
        let text =
            std::fs::read_to_string(repository(file)).with_context(|| format!("read {file}"))?;
        self.apply_edited(&text, file, from, to).await
    }

    async fn apply_edited(&self, text: &str, file: &str, from: &str, to: &str) -> Result<String> {
        let edited = text.replace(from, to);
        let edit = format!("s/{from}/{to}/");
        let apply = ["apply", "-f", "-"];
        let typed = format!("{} | {}", shell(["sed", &edit, file]), self.typed(&apply));
        self.show(&typed, &apply, Some(&edited)).await?;
        Ok(edited)
    }

    /// Applies a text that must be refused; shows it and what kubectl prints, and returns that.
    pub(super) async fn apply_refused(&self, text: &str) -> Result<String> {
        let apply = ["apply", "-f", "-"];
        self.terminal.command(&format!(
            "{} <<EOF\n{}\nEOF",
            self.typed(&apply),
            text.trim_end()
        ))?;
        let (success, out, err) = self.run(&apply, Some(text)).await?;
        self.terminal.output(&out)?;
        self.terminal.output(&err)?;
        ensure!(!success, "a wrong Pool was accepted");
        Ok(err)
    }

    /// Pipes a Pool through a command of the webhook's program; both are shown.
    pub(super) async fn explain(&self, pool: &str) -> Result<String> {
        let get = ["get", "pool", pool, "-o", "yaml"];
        self.terminal.command(&format!(
            "{} | opensandbox-webhook explain",
            self.typed(&get)
        ))?;
        let stored = self.quietly(&get, None).await?;
        let mut command = tokio::process::Command::new(&self.webhook);
        command.arg("explain");
        let output = administrator::run(command, Some(&stored)).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        self.terminal
            .output(&String::from_utf8_lossy(&output.stderr))?;
        self.terminal.output(&text)?;
        ensure!(
            output.status.success(),
            "opensandbox-webhook explain: {}",
            output.status
        );
        Ok(text)
    }

    /// An object as the API server has it.
    pub(super) async fn stored(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self
            .quietly(&["get", kind, name, "-o", "json"], None)
            .await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Says what holds, or fails with what was expected.
    pub(super) fn expect<T>(&self, what: &str, found: &T, expected: &T) -> Result<()>
    where
        T: PartialEq + std::fmt::Debug + ?Sized,
    {
        if found == expected {
            return self.terminal.held(what);
        }
        let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
        bail!(Mismatch {
            what: what.to_owned(),
            expected,
            found
        });
    }

    /// Says that a text holds all the words, or fails with the first that is missing.
    pub(super) fn expect_words(&self, what: &str, text: &str, words: &[&str]) -> Result<()> {
        match words.iter().find(|word| !text.contains(*word)) {
            None => self.terminal.held(what),
            Some(word) => bail!(Mismatch {
                what: what.to_owned(),
                expected: format!("a text with {word:?}"),
                found: text.trim_end().to_owned(),
            }),
        }
    }

    /// Says that everything the user wrote is stored as written, or fails with what is not.
    pub(super) fn expect_kept(&self, what: &str, written: &str, stored: &Value) -> Result<()> {
        let written: Value = serde_saphyr::from_str(written)?;
        let lines = diff::changes(&written, &diff::visible(stored));
        let lost = lines.iter().filter(|line| line.mark == diff::Mark::Removed);
        let lost: Vec<_> = lost.map(|line| line.text.trim()).collect();
        self.expect(what, &lost, &Vec::new())
    }
}

/// The names of a Pool's containers.
pub(super) fn containers(pool: &Value) -> Vec<&str> {
    let containers = pool
        .pointer("/spec/template/spec/containers")
        .and_then(Value::as_array);
    containers
        .into_iter()
        .flatten()
        .map(|container| container.get("name").and_then(Value::as_str).unwrap_or("?"))
        .collect()
}

/// A field of a Pool's executor.
pub(super) fn executor_field<'a>(pool: &'a Value, field: &str) -> Option<&'a Value> {
    let containers = pool.pointer("/spec/template/spec/containers")?.as_array()?;
    containers
        .iter()
        .find(|container| container["name"] == "task-executor")?
        .get(field)
}
