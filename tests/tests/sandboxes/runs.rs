//! What tasks leave behind: a line in a file for each thing that they do, in a directory of the machine
//! that all pods of a test have, so that it outlives them. How often something ran is counted by these
//! lines, never by what anybody says of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use opensandbox_tests::wait::{self, Probe};

use super::site::BOUND;

/// The directory.
pub(crate) struct Runs(PathBuf);

impl Runs {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// What the tasks of this name left, line by line: `WORD POD_UID`.
    pub(crate) fn of(&self, name: &str) -> Result<Vec<String>> {
        let path = self.0.join(name);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The UIDs of the pods in which tasks of this name left this word.
    pub(crate) fn pods(&self, name: &str, word: &str) -> Result<Vec<String>> {
        let lines = self.of(name)?;
        let pods = lines.iter().filter_map(|line| {
            let (said, pod) = line.split_once(' ')?;
            (said == word).then(|| pod.to_owned())
        });
        Ok(pods.collect())
    }

    /// Waits until there are so many lines.
    pub(crate) async fn until(&self, name: &str, lines: usize) -> Result<Vec<String>> {
        wait::until(&format!("{lines} lines of {name}"), BOUND, async || {
            let seen = self.of(name)?;
            Ok(if seen.len() >= lines {
                Probe::Done(seen)
            } else {
                Probe::not_yet(format!("{seen:?}"))
            })
        })
        .await
    }

    /// Exactly these words were left, each once, in whatever order.
    pub(crate) fn exactly(&self, name: &str, words: &[&str]) -> Result<()> {
        let lines = self.of(name)?;
        let mut left: Vec<_> = lines
            .iter()
            .map(|line| line.split_once(' ').map_or(line.as_str(), |(word, _)| word))
            .collect();
        let mut expected = words.to_vec();
        left.sort_unstable();
        expected.sort_unstable();
        ensure!(left == expected, "{name} left {lines:?}, not {words:?}");
        Ok(())
    }

    /// Lets tasks go on that wait for this.
    pub(crate) fn open(&self, gate: &str) -> Result<()> {
        fs::write(self.0.join(gate), "").with_context(|| format!("open {gate}"))
    }
}

/// A task that leaves the word `start`, and then does this in a shell. In the script, `left WORD` leaves
/// another word, and `wait_for GATE` waits until the test opens that.
pub(crate) fn script(name: &str, then: &str) -> Value {
    let script = format!(
        "left() {{ echo \"$1 $POD_UID\" >> /runs/{name}; }}; \
         wait_for() {{ while [ ! -e /runs/$1 ]; do sleep 0.05; done; }}; \
         left start; {then}"
    );
    json!({"spec": {"process": {"command": ["sh", "-c", script]}}})
}
