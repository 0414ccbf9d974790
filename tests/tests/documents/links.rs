//! Links between documents lead somewhere.

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, ensure};
use opensandbox_tests::installation::repository;

use opensandbox_tests::documents::Page;

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in Page::all()? {
        for (line, target) in page.links() {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            if let Err(problem) = check(&page, &target) {
                broken.push(format!("{}:{line}: ({target}) {problem}", page.path));
            }
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    ensure!(seen > 30, "only {seen} links were found");
    Ok(())
}

fn check(page: &Page, target: &str) -> Result<()> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() {
        PathBuf::from(&page.path)
    } else {
        let directory = Path::new(&page.path)
            .parent()
            .unwrap_or_else(|| Path::new(""));
        plain(&directory.join(file))
    };
    ensure!(
        repository("").join(&path).exists(),
        "there is no {}",
        path.display()
    );
    if !anchor.is_empty() {
        let anchors = Page::read(&path.to_string_lossy())?.anchors();
        ensure!(
            anchors.iter().any(|known| known == anchor),
            "no such heading; there are {anchors:?}"
        );
    }
    Ok(())
}

/// Without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}
