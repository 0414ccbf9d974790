//! Which files are read, and their bytes. Knows nothing of what is in them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;

/// Most bytes read in one run. Small objects take about a hundred times their text in memory.
const MAX_INPUT: usize = 32 << 20;

/// Where the input comes from.
#[derive(Debug, Args)]
pub struct Files {
    /// File, directory, or - for standard input. May be repeated; absent means standard input. Of a
    /// directory the files *.yaml, *.yml and *.json are read in alphabetical order.
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    filenames: Vec<PathBuf>,
    /// Read the directories within directories as well.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace of objects that name none.
    #[arg(short = 'n', long, default_value = "default")]
    pub(super) namespace: String,
}

/// Bytes and where they came from.
#[derive(Debug)]
pub(super) struct Source {
    /// The path as given or found; `stdin` for standard input.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// Why the input cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no input: name files with -f, or pipe YAML or JSON to standard input")]
    Terminal,
    #[error("standard input can be read only once; give -f - once")]
    StdinTwice,
    #[error("cannot read {name}")]
    Read { name: String, source: io::Error },
    #[error("{0} holds no file named *.yaml, *.yml or *.json")]
    EmptyDirectory(String),
    #[error("{0}: more than {max} MiB of input; give it in parts", max = MAX_INPUT >> 20)]
    TooLarge(String),
}

/// Reads everything, in the order in which `kubectl apply` takes it.
pub(super) fn read(files: &Files) -> Result<Vec<Source>, Error> {
    let stdin = [PathBuf::from("-")];
    let paths: &[PathBuf] = if files.filenames.is_empty() {
        if io::stdin().is_terminal() {
            return Err(Error::Terminal);
        }
        &stdin
    } else {
        &files.filenames
    };
    if paths.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(Error::StdinTwice);
    }
    let mut sources = Vec::new();
    let mut left = MAX_INPUT;
    for path in paths {
        if path.as_os_str() == "-" {
            sources.push(bytes("stdin", io::stdin().lock(), &mut left)?);
        } else if path.is_dir() {
            let mut found = Vec::new();
            list(path, files.recursive, &mut found)?;
            if found.is_empty() {
                return Err(Error::EmptyDirectory(shown(path)));
            }
            for path in found {
                sources.push(file(&path, &mut left)?);
            }
        } else {
            sources.push(file(path, &mut left)?);
        }
    }
    Ok(sources)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    |source| Error::Read {
        name: shown(path),
        source,
    }
}

fn file(path: &Path, left: &mut usize) -> Result<Source, Error> {
    let file = File::open(path).map_err(failed(path))?;
    bytes(&shown(path), file, left)
}

fn bytes(name: &str, from: impl Read, left: &mut usize) -> Result<Source, Error> {
    let mut bytes = Vec::new();
    let one_more = u64::try_from(*left).unwrap_or(u64::MAX).saturating_add(1);
    from.take(one_more)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Read {
            name: name.to_owned(),
            source,
        })?;
    *left = left
        .checked_sub(bytes.len())
        .ok_or_else(|| Error::TooLarge(name.to_owned()))?;
    Ok(Source {
        name: name.to_owned(),
        bytes,
    })
}

/// Finds the files of a directory, sorted by name at each level. Links to directories are not
/// followed, so that there is no circle.
fn list(directory: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut entries = std::fs::read_dir(directory)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(failed(directory))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().map_err(failed(&path))?;
        if kind.is_dir() {
            if recursive {
                list(&path, recursive, found)?;
            }
        } else if path
            .extension()
            .and_then(OsStr::to_str)
            .is_some_and(|end| matches!(end, "yaml" | "yml" | "json"))
            && !path.is_dir()
        {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&Path], recursive: bool) -> Files {
        Files {
            filenames: paths.iter().map(|path| path.to_path_buf()).collect(),
            recursive,
            namespace: "default".to_owned(),
        }
    }

    #[test]
    fn directories_are_read_as_kubectl_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir(root.join("b")).unwrap();
        for name in ["c.yaml", "a.yml", "d.json", "e.txt", "b/z.yaml"] {
            std::fs::write(root.join(name), name).unwrap();
        }
        let names = |recursive| -> Vec<String> {
            let sources = read(&files(&[root], recursive)).unwrap();
            sources
                .into_iter()
                .map(|source| String::from_utf8(source.bytes).unwrap())
                .collect()
        };
        assert_eq!(names(false), ["a.yml", "c.yaml", "d.json"]);
        assert_eq!(names(true), ["a.yml", "b/z.yaml", "c.yaml", "d.json"]);
        let given = read(&files(&[&root.join("e.txt")], false)).unwrap();
        assert_eq!(
            given[0].bytes, b"e.txt",
            "a file that is named is read whatever its name"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = read(&files(&[directory.path()], false)).unwrap_err();
        assert!(matches!(error, Error::EmptyDirectory(_)));
        let missing = directory.path().join("missing.yaml");
        let error = read(&files(&[&missing], false)).unwrap_err().to_string();
        assert!(error.contains("missing.yaml"), "{error}");
        let error = read(&files(&[Path::new("-"), Path::new("-")], false)).unwrap_err();
        assert!(matches!(error, Error::StdinTwice));
    }

    #[test]
    fn input_is_bounded() {
        let mut left = 3;
        assert_eq!(bytes("a", &b"abc"[..], &mut left).unwrap().bytes, b"abc");
        assert!(matches!(
            bytes("b", &b"d"[..], &mut left),
            Err(Error::TooLarge(_))
        ));
    }
}
