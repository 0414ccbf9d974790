//! Merging one list into another, by the rule of its field.

use std::collections::{HashMap, HashSet};
use std::mem;

use serde_json::{Map, Value};

use super::directives::{self, Instead, Order};
use super::merge_keys::{Merge, Type};
use super::order::{Keyed, arrange};
use super::path::Path;
use super::{Error, Fault, object, type_name};

/// Merges `patch` into `original`; `None` as rule means that the patch replaces it.
pub(super) fn merge(
    original: &mut Vec<Value>,
    patch: &[Value],
    order: Option<Order<'_>>,
    rule: Option<Merge>,
    at: &Path<'_>,
) -> Result<(), Error> {
    if let Some(order) = order {
        check_order(patch, order, rule, at)?;
    }
    let was = match rule {
        None => {
            let was = scalar_keys(original);
            *original = replacement(patch, at)?;
            was
        }
        Some(Merge::Set) => merge_set(original, patch, at)?,
        Some(Merge::By(key, of)) => merge_by_key(original, patch, key, of, at)?,
    };
    match order {
        Some(order) => arrange_by(original, order, &was, rule),
        None => Ok(()),
    }
}

/// Obeys a `$setElementOrder` whose list the patch does not change.
pub(super) fn reorder(
    items: &mut Vec<Value>,
    order: Order<'_>,
    rule: Option<Merge>,
) -> Result<(), Error> {
    let was = match rule {
        Some(Merge::By(key, _)) => keys_of_original(items, key, &order.at)?,
        Some(Merge::Set) | None => scalar_keys(items),
    };
    arrange_by(items, order, &was, rule)
}

/// Removes scalars from a list, whatever its rule.
pub(super) fn delete_scalars(
    items: &mut Vec<Value>,
    doomed: &[Value],
    at: &Path<'_>,
) -> Result<(), Error> {
    same_scalars(items, doomed, at)?;
    let doomed: HashSet<&Value> = doomed.iter().collect();
    items.retain(|item| !doomed.contains(item));
    Ok(())
}

/// Checks that `order` names every element that the patch sets, in the patch's order.
pub(super) fn check_order(
    patch: &[Value],
    order: Order<'_>,
    rule: Option<Merge>,
    at: &Path<'_>,
) -> Result<(), Error> {
    if order.elements.is_empty() {
        return Ok(());
    }
    let mut names = keys_of_order(order, rule)?.into_iter();
    for (index, item) in patch.iter().enumerate() {
        let key = match (rule, item) {
            (Some(Merge::By(..)), Value::Object(members))
                if directives::instead(members, &at.index(index))?.is_some() =>
            {
                continue;
            }
            (Some(Merge::By(key, _)), item) => key_in_patch(item, index, key, at)?,
            (Some(Merge::Set) | None, item) => item,
        };
        if !names.any(|next| next == *key) {
            return Err(order.at.error(Fault::OrderMismatch {
                element: key.to_string(),
            }));
        }
    }
    Ok(())
}

/// The list that replaces another one as a whole.
fn replacement(patch: &[Value], at: &Path<'_>) -> Result<Vec<Value>, Error> {
    for (index, item) in patch.iter().enumerate() {
        let at = at.index(index);
        if let Value::Object(members) = item
            && directives::instead(members, &at)? == Some(Instead::Delete)
        {
            return Err(at.error(Fault::DeleteInReplacedList));
        }
    }
    directives::settled_list(patch, at)
}

/// Adds scalars that are not there yet. Returns the original's order.
fn merge_set(
    original: &mut Vec<Value>,
    patch: &[Value],
    at: &Path<'_>,
) -> Result<Vec<Value>, Error> {
    same_scalars(original, patch, at)?;
    let was = mem::take(original);
    let mut seen = HashSet::new();
    let merged = was
        .iter()
        .chain(patch)
        .filter(|item| seen.insert(*item))
        .map(scalar)
        .collect::<Vec<_>>();
    *original = arrange(merged, patch, &was);
    Ok(was)
}

/// Merges objects with equal keys, adds the others, deletes what the patch says. Returns the order
/// against which a `$setElementOrder` places what the patch does not name.
fn merge_by_key(
    original: &mut Vec<Value>,
    patch: &[Value],
    key: &'static str,
    of: &Type,
    at: &Path<'_>,
) -> Result<Vec<Value>, Error> {
    let was = keys_of_original(original, key, at)?;
    let Elements {
        changes,
        doomed,
        replaces,
    } = Elements::of(patch, key, at)?;

    if replaces {
        *original = directives::settled_list(patch, at)?;
        return Ok(was);
    }
    let mut merged: Vec<Keyed> = was.iter().cloned().zip(mem::take(original)).collect();
    merged.retain(|(element, _)| !doomed.contains(element));
    let kept: Vec<Value> = merged.iter().map(|(element, _)| element.clone()).collect();

    let mut place: HashMap<&Value, usize> = HashMap::new();
    for (index, element) in kept.iter().enumerate() {
        place.entry(element).or_insert(index);
    }
    let mut named = Vec::with_capacity(changes.len());
    for (index, element, members) in changes {
        let at = at.index(index);
        named.push(element.clone());
        if let Some(&place) = place.get(element) {
            if let Value::Object(existing) = &mut merged[place].1 {
                object::merge(existing, members, of, &at)?;
            }
        } else {
            place.insert(element, merged.len());
            let settled = directives::settled_object(members, &at)?;
            merged.push((element.clone(), Value::Object(settled)));
        }
    }
    // Kubernetes deletes and appends in one buffer and later orders by what that buffer then holds:
    // what was added after a deletion counts as original, up to the length that the list had.
    let order_now = merged
        .iter()
        .take(was.len())
        .map(|(element, _)| element.clone())
        .collect();
    *original = arrange(merged, &named, &kept);
    Ok(order_now)
}

/// The elements of a patch for a list with a merge key.
struct Elements<'a> {
    /// Index, key and members of each element to merge or add.
    changes: Vec<(usize, &'a Value, &'a Map<String, Value>)>,
    /// Keys of the elements to delete.
    doomed: HashSet<&'a Value>,
    /// Whether the patch takes the place of the original list.
    replaces: bool,
}

impl<'a> Elements<'a> {
    fn of(patch: &'a [Value], key: &'static str, at: &Path<'_>) -> Result<Self, Error> {
        let mut elements = Self {
            changes: Vec::new(),
            doomed: HashSet::new(),
            replaces: false,
        };
        for (index, item) in patch.iter().enumerate() {
            let Value::Object(members) = item else {
                return Err(at.error(wrong_element("patch", index, "an object", item)));
            };
            match directives::instead(members, &at.index(index))? {
                None => {
                    elements
                        .changes
                        .push((index, key_in_patch(item, index, key, at)?, members));
                }
                Some(Instead::Delete) => {
                    elements.doomed.insert(key_in_patch(item, index, key, at)?);
                }
                Some(Instead::Replace) => elements.replaces = true,
            }
        }
        Ok(elements)
    }
}

fn arrange_by(
    items: &mut Vec<Value>,
    order: Order<'_>,
    was: &[Value],
    rule: Option<Merge>,
) -> Result<(), Error> {
    if order.elements.is_empty() {
        return Ok(());
    }
    let names = keys_of_order(order, rule)?;
    let keyed = match rule {
        Some(Merge::By(key, _)) => {
            let keys = keys_of_original(items, key, &order.at)?;
            keys.into_iter().zip(mem::take(items)).collect()
        }
        Some(Merge::Set) | None => {
            if items.iter().any(is_nested) {
                return Err(order.at.error(Fault::NotOrderable));
            }
            mem::take(items).iter().map(scalar).collect()
        }
    };
    *items = arrange(keyed, &names, was);
    Ok(())
}

/// The keys that a `$setElementOrder` names. Of a list with a merge key each element is an object
/// with that key; of a list of scalars it is the scalar.
fn keys_of_order(order: Order<'_>, rule: Option<Merge>) -> Result<Vec<Value>, Error> {
    let Order { elements, at } = order;
    match rule {
        Some(Merge::By(key, _)) => elements
            .iter()
            .enumerate()
            .map(|(index, item)| key_in_patch(item, index, key, &at).cloned())
            .collect(),
        Some(Merge::Set) | None if elements.iter().all(|item| !is_nested(item)) => {
            Ok(elements.to_vec())
        }
        Some(Merge::Set) | None => Err(at.error(Fault::NotOrderable)),
    }
}

/// The merge key of each element of the original list.
fn keys_of_original(
    items: &[Value],
    key: &'static str,
    at: &Path<'_>,
) -> Result<Vec<Value>, Error> {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| match item {
            Value::Object(members) => members
                .get(key)
                .filter(|value| is_key(value))
                .cloned()
                .ok_or_else(|| at.error(Fault::OriginalHasNoMergeKey { index, key })),
            other => Err(at.error(wrong_element("original", index, "an object", other))),
        })
        .collect()
}

/// The merge key of an element of the patch.
fn key_in_patch<'a>(
    item: &'a Value,
    index: usize,
    key: &'static str,
    at: &Path<'_>,
) -> Result<&'a Value, Error> {
    let Value::Object(members) = item else {
        return Err(at.error(wrong_element("patch", index, "an object", item)));
    };
    members
        .get(key)
        .filter(|value| is_key(value))
        .ok_or_else(|| at.index(index).error(Fault::NoMergeKey { key }))
}

/// Whether a value can tell elements apart.
fn is_key(value: &Value) -> bool {
    matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_))
}

/// Whether a value is an object or a list.
fn is_nested(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

/// Checks that both lists hold scalars of one type.
fn same_scalars(original: &[Value], patch: &[Value], at: &Path<'_>) -> Result<(), Error> {
    let original = original
        .iter()
        .enumerate()
        .map(|(index, item)| ("original", index, item));
    let patch = patch
        .iter()
        .enumerate()
        .map(|(index, item)| ("patch", index, item));
    let mut wanted = None;
    for (document, index, item) in original.chain(patch) {
        let found = type_name(item);
        let wanted = *wanted.get_or_insert_with(|| if is_key(item) { found } else { "a string" });
        if found != wanted {
            return Err(at.error(Fault::WrongElement {
                document,
                index,
                wanted,
                found,
            }));
        }
    }
    Ok(())
}

fn wrong_element(
    document: &'static str,
    index: usize,
    wanted: &'static str,
    found: &Value,
) -> Fault {
    Fault::WrongElement {
        document,
        index,
        wanted,
        found: type_name(found),
    }
}

/// A scalar is its own key.
fn scalar(item: &Value) -> Keyed {
    (item.clone(), item.clone())
}

/// The order of a list as far as it consists of scalars.
fn scalar_keys(items: &[Value]) -> Vec<Value> {
    items.iter().filter(|item| is_key(item)).cloned().collect()
}
