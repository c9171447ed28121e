//! Which pods are gated, and how: what `config/policy/gate.yaml` says in CEL, as a function.

use serde_json::{Value, json};
use slicegate_core::profile::RESOURCE_PREFIX;

use crate::api::names;

/// The JSON patch that gates a pod which is about to be created; `None` for a pod that is let through as it is: it asks for no
/// MIG profile, is gated already, or names its node, which the API allows no gate beside.
pub fn gate(pod: &Value) -> Option<Value> {
    let spec = &pod["spec"];
    if !asks(spec) || is_bound(spec) {
        return None;
    }
    match spec["schedulingGates"].as_array() {
        Some(gates) if gates.iter().any(|gate| gate["name"] == names::GATE) => None,
        // Adding to a list that is not there is an error, and adding the list replaces one that is.
        Some(_) => {
            Some(json!([{"op": "add", "path": "/spec/schedulingGates/-", "value": {"name": names::GATE}}]))
        }
        None => {
            Some(json!([{"op": "add", "path": "/spec/schedulingGates", "value": [{"name": names::GATE}]}]))
        }
    }
}

/// Whether a container asks for a MIG profile. Limits count, too: on a server that applies no defaults to what it shows its
/// webhooks, a request may not have been made of them yet.
fn asks(spec: &Value) -> bool {
    let of = |kind: &str| spec[kind].as_array().into_iter().flatten();
    let resources = of("containers").chain(of("initContainers")).map(|container| &container["resources"]);
    let lists = resources.flat_map(|resources| [&resources["limits"], &resources["requests"]]);
    lists
        .filter_map(Value::as_object)
        .flat_map(|list| list.keys())
        .any(|name| name.starts_with(RESOURCE_PREFIX))
}

fn is_bound(spec: &Value) -> bool {
    spec["nodeName"].as_str().is_some_and(|node| !node.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
    }

    fn asking(kind: &str) -> Value {
        json!({"name": "a", "image": "x", "resources": {kind: {"cpu": "1", "nvidia.com/mig-1g.10gb": "1"}}})
    }

    #[test]
    fn a_pod_that_asks_for_a_profile_anywhere_is_gated() {
        let gated = Some(json!([
            {"op": "add", "path": "/spec/schedulingGates", "value": [{"name": "slicegate.dev/claim"}]}
        ]));
        for kind in ["limits", "requests"] {
            assert_eq!(gate(&pod(&json!({"containers": [{"name": "b"}, asking(kind)]}))), gated);
            let init = json!({"containers": [{"name": "b"}], "initContainers": [asking(kind)]});
            assert_eq!(gate(&pod(&init)), gated);
        }
    }

    #[test]
    fn other_gates_stay() {
        let spec =
            json!({"containers": [asking("limits")], "schedulingGates": [{"name": "example.com/mine"}]});
        let patch = gate(&pod(&spec)).unwrap();
        assert_eq!(patch[0]["path"], "/spec/schedulingGates/-");
    }

    #[test]
    fn every_other_pod_is_left_as_it_is() {
        let whole_gpu = json!({"name": "a", "resources": {"limits": {"nvidia.com/gpu": "1"}}});
        let twice = json!([{"name": "example.com/mine"}, {"name": "slicegate.dev/claim"}]);
        for spec in [
            json!({"containers": [{"name": "a"}, whole_gpu]}),
            json!({"containers": [asking("limits")], "schedulingGates": twice}),
            json!({"containers": [asking("limits")], "nodeName": "gpu-a100"}),
            json!({"containers": null}),
            Value::Null,
        ] {
            assert_eq!(gate(&pod(&spec)), None, "{spec}");
        }
    }
}
