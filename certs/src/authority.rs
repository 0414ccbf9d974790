//! Makes certificate authorities and signs leafs with them: ECDSA P-256 with ring.
//!
//! In: names, validity, the current wall time; out: certificates with their keys. Pure save for
//! the random numbers of key generation. Needs no client. Keys are never printed.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use crate::bundle::{self, Fingerprint};
use crate::clock::{earlier, later};
use crate::ledger::Ca;

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key or certificate could not be generated.
    #[error("cannot make {what}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// The generator's reason.
        #[source]
        source: rcgen::Error,
    },
    /// The leaf cannot be used by the TLS library.
    #[error("cannot use the signed leaf")]
    Use(#[source] rustls::Error),
    /// The certificate text cannot be read.
    #[error("cannot read the certificate of the authority")]
    Certificate(#[source] bundle::Error),
    /// There is not exactly one certificate.
    #[error("found {0} certificates where the authority's own was expected")]
    Count(usize),
    /// The certificate must not sign others.
    #[error("the certificate is not one of an authority")]
    NotAnAuthority,
    /// The key cannot be read. The reason is left out on purpose: it may quote the key.
    #[error("cannot read the key of the authority (PKCS#8 in PEM is expected)")]
    Key,
    /// Key and certificate belong to different authorities.
    #[error("the key does not match the certificate")]
    Mismatch,
}

/// How long a new certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// From now on.
    pub valid: Duration,
    /// Before now, so that a client whose clock is behind accepts it.
    pub skew: Duration,
}

/// A certificate authority: certificate and key.
#[derive(Clone)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: Arc<KeyPair>,
    ca: Ca,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

/// A serving certificate with its key, and the facts that decide about its renewal.
#[derive(Clone)]
pub struct Leaf {
    /// What the TLS library serves.
    pub key: Arc<CertifiedKey>,
    /// The authority that signed it.
    pub ca: Fingerprint,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("ca", &self.ca)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority. The common name gets a few digits of the key's hash, so that two
    /// authorities of one installation have different subjects and clients find the right one
    /// without trying both.
    pub fn generate(name: &str, now: Timestamp, lifetime: Lifetime) -> Result<Self, Error> {
        let make = |source| Error::Make {
            what: "an authority",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let digest = Sha256::digest(key.der_bytes());
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let suffix = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{name} {suffix:08x}"));
        // Path length 0: it signs leafs, never another authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(
            &mut params,
            earlier(now, lifetime.skew),
            later(now, lifetime.valid),
        );
        let certificate = params.self_signed(&key).map_err(make)?.der().clone();
        Self::from_parts(certificate, key)
    }

    /// An authority from the two texts of a Secret.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        let mut certificates = bundle::parse(certificate).map_err(Error::Certificate)?;
        let (Some(certificate), true) = (certificates.pop(), certificates.is_empty()) else {
            return Err(Error::Count(
                bundle::parse(certificate).map_or(0, |all| all.len()),
            ));
        };
        let key = std::str::from_utf8(key).map_err(|_| Error::Key)?;
        let key = KeyPair::from_pem(key).map_err(|_| Error::Key)?;
        Self::from_parts(certificate, key)
    }

    fn from_parts(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, Error> {
        let facts = bundle::facts(&certificate).map_err(Error::Certificate)?;
        if !facts.is_ca {
            return Err(Error::NotAnAuthority);
        }
        if facts.public_key != key.subject_public_key_info() {
            return Err(Error::Mismatch);
        }
        let ca = Ca {
            id: Fingerprint::of(&certificate),
            not_before: facts.not_before,
            not_after: facts.not_after,
        };
        Ok(Self {
            certificate,
            key: Arc::new(key),
            ca,
        })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its name and validity.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// Certificate and key as PEM, for the Secret. The second is secret.
    pub fn to_pem(&self) -> (String, String) {
        (
            bundle::render([&self.certificate]),
            self.key.serialize_pem(),
        )
    }

    /// Signs a serving certificate for `names` (DNS names or addresses) with a fresh key. It ends
    /// with the authority at the latest, because clients check the whole chain.
    pub fn sign(
        &self,
        names: &[String],
        now: Timestamp,
        lifetime: Lifetime,
    ) -> Result<Leaf, Error> {
        let make = |source| Error::Make {
            what: "a leaf",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::new(names).map_err(make)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = names.iter().find(|name| name.len() <= 64) {
            // RFC 5280 bounds a common name to 64 characters; the alternative names count anyway.
            params
                .distinguished_name
                .push(DnType::CommonName, name.as_str());
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(
            &mut params,
            earlier(now, lifetime.skew),
            later(now, lifetime.valid).min(self.ca.not_after),
        );
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key).map_err(make)?;
        let certificate = params.signed_by(&key, &issuer).map_err(make)?.der().clone();
        let facts = bundle::facts(&certificate).map_err(Error::Certificate)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::ring::default_provider();
        let key = CertifiedKey::from_der(vec![certificate], key, &provider).map_err(Error::Use)?;
        Ok(Leaf {
            key: Arc::new(key),
            ca: self.ca.id,
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }
}

/// Whether a text can stand in a certificate as a name: an IP address or a DNS name.
pub(crate) fn is_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || rustls_pki_types::DnsName::try_from(name).is_ok()
}

/// Certificates count in whole seconds, from 1950 to 9999 (RFC 5280, section 4.1.2.5).
fn set_validity(params: &mut CertificateParams, not_before: Timestamp, not_after: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    params.not_before = epoch + seconds(not_before);
    params.not_after = epoch + seconds(not_after);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Lifetime = Lifetime {
        valid: Duration::from_hours(24),
        skew: Duration::from_hours(1),
    };

    fn now() -> Timestamp {
        "2026-11-24T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn authority_survives_its_pem_form() {
        let made = Authority::generate("test", now(), LIFE).unwrap();
        let (certificate, key) = made.to_pem();
        let read = Authority::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(read.ca(), made.ca());
        assert_eq!(
            made.ca().not_before,
            "2026-11-24T09:00:00Z".parse().unwrap()
        );
        assert_eq!(made.ca().not_after, "2026-11-25T10:00:00Z".parse().unwrap());
    }

    #[test]
    fn foreign_key_broken_key_and_leaf_are_refused() {
        let a = Authority::generate("a", now(), LIFE).unwrap();
        let b = Authority::generate("b", now(), LIFE).unwrap();
        let check = |certificate: &str, key: &str| {
            Authority::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err()
        };
        assert!(matches!(
            check(&a.to_pem().0, &b.to_pem().1),
            Error::Mismatch
        ));
        assert!(matches!(check(&a.to_pem().0, "garbage"), Error::Key));
        assert!(matches!(check("", &a.to_pem().1), Error::Count(0)));
        let two = a.to_pem().0 + &b.to_pem().0;
        assert!(matches!(check(&two, &a.to_pem().1), Error::Count(2)));
        let leaf = a.sign(&["x.svc".to_owned()], now(), LIFE).unwrap();
        let leaf = bundle::render([&leaf.key.cert[0]]);
        assert!(matches!(check(&leaf, &a.to_pem().1), Error::NotAnAuthority));
    }

    #[test]
    fn leaf_never_outlives_its_authority() {
        let authority = Authority::generate("a", now(), LIFE).unwrap();
        let late = later(now(), Duration::from_hours(20));
        let names = ["x.svc".to_owned(), "127.0.0.1".to_owned()];
        let leaf = authority.sign(&names, late, LIFE).unwrap();
        assert_eq!(leaf.not_after, authority.ca().not_after);
        assert_eq!(leaf.ca, authority.ca().id);
    }

    #[test]
    fn debug_shows_no_key() {
        let authority = Authority::generate("a", now(), LIFE).unwrap();
        let leaf = authority.sign(&["x.svc".to_owned()], now(), LIFE).unwrap();
        let key = authority.to_pem().1;
        let line = key.lines().nth(1).unwrap();
        let shown = format!("{authority:?} {leaf:?}");
        assert!(!shown.contains(line) && !shown.contains("key"), "{shown}");
    }
}
