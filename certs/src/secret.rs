//! The Secret that holds the authorities: its form, read and written.
//!
//! ```text
//! ca.crt ca.key         the authority that signs
//! next.crt next.key     the authority that is published but does not sign yet
//! previous.json         retired ones: [{"certificate": PEM, "since": RFC 3339, "dropped": bool}]
//! annotations           PREFIX/rotate   set by people: a new value asks for a new authority
//!                       PREFIX/rotated  the last value that was handled
//! ```
//!
//! In: an object; out: ledger, keys, certificates, and what is wrong with it; and back. Pure. Other
//! annotations, labels and the type of an existing Secret are left as they are.

use std::collections::BTreeMap;
use std::error::Error as _;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::authority::{self, Authority};
use crate::bundle::{self, Fingerprint};
use crate::ledger::{Ledger, Retired};

const CURRENT: (&str, &str) = ("ca.crt", "ca.key");
const NEXT: (&str, &str) = ("next.crt", "next.key");
const PREVIOUS: &str = "previous.json";

/// A Secret, understood as far as possible.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// The shared state.
    pub ledger: Ledger,
    /// The authorities that have their key in it.
    pub authorities: Vec<Authority>,
    /// Certificates of the retired ones.
    pub retired: Vec<CertificateDer<'static>>,
    /// What does not make sense, for people; holds no secret.
    pub problems: Vec<String>,
    /// The value of the annotation that asks for a rotation.
    pub rotate: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Previous {
    certificate: String,
    since: Timestamp,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dropped: bool,
}

/// Reads a Secret. `prefix` is that of the annotations, without the slash.
pub fn parse(secret: &Secret, prefix: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let annotation = |name: &str| {
        let annotations = secret.metadata.annotations.as_ref()?;
        annotations.get(&format!("{prefix}/{name}")).cloned()
    };
    parsed.rotate = annotation("rotate");
    parsed.ledger.handled = annotation("rotated");
    parsed.ledger.current = parsed.authority(secret, CURRENT);
    parsed.ledger.next = parsed.authority(secret, NEXT);
    if parsed.ledger.next == parsed.ledger.current {
        parsed.ledger.next = None;
    }
    parsed.previous(secret);
    parsed
}

impl Parsed {
    fn authority(&mut self, secret: &Secret, keys: (&str, &str)) -> Option<crate::ledger::Ca> {
        let value = |key: &str| {
            let value = secret.data.as_ref()?.get(key)?;
            (!value.0.is_empty()).then_some(value.0.as_slice())
        };
        let authority = match (value(keys.0), value(keys.1)) {
            (None, None) => return None,
            (certificate, key) => {
                Authority::from_pem(certificate.unwrap_or_default(), key.unwrap_or_default())
            }
        };
        match authority {
            Ok(authority) => {
                let ca = authority.ca().clone();
                self.authorities.push(authority);
                Some(ca)
            }
            Err(error) => {
                let cause = match &error {
                    authority::Error::Certificate(cause) => format!(": {cause}"),
                    _ => String::new(),
                };
                self.problems.push(format!("{}: {error}{cause}", keys.0));
                None
            }
        }
    }

    fn previous(&mut self, secret: &Secret) {
        let Some(text) = secret.data.as_ref().and_then(|data| data.get(PREVIOUS)) else {
            return;
        };
        let entries: Vec<Previous> = match serde_json::from_slice(&text.0) {
            Ok(entries) => entries,
            Err(error) => {
                self.problems.push(format!(
                    "{PREVIOUS}: not valid JSON of the expected form ({:?})",
                    error.classify()
                ));
                return;
            }
        };
        for entry in entries {
            let certificate = match bundle::parse(entry.certificate.as_bytes()) {
                Ok(mut all) if all.len() == 1 => all.remove(0),
                Ok(all) => {
                    let count = all.len();
                    self.problems
                        .push(format!("{PREVIOUS}: {count} certificates in one entry"));
                    continue;
                }
                Err(error) => {
                    let cause = error.source().map(|cause| format!(": {cause}"));
                    let cause = cause.unwrap_or_default();
                    self.problems.push(format!("{PREVIOUS}: {error}{cause}"));
                    continue;
                }
            };
            let id = Fingerprint::of(&certificate);
            if self.ledger.knows(id) {
                continue;
            }
            self.ledger.retired.push(Retired {
                id,
                since: entry.since,
                dropped: entry.dropped,
            });
            self.retired.push(certificate);
        }
    }
}

/// Why a ledger could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger names an authority whose key or certificate is not at hand.
    #[error("the material of authority {0} is not at hand")]
    Material(Fingerprint),
    /// The list of retired authorities could not be written as JSON.
    #[error("cannot write the retired authorities as JSON")]
    Json(#[source] serde_json::Error),
}

/// The Secret `base` with the ledger in it. `base` is the one that was read (its resourceVersion
/// makes the write a compare-and-swap), or a new one.
pub fn render(
    mut base: Secret,
    prefix: &str,
    ledger: &Ledger,
    authorities: &BTreeMap<Fingerprint, Authority>,
    certificates: &BTreeMap<Fingerprint, CertificateDer<'static>>,
) -> Result<Secret, Error> {
    let data = base.data.get_or_insert_default();
    for (keys, ca) in [(CURRENT, &ledger.current), (NEXT, &ledger.next)] {
        if let Some(ca) = ca {
            let authority = authorities.get(&ca.id).ok_or(Error::Material(ca.id))?;
            let (certificate, key) = authority.to_pem();
            data.insert(keys.0.to_owned(), ByteString(certificate.into_bytes()));
            data.insert(keys.1.to_owned(), ByteString(key.into_bytes()));
        } else {
            data.remove(keys.0);
            data.remove(keys.1);
        }
    }
    let mut previous = Vec::new();
    for retired in &ledger.retired {
        let certificate = certificates
            .get(&retired.id)
            .ok_or(Error::Material(retired.id))?;
        previous.push(Previous {
            certificate: bundle::render([certificate]),
            since: retired.since,
            dropped: retired.dropped,
        });
    }
    if previous.is_empty() {
        data.remove(PREVIOUS);
    } else {
        let text = serde_json::to_vec_pretty(&previous).map_err(Error::Json)?;
        data.insert(PREVIOUS.to_owned(), ByteString(text));
    }
    if let Some(handled) = &ledger.handled {
        let annotations = base.metadata.annotations.get_or_insert_default();
        annotations.insert(format!("{prefix}/rotated"), handled.clone());
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Lifetime;
    use std::time::Duration;

    fn authority(name: &str) -> Authority {
        let lifetime = Lifetime {
            valid: Duration::from_hours(1),
            skew: Duration::from_mins(1),
        };
        let now = "2026-11-24T10:00:00Z".parse().expect("a time");
        Authority::generate(name, now, lifetime).expect("an authority")
    }

    fn full() -> (
        Ledger,
        BTreeMap<Fingerprint, Authority>,
        BTreeMap<Fingerprint, CertificateDer<'static>>,
    ) {
        let all = [authority("a"), authority("b"), authority("c")];
        let ledger = Ledger {
            current: Some(all[0].ca().clone()),
            next: Some(all[1].ca().clone()),
            retired: vec![Retired {
                id: all[2].ca().id,
                since: "2026-11-24T09:30:00.25Z".parse().expect("a time"),
                dropped: true,
            }],
            handled: Some("monday".to_owned()),
        };
        let certificates = all
            .iter()
            .map(|a| (a.ca().id, a.certificate().clone()))
            .collect();
        let authorities = all.into_iter().map(|a| (a.ca().id, a)).collect();
        (ledger, authorities, certificates)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (ledger, authorities, certificates) = full();
        let secret = render(Secret::default(), "p", &ledger, &authorities, &certificates).unwrap();
        let parsed = parse(&secret, "p");
        assert_eq!(parsed.ledger, ledger);
        assert_eq!(parsed.authorities.len(), 2);
        assert_eq!(parsed.retired.len(), 1);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        // Nothing of the old state survives a smaller ledger; foreign data does.
        let mut secret = secret;
        let data = secret.data.as_mut().unwrap();
        data.insert("foreign".to_owned(), ByteString(b"x".to_vec()));
        let small = Ledger {
            current: ledger.next.clone(),
            ..Ledger::default()
        };
        let secret = render(secret, "p", &small, &authorities, &certificates).unwrap();
        let keys: Vec<_> = secret.data.unwrap().into_keys().collect();
        assert_eq!(keys, ["ca.crt", "ca.key", "foreign"]);
    }

    #[test]
    fn empty_secret_is_an_empty_ledger_without_problems() {
        let parsed = parse(&Secret::default(), "p");
        assert!(parsed.ledger.is_empty() && parsed.problems.is_empty());
    }

    #[test]
    fn problems_are_named_without_quoting_what_is_secret() {
        let (ledger, authorities, certificates) = full();
        let mut secret =
            render(Secret::default(), "p", &ledger, &authorities, &certificates).unwrap();
        let data = secret.data.as_mut().unwrap();
        data.insert("ca.key".to_owned(), ByteString(b"hunter2".to_vec()));
        data.insert(
            "next.crt".to_owned(),
            ByteString(b"-----BEGIN CERTIFICATE-----\nhunter2\n".to_vec()),
        );
        data.insert(
            "previous.json".to_owned(),
            ByteString(b"[{\"hunter2\":1}]".to_vec()),
        );
        let parsed = parse(&secret, "p");
        assert_eq!(parsed.problems.len(), 3, "{:?}", parsed.problems);
        assert!(parsed.ledger.is_empty());
        assert!(!format!("{parsed:?}").contains("hunter2"), "{parsed:?}");
    }
}
