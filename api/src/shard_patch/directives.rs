//! The members of a patch that are instructions, not data.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::path::Path;
use super::{Error, Fault, type_name};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList";

/// What a member of a patch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member<'a> {
    /// Data, to be merged.
    Data,
    /// `$patch` or `$retainKeys`.
    OfObject,
    /// `$setElementOrder/FIELD`.
    Order(&'a str),
    /// `$deleteFromPrimitiveList/FIELD`.
    Delete(&'a str),
    /// Starts like a list directive but names no field.
    Malformed(&'static str),
}

impl<'a> Member<'a> {
    pub(super) fn of(name: &'a str) -> Self {
        // Nearly every member ends here.
        if !name.starts_with('$') {
            return Self::Data;
        }
        if name == PATCH || name == RETAIN_KEYS {
            return Self::OfObject;
        }
        if let Some(rest) = name.strip_prefix(SET_ELEMENT_ORDER) {
            return rest
                .strip_prefix('/')
                .map_or(Self::Malformed(SET_ELEMENT_ORDER), Self::Order);
        }
        if let Some(rest) = name.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            return rest
                .strip_prefix('/')
                .map_or(Self::Malformed(DELETE_FROM_PRIMITIVE_LIST), Self::Delete);
        }
        Self::Data
    }
}

/// A `$setElementOrder` and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub(super) elements: &'a [Value],
    pub(super) at: Path<'a>,
}

impl<'a> Order<'a> {
    /// The order that a patch gives for its list `field`, if any; `at` is the place of the patch.
    pub(super) fn of(
        patch: &'a Map<String, Value>,
        field: &str,
        at: &'a Path<'a>,
    ) -> Result<Option<Self>, Error> {
        let name = format!("{SET_ELEMENT_ORDER}/{field}");
        let Some((name, value)) = patch.get_key_value(&name) else {
            return Ok(None);
        };
        let at = at.member(name);
        Ok(Some(Self {
            elements: list(value, &at)?,
            at,
        }))
    }
}

/// What `$patch` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// Take the patch as it is.
    Replace,
    /// Remove, or empty.
    Delete,
}

/// The `$patch` of an object, if it has one.
pub(super) fn instead(patch: &Map<String, Value>, at: &Path<'_>) -> Result<Option<Instead>, Error> {
    let Some(value) = patch.get(PATCH) else {
        return Ok(None);
    };
    match value.as_str() {
        Some("replace") => Ok(Some(Instead::Replace)),
        Some("delete") => Ok(Some(Instead::Delete)),
        Some(other) => Err(at.error(Fault::UnknownDirective {
            found: format!("{other:?}"),
        })),
        None => Err(at.error(Fault::UnknownDirective {
            found: type_name(value).to_owned(),
        })),
    }
}

/// The names in `$retainKeys`, if the patch has it.
pub(super) fn retained<'a>(
    patch: &'a Map<String, Value>,
    at: &Path<'_>,
) -> Result<Option<HashSet<&'a str>>, Error> {
    let Some(value) = patch.get(RETAIN_KEYS) else {
        return Ok(None);
    };
    let at = at.member(RETAIN_KEYS);
    let names = list(value, &at)?;
    let wrong = |(index, name): (usize, &'a Value)| {
        name.as_str().ok_or_else(|| {
            at.error(Fault::WrongElement {
                document: "patch",
                index,
                wanted: "a string",
                found: type_name(name),
            })
        })
    };
    names
        .iter()
        .enumerate()
        .map(wrong)
        .collect::<Result<_, _>>()
        .map(Some)
}

/// The list that is a directive's value.
pub(super) fn list<'a>(value: &'a Value, at: &Path<'_>) -> Result<&'a [Value], Error> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| {
        at.error(Fault::NotAList {
            found: type_name(value),
        })
    })
}

/// What a part of the patch adds where the original has nothing to merge with: the part without
/// directives, without what it deletes, without `null` members. `None` if nothing is left to add.
pub(super) fn settled(patch: &Value, at: &Path<'_>) -> Result<Option<Value>, Error> {
    match patch {
        Value::Object(members) => match instead(members, at)? {
            Some(Instead::Delete) => Ok(None),
            Some(Instead::Replace) | None => Ok(Some(Value::Object(settled_object(members, at)?))),
        },
        Value::Array(items) => Ok(Some(Value::Array(settled_list(items, at)?))),
        scalar => Ok(Some(scalar.clone())),
    }
}

/// [`settled`] for an object whose own `$patch` has been obeyed.
pub(super) fn settled_object(
    members: &Map<String, Value>,
    at: &Path<'_>,
) -> Result<Map<String, Value>, Error> {
    let mut result = Map::new();
    for (name, value) in members {
        let at = at.member(name);
        match Member::of(name) {
            Member::Data if value.is_null() => {}
            Member::Data => {
                if let Some(value) = settled(value, &at)? {
                    result.insert(name.clone(), value);
                }
            }
            Member::Malformed(directive) => {
                return Err(at.error(Fault::DirectiveWithoutField { directive }));
            }
            Member::OfObject | Member::Order(_) | Member::Delete(_) => {}
        }
    }
    Ok(result)
}

/// [`settled`] for a list: elements with `$patch` are instructions and are left out whole.
pub(super) fn settled_list(items: &[Value], at: &Path<'_>) -> Result<Vec<Value>, Error> {
    let mut result = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let at = at.index(index);
        if let Value::Object(members) = item
            && instead(members, &at)?.is_some()
        {
            continue;
        }
        result.extend(settled(item, &at)?);
    }
    Ok(result)
}
