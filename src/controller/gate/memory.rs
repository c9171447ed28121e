//! How much GPU memory the containers of a pod are given: what `config/policy/memory.yaml` says in CEL, as a function.

use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::gpu_memory::{Unit, of_container};

/// The JSON patch that gives each container of a pod which is about to be created as much of these resources as its MIG
/// profiles amount to; `None` when all have just that. A container that asks for what cannot be counted is left as it is:
/// `memory.slicegate.dev` refuses it.
pub fn charge(pod: &Value, units: &[Unit]) -> Option<Value> {
    let mut operations = Vec::new();
    for kind in ["containers", "initContainers"] {
        for (i, container) in pod["spec"][kind].as_array().into_iter().flatten().enumerate() {
            let path = format!("/spec/{kind}/{i}/resources");
            operations.extend(of_resources(&container["resources"], &path, units).into_iter().flatten());
        }
    }
    (!operations.is_empty()).then(|| operations.into())
}

fn of_resources(resources: &Value, path: &str, units: &[Unit]) -> Option<Vec<Value>> {
    let gib = of_container(&ResourceRequirements::deserialize(resources).ok()?).ok()?;
    let mut operations = Vec::new();
    for kind in ["limits", "requests"] {
        let list = resources[kind].as_object();
        if gib > 0 && list.is_none() {
            operations.push(json!({"op": "add", "path": format!("{path}/{kind}"), "value": {}}));
        }
        for unit in units {
            let path = format!("{path}/{kind}/{}", unit.resource.replace('~', "~0").replace('/', "~1"));
            let known = list.and_then(|list| list.get(unit.resource));
            let wanted = json!(unit.quantity(gib));
            if gib > 0 && known != Some(&wanted) {
                operations.push(json!({"op": "add", "path": path, "value": wanted}));
            } else if gib == 0 && known.is_some() {
                operations.push(json!({"op": "remove", "path": path}));
            }
        }
    }
    Some(operations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::gpu_memory::UNITS;

    fn charged(resources: &Value) -> Option<Value> {
        let containers = json!([{"name": "plain"}, {"name": "a", "resources": resources}]);
        charge(&json!({"spec": {"containers": containers}}), &UNITS[..1])
    }

    #[test]
    fn each_container_is_given_what_its_profiles_amount_to() {
        let ours = "slicegate.dev~1gpu-memory";
        let two = json!({"limits": {"nvidia.com/mig-1g.10gb": "2"}, "requests": {"cpu": "1"}});
        assert_eq!(
            charged(&two),
            Some(json!([
                {"op": "add", "path": format!("/spec/containers/1/resources/limits/{ours}"), "value": "20"},
                {"op": "add", "path": format!("/spec/containers/1/resources/requests/{ours}"), "value": "20"},
            ]))
        );
        let init = json!({"spec": {"initContainers": [{"name": "a", "resources": two}]}});
        let patch = charge(&init, &UNITS).unwrap();
        assert_eq!(patch.as_array().unwrap().len(), 4);
        assert_eq!(
            patch[1]["path"],
            "/spec/initContainers/0/resources/limits/instaslice.redhat.com~1accelerator-memory-quota"
        );
        assert_eq!(patch[1]["value"], "20Gi");
    }

    #[test]
    fn what_is_right_stays_and_what_is_wrong_is_put_right() {
        let list = json!({"nvidia.com/mig-1g.10gb": "1", "slicegate.dev/gpu-memory": "10"});
        assert_eq!(charged(&json!({"limits": list, "requests": list})), None);
        assert_eq!(charged(&json!({"limits": {"nvidia.com/gpu": "1"}})), None);
        assert_eq!(charged(&Value::Null), None);
        let by_hand = charged(&json!({"limits": {"cpu": "1", "slicegate.dev/gpu-memory": "10"}})).unwrap();
        assert_eq!(by_hand[0]["op"], "remove");
        // On a server that has not made the requests of the limits yet.
        let limits = charged(&json!({"limits": list})).unwrap();
        let paths: Vec<&str> =
            limits.as_array().unwrap().iter().map(|o| o["path"].as_str().unwrap()).collect();
        let requests = "/spec/containers/1/resources/requests";
        assert_eq!(paths, [requests.to_owned(), format!("{requests}/slicegate.dev~1gpu-memory")]);
    }
}
