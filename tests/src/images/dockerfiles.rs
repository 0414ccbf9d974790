//! The Dockerfiles in `images/`: a builder without a network makes the images of [`release`](super::release) by
//! them, of programs that are built already.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use super::oci;
use super::release::{ALL, Release};
use crate::cluster;
use crate::installation::repository;
use crate::node::packages;

fn dockerfile(release: &Release) -> PathBuf {
    let directory = release.name.rsplit('/').next().unwrap();
    repository("images").join(directory).join("Dockerfile")
}

#[test]
fn sources_are_built_with_the_pinned_toolchain() {
    let toolchain = fs::read_to_string(repository("rust-toolchain.toml")).unwrap();
    let channel = toolchain.split('"').nth(1).unwrap();
    for release in ALL {
        let text = fs::read_to_string(dockerfile(&release)).unwrap();
        let from = format!("FROM docker.io/library/rust:{channel}-bookworm AS source");
        assert!(text.contains(&from), "{from}");
        assert!(text.contains(&format!("--package {}", release.package)));
    }
}

/// How containers run, and which files they see: what an image is, whatever its archive looks like.
#[derive(Debug, PartialEq)]
struct Contents {
    config: BTreeMap<&'static str, Value>,
    labels: BTreeMap<String, Value>,
    files: Files,
}

impl Contents {
    /// Of the parts of an archive that its manifest refers to, in its own way.
    fn of(
        parts: &Files,
        config: &Value,
        layers: &Value,
        path: impl Fn(&Value) -> Result<String>,
    ) -> Result<Self> {
        let config = &json(part(parts, &path(config)?)?)?["config"];
        let mut files = Files::new();
        for layer in layers.as_array().context("layers")? {
            files.extend(oci::entries(part(parts, &path(layer)?)?));
        }
        let labels = config["Labels"].as_object().into_iter().flatten();
        // The builder's own, and those without a value, are none of ours.
        let labels = labels.filter(|(name, value)| {
            name.starts_with("org.opencontainers.") && value.as_str() != Some("")
        });
        let fields = ["Entrypoint", "Cmd", "Env", "User", "WorkingDir"];
        // No arguments are no arguments, however that is written.
        let is_said = |value: &Value| {
            !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty())
        };
        Ok(Self {
            config: fields
                .into_iter()
                .map(|field| (field, config[field].clone()))
                .filter(|(_, value)| is_said(value))
                .collect(),
            labels: labels
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            files,
        })
    }
}

/// Builds an image as the Dockerfile says for programs that are built already, in a network namespace where
/// nothing is, and takes it apart.
fn built(release: &Release, context: &Path, directory: &Path) -> Result<Contents> {
    let policy = directory.join("policy.json");
    fs::write(
        &policy,
        r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
    )?;
    let archive = directory.join("image.tar");
    let image = release.image();
    let buildah = |arguments: &[&dyn AsRef<std::ffi::OsStr>]| -> Result<()> {
        let mut command = Command::new(packages::path_of("unshare")?);
        command
            .args(["--net", "--mount", "--"])
            .arg(packages::path_of("buildah")?)
            .arg("--root")
            .arg(directory.join("store"))
            .arg("--runroot")
            .arg(directory.join("run"))
            .arg("--storage-driver=vfs");
        for argument in arguments {
            command.arg(argument.as_ref());
        }
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    let dockerfile = dockerfile(release);
    buildah(&[
        &"build",
        &"--isolation=chroot",
        &"--build-arg=PROGRAMS=prebuilt",
        &"--signature-policy",
        &policy,
        &"--file",
        &dockerfile,
        &"--tag",
        &image,
        &context,
    ])?;
    // In this format layers are not compressed.
    let target = format!("docker-archive:{}", archive.display());
    buildah(&[&"push", &"--signature-policy", &policy, &image, &target])?;

    let files = oci::entries(&fs::read(&archive)?);
    let manifest = json(part(&files, "manifest.json")?)?;
    let path = |value: &Value| Ok(value.as_str().context("a path is text")?.to_owned());
    Contents::of(&files, &manifest[0]["Config"], &manifest[0]["Layers"], path)
}

/// The archive of `just images`, taken apart.
fn archived(release: &Release, programs: &Path) -> Result<Contents> {
    let files = oci::entries(&release.archive(programs, None)?);
    let path = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("a digest")?;
        Ok(format!("blobs/{}", digest.replace(':', "/")))
    };
    let index = json(part(&files, "index.json")?)?;
    let manifest = json(part(&files, &path(&index["manifests"][0])?)?)?;
    Contents::of(&files, &manifest["config"], &manifest["layers"], path)
}

/// What is in an archive: path, mode and content.
type Files = BTreeMap<String, (u32, Vec<u8>)>;

fn part<'a>(files: &'a Files, path: &str) -> Result<&'a [u8]> {
    let (_, bytes) = files.get(path).with_context(|| path.to_owned())?;
    Ok(bytes)
}

fn json(text: &[u8]) -> Result<Value> {
    Ok(serde_json::from_slice(text)?)
}

#[test]
fn a_builder_without_a_network_makes_the_same_images() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return cluster::skip(anyhow!("a network namespace for a builder takes root"));
    }
    if let Err(error) = packages::ensure(&packages::BUILDER) {
        return cluster::skip(error.into());
    }
    let context = tempfile::tempdir()?;
    let programs = context
        .path()
        .join(format!("dist/linux-{}", oci::architecture()));
    fs::create_dir_all(&programs)?;
    // What must not get into an image is left out by it.
    fs::copy(
        repository(".dockerignore"),
        context.path().join(".dockerignore"),
    )?;
    for release in &ALL {
        for program in release.programs {
            let path = programs.join(program);
            fs::write(&path, program)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&path, mode)?;
        }
    }
    for release in &ALL {
        let store = tempfile::tempdir()?;
        let built = built(release, context.path(), store.path())
            .with_context(|| format!("build {}", release.title))?;
        let archived = archived(release, &programs)?;
        ensure!(
            built == archived,
            "{}: the builder made {built:?}, not {archived:?}",
            release.title
        );
    }
    Ok(())
}
