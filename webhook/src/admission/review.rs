//! `admission.k8s.io/v1` as bytes: what is read of a request, and how an answer is written.
//!
//! A request borrows from the body; of a Pool only what the rules look at is built, see
//! [`projection`](super::projection).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use json_patch::PatchOperation;
use opensandbox_api::validation::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::projection::Pool;

/// Longest warning that the API server passes on whole, in bytes.
const LONGEST_WARNING: usize = 256;

/// Why a body is no review.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It is not JSON, or not of the review's shape.
    #[error("{0}")]
    Malformed(serde_json::Error),
    /// It is something else, by its own account.
    #[error("it is {kind:?} of {api_version:?}")]
    OtherKind { kind: String, api_version: String },
    /// It has no request.
    #[error("it has no request")]
    NoRequest,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "O: Deserialize<'de>"))]
struct Review<'a, O> {
    #[serde(borrow, rename = "apiVersion")]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    request: Option<Request<'a, O>>,
}

/// What is read of a request for an object of type `O`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
pub struct Request<'a, O> {
    /// Identifies request and answer.
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    /// The resource asked for.
    #[serde(borrow)]
    pub resource: Resource<'a>,
    /// Subresource, such as `status`; empty for the object itself.
    #[serde(default, borrow)]
    pub sub_resource: Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: Cow<'a, str>,
    #[serde(default, borrow)]
    name: Cow<'a, str>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    #[serde(borrow)]
    pub operation: Cow<'a, str>,
    #[serde(default, borrow)]
    user_info: UserInfo<'a>,
    /// The object as it would be stored.
    #[serde(default)]
    pub object: Option<O>,
    /// The stored object, on an update.
    #[serde(default)]
    pub old_object: Option<O>,
    /// Nothing will be stored. Said to the log only: answers are the same, for they have no effects.
    #[serde(default)]
    pub dry_run: bool,
}

/// Group and plural name.
#[derive(Debug, Deserialize)]
pub struct Resource<'a> {
    /// API group.
    #[serde(default, borrow)]
    pub group: Cow<'a, str>,
    /// Plural name.
    #[serde(borrow)]
    pub resource: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
struct UserInfo<'a> {
    #[serde(default, borrow)]
    username: Cow<'a, str>,
}

/// An object as the rules look at it.
pub trait Reviewed {
    /// The value.
    fn value(&self) -> &Value;
}

impl Reviewed for Value {
    fn value(&self) -> &Value {
        self
    }
}

impl Reviewed for Pool {
    fn value(&self) -> &Value {
        &self.0
    }
}

/// Reads a review.
pub(super) fn read<'a, O: Deserialize<'a>>(body: &'a [u8]) -> Result<Request<'a, O>, Error> {
    let review: Review<'_, O> = serde_json::from_slice(body).map_err(Error::Malformed)?;
    if review.kind != "AdmissionReview" || review.api_version != "admission.k8s.io/v1" {
        return Err(Error::OtherKind {
            kind: review.kind.into_owned(),
            api_version: review.api_version.into_owned(),
        });
    }
    review.request.ok_or(Error::NoRequest)
}

impl<O: Reviewed> Request<'_, O> {
    /// Namespace of the object.
    pub fn namespace(&self) -> &str {
        if !self.namespace.is_empty() {
            return &self.namespace;
        }
        self.object()
            .pointer("/metadata/namespace")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Name of the object, or the prefix from which one will be made.
    pub fn name(&self) -> &str {
        if !self.name.is_empty() {
            return &self.name;
        }
        let read = |field: &str| self.object().pointer("/metadata")?.get(field)?.as_str();
        read("name")
            .or_else(|| read("generateName"))
            .unwrap_or_default()
    }

    /// Who asks.
    pub fn username(&self) -> &str {
        &self.user_info.username
    }

    /// The object as it would be stored; `null` if there is none.
    pub fn object(&self) -> &Value {
        self.object.as_ref().map_or(&Value::Null, Reviewed::value)
    }

    /// The stored object, if there is one worth comparing with.
    pub fn old(&self) -> Option<&Value> {
        self.old_object
            .as_ref()
            .map(Reviewed::value)
            .filter(|object| object.is_object())
    }

    /// An answer for what the webhook has nothing to say about, or must refuse unseen: another
    /// resource (a rule that sends it is wrong, and the user should know), another operation than
    /// creating and updating, a subresource, an object on its way out.
    pub(super) fn out_of_scope(&self, resource: &str) -> Option<Answer> {
        let Resource {
            group,
            resource: found,
        } = &self.resource;
        if group != opensandbox_api::labels::GROUP || found != resource {
            return Some(Answer::denied_because(
                400,
                "BadRequest",
                format!(
                    "this path reviews {resource}.{}, not {found}.{group}; correct the rules of the webhook configuration",
                    opensandbox_api::labels::GROUP
                ),
            ));
        }
        let changes = matches!(self.operation.as_ref(), "CREATE" | "UPDATE");
        let leaving = self
            .object()
            .pointer("/metadata/deletionTimestamp")
            .is_some_and(|timestamp| !timestamp.is_null());
        (!changes || !self.sub_resource.is_empty() || leaving).then(Answer::allowed)
    }
}

/// An answer, before it is written.
#[derive(Debug, Default)]
pub struct Answer {
    denial: Option<Denial>,
    operations: Vec<PatchOperation>,
    /// Sentences for the user.
    pub warnings: Vec<String>,
    /// For the API server's audit log: what was decided.
    audit: Option<String>,
}

#[derive(Debug)]
struct Denial {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Details>,
}

#[derive(Debug, Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Answer {
    /// Allowed as it is.
    pub fn allowed() -> Self {
        Self::default()
    }

    /// Allowed, with a patch that may be empty.
    pub fn patched(operations: Vec<PatchOperation>, decision: impl Into<String>) -> Self {
        Self {
            operations,
            audit: Some(decision.into()),
            ..Self::default()
        }
    }

    /// Allowed, with warnings.
    pub fn warned(warnings: Vec<String>) -> Self {
        Self {
            warnings,
            ..Self::default()
        }
    }

    /// Refused for one reason that is not about a field.
    pub fn denied_because(code: u16, reason: &'static str, message: String) -> Self {
        Self {
            denial: Some(Denial {
                code,
                reason,
                message,
                details: None,
            }),
            ..Self::default()
        }
    }

    /// Refused, in the words that the API server itself uses: `Pool.sandbox.opensandbox.io "x" is
    /// invalid: [..]`.
    pub fn denied(kind: &str, name: &str, problems: &[Problem]) -> Self {
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let list = if let [only] = texts.as_slice() {
            only.clone()
        } else {
            format!("[{}]", texts.join(", "))
        };
        let causes = problems
            .iter()
            .map(|problem| Cause {
                reason: problem.fault.reason(),
                message: problem.body(),
                field: problem.path.clone(),
            })
            .collect();
        let message = format!(
            "{kind}.{} \"{name}\" is invalid: {list}",
            opensandbox_api::labels::GROUP
        );
        Self {
            denial: Some(Denial {
                code: 422,
                reason: "Invalid",
                message,
                details: Some(Details {
                    name: name.to_owned(),
                    group: opensandbox_api::labels::GROUP,
                    kind: kind.to_owned(),
                    causes,
                }),
            }),
            ..Self::default()
        }
    }

    /// For the metrics.
    pub(super) fn verdict(&self) -> &'static str {
        match self {
            Self {
                denial: Some(_), ..
            } => "denied",
            Self { operations, .. } if !operations.is_empty() => "patched",
            _ => "allowed",
        }
    }

    /// The review that carries the answer to request `uid`.
    pub(super) fn into_review(self, uid: &str) -> Bytes {
        let Self {
            denial,
            operations,
            warnings,
            audit,
        } = self;
        let status = denial.map(
            |Denial {
                 code,
                 reason,
                 message,
                 details,
             }| Status {
                status: "Failure",
                code,
                reason,
                message,
                details,
            },
        );
        let patch = (!operations.is_empty()).then(|| {
            let json = serde_json::to_vec(&operations).expect("operations are plain data");
            STANDARD.encode(json)
        });
        let review = AnswerReview {
            api_version: "admission.k8s.io/v1",
            kind: "AdmissionReview",
            response: Response {
                uid,
                allowed: status.is_none(),
                patch_type: patch.is_some().then_some("JSONPatch"),
                patch,
                status,
                warnings: warnings.into_iter().map(shortened).collect(),
                audit_annotations: audit.map(|decision| AuditAnnotations { decision }),
            },
        };
        Bytes::from(serde_json::to_vec(&review).expect("an answer is plain data"))
    }
}

/// A warning cut to what the API server passes on, at a whole character.
fn shortened(mut warning: String) -> String {
    if warning.len() > LONGEST_WARNING {
        let mut end = LONGEST_WARNING - '…'.len_utf8();
        while !warning.is_char_boundary(end) {
            end -= 1;
        }
        warning.truncate(end);
        warning.push('…');
    }
    warning
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AnswerReview<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_annotations: Option<AuditAnnotations>,
}

#[derive(Serialize)]
struct AuditAnnotations {
    decision: String,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the field is named by the API")]
struct Status {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// What kubectl makes "The Pool "x" is invalid:" and a list of.
#[derive(Debug, Serialize)]
struct Details {
    name: String,
    group: &'static str,
    kind: String,
    causes: Vec<Cause>,
}
