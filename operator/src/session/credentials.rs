//! A token for each request, as long as this replica leads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::token::{Claims, Request, SKEW_SECONDS, SystemRandom, random_id};
use tokio::sync::watch;
use tokio::time::Instant;

use super::fault::Fault;
use crate::keys::KeyRing;

/// Longest life of a token, in seconds: an order that has not arrived by then is made anew.
const LIFE_SECONDS: u64 = 10;

/// What requests are signed with, and whether they may be sent at all.
pub struct Credentials {
    /// The keys; `None` if executors ask for no signature.
    keys: Option<watch::Receiver<Arc<KeyRing>>>,
    /// How long this replica will lead for certain; `None` if it does not.
    lease: Box<dyn Fn() -> Option<Duration> + Send + Sync>,
    clock: fn() -> Timestamp,
    random: SystemRandom,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Leave to send one request.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Leave {
    /// What goes into `Authorization`, if anything.
    pub(super) token: Option<String>,
    /// After this no executor takes it, whatever the difference of the clocks.
    pub(super) void: Instant,
}

impl Credentials {
    /// `lease` says how long this replica leads for certain: a token holds no longer. `None`: it does not
    /// lead, and nothing is sent.
    pub fn new(
        keys: Option<watch::Receiver<Arc<KeyRing>>>,
        lease: impl Fn() -> Option<Duration> + Send + Sync + 'static,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self {
            keys,
            lease: Box::new(lease),
            clock,
            random: SystemRandom::new(),
        }
    }

    /// The time.
    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// How many keys there are to be tried.
    pub(super) fn keys(&self) -> usize {
        self.keys.as_ref().map_or(0, |keys| keys.borrow().len())
    }

    /// Leave for this request with this body, signed with the key at `place`.
    pub(super) fn leave(
        &self,
        place: usize,
        request: &Request<'_>,
        body: &[u8],
    ) -> Result<Leave, Fault> {
        let left = (self.lease)().ok_or(Fault::Fenced)?;
        let sent = Instant::now();
        let Some(keys) = &self.keys else {
            // Nothing but the connection's end keeps such a request from being taken late.
            let void = sent + Duration::from_secs(LIFE_SECONDS + SKEW_SECONDS);
            return Ok(Leave { token: None, void });
        };
        let life = left.as_secs().min(LIFE_SECONDS);
        if life == 0 {
            return Err(Fault::Fenced);
        }
        let ring = Arc::clone(&keys.borrow());
        let Some(key) = ring.get(place) else {
            let why = "not asked: there is no signing key yet".to_owned();
            return Err(Fault::Unreachable(why));
        };
        let id = random_id(&self.random).map_err(|error| Fault::Unreachable(error.to_string()))?;
        let now = u64::try_from(self.now().as_second()).unwrap_or(0);
        let claims = Claims {
            exp: now.saturating_add(life),
            ..Claims::new(request, body, &id, now)
        };
        Ok(Leave {
            token: Some(key.sign_claims(&claims)),
            void: sent + Duration::from_secs(life + SKEW_SECONDS),
        })
    }
}

#[cfg(test)]
mod tests {
    use opensandbox_api::token::{SigningKey, Verifier};

    use super::*;

    const REQUEST: Request<'_> = Request {
        pod_uid: "pod",
        method: "POST",
        target: "/setTasks",
    };

    fn clock() -> Timestamp {
        Timestamp::from_second(1_000).unwrap()
    }

    fn ring() -> (Arc<KeyRing>, Verifier) {
        let key = SigningKey::from_pkcs8(&SigningKey::generate(&SystemRandom::new()).unwrap());
        let key = key.unwrap();
        let verifier = Verifier::from_base64_list(&key.verification_key()).unwrap();
        (Arc::new(KeyRing::new(vec![Arc::new(key)])), verifier)
    }

    fn with_lease(lease: Option<Duration>) -> (Credentials, Verifier) {
        let (ring, verifier) = ring();
        let keys = watch::Sender::new(ring).subscribe();
        (Credentials::new(Some(keys), move || lease, clock), verifier)
    }

    #[test]
    fn token_holds_no_longer_than_the_lease() {
        for (left, life) in [(60_000, 10), (3_900, 3), (1_000, 1)] {
            let (credentials, verifier) = with_lease(Some(Duration::from_millis(left)));
            let leave = credentials.leave(0, &REQUEST, b"[]").unwrap();
            let token = leave.token.unwrap();
            let good = verifier.verify(&token, &REQUEST, 1_000).unwrap();
            assert_eq!(good.claims.exp, 1_000 + life);
            assert!(good.body_is(b"[]").is_ok());
            assert!(verifier.verify(&token, &REQUEST, 1_000 + life).is_err());
        }
    }

    #[test]
    fn without_a_lease_or_a_key_nothing_is_sent() {
        for lease in [None, Some(Duration::ZERO), Some(Duration::from_millis(999))] {
            let (credentials, _) = with_lease(lease);
            assert_eq!(
                credentials.leave(0, &REQUEST, b"").err(),
                Some(Fault::Fenced)
            );
        }
        let (credentials, _) = with_lease(Some(Duration::from_secs(9)));
        let missing = credentials.leave(1, &REQUEST, b"").err();
        assert!(matches!(missing, Some(Fault::Unreachable(_))));
        let unsigned = Credentials::new(None, || None, clock);
        assert_eq!(unsigned.leave(0, &REQUEST, b"").err(), Some(Fault::Fenced));
        let unsigned = Credentials::new(None, || Some(Duration::from_secs(9)), clock);
        assert_eq!(unsigned.leave(0, &REQUEST, b"").unwrap().token, None);
    }

    #[tokio::test(start_paused = true)]
    async fn leave_is_void_only_when_the_slowest_clock_says_so() {
        let (credentials, _) = with_lease(Some(Duration::from_mins(1)));
        let leave = credentials.leave(0, &REQUEST, b"").unwrap();
        let expected = Duration::from_secs(LIFE_SECONDS + SKEW_SECONDS);
        assert_eq!(leave.void, Instant::now() + expected);
    }
}
