//! Views of raw objects, by the operator's own parser.

use opensandbox_operator::view::{PodView, PoolView, SandboxView, parse};
use serde_json::Value;

pub(crate) fn pod(raw: &Value) -> PodView {
    parse::pod(raw).expect("the kubelet writes whole pods")
}

pub(crate) fn pool(raw: &Value) -> PoolView {
    parse::pool(raw).expect("the store holds whole Pools")
}

pub(crate) fn sandbox(raw: &Value) -> SandboxView {
    parse::sandbox(raw).expect("the store holds whole BatchSandboxes")
}
