//! The order of a merged list.
//!
//! Elements that the patch names keep the patch's order; elements that only the original has keep
//! the original's; where both say something about two neighbours the original decides, else the
//! patch's elements come first.

use std::collections::HashMap;

use serde_json::Value;

/// An element with what tells it apart: its merge key's value, or itself if it is a scalar.
pub(super) type Keyed = (Value, Value);

/// Arranges the elements of a merged list. `named` is the order of the elements that the patch, or
/// its `$setElementOrder`, names; `original` that of the list as it was.
pub(super) fn arrange(elements: Vec<Keyed>, named: &[Value], original: &[Value]) -> Vec<Value> {
    let named = ranks(named);
    let original = ranks(original);
    let (mut patched, mut rest): (Vec<_>, Vec<_>) = elements
        .into_iter()
        .partition(|(key, _)| named.contains_key(key));
    patched.sort_by_key(|(key, _)| named.get(key));
    rest.sort_by_key(|(key, _)| original.get(key));

    let mut result = Vec::with_capacity(patched.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for (key, element) in patched {
        if let Some(place) = original.get(&key) {
            while let Some((_, earlier)) =
                rest.next_if(|(key, _)| original.get(key).is_some_and(|other| other < place))
            {
                result.push(earlier);
            }
        }
        result.push(element);
    }
    result.extend(rest.map(|(_, element)| element));
    result
}

/// First position of each key.
fn ranks(keys: &[Value]) -> HashMap<&Value, usize> {
    let mut ranks = HashMap::with_capacity(keys.len());
    for (rank, key) in keys.iter().enumerate() {
        ranks.entry(key).or_insert(rank);
    }
    ranks
}
