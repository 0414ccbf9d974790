//! Certificates from a directory: `tls.crt`, `tls.key` and perhaps `ca.crt`, as cert-manager makes
//! and kubelet mounts them.
//!
//! In: the content of the files, looked at again and again (kubelet swaps a symbolic link, which a
//! watch on the files would miss); out: a certificate to serve and a status. A pair is taken over
//! only when it is whole, matches and is valid; until then the last one is served. Bundles are read
//! back for the proof but never written: that is the task of whoever made the files.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::bundle;
use crate::clock::{Clock, Now};
use crate::complaints::{Complaints, chain};
use crate::probe::{self, Endpoint, Goal};
use crate::publish::{self, Target};
use crate::resolver::ServingCertificate;
use crate::status::{Board, Status, Trigger, Writer};

/// Where to look and how often.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory with the files.
    pub directory: PathBuf,
    /// The files are read this often. Default: one second is right; they are small.
    pub poll: Duration,
    /// Configurations whose bundles are read back. Without them `published` counts as true.
    pub configurations: Vec<Target>,
    /// The bundles are read back this often, besides after each change of the files.
    pub read_back: Duration,
    /// The process's own listener, to prove that calls succeed.
    pub endpoint: Endpoint,
    /// The proof is repeated this often when nothing changes.
    pub prove_interval: Duration,
    /// Makes this mode look at everything now.
    pub trigger: Trigger,
}

/// Why the files are not taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The certificates cannot be understood.
    #[error("cannot read the certificates in {file}")]
    Certificates {
        /// Which file.
        file: &'static str,
        /// The parser's reason.
        #[source]
        source: bundle::Error,
    },
    /// No certificate in the file.
    #[error("no certificate in tls.crt")]
    Empty,
    /// The key cannot be understood. The reason is left out on purpose: it may quote the key.
    #[error("cannot read the key in tls.key")]
    Key,
    /// Key and certificate do not belong together, or the key is of an unknown kind.
    #[error("certificate and key do not fit")]
    Pair(#[source] rustls::Error),
    /// A certificate of the chain has ended.
    #[error("certificate number {index} of tls.crt ended at {not_after}")]
    Expired {
        /// Position in the file, from 0.
        index: usize,
        /// When it ended.
        not_after: Timestamp,
    },
    /// A certificate of the chain has not begun.
    #[error("certificate number {index} of tls.crt begins at {not_before}")]
    NotYetValid {
        /// Position in the file, from 0.
        index: usize,
        /// When it begins.
        not_before: Timestamp,
    },
}

/// A pair that can be served.
#[derive(Clone)]
pub struct Pair {
    /// What the TLS library serves.
    pub key: Arc<CertifiedKey>,
    /// The earliest end in the chain.
    pub not_after: Timestamp,
    /// The content of `ca.crt`; empty when there is none.
    pub authorities: Vec<CertificateDer<'static>>,
    digest: [u8; 32],
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The three files as read.
struct Content {
    chain: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
    digest: [u8; 32],
}

fn read(directory: &Path) -> Result<Content, Error> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| Error::Read { path, source })
    };
    let chain = read("tls.crt")?;
    let key = read("tls.key")?;
    let authorities = match read("ca.crt") {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut digest = Sha256::new();
    for part in [&chain, &key, &authorities] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    Ok(Content {
        chain,
        key,
        authorities,
        digest: digest.finalize().into(),
    })
}

fn understand(content: &Content, now: Timestamp) -> Result<Pair, Error> {
    let certificates =
        |file, text| bundle::parse(text).map_err(|source| Error::Certificates { file, source });
    let chain = certificates("tls.crt", &content.chain)?;
    let authorities = certificates("ca.crt", &content.authorities)?;
    let mut end = None;
    for (index, certificate) in chain.iter().enumerate() {
        let facts = bundle::facts(certificate).map_err(|source| Error::Certificates {
            file: "tls.crt",
            source,
        })?;
        let (not_before, not_after) = (facts.not_before, facts.not_after);
        if not_after <= now {
            return Err(Error::Expired { index, not_after });
        }
        if not_before > now {
            return Err(Error::NotYetValid { index, not_before });
        }
        end = Some(end.map_or(not_after, |end: Timestamp| end.min(not_after)));
    }
    let not_after = end.ok_or(Error::Empty)?;
    let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| Error::Key)?;
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider).map_err(Error::Pair)?;
    Ok(Pair {
        key: Arc::new(key),
        not_after,
        authorities,
        digest: content.digest,
    })
}

/// Reads the pair in a directory, valid at `now`.
pub fn load(directory: &Path, now: Timestamp) -> Result<Pair, Error> {
    understand(&read(directory)?, now)
}

/// Runs the mode until `shutdown` is done. The client is needed only when there are configurations.
pub async fn run(
    client: Option<kube::Client>,
    settings: Settings,
    serving: ServingCertificate,
    status: watch::Sender<Status>,
    shutdown: impl Future<Output = ()>,
) {
    let board = Board::new(status);
    let (goals, goal) = watch::channel(Goal::default());
    let proving = probe::keep_proving(&settings.endpoint, settings.prove_interval, goal, &board);
    let directory = Directory {
        client,
        settings: &settings,
        serving,
        board: &board,
        goals,
        clock: Clock::start(),
        loaded: None,
        bundles: Vec::new(),
        lacking: Vec::new(),
        read_at: None,
        complaints: Complaints::default(),
        replaced: 0,
    };
    tokio::select! {
        () = shutdown => {}
        () = Box::pin(directory.keep_looking()) => {}
        () = Box::pin(proving) => {}
    }
}

struct Directory<'a> {
    client: Option<kube::Client>,
    settings: &'a Settings,
    serving: ServingCertificate,
    board: &'a Board,
    goals: watch::Sender<Goal>,
    clock: Clock,
    loaded: Option<Pair>,
    bundles: Vec<Vec<CertificateDer<'static>>>,
    lacking: Vec<String>,
    read_at: Option<Duration>,
    complaints: Complaints,
    replaced: u64,
}

impl Directory<'_> {
    async fn keep_looking(mut self) {
        loop {
            let now = self.clock.now();
            let changed = self.look(now).await;
            // Soon, while something is missing: an injector fills the bundles after the files came.
            let due = if self.lacking.is_empty() {
                self.settings.read_back
            } else {
                self.settings.poll
            };
            if changed || self.read_at.is_none_or(|at| at + due <= now.mono) {
                self.read_at = Some(now.mono);
                self.read_back().await;
            }
            self.aim();
            self.tell(now);
            tokio::select! {
                () = self.settings.trigger.fired() => self.read_at = None,
                () = tokio::time::sleep(self.settings.poll) => {}
            }
        }
    }

    /// Takes over what is in the directory if it is new and good.
    async fn look(&mut self, now: Now) -> bool {
        let directory = self.settings.directory.clone();
        let known = self.loaded.as_ref().map(|pair| pair.digest);
        let found = tokio::task::spawn_blocking(move || {
            let content = read(&directory)?;
            if known == Some(content.digest) {
                return Ok(None);
            }
            understand(&content, now.wall).map(Some)
        });
        let Ok(found) = found.await else { return false };
        let topic = "certificate files";
        match found {
            Err(error) => {
                self.complaints.raise(topic, chain(&error));
                false
            }
            Ok(None) => {
                self.complaints.clear(topic);
                false
            }
            Ok(Some(pair)) => {
                self.complaints.clear(topic);
                tracing::info!(not_after = %pair.not_after, "serves the certificate in the files");
                self.replaced += u64::from(self.loaded.is_some());
                self.serving.replace(Arc::clone(&pair.key));
                self.loaded = Some(pair);
                true
            }
        }
    }

    async fn read_back(&mut self) {
        /// Enough for a slow API server, short enough not to miss changes of the files for long.
        const TIMEOUT: Duration = Duration::from_secs(5);
        let Some(client) = &self.client else { return };
        let mut bundles = Vec::new();
        let mut lacking = Vec::new();
        for target in &self.settings.configurations {
            let topic = target.to_string();
            let read = tokio::time::timeout(TIMEOUT, publish::read(client, target)).await;
            let configuration = match read {
                Ok(Ok(configuration)) => configuration,
                // What was read before stays: an API server that is away changes nothing.
                Ok(Err(error)) => return self.complaints.raise(&topic, chain(&error)),
                Err(_) => {
                    return self
                        .complaints
                        .raise(&topic, "no answer in time".to_owned());
                }
            };
            self.complaints.clear(&topic);
            let Some(configuration) = configuration else {
                lacking.push(format!("{target} does not exist"));
                continue;
            };
            for entry in &configuration.entries {
                let (certificates, _) = entry.certificates();
                if certificates.is_empty() {
                    lacking.push(format!("{target}: no bundle for {}", entry.name));
                } else if !bundles.contains(&certificates) {
                    bundles.push(certificates);
                }
            }
        }
        self.bundles = bundles;
        self.lacking = lacking;
    }

    fn aim(&self) {
        let Some(pair) = &self.loaded else { return };
        let mut bundles = self.bundles.clone();
        if bundles.is_empty() && !pair.authorities.is_empty() {
            bundles.push(pair.authorities.clone());
        }
        let goal = if bundles.is_empty() {
            Goal::Impossible("not proved: neither a published bundle nor ca.crt to verify with")
        } else {
            Goal::Prove {
                leaf: self.serving.serves(),
                bundles,
            }
        };
        self.goals.send_if_modified(|old| {
            let new = *old != goal;
            *old = goal;
            new
        });
    }

    fn tell(&self, now: Now) {
        let mut reasons = self.complaints.told();
        reasons.extend_from_slice(&self.lacking);
        let pair = self.loaded.as_ref();
        let valid = pair.is_some_and(|pair| now.wall < pair.not_after);
        if let Some(pair) = pair
            && !valid
        {
            reasons.push(format!("the certificate ended at {}", pair.not_after));
        }
        let authority = pair.and_then(|pair| pair.authorities.first());
        let authority = authority.and_then(|authority| bundle::facts(authority).ok());
        let read_back = self.client.is_none() || self.settings.configurations.is_empty();
        let published = read_back || self.lacking.is_empty() && !self.bundles.is_empty();
        self.board
            .write(Writer::Source, reasons.join("; "), |status| {
                status.serving = valid;
                status.published = published;
                status.leaf_not_after = pair.map(|pair| pair.not_after);
                status.ca_not_after = authority.map(|facts| facts.not_after);
                status.replaced = self.replaced;
            });
    }
}
