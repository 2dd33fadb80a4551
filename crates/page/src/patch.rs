//! The difference of two documents as a merge patch (RFC 7396): what changed, and null for what is gone.
//!
//! Invariant: documents hold no null, so that every difference can be told; lists are sent whole.

use serde_json::{Map, Value};

/// What turns `old` into `new`; none where nothing does.
pub(crate) fn difference(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut patch = Map::new();
    for (key, value) in new {
        let changed = old.get(key).map_or_else(|| Some(value.clone()), |before| difference(before, value));
        if let Some(changed) = changed {
            patch.insert(key.clone(), changed);
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Nulls of objects, which a patch could not tell from gone, taken away.
pub(crate) fn without_nulls(mut value: Value) -> Value {
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(prune);
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// As the browser does it (`live.js`).
    fn apply(target: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut map = if let Value::Object(map) = target { map } else { Map::new() };
        for (key, value) in patch {
            if value.is_null() {
                map.remove(key);
            } else {
                let before = map.remove(key).unwrap_or(Value::Null);
                map.insert(key.clone(), apply(before, value));
            }
        }
        Value::Object(map)
    }

    #[test]
    fn only_what_changed_is_sent() {
        let old = json!({"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": true});
        let new = json!({"a": 1, "b": {"c": [1, 2, 3], "d": "x"}, "e": 0.5});
        let patch = json!({"b": {"c": [1, 2, 3]}, "gone": null, "e": 0.5});
        assert_eq!(difference(&old, &new), Some(patch));
        assert_eq!(difference(&new, &new), None);
        assert_eq!(without_nulls(json!({"a": null, "b": [{"c": null}]})), json!({"b": [{}]}));
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<i32>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(4, 40, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_one_document_to_the_other(old in documents(), new in documents()) {
            let there = match difference(&old, &new) {
                Some(patch) => apply(old, &patch),
                None => old,
            };
            prop_assert_eq!(there, new);
        }
    }
}
