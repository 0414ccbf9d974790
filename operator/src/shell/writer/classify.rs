//! What an answer of the API server says about a write. Pure.

use kube::Error;

use crate::text::{chain, cut};
use crate::write::WriteError;

/// Bytes kept of a message.
const MESSAGE: usize = 512;

/// What kind of request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Makes an object: there is nothing that could have changed or be missing but its surroundings.
    Create,
    /// Changes or deletes an object.
    Change,
}

/// Reads the failure of a request.
///
/// Certain are only answers of the API server's own that say that nothing was written. Whatever else
/// comes (5xx, which can be a time-out on the way to the store; 429; a broken connection; an answer that
/// is none) is unclear: the write may have happened.
pub fn classify(request: Request, error: &Error) -> WriteError {
    let Error::Api(status) = error else {
        return WriteError::Unclear {
            message: cut(words(error), MESSAGE),
        };
    };
    let refused = || WriteError::Refused {
        reason: cut(status.reason.clone(), MESSAGE),
        message: cut(status.message.clone(), MESSAGE),
    };
    match (request, status.code) {
        (Request::Create, 409) if status.is_already_exists() => WriteError::AlreadyExists,
        (Request::Change, 409) => WriteError::Conflict,
        (Request::Change, 404) => WriteError::NotFound,
        (_, 408 | 429) => unclear(status),
        // For a creation 409 can be a quota that was being changed, and 404 a missing namespace.
        (_, 400..=499) => refused(),
        _ => unclear(status),
    }
}

fn unclear(status: &kube::core::Status) -> WriteError {
    WriteError::Unclear {
        message: cut(format!("{} {}", status.code, status.message), MESSAGE),
    }
}

/// The kind of a failure and its cause; never the body of an answer, which may quote the request.
fn words(error: &Error) -> String {
    match error {
        Error::SerdeError(_) => "the answer is no object of this kind".to_owned(),
        Error::Service(source) => chain(&**source),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::Request::{Change, Create};
    use super::*;

    #[test]
    fn answers_and_what_they_say_about_the_write() {
        let category = |request, code, reason: &str| {
            let status = Status::failure("words", reason).with_code(code);
            classify(request, &Error::Api(status.boxed())).category()
        };
        for (request, code, reason, expected) in [
            (Create, 409, "AlreadyExists", "already_exists"),
            (Create, 409, "Conflict", "refused"),
            (Create, 404, "NotFound", "refused"),
            (Create, 403, "Forbidden", "refused"),
            (Create, 422, "Invalid", "refused"),
            (Create, 500, "InternalError", "unclear"),
            (Create, 504, "Timeout", "unclear"),
            (Change, 409, "Conflict", "conflict"),
            (Change, 404, "NotFound", "not_found"),
            (Change, 422, "Invalid", "refused"),
            (Change, 413, "RequestEntityTooLarge", "refused"),
            (Change, 401, "Unauthorized", "refused"),
            (Change, 408, "Timeout", "unclear"),
            (Change, 429, "TooManyRequests", "unclear"),
            (Change, 503, "ServiceUnavailable", "unclear"),
            (Change, 0, "", "unclear"),
        ] {
            assert_eq!(category(request, code, reason), expected, "{code} {reason}");
        }
    }

    #[test]
    fn what_is_no_answer_is_unclear_and_nothing_is_quoted_at_length() {
        let broken = Error::Service("connection reset".into());
        let unclear = classify(Change, &broken);
        assert!(matches!(unclear, WriteError::Unclear { .. }));
        assert!(unclear.to_string().contains("connection reset"));
        let status = Status::failure(&"ä".repeat(5000), "Invalid").with_code(422);
        let refused = classify(Create, &Error::Api(status.boxed()));
        assert!(refused.to_string().len() < 600);
    }
}
