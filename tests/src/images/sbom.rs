//! What a released program was made of, as a CycloneDX document: every crate that is linked in or helps to
//! build it, by what Cargo resolves for this package alone, with the sums of Cargo.lock. No time and no
//! random number is in it, so that the same sources give the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::oci::digest_of;
use crate::installation::repository;

/// Name and version.
type Crate = (String, String);

/// The document of a package whose programs are in this directory.
pub(super) fn list(package: &str, programs: &[&str], directory: &Path) -> Result<String> {
    let sums = sums(&fs::read_to_string(repository("Cargo.lock"))?);
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--locked", "--offline", "--package", package])
        .args(["--edges=normal,build", "--prefix=none", "--target", &target])
        // A character that is in no name, version or licence.
        .args(["--format", "{p}|{l}"])
        .current_dir(repository("."))
        .output()
        .context("start cargo tree")?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let crates = crates(&String::from_utf8(output.stdout)?);
    ensure!(crates.len() > 1, "cargo tree lists nothing of {package}");
    let document = document(package, &crates, &sums, &hashes(programs, directory)?);
    let mut text = serde_json::to_string_pretty(&document)?;
    text.push('\n');
    Ok(text)
}

/// Lines such as `serde v1.0.0|MIT OR Apache-2.0`; of a crate of ours with its path behind the version.
fn crates(tree: &str) -> BTreeMap<Crate, String> {
    tree.lines()
        .filter_map(|line| {
            let (name, licence) = line.split_once('|')?;
            let licence = licence.trim_end_matches("(*)").trim().to_owned();
            let mut words = name.split_whitespace();
            let name = words.next()?.to_owned();
            let version = words.next()?.strip_prefix('v')?.to_owned();
            Some(((name, version), licence))
        })
        .collect()
}

/// Sums of crates that come from a registry.
fn sums(lock: &str) -> BTreeMap<Crate, String> {
    let value = |entry: &str, key: &str| {
        let prefix = format!("{key} = \"");
        let mut lines = entry.lines();
        let line = lines.find_map(|line| line.strip_prefix(&prefix))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|entry| {
            let of = (value(entry, "name")?, value(entry, "version")?);
            Some((of, value(entry, "checksum")?))
        })
        .collect()
}

fn hashes(programs: &[&str], directory: &Path) -> Result<Vec<(String, String)>> {
    let hash = |program: &&str| {
        let path = directory.join(program);
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(((*program).to_owned(), digest_of(&content)))
    };
    programs.iter().map(hash).collect()
}

fn document(
    package: &str,
    crates: &BTreeMap<Crate, String>,
    sums: &BTreeMap<Crate, String>,
    programs: &[(String, String)],
) -> Value {
    let component = |(of, licence): (&Crate, &String)| {
        let (name, version) = of;
        let mut component = json!({
            "type": "library", "name": name, "version": version,
            "bom-ref": format!("{name}@{version}"),
        });
        if !licence.is_empty() {
            // Some old crates write a slash where the standard has OR.
            let licence = licence.replace('/', " OR ");
            component["licenses"] = json!([{"expression": licence}]);
        }
        if let Some(sum) = sums.get(of) {
            component["purl"] = json!(format!("pkg:cargo/{name}@{version}"));
            component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
        }
        component
    };
    let libraries = crates.iter().filter(|((name, _), _)| name != package);
    let files = programs.iter().map(|(name, digest)| {
        let content = digest.trim_start_matches("sha256:");
        json!({"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": content}]})
    });
    let components: Vec<_> = files.chain(libraries.map(component)).collect();
    let version: BTreeSet<_> = crates
        .keys()
        .filter(|(name, _)| name == package)
        .map(|(_, version)| version)
        .collect();
    json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {
            "type": "application", "name": package, "version": version.first(),
            "licenses": [{"expression": env!("CARGO_PKG_LICENSE")}],
        }},
        "components": components,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_and_sums_are_read() {
        let tree = "us v0.0.1 (/x/us)|Apache-2.0\nserde v1.0.2|MIT OR Apache-2.0\nserde v1.0.2|MIT OR Apache-2.0 (*)\n";
        let lock = "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.2\"\nsource = \"r\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"us\"\nversion = \"0.0.1\"\n";
        let programs = [("us".to_owned(), "sha256:cd".to_owned())];
        let found = document("us", &crates(tree), &sums(lock), &programs);
        let expected = json!([
            {"type": "file", "name": "us", "hashes": [{"alg": "SHA-256", "content": "cd"}]},
            {
                "type": "library", "name": "serde", "version": "1.0.2", "bom-ref": "serde@1.0.2",
                "licenses": [{"expression": "MIT OR Apache-2.0"}],
                "purl": "pkg:cargo/serde@1.0.2",
                "hashes": [{"alg": "SHA-256", "content": "ab"}],
            },
        ]);
        assert_eq!(found["components"], expected);
        assert_eq!(found["metadata"]["component"]["version"], "0.0.1");
    }

    /// The sidecar holds no client of Kubernetes, which is what this package alone resolves to.
    #[test]
    fn what_is_listed_is_what_the_package_needs() {
        let directory = tempfile::tempdir().unwrap();
        let programs = ["task-executor", "task-executor-agent"];
        for program in programs {
            fs::write(directory.path().join(program), program).unwrap();
        }
        let list = || list("task-executor", &programs, directory.path()).unwrap();
        let text = list();
        assert_eq!(text, list());
        let found: Value = serde_json::from_str(&text).unwrap();
        let names: BTreeSet<_> = found["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|component| component["name"].as_str().unwrap())
            .collect();
        assert!(
            names.contains("ring") && names.contains("opensandbox-api"),
            "{names:?}"
        );
        assert!(
            !names.contains("kube") && !names.contains("proptest"),
            "{names:?}"
        );
    }
}
