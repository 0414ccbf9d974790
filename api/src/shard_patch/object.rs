//! Merging one object into another, member by member.

use serde_json::{Map, Value};

use super::directives::{self, Instead, Member, Order};
use super::merge_keys::Type;
use super::path::Path;
use super::{Error, Fault, list};

/// Merges `patch` into `original`.
pub(super) fn merge(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    of: &Type,
    at: &Path<'_>,
) -> Result<(), Error> {
    match directives::instead(patch, at)? {
        Some(Instead::Replace) => {
            *original = directives::settled_object(patch, at)?;
            return Ok(());
        }
        Some(Instead::Delete) => {
            original.clear();
            return Ok(());
        }
        None => {}
    }
    retain(original, patch, at)?;
    if patch.values().any(Value::is_null) {
        original.retain(|name, _| !patch.get(name).is_some_and(Value::is_null));
    }
    for (name, value) in patch {
        match Member::of(name) {
            Member::Data => merge_member(original, name, value, patch, of, at)?,
            Member::Order(field) if patch.get(field).is_none_or(Value::is_null) => {
                let at = at.member(name);
                let order = Order {
                    elements: directives::list(value, &at)?,
                    at,
                };
                if let Some(Value::Array(items)) = original.get_mut(field) {
                    list::reorder(items, order, of.list(field))?;
                }
            }
            // Ordered together with the list itself, in `merge_member`; deletions come last.
            Member::Order(_) | Member::Delete(_) | Member::OfObject => {}
            Member::Malformed(directive) => {
                return Err(at
                    .member(name)
                    .error(Fault::DirectiveWithoutField { directive }));
            }
        }
    }
    for (name, value) in patch {
        if let Member::Delete(field) = Member::of(name) {
            let at = at.member(name);
            let doomed = directives::list(value, &at)?;
            if let Some(Value::Array(items)) = original.get_mut(field) {
                list::delete_scalars(items, doomed, &at)?;
            }
        }
    }
    Ok(())
}

/// Obeys `$retainKeys`: of the original only what it names stays. The patch must set nothing else.
fn retain(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    at: &Path<'_>,
) -> Result<(), Error> {
    let Some(names) = directives::retained(patch, at)? else {
        return Ok(());
    };
    let stray = patch.iter().find(|(name, value)| {
        Member::of(name) == Member::Data && !value.is_null() && !names.contains(name.as_str())
    });
    if let Some((field, _)) = stray {
        return Err(at.error(Fault::NotRetained {
            field: field.clone(),
        }));
    }
    original.retain(|name, _| names.contains(name.as_str()));
    Ok(())
}

fn merge_member(
    original: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    patch: &Map<String, Value>,
    of: &Type,
    at: &Path<'_>,
) -> Result<(), Error> {
    let parent = at;
    let at = &at.member(name);
    match (original.get_mut(name), value) {
        // Removed before.
        (_, Value::Null) => {}
        (Some(Value::Object(members)), Value::Object(patch)) => {
            merge(members, patch, of.object(name), at)?;
        }
        (existing, Value::Array(items)) => {
            let merge = of.list(name);
            let order = Order::of(patch, name, parent)?;
            if let Some(Value::Array(existing)) = existing {
                list::merge(existing, items, order, merge, at)?;
            } else {
                let mut added = directives::settled_list(items, at)?;
                if let Some(order) = order {
                    list::check_order(items, order, merge, at)?;
                    list::reorder(&mut added, order, merge)?;
                }
                original.insert(name.to_owned(), Value::Array(added));
            }
        }
        (_, value) => match directives::settled(value, at)? {
            Some(value) => {
                original.insert(name.to_owned(), value);
            }
            None => {
                original.remove(name);
            }
        },
    }
    Ok(())
}
