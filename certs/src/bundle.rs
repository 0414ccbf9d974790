//! Sets of certificates as PEM text: what a `caBundle` or a `ca.crt` holds.
//!
//! In: bytes; out: certificates in their order, without doubles. Certificates are named by their
//! [`Fingerprint`]. Needs no client; does not know who is trusted for what.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject as _};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a certificate's DER form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The name of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }

    /// A fingerprint from its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Eight bytes tell certificates of one installation apart and stay readable in a log line.
        self.0[..8]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why certificates could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not PEM, or PEM with broken base64.
    #[error("not valid PEM")]
    Pem(#[source] pem::Error),
    /// PEM, but not an X.509 certificate.
    #[error("certificate number {index} is not valid X.509")]
    Certificate {
        /// Position in the text, from 0.
        index: usize,
        /// The parser's reason.
        #[source]
        source: x509_parser::error::X509Error,
    },
}

/// The part of a certificate this crate decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// Whether basic constraints allow it to sign others.
    pub is_ca: bool,
    /// The subject's public key, DER.
    pub public_key: Vec<u8>,
}

/// The certificates in a PEM text, in order, each once. Other PEM sections are skipped, and so is
/// text around them; empty input gives an empty list.
pub fn parse(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(text).enumerate() {
        let certificate = certificate.map_err(Error::Pem)?;
        facts_at(index, &certificate)?;
        if seen.insert(Fingerprint::of(&certificate)) {
            found.push(certificate);
        }
    }
    Ok(found)
}

/// Validity and purpose of one certificate.
pub fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, Error> {
    facts_at(0, certificate)
}

fn facts_at(index: usize, certificate: &CertificateDer<'_>) -> Result<Facts, Error> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| Error::Certificate {
            index,
            source: match error {
                x509_parser::nom::Err::Error(source) | x509_parser::nom::Err::Failure(source) => {
                    source
                }
                x509_parser::nom::Err::Incomplete(_) => {
                    x509_parser::error::X509Error::InvalidCertificate
                }
            },
        })?;
    let validity = parsed.validity();
    let time = |seconds: i64, beyond| Timestamp::from_second(seconds).unwrap_or(beyond);
    Ok(Facts {
        not_before: time(validity.not_before.timestamp(), Timestamp::MIN),
        not_after: time(validity.not_after.timestamp(), Timestamp::MAX),
        is_ca: parsed.is_ca(),
        public_key: parsed.public_key().raw.to_vec(),
    })
}

/// The PEM text of certificates: first mention decides the order, each once.
pub fn render<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    let mut seen = BTreeSet::new();
    let mut text = String::new();
    for certificate in certificates {
        if seen.insert(Fingerprint::of(certificate)) {
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            for line in base64(certificate).as_bytes().chunks(64) {
                text.extend(line.iter().map(|byte| char::from(*byte)));
                text.push('\n');
            }
            text.push_str("-----END CERTIFICATE-----\n");
        }
    }
    text
}

/// Base64 with padding (RFC 4648, section 4); a dependency would be larger than this.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = 0_u32;
        for position in 0..3 {
            word = word << 8 | u32::from(group.get(position).copied().unwrap_or(0));
        }
        for position in 0..4_usize {
            if position <= group.len() {
                let index = word >> (18 - 6 * position) & 63;
                let _ = text.write_char(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, Lifetime};

    fn certificate(name: &str) -> CertificateDer<'static> {
        let lifetime = Lifetime {
            valid: std::time::Duration::from_hours(1),
            skew: std::time::Duration::from_mins(1),
        };
        let authority = Authority::generate(name, Timestamp::UNIX_EPOCH, lifetime);
        authority.expect("a certificate").certificate().clone()
    }

    #[test]
    fn rendered_certificates_parse_back_in_order_and_once() {
        let (a, b) = (certificate("a"), certificate("b"));
        let text = render([&b, &a, &b]);
        assert_eq!(parse(text.as_bytes()).unwrap(), vec![b.clone(), a]);
        let doubled = format!("{}{text}", render([&b]));
        assert_eq!(parse(doubled.as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn empty_input_is_an_empty_bundle_and_garbage_is_an_error() {
        assert!(parse(b"").unwrap().is_empty());
        assert!(matches!(
            parse(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"),
            Err(Error::Pem(_))
        ));
        assert!(matches!(
            parse(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            Err(Error::Certificate { index: 0, .. })
        ));
    }

    #[test]
    fn base64_pads_like_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
