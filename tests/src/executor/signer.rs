//! Signed requests: the operator's side, and everything that only looks like it.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use opensandbox_api::token::{Claims, Request, SigningKey, random_id};
use ring::rand::SystemRandom;

/// Signs requests to one pod.
#[derive(Clone)]
pub struct Signer {
    key: Arc<SigningKey>,
    pod_uid: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("pod_uid", &self.pod_uid)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// With this key, for the pod with this UID.
    pub fn new(key: Arc<SigningKey>, pod_uid: impl Into<String>) -> Self {
        Self {
            key,
            pod_uid: pod_uid.into(),
        }
    }

    /// A new key.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn new_key() -> Result<Arc<SigningKey>> {
        let der = SigningKey::generate(&SystemRandom::new())?;
        Ok(Arc::new(SigningKey::from_pkcs8(&der)?))
    }

    /// A token for this request, which holds from now on.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn sign(&self, method: &str, target: &str, body: &[u8]) -> Result<String> {
        self.sign_changed(method, target, body, |_| ())
    }

    /// A token whose claims were changed before it was signed.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn sign_changed(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
        change: impl FnOnce(&mut Claims),
    ) -> Result<String> {
        let request = Request {
            pod_uid: &self.pod_uid,
            method,
            target,
        };
        let mut claims = Claims::new(&request, body, &random_id(&SystemRandom::new())?, now()?);
        change(&mut claims);
        Ok(self.key.sign_claims(&claims))
    }
}

/// Seconds since 1970.
fn now() -> Result<u64> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tokens are checked against the real clock"
    )]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH);
    Ok(since.context("the clock is before 1970")?.as_secs())
}
