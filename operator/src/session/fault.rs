//! Why a request to an executor came to nothing, and what follows from that.

use http::StatusCode;
use opensandbox_api::task::ErrorBody;
use opensandbox_api::token::{OTHER_KEY, TOO_EARLY};

/// Most bytes of an executor's words that are repeated.
const WORDS: usize = 512;

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No answer, or none that makes sense: in a sentence.
    Unreachable(String),
    /// The executor says no: its words.
    Refused(String),
    /// The executor knows another key than the one that was signed with: its words.
    OtherKey(String),
    /// The executor has just started and takes no token yet: its words.
    TooEarly(String),
    /// This replica does not lead, so nothing was sent.
    Fenced,
}

impl Fault {
    /// What an answer other than 200 means.
    pub(super) fn of_answer(status: StatusCode, body: &[u8]) -> Self {
        let error = serde_json::from_slice::<ErrorBody>(body).ok();
        let words = error
            .as_ref()
            .map(|error| error.message.as_str())
            .filter(|message| !message.is_empty());
        let said = format!(
            "{}: {}",
            status.as_u16(),
            cut(words.unwrap_or("no reason given"))
        );
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let has = |part: &str| words.is_some_and(|words| words.contains(part));
                if has(OTHER_KEY) {
                    Self::OtherKey(said)
                } else if has(TOO_EARLY) {
                    Self::TooEarly(said)
                } else {
                    Self::Refused(said)
                }
            }
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => Self::Refused(said),
            // Ours and upstream's say so when a task cannot be created.
            StatusCode::INTERNAL_SERVER_ERROR if words.is_some() => Self::Refused(said),
            _ => Self::Unreachable(format!("answered {said}")),
        }
    }
}

/// A text of an executor's, bounded, in one line, without control characters.
fn cut(text: &str) -> String {
    let mut cut = String::new();
    for character in text.chars() {
        if cut.len() + character.len_utf8() > WORDS {
            cut.push_str("...");
            break;
        }
        cut.push(if character.is_control() {
            ' '
        } else {
            character
        });
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, expected: &Fault) {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(
            &Fault::of_answer(status, body.as_bytes()),
            expected,
            "{body}"
        );
    }

    #[test]
    fn answers_mean_what_the_executor_means() {
        let error = |words: &str| format!(r#"{{"code":"x","message":"{words}"}}"#);
        let refused = |words: &str| Fault::Refused(words.to_owned());
        check(401, &error("no"), &refused("401: no"));
        check(403, "<html>", &refused("403: no reason given"));
        let words = "the token's signature does not fit the operator's key";
        check(
            401,
            &error(words),
            &Fault::OtherKey(format!("401: {words}")),
        );
        let words = "the token was made before this executor was ready for it; make a new one";
        check(
            401,
            &error(words),
            &Fault::TooEarly(format!("401: {words}")),
        );
        check(400, &error("bad"), &refused("400: bad"));
        check(
            500,
            &error("failed to sync"),
            &refused("500: failed to sync"),
        );
        let unreachable = |text: &str| Fault::Unreachable(text.to_owned());
        check(500, "oops", &unreachable("answered 500: no reason given"));
        check(503, &error("busy"), &unreachable("answered 503: busy"));
        check(302, "", &unreachable("answered 302: no reason given"));
        check(404, &error("x"), &unreachable("answered 404: x"));
    }

    #[test]
    fn words_are_bounded_and_one_line() {
        let long = format!(r#"{{"message":"a\n\u001b{}"}}"#, "é".repeat(10_000));
        let Fault::Refused(words) = Fault::of_answer(StatusCode::FORBIDDEN, long.as_bytes()) else {
            panic!("refused");
        };
        assert!(words.len() <= WORDS + 16, "{}", words.len());
        assert!(words.starts_with("403: a  é") && words.ends_with("..."));
    }
}
