//! Tokens by which an executor knows that an order comes from the operator.
//!
//! A token is a JWT (RFC 7519) in compact form, signed with Ed25519 (`EdDSA`, RFC 8037) and with
//! nothing else. It holds for one request to one pod for at most [`MAX_LIFE_SECONDS`]: it names the
//! pod's UID, method, path with query, and the SHA-256 of the body. `htm` and `htu` are named as in
//! RFC 9449; `htu` is the path with query as it is sent, because the host is an address that the pod
//! does not know. `jti` is random and lets the executor refuse a second use.
//!
//! ```text
//! {"alg":"EdDSA","typ":"JWT"}
//! {"iss":"opensandbox-operator","aud":"POD-UID","iat":1,"exp":61,"jti":"...","htm":"POST",
//!  "htu":"/setTasks","body":"base64url of SHA-256"}
//! ```
//!
//! Pure: clock and random source are parameters. An executor holds public keys only.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::rand::SecureRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// Issuer of every token.
pub const ISSUER: &str = "opensandbox-operator";
/// Longest life of a token, in seconds.
pub const MAX_LIFE_SECONDS: u64 = 60;
/// By how much the operator's clock may be ahead of the executor's, in seconds.
pub const SKEW_SECONDS: u64 = 5;
/// Longest token, in bytes: three times what a long path needs.
pub const MAX_TOKEN: usize = 8 * 1024;
/// Bytes of a token's random ID.
pub const ID_LENGTH: usize = 16;

const ALGORITHM: &str = "EdDSA";
const KEY_LENGTH: usize = 32;

/// The random ID of a token.
pub type TokenId = [u8; ID_LENGTH];

/// The request that a token is for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// UID of the pod that it goes to.
    pub pod_uid: &'a str,
    /// HTTP method, upper case.
    pub method: &'a str,
    /// Path with query, as in the request line.
    pub target: &'a str,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Claims {
    /// [`ISSUER`].
    pub iss: String,
    /// UID of the pod.
    pub aud: String,
    /// When it was made, in seconds since 1970, UTC.
    pub iat: u64,
    /// From when on it does not hold any more, likewise.
    pub exp: u64,
    /// Its [`TokenId`], base64url without padding.
    pub jti: String,
    /// HTTP method.
    pub htm: String,
    /// Path with query.
    pub htu: String,
    /// SHA-256 of the body, base64url without padding; of no bytes if there is no body.
    pub body: String,
}

impl Claims {
    /// Claims for `request` with `body`, made `now` (seconds since 1970) and valid as long as any may.
    pub fn new(request: &Request<'_>, body: &[u8], id: &TokenId, now: u64) -> Self {
        Self {
            iss: ISSUER.to_owned(),
            aud: request.pod_uid.to_owned(),
            iat: now,
            exp: now.saturating_add(MAX_LIFE_SECONDS),
            jti: URL_SAFE_NO_PAD.encode(id),
            htm: request.method.to_owned(),
            htu: request.target.to_owned(),
            body: body_hash(body),
        }
    }
}

/// What every token begins with; of the header only the algorithm counts.
#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Names of extensions that a verifier has to understand (RFC 7515, 4.1.11). There is none.
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

/// A key or a random number could not be made or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The random source failed.
    #[error("no random bytes from the system")]
    Random,
    /// Not a private key.
    #[error("not an Ed25519 private key in PKCS #8; make a new one")]
    Private,
    /// Not a public key.
    #[error("not an Ed25519 public key; it must be the standard base64 of its 32 bytes")]
    Public,
}

/// A new [`TokenId`].
///
/// # Errors
/// If the random source fails.
pub fn random_id(random: &dyn SecureRandom) -> Result<TokenId, KeyError> {
    let mut id = [0; ID_LENGTH];
    random.fill(&mut id).map_err(|_| KeyError::Random)?;
    Ok(id)
}

/// The operator's private key.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey([redacted])")
    }
}

impl SigningKey {
    /// A new key, as the bytes (PKCS #8, DER) that [`Self::from_pkcs8`] reads. They are secret.
    ///
    /// # Errors
    /// If the random source fails.
    pub fn generate(random: &dyn SecureRandom) -> Result<Vec<u8>, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(random).map_err(|_| KeyError::Random)?;
        Ok(document.as_ref().to_vec())
    }

    /// Reads a key.
    ///
    /// # Errors
    /// If the bytes are not an Ed25519 key in PKCS #8, with or without its public half.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(Self)
            .map_err(|_| KeyError::Private)
    }

    /// The public half, in the form of [`VerificationKey::from_base64`].
    pub fn verification_key(&self) -> String {
        STANDARD.encode(self.0.public_key().as_ref())
    }

    /// A token for `request` with `body`, made `now` (seconds since 1970).
    pub fn sign(&self, request: &Request<'_>, body: &[u8], id: &TokenId, now: u64) -> String {
        self.sign_claims(&Claims::new(request, body, id, now))
    }

    /// A token that says `claims`, whether or not a verifier will take it.
    pub fn sign_claims(&self, claims: &Claims) -> String {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{ALGORITHM}","typ":"JWT"}}"#));
        // Strings and numbers always have a JSON form.
        let payload = serde_json::to_vec(claims).unwrap_or_default();
        let mut token = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
        let signature = self.0.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        token
    }
}

/// One of the operator's public keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerificationKey([u8; KEY_LENGTH]);

impl VerificationKey {
    /// Reads the standard base64 of the key's 32 bytes; white space around it is ignored.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        STANDARD
            .decode(text.trim())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(KeyError::Public)
    }
}

/// Why a token is refused. The text names no part of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// Not a JWT with the claims needed.
    #[error("the token is malformed")]
    Malformed,
    /// Signed otherwise, or not at all.
    #[error("the token is not signed with EdDSA")]
    Algorithm,
    /// None of the keys made the signature.
    #[error("the token's signature does not fit the operator's key")]
    Signature,
    /// Made by somebody else.
    #[error("the token has another issuer")]
    Issuer,
    /// For another pod.
    #[error("the token is for another pod")]
    Pod,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Made later than now.
    #[error("the token is from the future; compare the clocks of operator and node")]
    Future,
    /// Valid for longer than [`MAX_LIFE_SECONDS`], or never.
    #[error("the token's time of validity is not between 1 and 60 seconds")]
    Life,
    /// For another method.
    #[error("the token is for another method")]
    Method,
    /// For another path or query.
    #[error("the token is for another path or query")]
    Target,
    /// For another body.
    #[error("the token is for another body")]
    Body,
}

impl Reject {
    /// The reason in one word, for a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Pod => "pod",
            Self::Expired => "expired",
            Self::Future => "future",
            Self::Life => "life",
            Self::Method => "method",
            Self::Target => "target",
            Self::Body => "body",
        }
    }
}

/// Verifies tokens with one or more public keys; several while the operator changes its key.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: Vec<VerificationKey>,
}

impl Verifier {
    /// Reads one key, or several separated by commas.
    ///
    /// # Errors
    /// If there is none, or one of them is not a key.
    pub fn from_base64_list(text: &str) -> Result<Self, KeyError> {
        let keys = text
            .split(',')
            .map(VerificationKey::from_base64)
            .collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }

    /// Verifies everything but the body, so that an unsigned body need not be read at all. The
    /// caller then reads it and asks [`Verified::body_is`]; only then is the request in order.
    ///
    /// `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why the token is refused.
    pub fn verify(&self, token: &str, request: &Request<'_>, now: u64) -> Result<Verified, Reject> {
        let claims = self.signed_claims(token)?;
        let id = URL_SAFE_NO_PAD
            .decode(&claims.jti)
            .ok()
            .and_then(|bytes| TokenId::try_from(bytes).ok())
            .ok_or(Reject::Malformed)?;
        let life = claims.exp.saturating_sub(claims.iat);
        if claims.iss != ISSUER {
            Err(Reject::Issuer)
        } else if claims.aud != request.pod_uid || request.pod_uid.is_empty() {
            Err(Reject::Pod)
        } else if !(1..=MAX_LIFE_SECONDS).contains(&life) {
            Err(Reject::Life)
        } else if claims.iat > now.saturating_add(SKEW_SECONDS) {
            Err(Reject::Future)
        } else if claims.exp <= now {
            Err(Reject::Expired)
        } else if claims.htm != request.method {
            Err(Reject::Method)
        } else if claims.htu != request.target {
            Err(Reject::Target)
        } else {
            Ok(Verified { claims, id })
        }
    }

    /// The claims of a token with a good signature.
    fn signed_claims(&self, token: &str) -> Result<Claims, Reject> {
        if token.len() > MAX_TOKEN {
            return Err(Reject::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Reject::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Reject::Malformed)?;
        let header: Header = json(header)?;
        if header.alg != ALGORITHM || header.crit.is_some() {
            return Err(Reject::Algorithm);
        }
        let signature = decode(signature)?;
        let fits = |key: &VerificationKey| {
            UnparsedPublicKey::new(&ED25519, key.0)
                .verify(signed.as_bytes(), &signature)
                .is_ok()
        };
        if !self.keys.iter().any(fits) {
            return Err(Reject::Signature);
        }
        json(payload)
    }
}

/// A token that is in order, as far as it can be without the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub claims: Claims,
    /// Its ID; a second use has to be refused until `claims.exp`.
    pub id: TokenId,
}

impl Verified {
    /// Whether the token is for this body.
    ///
    /// # Errors
    /// [`Reject::Body`] if not.
    pub fn body_is(&self, body: &[u8]) -> Result<(), Reject> {
        // Nothing secret is compared: the hash is in the token.
        if self.claims.body == body_hash(body) {
            Ok(())
        } else {
            Err(Reject::Body)
        }
    }
}

fn body_hash(body: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, body))
}

fn decode(part: &str) -> Result<Vec<u8>, Reject> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Reject::Malformed)
}

fn json<T: for<'a> Deserialize<'a>>(part: &str) -> Result<T, Reject> {
    serde_json::from_slice(&decode(part)?).map_err(|_| Reject::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::hmac;
    use ring::rand::SystemRandom;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const REQUEST: Request<'_> = Request {
        pod_uid: "pod-1",
        method: "POST",
        target: "/setTasks",
    };

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate(&SystemRandom::new()).unwrap()).unwrap()
    }

    fn verifier(key: &SigningKey) -> Verifier {
        Verifier::from_base64_list(&key.verification_key()).unwrap()
    }

    fn check(key: &SigningKey, change: impl FnOnce(&mut Claims)) -> Result<(), Reject> {
        let mut claims = Claims::new(&REQUEST, b"[]", &[7; 16], NOW);
        change(&mut claims);
        let token = key.sign_claims(&claims);
        let verified = verifier(key).verify(&token, &REQUEST, NOW)?;
        verified.body_is(b"[]")
    }

    #[test]
    fn token_holds_for_its_request_and_nothing_else() {
        let key = key();
        assert_eq!(check(&key, |_| ()), Ok(()));
        assert_eq!(
            check(&key, |claims| claims.iss.push('x')),
            Err(Reject::Issuer)
        );
        assert_eq!(check(&key, |claims| claims.aud.push('x')), Err(Reject::Pod));
        assert_eq!(
            check(&key, |claims| claims.htm = "GET".into()),
            Err(Reject::Method)
        );
        assert_eq!(
            check(&key, |claims| claims.htu.push('?')),
            Err(Reject::Target)
        );
        assert_eq!(
            check(&key, |claims| claims.body = body_hash(b"")),
            Err(Reject::Body)
        );
        assert_eq!(
            check(&key, |claims| claims.jti.truncate(10)),
            Err(Reject::Malformed)
        );
        let token = key.sign(&REQUEST, b"", &[1; 16], NOW);
        let nowhere = Request {
            pod_uid: "",
            ..REQUEST
        };
        assert_eq!(
            verifier(&key).verify(&token, &nowhere, NOW),
            Err(Reject::Pod)
        );
    }

    #[test]
    fn times_are_exact() {
        let key = key();
        let at = |iat: u64, exp: u64| {
            check(&key, |claims| {
                claims.iat = iat;
                claims.exp = exp;
            })
        };
        assert_eq!(at(NOW - 59, NOW + 1), Ok(()));
        assert_eq!(at(NOW - 60, NOW), Err(Reject::Expired));
        assert_eq!(at(NOW + 5, NOW + 65), Ok(()));
        assert_eq!(at(NOW + 6, NOW + 66), Err(Reject::Future));
        assert_eq!(at(NOW, NOW + 61), Err(Reject::Life));
        assert_eq!(at(NOW, NOW), Err(Reject::Life));
        assert_eq!(at(NOW + 1, NOW), Err(Reject::Life));
        assert_eq!(at(0, u64::MAX), Err(Reject::Life));
        assert_eq!(at(u64::MAX - 1, u64::MAX), Err(Reject::Future));
    }

    #[test]
    fn other_algorithms_are_refused() {
        let key = key();
        let token = key.sign(&REQUEST, b"[]", &[7; 16], NOW);
        let mut parts = token.split('.');
        let (_, payload, signature) = (
            parts.next().unwrap(),
            parts.next().unwrap(),
            parts.next().unwrap(),
        );
        let refused = |token: &str| verifier(&key).verify(token, &REQUEST, NOW).unwrap_err();
        let header = |json: &str| URL_SAFE_NO_PAD.encode(json);
        for none in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"None"}"#,
            r#"{"alg":"eddsa"}"#,
        ] {
            let unsigned = format!("{}.{payload}.", header(none));
            assert_eq!(refused(&unsigned), Reject::Algorithm, "{none}");
        }
        // The public key taken for a shared secret.
        let signed = format!("{}.{payload}", header(r#"{"alg":"HS256"}"#));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, key.0.public_key().as_ref());
        let tag = hmac::sign(&secret, signed.as_bytes());
        let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert_eq!(refused(&forged), Reject::Algorithm);
        // A header that says EdDSA, over a signature for another header, an empty or no signature.
        let other = header(r#"{"alg":"EdDSA"}"#);
        assert_eq!(
            refused(&format!("{other}.{payload}.{signature}")),
            Reject::Signature
        );
        assert_eq!(refused(&format!("{other}.{payload}.")), Reject::Signature);
        assert_eq!(refused(&format!("{other}.{payload}")), Reject::Malformed);
        let critical = header(r#"{"alg":"EdDSA","crit":["b64"],"b64":false}"#);
        assert_eq!(
            refused(&format!("{critical}.{payload}.{signature}")),
            Reject::Algorithm
        );
    }

    #[test]
    fn each_of_several_keys_counts_and_no_other() {
        let (old, new, foreign) = (key(), key(), key());
        let list = format!("{}, {}", old.verification_key(), new.verification_key());
        let both = Verifier::from_base64_list(&list).unwrap();
        for key in [&old, &new] {
            let token = key.sign(&REQUEST, b"[]", &[7; 16], NOW);
            assert_eq!(both.verify(&token, &REQUEST, NOW).unwrap().id, [7; 16]);
        }
        let token = foreign.sign(&REQUEST, b"[]", &[7; 16], NOW);
        assert_eq!(both.verify(&token, &REQUEST, NOW), Err(Reject::Signature));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "x",
            "AAAA",
            ",",
            &format!("{},", key().verification_key()),
        ] {
            assert_eq!(
                Verifier::from_base64_list(text).unwrap_err(),
                KeyError::Public,
                "{text}"
            );
        }
        assert_eq!(SigningKey::from_pkcs8(b"x").unwrap_err(), KeyError::Private);
    }

    proptest! {
        #[test]
        fn no_text_is_a_token(text in "\\PC{0,200}", dots in "[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,90}") {
            let verifier = verifier(&key());
            prop_assert!(verifier.verify(&text, &REQUEST, NOW).is_err());
            prop_assert!(verifier.verify(&dots, &REQUEST, NOW).is_err());
        }

        #[test]
        fn no_token_survives_a_changed_byte(position in 0_usize..400, to in any::<u8>()) {
            let key = key();
            let mut bytes = key.sign(&REQUEST, b"[]", &[7; 16], NOW).into_bytes();
            let position = position % bytes.len();
            prop_assume!(bytes[position] != to && to.is_ascii());
            bytes[position] = to;
            let text = String::from_utf8(bytes).unwrap();
            prop_assert!(verifier(&key).verify(&text, &REQUEST, NOW).is_err());
        }
    }
}
