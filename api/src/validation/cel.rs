//! The rules that the API server checks itself, as CEL in the CRDs.
//!
//! One table a kind; each entry names the place in the schema it is attached to. The same rules in
//! Rust are in the sibling modules, and a property test compares the two. Messages are
//! fixed texts: the API server prices `string(number)` in a `messageExpression` beyond its budget.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

/// One rule and where it is attached.
#[derive(Clone, Copy, Debug)]
pub struct CelRule {
    /// Path of the schema node, from the object's root; empty for the root.
    pub at: &'static str,
    /// The expression; true means allowed.
    pub rule: &'static str,
    /// Printed when it is false.
    pub message: &'static str,
    /// Child field that the problem is reported at, such as `.bufferMin`.
    pub field_path: Option<&'static str>,
    /// Reason of the problem as the API server names it; absent means `FieldValueInvalid`.
    pub reason: Option<&'static str>,
    /// Whether `oldSelf` is optional, so that the rule also runs on create.
    pub optional_old_self: bool,
}

const fn rule(at: &'static str, rule: &'static str, message: &'static str) -> CelRule {
    CelRule {
        at,
        rule,
        message,
        field_path: None,
        reason: None,
        optional_old_self: false,
    }
}

impl CelRule {
    const fn on(mut self, field_path: &'static str) -> Self {
        self.field_path = Some(field_path);
        self
    }

    const fn required(mut self) -> Self {
        self.reason = Some("FieldValueRequired");
        self
    }

    const fn also_on_create(mut self) -> Self {
        self.optional_old_self = true;
        self
    }
}

const NAME: CelRule = rule(
    "",
    "self.metadata.name.size() <= 63",
    "metadata.name must not be longer than 63 characters, because pods carry it as a label value; choose a shorter one",
);

const CONTAINERS: CelRule = rule(
    "spec.template",
    "has(self.spec) && has(self.spec.containers) && self.spec.containers.size() > 0",
    "spec.containers must list at least one container; add the sandbox's container",
)
.required();

/// The rule of both strategies' `maxUnavailable`.
const MAX_UNAVAILABLE: &str =
    "type(self) == int ? (self > 0 && self <= 2147483647) : self.matches('^(100|[1-9][0-9]?)%$')";
const MAX_UNAVAILABLE_MESSAGE: &str =
    "must be a positive number or a percentage from 1% to 100%, such as 2 or 25%";

/// Rules of `Pool`.
pub const POOL: &[CelRule] = &[
    NAME,
    rule(
        "spec",
        "has(self.template)",
        "template must give the pods of the pool",
    )
    .required(),
    CONTAINERS,
    rule(
        "spec.capacitySpec",
        "self.bufferMin <= self.bufferMax",
        "bufferMin must not be greater than bufferMax; lower bufferMin or raise bufferMax",
    )
    .on(".bufferMin"),
    rule(
        "spec.capacitySpec",
        "self.poolMin <= self.poolMax",
        "poolMin must not be greater than poolMax; lower poolMin or raise poolMax",
    )
    .on(".poolMin"),
    rule(
        "spec.scaleStrategy.maxUnavailable",
        MAX_UNAVAILABLE,
        MAX_UNAVAILABLE_MESSAGE,
    ),
    rule(
        "spec.updateStrategy.maxUnavailable",
        MAX_UNAVAILABLE,
        MAX_UNAVAILABLE_MESSAGE,
    ),
];

/// Rules of `BatchSandbox`.
pub const BATCH_SANDBOX: &[CelRule] = &[
    NAME,
    rule(
        "spec",
        "(has(self.poolRef) && self.poolRef != '') || has(self.template)",
        "one of poolRef and template is required; name a Pool in poolRef, let one be chosen with '*', or give the pod in template",
    )
    .required(),
    // Update: the operator replaces `*` by the name it chose, and the template stays.
    rule(
        "spec",
        "!(has(self.poolRef) && self.poolRef != '' && self.poolRef != '*' && has(self.template)) || (oldSelf.hasValue() && has(oldSelf.value().template) && has(oldSelf.value().poolRef) && oldSelf.value().poolRef != '')",
        "poolRef and template exclude each other unless poolRef is '*'; remove one of them",
    )
    .on(".poolRef")
    .also_on_create(),
    rule(
        "spec",
        "(has(self.poolRef) ? self.poolRef : '') == (has(oldSelf.poolRef) ? oldSelf.poolRef : '') || (has(oldSelf.poolRef) && oldSelf.poolRef == '*' && has(self.poolRef) && self.poolRef != '')",
        "poolRef is immutable; create another BatchSandbox instead",
    )
    .on(".poolRef"),
    CONTAINERS,
    // Also makes the API server look at the value: without a rule it lets an empty list pass as a time.
    rule(
        "spec.expireTime",
        "self > timestamp('1970-01-01T00:00:00Z')",
        "must be a time after 1970, as RFC 3339 writes it, such as 2030-01-02T15:04:05Z",
    ),
    rule(
        "spec.pause",
        "!self",
        "pausing is not supported yet; remove pause or set it to false",
    ),
    rule(
        "spec",
        "!has(self.taskTemplate) || (has(self.shardTaskPatches) && self.shardTaskPatches.size() >= self.replicas) || (has(self.taskTemplate.spec) && has(self.taskTemplate.spec.process) && has(self.taskTemplate.spec.process.command) && self.taskTemplate.spec.process.command.size() > 0)",
        "taskTemplate.spec.process.command must name a program, unless shardTaskPatches gives every sandbox its own",
    )
    .on(".taskTemplate"),
    rule(
        "spec",
        "!has(self.shardTaskPatches) || self.shardTaskPatches.size() == 0 || has(self.taskTemplate)",
        "shardTaskPatches needs a taskTemplate to patch; add taskTemplate or remove shardTaskPatches",
    )
    .on(".shardTaskPatches"),
];

/// Puts the rules into the schema of every version of the CRD.
///
/// # Panics
///
/// When a rule names a place that the schema does not have: a slip in the table, found by any test
/// that renders the CRDs.
pub fn attach(crd: CustomResourceDefinition, rules: &[CelRule]) -> CustomResourceDefinition {
    let mut raw = serde_json::to_value(crd).expect("a CRD is plain data");
    let versions = raw["spec"]["versions"]
        .as_array_mut()
        .expect("a CRD has versions");
    for version in versions {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        bound_integers(schema);
        for rule in rules {
            attach_one(schema, rule);
        }
    }
    serde_json::from_value(raw).expect("rules are part of a CRD's schema")
}

/// `format: int32` is a hint to the API server; the bound itself must be spelt out.
fn bound_integers(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("format").and_then(Value::as_str) == Some("int32")
                && !map.contains_key("maximum")
            {
                map.insert("maximum".to_owned(), json!(i32::MAX));
            }
            map.values_mut().for_each(bound_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

fn attach_one(root: &mut Value, rule: &CelRule) {
    let pointer: String = rule
        .at
        .split('.')
        .filter(|part| !part.is_empty())
        .fold(String::new(), |path, part| path + "/properties/" + part);
    let node = root
        .pointer_mut(&pointer)
        .and_then(Value::as_object_mut)
        .expect("rules name fields of the schema");
    let mut entry = json!({ "rule": rule.rule, "message": rule.message });
    if let Some(path) = rule.field_path {
        entry["fieldPath"] = json!(path);
    }
    if let Some(reason) = rule.reason {
        entry["reason"] = json!(reason);
    }
    if rule.optional_old_self {
        entry["optionalOldSelf"] = json!(true);
    }
    node.entry("x-kubernetes-validations")
        .or_insert_with(|| json!([]))
        .as_array_mut()
        .expect("rules are a list")
        .push(entry);
}
