//! The `caBundle` of webhook configurations: read, compared, applied.
//!
//! Reading and writing need a client; what to write is decided elsewhere. Server-side apply with
//! our own field manager owns `webhooks[].clientConfig.caBundle` of the entries that exist and
//! nothing else. The apply carries the resourceVersion that was read: it fails on a configuration
//! that changed since, so an older view never overwrites a newer one.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::bundle::{self, Fingerprint};

/// A webhook configuration, by kind and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A `MutatingWebhookConfiguration`.
    Mutating(String),
    /// A `ValidatingWebhookConfiguration`.
    Validating(String),
}

impl Target {
    fn kind(&self) -> &'static str {
        match self {
            Self::Mutating(_) => "MutatingWebhookConfiguration",
            Self::Validating(_) => "ValidatingWebhookConfiguration",
        }
    }

    /// The name of the object.
    pub fn name(&self) -> &str {
        match self {
            Self::Mutating(name) | Self::Validating(name) => name,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// A configuration as read: what matters of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The version that was read.
    pub resource_version: Option<String>,
    /// Its webhooks.
    pub entries: Vec<Entry>,
}

/// One webhook of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Names it within the configuration.
    pub name: String,
    /// The bundle as it stands; empty when there is none.
    pub bundle: Vec<u8>,
}

impl Entry {
    /// The certificates in it; those that cannot be read count as absent (second value: true).
    pub fn certificates(&self) -> (Vec<CertificateDer<'static>>, bool) {
        match bundle::parse(&self.bundle) {
            Ok(certificates) => {
                let nothing_in_it = certificates.is_empty() && !self.bundle.is_empty();
                (certificates, nothing_in_it)
            }
            Err(_) => (Vec::new(), true),
        }
    }
}

/// The set of certificates by name.
pub(crate) fn fingerprints(certificates: &[CertificateDer<'static>]) -> BTreeSet<Fingerprint> {
    certificates.iter().map(Fingerprint::of).collect()
}

/// Reads a configuration from the API server (not from a cache); `None` when it does not exist.
pub async fn read(client: &kube::Client, target: &Target) -> kube::Result<Option<Configuration>> {
    Ok(match target {
        Target::Mutating(name) => {
            let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
            let found = api.get_opt(name).await?;
            found.map(|found| Configuration {
                resource_version: found.metadata.resource_version,
                entries: found
                    .webhooks
                    .unwrap_or_default()
                    .into_iter()
                    .map(|webhook| entry(webhook.name, webhook.client_config.ca_bundle))
                    .collect(),
            })
        }
        Target::Validating(name) => {
            let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
            let found = api.get_opt(name).await?;
            found.map(|found| Configuration {
                resource_version: found.metadata.resource_version,
                entries: found
                    .webhooks
                    .unwrap_or_default()
                    .into_iter()
                    .map(|webhook| entry(webhook.name, webhook.client_config.ca_bundle))
                    .collect(),
            })
        }
    })
}

fn entry(name: String, bundle: Option<ByteString>) -> Entry {
    Entry {
        name,
        bundle: bundle.map(|bundle| bundle.0).unwrap_or_default(),
    }
}

/// Publishes a bundle (PEM) on a configuration in the version that was read. A conflict (409) means
/// that it changed since.
pub async fn apply(
    client: &kube::Client,
    target: &Target,
    read: &Configuration,
    bundle: &str,
    manager: &str,
) -> kube::Result<()> {
    let patch = Patch::Apply(patch(target, read, bundle));
    // Force: the field may belong to whoever installed the configuration.
    let params = PatchParams::apply(manager).force();
    let name = target.name();
    match target {
        Target::Mutating(_) => {
            let api = Api::<PartialObjectMeta<MutatingWebhookConfiguration>>::all(client.clone());
            api.patch(name, &params, &patch).await.map(drop)
        }
        Target::Validating(_) => {
            let api = Api::<PartialObjectMeta<ValidatingWebhookConfiguration>>::all(client.clone());
            api.patch(name, &params, &patch).await.map(drop)
        }
    }
}

fn patch(target: &Target, read: &Configuration, bundle: &str) -> Value {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let webhooks: Vec<Value> = read
        .entries
        .iter()
        .map(|entry| json!({"name": entry.name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": target.kind(),
        "metadata": {"name": target.name(), "resourceVersion": read.resource_version},
        "webhooks": webhooks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_owns_the_bundles_of_existing_entries_and_nothing_else() {
        let target = Target::Validating("v".to_owned());
        let entry = |name: &str| Entry {
            name: name.to_owned(),
            bundle: Vec::new(),
        };
        let read = Configuration {
            resource_version: Some("7".to_owned()),
            entries: vec![entry("a.example"), entry("b.example")],
        };
        assert_eq!(
            patch(&target, &read, "PEM"),
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingWebhookConfiguration",
                "metadata": {"name": "v", "resourceVersion": "7"},
                "webhooks": [
                    {"name": "a.example", "clientConfig": {"caBundle": "UEVN"}},
                    {"name": "b.example", "clientConfig": {"caBundle": "UEVN"}},
                ],
            })
        );
    }

    #[test]
    fn bundle_without_a_certificate_is_unreadable_but_an_empty_one_is_not() {
        let entry = |bundle: &[u8]| Entry {
            name: "a".to_owned(),
            bundle: bundle.to_vec(),
        };
        assert!(!entry(b"").certificates().1);
        assert!(entry(b"Cg==").certificates().1);
        assert!(
            entry(b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n")
                .certificates()
                .1
        );
    }
}
