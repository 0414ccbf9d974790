//! Reads what the self-managed mode decides on, and keeps the keys and certificates that go with it.
//!
//! In: a client; out: a [`View`] for the planner, with the objects behind it. Configurations first,
//! then the Secret: the invariant in `plan` depends on that order.

use k8s_openapi::api::core::v1::Secret;
use rustls_pki_types::CertificateDer;

use super::Replica;
use crate::authority::Authority;
use crate::bundle::Fingerprint;
use crate::complaints::chain;
use crate::publish::{self, Configuration, Target, fingerprints};
use crate::secret;
use crate::view::{self, Bundles, View};

/// What was read, with the material the view leaves out.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) view: View,
    pub(super) secret: Option<Secret>,
    pub(super) configurations: Vec<(Target, Configuration)>,
    pub(super) bundles: Vec<Vec<CertificateDer<'static>>>,
    /// Nothing failed.
    pub(super) clean: bool,
}

impl Replica<'_> {
    /// Reads configurations, then the Secret. The order matters, see `plan`.
    pub(super) async fn observe(&mut self) -> Observed {
        let mut observed = Observed {
            clean: true,
            ..Observed::default()
        };
        let mut bundles = Bundles {
            complete: true,
            ..Bundles::default()
        };
        self.missing.clear();
        for target in &self.settings.configurations {
            let topic = target.to_string();
            let read = self.call(publish::read(self.client, target)).await;
            match read {
                Ok(Some(read)) => {
                    self.complaints.clear(&topic);
                    for entry in &read.entries {
                        let (certificates, unreadable) = entry.certificates();
                        bundles.unreadable |= unreadable;
                        bundles.entries.push(fingerprints(&certificates));
                        for certificate in &certificates {
                            let id = Fingerprint::of(certificate);
                            self.certificates.insert(id, certificate.clone());
                        }
                        if !observed.bundles.contains(&certificates) {
                            observed.bundles.push(certificates);
                        }
                    }
                    observed.configurations.push((target.clone(), read));
                }
                Ok(None) => {
                    self.complaints.clear(&topic);
                    bundles.missing += 1;
                    self.missing.push(topic);
                }
                Err(error) => {
                    observed.clean = false;
                    bundles.complete = false;
                    self.complaints.raise(&topic, chain(&error));
                }
            }
        }
        observed.view.bundles = bundles;
        let name = &self.settings.secret;
        let read = self.call(self.secrets.get_opt(name)).await;
        let topic = format!("Secret {}/{name}", self.settings.namespace);
        observed.view.secret = match read {
            Err(error) => {
                observed.clean = false;
                self.complaints.raise(&topic, chain(&error));
                view::Secret::Unknown
            }
            Ok(None) => {
                self.complaints.clear(&topic);
                view::Secret::Absent
            }
            Ok(Some(found)) => {
                let parsed = secret::parse(&found, &self.settings.annotation_prefix);
                observed.secret = Some(found);
                if parsed.problems.is_empty() {
                    self.complaints.clear(&topic);
                } else {
                    self.complaints.raise(&topic, parsed.problems.join("; "));
                }
                self.remember(parsed.authorities, parsed.retired);
                view::Secret::Present {
                    ledger: parsed.ledger,
                    malformed: !parsed.problems.is_empty(),
                    rotate: parsed.rotate,
                }
            }
        };
        observed
    }

    pub(super) fn remember(
        &mut self,
        authorities: Vec<Authority>,
        retired: Vec<CertificateDer<'static>>,
    ) {
        for authority in authorities {
            let ca = authority.ca().clone();
            self.certificates
                .insert(ca.id, authority.certificate().clone());
            self.memory.keys.insert(ca.id, ca.clone());
            self.authorities.insert(ca.id, authority);
        }
        for certificate in retired {
            self.certificates
                .insert(Fingerprint::of(&certificate), certificate);
        }
    }

    /// Keeps keys and certificates only of what the Secret, the bundles or the leaf still name.
    pub(super) fn forget_material(&mut self, observed: &Observed) {
        let Some(ledger) = &self.memory.ledger else {
            return;
        };
        let held = self.memory.leaf.as_ref().map(|leaf| leaf.ca);
        let entries = &observed.view.bundles.entries;
        let named = |id: &Fingerprint| {
            ledger.knows(*id) || held == Some(*id) || entries.iter().any(|entry| entry.contains(id))
        };
        self.certificates.retain(|id, _| named(id));
        self.authorities.retain(|id, _| named(id));
        self.memory.keys.retain(|id, _| named(id));
    }
}
