//! What the annotations of a BatchSandbox say of its pods, as any client reads them.

use kube::ResourceExt as _;
use kube::core::DynamicObject;
use opensandbox_api::labels;
use serde_json::Value;

/// Pods that a BatchSandbox holds, in the order of its shards: given, and not given back. What cannot be
/// read names none.
pub fn held(sandbox: &DynamicObject) -> Vec<String> {
    let mut held = named(sandbox, labels::ALLOC_STATUS);
    for key in [labels::ALLOC_RELEASE, labels::ALLOC_RELEASED] {
        let back = named(sandbox, key);
        held.retain(|pod| !back.contains(pod));
    }
    held
}

fn named(sandbox: &DynamicObject, key: &str) -> Vec<String> {
    let annotation = sandbox.annotations().get(key);
    let parsed = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let pods = parsed.as_ref().and_then(|value| value["pods"].as_array());
    pods.into_iter()
        .flatten()
        .filter_map(|pod| pod.as_str().map(str::to_owned))
        .collect()
}
