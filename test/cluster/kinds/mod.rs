//! Every kind of workload that comes through the queue, on one cluster.

mod containers;
mod elastic;
mod jobs;
mod pods;
mod sets;

use serde_json::{Value, json};
use slicegate_rig::Framework;

use crate::shared::Group;

pub static KINDS: Group = Group::new(&[Framework::JobSet, Framework::LeaderWorkerSet]);

/// A pod template: one container, slices of a profile or none, and what its annotations say.
fn template(slices: &[(&str, u32)], annotations: &Value) -> Value {
    let limits: serde_json::Map<String, Value> =
        slices.iter().map(|(profile, count)| (format!("nvidia.com/mig-{profile}"), json!(count))).collect();
    json!({
        "metadata": {"annotations": annotations},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "main",
                "image": "example.com/none",
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": limits},
            }],
        },
    })
}

/// The same for a pod that runs until it is ended.
fn endless(slices: &[(&str, u32)]) -> Value {
    template(slices, &json!({"slicegate.dev/run-seconds": "1000"}))
}
