//! The format: an OCI image layout in a tar, with one layer, uncompressed.
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file or directory of an image, owned by root.
#[derive(Clone, Debug)]
pub struct File {
    path: String,
    mode: u32,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Source(PathBuf),
    Bytes(Vec<u8>),
    Directory,
}

impl File {
    /// An executable at an absolute path, from this machine.
    pub fn program(path: impl Into<String>, source: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o755,
            content: Content::Source(source.into()),
        }
    }

    /// A file with this mode and content, at an absolute path.
    pub fn bytes(path: impl Into<String>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode,
            content: Content::Bytes(content.into()),
        }
    }

    /// An empty directory with this mode, at an absolute path.
    pub fn directory(path: impl Into<String>, mode: u32) -> Self {
        Self {
            path: path.into(),
            mode,
            content: Content::Directory,
        }
    }
}

/// How containers of an image run, unless the pod says otherwise.
#[derive(Clone, Debug)]
pub struct Config {
    /// What `command` of a container replaces.
    pub entrypoint: Vec<String>,
    /// What `args` of a container replaces.
    pub arguments: Vec<String>,
    /// `NAME=value`; with a `PATH` by default.
    pub env: Vec<String>,
    /// User, and group after a colon, by number.
    pub user: String,
    /// Labels: name and value.
    pub labels: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            entrypoint: Vec::new(),
            arguments: Vec::new(),
            env: vec![PATH.to_owned()],
            user: "0:0".to_owned(),
            labels: Vec::new(),
        }
    }
}

/// A layer of these files, and the directories above them.
pub(super) fn layer(files: &[File]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut directories: Vec<(String, u32)> = Vec::new();
    for file in files {
        let Some(path) = file.path.strip_prefix('/') else {
            bail!("{} is not an absolute path", file.path);
        };
        for (end, _) in path.match_indices('/') {
            let directory = path.get(..=end).unwrap_or_default();
            if !directories.iter().any(|(known, _)| known == directory) {
                directories.push((directory.to_owned(), 0o755));
            }
        }
        if matches!(file.content, Content::Directory) {
            directories.push((format!("{path}/"), file.mode));
        }
    }
    for (path, mode) in &directories {
        let mut header = header(EntryType::Directory, *mode, 0);
        layer.append_data(&mut header, path, io::empty())?;
    }
    for File {
        path,
        mode,
        content,
    } in files
    {
        let bytes = match content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Source(source) => {
                fs::read(source).with_context(|| format!("read {}", source.display()))?
            }
            Content::Directory => continue,
        };
        let mut header = header(EntryType::Regular, *mode, bytes.len() as u64);
        layer.append_data(&mut header, path.trim_start_matches('/'), bytes.as_slice())?;
    }
    Ok(layer.into_inner()?)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    // Of no time and no user, so that the same content gives the same image.
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Writes the archive of the image `name`, with this layer, and returns the layer's digest.
pub(super) fn write(
    archive: impl Write,
    name: &str,
    config: &Config,
    layer: &[u8],
) -> Result<String> {
    let layer_digest = digest_of(layer);
    let Config {
        entrypoint,
        arguments,
        env,
        user,
        labels,
    } = config;
    let mut config = json!({"Entrypoint": entrypoint, "Cmd": arguments, "Env": env, "User": user});
    if !labels.is_empty() {
        let labels = labels.iter().cloned();
        config["Labels"] = labels.collect::<BTreeMap<_, _>>().into_iter().collect();
    }
    // Of no time, so that the same content gives the same image.
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, layer)],
    }))?;
    let mut manifest_descriptor = descriptor(MANIFEST, &manifest);
    if let Some(descriptor) = manifest_descriptor.as_object_mut() {
        // What containerd calls it, whole; the standard has tags only.
        descriptor.insert(
            "annotations".to_owned(),
            json!({"io.containerd.image.name": name}),
        );
    }
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [manifest_descriptor],
    }))?;
    let layout = serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?;

    let mut tar = tar::Builder::new(archive);
    append(&mut tar, "oci-layout", &layout)?;
    append(&mut tar, "index.json", &index)?;
    for blob in [&manifest, &config, layer] {
        let path = format!("blobs/{}", digest_of(blob).replace(':', "/"));
        append(&mut tar, &path, blob)?;
    }
    tar.into_inner()?.flush()?;
    Ok(layer_digest)
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
    tar.append_data(&mut header, path, content)
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest_of(content), "size": content.len()})
}

/// `sha256:` and the digest in hexadecimal.
pub(super) fn digest_of(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .fold("sha256:".to_owned(), |text, byte| {
            format!("{text}{byte:02x}")
        })
}

/// As the Go language calls it, and the standard with it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What is in a tar: path, mode and content.
#[cfg(test)]
pub(super) fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    use std::io::Read as _;

    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        // Some have the kind of the file in it.
        let mode = entry.header().mode().unwrap() & 0o7777;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (path, (mode, content))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_its_files_and_the_directories_above() {
        let files = [
            File::bytes("/etc/deep/file", 0o600, "content"),
            File::bytes("/program", 0o755, "x"),
            File::directory("/tmp", 0o1777),
        ];
        let entries = entries(&layer(&files).unwrap());
        let modes: Vec<_> = entries
            .iter()
            .map(|(path, (mode, _))| (path.as_str(), *mode))
            .collect();
        assert_eq!(
            modes,
            [
                ("etc/", 0o755),
                ("etc/deep/", 0o755),
                ("etc/deep/file", 0o600),
                ("program", 0o755),
                ("tmp/", 0o1777),
            ]
        );
        assert_eq!(entries["etc/deep/file"].1, b"content");
    }

    #[test]
    fn relative_paths_are_refused() {
        let error = layer(&[File::bytes("file", 0o600, "")]).unwrap_err();
        assert_eq!(error.to_string(), "file is not an absolute path");
    }

    #[test]
    fn every_blob_is_what_its_name_says() {
        let layer = layer(&[File::bytes("/file", 0o600, "content")]).unwrap();
        let mut archive = Vec::new();
        let digest = write(&mut archive, "x/y:z", &Config::default(), &layer).unwrap();
        let entries = entries(&archive);
        let blobs: Vec<_> = entries
            .iter()
            .filter_map(|(path, (_, content))| Some((path.strip_prefix("blobs/")?, content)))
            .map(|(path, content)| (path.replace('/', ":"), digest_of(content)))
            .collect();
        assert_eq!(blobs.len(), 3);
        assert!(blobs.iter().all(|(name, digest)| name == digest));
        assert!(blobs.iter().any(|(name, _)| *name == digest));
        let index: Value = serde_json::from_slice(&entries["index.json"].1).unwrap();
        assert_eq!(
            index.pointer("/manifests/0/annotations/io.containerd.image.name"),
            Some(&json!("x/y:z"))
        );
    }
}
