//! The cluster with a real node: what demo and benchmark have in common.

use anyhow::{Context, Result};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use slicegate::api::SlicePolicy;
use slicegate_rig::Rig;
use slicegate_rig::real_operator::{Gpus, RealOperator, a100_node};

use super::steps::resource;

/// The real node.
const NODE: &str = "gpu-real";
/// The emulated one beside it.
const EMULATED: &str = "gpu-emulated";
const AT_ONCE: u32 = 0;
/// Longer than any of the demo's or benchmark's parts.
const LONG: u32 = 3600;

/// Adds a real node with so many A100-80GB and an emulated one, and installs Slicegate from its manifests.
pub async fn set_up(rig: &Rig, gpus: u32) -> Result<RealOperator<'_>> {
    eprintln!("starting a real node: containerd, kubelet");
    let node = rig.add_real_node(a100_node(NODE)).await.context("real node")?;
    eprintln!("installing Slicegate from config/ and kueue/: controller and agent are pods of the real node");
    let real = RealOperator::install(rig, node, Gpus::a100(gpus)).await.context("install")?;
    real.add_emulated(EMULATED).await.context("emulated node")?;
    Ok(real)
}

/// Sets whether slices that nobody has claimed are kept for the next Job, or taken away at once.
pub async fn keep_idle_slices(rig: &Rig, keep: bool) -> Result<()> {
    let policies: Api<SlicePolicy> = Api::all(rig.client().await?);
    let patch = json!({"spec": {"idleSliceRetentionSeconds": if keep { LONG } else { AT_ONCE }}});
    policies.patch("default", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// A Job in a LocalQueue whose pods run a script, each with one slice.
pub fn job(name: &str, queue: &str, profile: &str, pods: u32, script: &str) -> Value {
    job_with(name, queue, &resource(profile), pods, script)
}

/// The same with one of any extended resource.
pub fn job_with(name: &str, queue: &str, resource: &str, pods: u32, script: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "default", "labels": {"kueue.x-k8s.io/queue-name": queue}},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "template": {"spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": "busybox",
                    "imagePullPolicy": "Never",
                    "args": ["sh", "-c", script],
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {resource: 1}},
                }],
            }},
        },
    })
}
