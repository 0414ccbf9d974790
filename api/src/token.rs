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

#[cfg(test)]
mod tests;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

pub use ring::rand::{SecureRandom, SystemRandom};

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

/// What an executor says to a token whose signature is of a key that it does not know.
///
/// The operator tells by these words, and by [`TOO_EARLY`], what to do next, and executors of other
/// versions say the same: they stay as they are.
pub const OTHER_KEY: &str = "the token's signature does not fit the operator's key";
/// What an executor says to a token made before it started, or in the second of its start: a new one,
/// made a moment later, will do.
pub const TOO_EARLY: &str =
    "the token was made before this executor was ready for it; make a new one";

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
    #[error("{}", OTHER_KEY)]
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
