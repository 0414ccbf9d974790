//! Just enough of Markdown: blocks, headings and links.

use std::collections::BTreeMap;
use std::path::Path;

use crate::installation::repository;
use anyhow::{Context as _, Result};

/// A file of the repository as text.
///
/// # Errors
/// There is none.
pub fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(repository(path)).with_context(|| format!("read {path}"))
}

/// A page of documents.
#[derive(Debug)]
pub struct Page {
    /// From the root of the repository.
    pub path: String,
    text: String,
}

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// Where its text begins, `PATH:LINE`.
    pub place: String,
    /// `sh`, `yaml` and so on; empty if it names none.
    pub language: String,
    /// Its lines.
    pub text: String,
}

impl Page {
    /// The page at this path, from the root of the repository.
    ///
    /// # Errors
    /// There is none.
    pub fn read(path: &str) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            text: read(path)?,
        })
    }

    /// Every page: those of the root, of docs/ and below, and of config/.
    ///
    /// # Errors
    /// A directory or a page cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let mut pages = Vec::new();
        for directory in ["", "docs", "docs/decisions", "config"] {
            let entries = std::fs::read_dir(repository(directory))?;
            for entry in entries {
                let path = Path::new(directory).join(entry?.file_name());
                if path.extension().is_some_and(|extension| extension == "md") {
                    pages.push(Self::read(&path.to_string_lossy())?);
                }
            }
        }
        pages.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(pages)
    }

    /// Its fenced blocks. One within a list is indented; that is taken off.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<(Block, usize)> = None;
        for (number, line) in self.text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (None, Some(language)) => {
                    let block = Block {
                        place: format!("{}:{}", self.path, number + 2),
                        language: language.trim().to_owned(),
                        text: String::new(),
                    };
                    open = Some((block, indent));
                }
                (Some(_), Some(_)) => blocks.extend(open.take().map(|(block, _)| block)),
                (Some((block, indent)), None) => {
                    block.text += line.get(*indent..).unwrap_or_default();
                    block.text += "\n";
                }
                (None, None) => {}
            }
        }
        blocks
    }

    /// Lines outside of fenced blocks, with their numbers.
    pub fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut inside = false;
        self.text
            .lines()
            .enumerate()
            .filter_map(move |(number, line)| {
                let fence = line.trim_start().starts_with("```");
                inside ^= fence;
                (!inside && !fence).then_some((number + 1, line))
            })
    }

    /// Names of its headings, as links call them.
    pub fn anchors(&self) -> Vec<String> {
        let mut seen = BTreeMap::new();
        let headings = self.prose().filter(|(_, line)| line.starts_with('#'));
        headings
            .map(|(_, line)| {
                let anchor = anchor(line.trim_start_matches('#').trim());
                let count = seen.entry(anchor.clone()).or_insert(0);
                *count += 1;
                match *count {
                    1 => anchor,
                    more => format!("{anchor}-{}", more - 1),
                }
            })
            .collect()
    }

    /// Targets of its links, with line numbers.
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (number, line) in self.prose() {
            let mut rest = line;
            while let Some((_, after)) = rest.split_once("](") {
                let Some((target, after)) = after.split_once(')') else {
                    break;
                };
                links.push((number, target.to_owned()));
                rest = after;
            }
        }
        links
    }
}

/// As GitHub makes it: lower case, spaces as hyphens, other punctuation left out.
fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .flat_map(char::to_lowercase)
        .collect()
}
