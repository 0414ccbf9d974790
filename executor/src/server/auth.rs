//! Whether a request is the operator's.
//!
//! In: the head of a request. Out: a [`Pass`], with which the body can be checked once it is read, or a
//! [`Denial`]. The signature comes before the body, so that nobody without a token has this program
//! hold memory; and a token is used up by its first request, good or bad, so that one that was seen on
//! its way cannot be sent again with bodies that never end.

use std::collections::BTreeSet;
use std::sync::Mutex;

use http::header::AUTHORIZATION;
use http::request::Parts;
use opensandbox_api::labels::VERIFICATION_KEY_ENV;
use opensandbox_api::token::{
    MAX_LIFE_SECONDS, Request, SKEW_SECONDS, TOO_EARLY, TokenId, Verified, Verifier,
};

use super::quota::lock;
use crate::config::AuthSetting;

/// Most tokens that are remembered, 2 MiB: a thousand requests a second for the life of a token.
const MAX_REMEMBERED: usize = 64 * 1024;

/// Decides whose requests are served.
#[derive(Debug)]
pub struct Auth(Kind);

#[derive(Debug)]
enum Kind {
    Everybody,
    Signed(Box<Signed>),
    /// Nobody, and why.
    Nobody(String),
}

#[derive(Debug)]
struct Signed {
    verifier: Verifier,
    pod_uid: String,
    issued_after: u64,
    seen: Mutex<Seen>,
}

impl Auth {
    /// From the settings. Never fails: if something is missing or wrong, every request is refused with
    /// a message that says what; see [`Self::problem`].
    ///
    /// `verification_key` is one key or several separated by commas. Tokens made in the second
    /// `issued_after` (since 1970, UTC) or before are refused: an executor gives the time of its start,
    /// because what its predecessor remembered is lost. Clocks may differ by [`SKEW_SECONDS`]; one that
    /// knows that it had a predecessor adds them. One that knows that it is the first may give 0.
    pub fn new(
        setting: AuthSetting,
        verification_key: Option<&str>,
        pod_uid: Option<&str>,
        issued_after: u64,
    ) -> Self {
        if setting == AuthSetting::None {
            return Self(Kind::Everybody);
        }
        let given = |text: Option<&str>| {
            text.map(str::trim)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let nobody = |problem: String| Self(Kind::Nobody(problem));
        let Some(key) = given(verification_key) else {
            return nobody(format!(
                "this executor has no key to verify requests with; set {VERIFICATION_KEY_ENV} (--verification-key) to the operator's public key, or --auth=none to serve everybody"
            ));
        };
        let verifier = match Verifier::from_base64_list(&key) {
            Ok(verifier) => verifier,
            Err(error) => {
                return nobody(format!(
                    "{VERIFICATION_KEY_ENV} (--verification-key) is {error}"
                ));
            }
        };
        let Some(pod_uid) = given(pod_uid) else {
            return nobody(
                "this executor does not know the UID of its pod, which tokens are bound to; set POD_UID (--pod-uid) from metadata.uid".to_owned(),
            );
        };
        Self(Kind::Signed(Box::new(Signed {
            verifier,
            pod_uid,
            issued_after,
            seen: Mutex::default(),
        })))
    }

    /// Why every request is refused, if it is.
    pub fn problem(&self) -> Option<&str> {
        match &self.0 {
            Kind::Nobody(problem) => Some(problem),
            Kind::Everybody | Kind::Signed(_) => None,
        }
    }

    /// Checks the head of a request. `now` is in seconds since 1970.
    pub(super) fn check(&self, head: &Parts, now: u64) -> Result<Pass, Denial> {
        match &self.0 {
            Kind::Everybody => Ok(Pass(None)),
            Kind::Nobody(problem) => Err(Denial::new("not-configured", problem.clone())),
            Kind::Signed(signed) => signed.check(head, now),
        }
    }
}

impl Signed {
    fn check(&self, head: &Parts, now: u64) -> Result<Pass, Denial> {
        let token = bearer(head)?;
        let request = Request {
            pod_uid: &self.pod_uid,
            method: head.method.as_str(),
            target: head
                .uri
                .path_and_query()
                .map_or("", |target| target.as_str()),
        };
        let verified = self
            .verifier
            .verify(token, &request, now)
            .map_err(|reject| Denial::of_token(reject.as_str(), reject.to_string()))?;
        let claims = &verified.claims;
        if claims.iat <= self.issued_after {
            return Err(Denial::of_token("restarted", TOO_EARLY.to_owned()));
        }
        match lock(&self.seen).insert(claims.exp, verified.id, now) {
            Insert::Fresh => Ok(Pass(Some(verified))),
            Insert::Replayed => Err(Denial::of_token(
                "replayed",
                "the token was used before; make a new one for each request".to_owned(),
            )),
            Insert::Full => Err(Denial::of_token(
                "full",
                format!(
                    "more than {MAX_REMEMBERED} tokens in {} s, try again later",
                    MAX_LIFE_SECONDS + SKEW_SECONDS
                ),
            )),
        }
    }
}

/// The token of `Authorization: Bearer`.
fn bearer(head: &Parts) -> Result<&str, Denial> {
    let mut values = head.headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        let message =
            "only the operator may ask this: a signed token is needed (Authorization: Bearer)";
        return Err(Denial::new("missing", message.to_owned()));
    };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then_some(token.trim())
    });
    match (token, values.next()) {
        (Some(token), None) => Ok(token),
        _ => Err(Denial::of_token(
            "malformed",
            "Authorization must be one Bearer token".to_owned(),
        )),
    }
}

/// Leave to go on, as far as the head goes.
#[derive(Debug)]
pub(super) struct Pass(Option<Verified>);

impl Pass {
    /// Whether a signature vouches for the body, so that [`Self::check_body`] has to be asked.
    pub(super) fn is_signed(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the request goes with this body.
    pub(super) fn check_body(&self, body: &[u8]) -> Result<(), Denial> {
        match &self.0 {
            None => Ok(()),
            Some(verified) => verified
                .body_is(body)
                .map_err(|reject| Denial::of_token(reject.as_str(), reject.to_string())),
        }
    }
}

/// A request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Denial {
    /// In one word, for a metric's label.
    pub(super) reason: &'static str,
    /// For the client; no part of its token.
    pub(super) message: String,
    /// Whether there was a token.
    pub(super) had_token: bool,
}

impl Denial {
    fn new(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            had_token: false,
        }
    }

    fn of_token(reason: &'static str, message: String) -> Self {
        Self {
            had_token: true,
            ..Self::new(reason, message)
        }
    }
}

/// The tokens used so far that would still hold.
#[derive(Debug, Default)]
struct Seen(BTreeSet<(u64, TokenId)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Insert {
    Fresh,
    Replayed,
    Full,
}

impl Seen {
    /// Remembers a token that holds until `expires`.
    fn insert(&mut self, expires: u64, id: TokenId, now: u64) -> Insert {
        if self.0.first().is_some_and(|(first, _)| *first <= now) {
            self.0 = self.0.split_off(&(now + 1, [0; _]));
        }
        if self.0.contains(&(expires, id)) {
            Insert::Replayed
        } else if self.0.len() >= MAX_REMEMBERED {
            Insert::Full
        } else {
            self.0.insert((expires, id));
            Insert::Fresh
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> TokenId {
        let mut id = TokenId::default();
        id[..8].copy_from_slice(&number.to_le_bytes());
        id
    }

    #[test]
    fn tokens_are_remembered_as_long_as_they_hold() {
        let mut seen = Seen::default();
        assert_eq!(seen.insert(60, id(1), 0), Insert::Fresh);
        assert_eq!(seen.insert(60, id(1), 59), Insert::Replayed);
        assert_eq!(seen.insert(70, id(2), 59), Insert::Fresh);
        assert_eq!(seen.insert(120, id(3), 60), Insert::Fresh);
        assert_eq!(
            seen.0.len(),
            2,
            "the first is forgotten, it does not hold any more"
        );
        assert_eq!(seen.insert(70, id(2), 69), Insert::Replayed);
    }

    #[test]
    fn full_memory_refuses_and_forgets_nothing() {
        let mut seen = Seen::default();
        for number in 0..MAX_REMEMBERED {
            assert_eq!(seen.insert(60, id(number), 0), Insert::Fresh);
        }
        assert_eq!(seen.insert(60, id(MAX_REMEMBERED), 0), Insert::Full);
        assert_eq!(seen.insert(60, id(0), 0), Insert::Replayed);
        assert_eq!(seen.insert(120, id(MAX_REMEMBERED), 60), Insert::Fresh);
    }

    #[test]
    fn what_is_missing_is_said() {
        let problem = |key: Option<&str>, uid: Option<&str>| {
            let auth = Auth::new(AuthSetting::Signed, key, uid, 0);
            auth.problem().map(str::to_owned)
        };
        let key = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
        assert_eq!(problem(Some(key), Some("uid")), None);
        assert!(
            problem(None, Some("uid"))
                .unwrap()
                .contains(VERIFICATION_KEY_ENV)
        );
        assert!(problem(Some(" "), Some("uid")).unwrap().contains("no key"));
        assert!(
            problem(Some("x"), Some("uid"))
                .unwrap()
                .contains("not an Ed25519")
        );
        assert!(problem(Some(key), None).unwrap().contains("POD_UID"));
        let none = Auth::new(AuthSetting::None, None, None, 0);
        assert_eq!(none.problem(), None);
    }
}
