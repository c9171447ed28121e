//! Bad input gets a message that says what is wrong, where, and what to do; nothing is lost, and nobody else suffers.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use slicegate::api::kueue::{AdmissionCheck, CheckState};
use slicegate::api::mig_node::MIGNode;
use slicegate_rig::operator::GpuNode;
use slicegate_rig::{Process, ProcessSpec};

use crate::support::{World, job};

/// A queue with more quota than there are GPUs, for profiles that there are not.
const BOUNDLESS: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: boundless}
spec:
  namespaceSelector: {}
  admissionChecksStrategy: {admissionChecks: [{name: slicegate}]}
  resourceGroups:
  - coveredResources: [cpu, memory, nvidia.com/mig-1g.10gb, nvidia.com/mig-3g.40gb, nvidia.com/mig-9g.99gb, nvidia.com/mig-huge]
    flavors:
    - name: a100-80gb
      resources:
      - {name: cpu, nominalQuota: 10000}
      - {name: memory, nominalQuota: 100Ti}
      - {name: nvidia.com/mig-1g.10gb, nominalQuota: 10000}
      - {name: nvidia.com/mig-3g.40gb, nominalQuota: 10000}
      - {name: nvidia.com/mig-9g.99gb, nominalQuota: 10000}
      - {name: nvidia.com/mig-huge, nominalQuota: 10000}
---
apiVersion: v1
kind: Namespace
metadata: {name: odd}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: mig, namespace: odd}
spec: {clusterQueue: boundless}
";

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_met_say_why_and_hinder_nobody() -> Result<()> {
    let world = World::with(vec![GpuNode::a100("gpu-a100")]).await?;
    world.rig.apply_yaml(BOUNDLESS).await?;
    world.submit(&job("odd", "unknown", 1, &[("9g.99gb", 1)], "1")).await?;
    world.submit(&job("odd", "malformed", 1, &[("huge", 1)], "1")).await?;
    world.submit(&job("odd", "fat", 1, &[("1g.10gb", 57)], "1")).await?;
    world.submit(&job("odd", "crowd", 17, &[("3g.40gb", 1)], "1")).await?;
    let says = async |name: &str, state: CheckState, text: &str| {
        let found = world
            .until(&format!("{name} is told why"), || async {
                Ok(world.check("odd", name).await?.filter(|(_, message)| !message.is_empty()))
            })
            .await?;
        assert_eq!(found, (state, text.to_owned()), "{name}");
        anyhow::Ok(())
    };
    says(
        "unknown",
        CheckState::Pending,
        "No node of flavor a100-80gb offers MIG profile 9g.99gb; offered there: 1g.10gb, 1g.10gb+me, 1g.20gb, 2g.20gb, \
         3g.40gb, 4g.40gb, 7g.80gb.",
    )
    .await?;
    says(
        "fat",
        CheckState::Pending,
        "Pod set main asks for 1 pod with 57 × 1g.10gb each; the nodes of flavor a100-80gb hold no such pod even when empty.",
    )
    .await?;
    says(
        "crowd",
        CheckState::Pending,
        "Pod set main asks for 17 pods with 1 × 3g.40gb each; the nodes of flavor a100-80gb hold at most 16 pods even when \
         empty.",
    )
    .await?;
    // What is wrong on every cluster is rejected: Kueue deactivates the workload until somebody mends it.
    let workload = world
        .until("the malformed one is deactivated", || async {
            let workload = world.workload_of("odd", "malformed").await?;
            Ok(workload.filter(|w| w.spec.active == Some(false)))
        })
        .await?;
    let told = world
        .event("odd", workload.metadata.name.as_deref().unwrap_or_default(), "AdmissionCheckRejected")
        .await?;
    assert!(
        told.contains("\"huge\" is not a MIG profile name: expected <compute slices>g.<memory>gb"),
        "{told}"
    );
    // And all the while others run.
    world.submit(&job("odd", "sound", 16, &[("3g.40gb", 1)], "0.5")).await?;
    world.until("the sound Job is complete", || world.job_done("odd", "sound")).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_queue_stays_gated_and_says_why() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a30")]).await?;
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: stray, namespace: default}, spec: {containers: [{name: a, image: x, \
               resources: {limits: {nvidia.com/mig-1g.6gb: 1}}}]}}";
    world.rig.apply_yaml(pod).await?;
    let note = world.event("default", "stray", "NotQueued").await?;
    assert!(
        note.starts_with(
            "The pod asks for nvidia.com/mig-1g.6gb but did not come through a Kueue LocalQueue"
        ),
        "{note}"
    );
    assert!(note.contains("Set the label kueue.x-k8s.io/queue-name"), "{note}");
    let pods = world.pods("default").await?;
    let gates = pods[0].spec.as_ref().unwrap().scheduling_gates.clone().unwrap_or_default();
    assert_eq!(gates.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["slicegate.dev/claim"]);
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mig_node_edited_to_nonsense_is_refused_or_put_right() -> Result<()> {
    let world = World::with(vec![GpuNode::a100("gpu-a100")]).await?;
    world.submit(&job("default", "steady", 2, &[("3g.40gb", 1)], "6")).await?;
    world
        .until("two slices are in use", || async {
            let status = world.mig_node("gpu-a100").await?.status.unwrap_or_default();
            Ok(status.summary.is_some_and(|s| s.in_use == 2))
        })
        .await?;
    let api: Api<MIGNode> = Api::all(world.client.clone());
    let uuid = api.get("gpu-a100").await?.status.unwrap().gpus[7].uuid.clone();
    let edit = async |spec: serde_json::Value| {
        api.patch("gpu-a100", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await
    };
    let overlapping = json!({"gpus": [{"uuid": uuid, "slices": [
        {"profile": "3g.40gb", "start": 0, "size": 4}, {"profile": "1g.10gb", "start": 3, "size": 1}]}]});
    let refused = edit(overlapping).await.unwrap_err().to_string();
    assert!(refused.contains("slices of one GPU must not overlap"), "{refused}");
    let beyond =
        json!({"gpus": [{"uuid": uuid, "slices": [{"profile": "3g.40gb", "start": 14, "size": 4}]}]});
    let refused = edit(beyond).await.unwrap_err().to_string();
    assert!(refused.contains("a slice must lie within the GPU's placement units"), "{refused}");
    // What no rule of a CRD can see: a GPU that is not there, a place that is none, a claim of nobody, and all claims of
    // running pods gone.
    edit(json!({
        "gpus": [
            {"uuid": "GPU-of-my-dreams", "slices": [{"profile": "7g.80gb", "start": 0, "size": 8}]},
            {"uuid": uuid, "slices": [{"profile": "3g.40gb", "start": 1, "size": 4}, {"profile": "9g.99gb", "start": 6, "size": 1}]},
        ],
        "claims": [{"workload": {"namespace": "nowhere", "name": "nobody", "uid": "0"}, "attempt": "never", "podSet": "main",
                    "profile": "7g.80gb", "slices": 1, "pods": 1}],
    }))
    .await?;
    world
        .until("the spec is right again", || async {
            let spec = world.mig_node("gpu-a100").await?.spec;
            let claims: Vec<_> = spec
                .claims
                .iter()
                .map(|c| (c.workload.namespace.as_str(), c.profile.as_str(), c.slices))
                .collect();
            let slices: Vec<_> =
                spec.gpus.iter().flat_map(|g| &g.slices).map(|s| s.profile.as_str()).collect();
            Ok(claims == [("default", "3g.40gb", 2)] && slices == ["3g.40gb", "3g.40gb"])
        })
        .await?;
    world.until("the running Job is complete", || world.job_done("default", "steady")).await?;
    let pods = world.pods("default").await?;
    assert_eq!(pods.len(), 2, "no pod was disturbed");
    world.until_released().await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_policy_makes_the_check_inactive_until_it_is_there() -> Result<()> {
    let world = World::with(vec![]).await?;
    world
        .rig
        .apply_yaml(
            "{apiVersion: kueue.x-k8s.io/v1beta2, kind: AdmissionCheck, metadata: {name: lost}, spec: {controllerName: \
             slicegate.dev/mig, parameters: {apiGroup: slicegate.dev, kind: SlicePolicy, name: strict}}}",
        )
        .await?;
    world.until("the check is inactive", || world.check_condition("lost", "False")).await?;
    let check: AdmissionCheck = Api::all(world.client.clone()).get("lost").await?;
    let condition = check.status.unwrap().conditions.remove(0);
    assert_eq!(condition.reason, "BadParametersRef");
    assert_eq!(
        condition.message,
        "SlicePolicy \"strict\" does not exist; create it, or remove spec.parameters to use the defaults."
    );
    let bad = "{apiVersion: slicegate.dev/v1alpha1, kind: SlicePolicy, metadata: {name: strict}, spec: {holdSeconds: 60, \
               maxHoldSeconds: 5}}";
    let refused = format!("{:#}", world.rig.apply_yaml(bad).await.unwrap_err());
    assert!(refused.contains("maxHoldSeconds must not be less than holdSeconds"), "{refused}");
    world
        .rig
        .apply_yaml(
            "{apiVersion: slicegate.dev/v1alpha1, kind: SlicePolicy, metadata: {name: strict}, spec: {}}",
        )
        .await?;
    world.until("the check is active", || world.check_condition("lost", "True")).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_work_says_what_is_missing() -> Result<()> {
    let mut off = GpuNode::a30("gpu-off");
    off.mig_enabled = false;
    let world = World::with(vec![off, GpuNode::a30("gpu-a30")]).await?;

    // MIG mode is off.
    let ready = ready_condition(&world, "gpu-off").await?;
    assert_eq!(
        ready,
        (
            "False".to_owned(),
            "NoUsableGPU".to_owned(),
            "MIG mode is off on GPU 0, 1: drain it and run nvidia-smi -i 0,1 -mig 1 on the node.".to_owned()
        )
    );

    // An agent for a node that is not there.
    let spec = agent_spec(&world, "elsewhere", "gpu-a30").arg("--node-name=gpu-nowhere");
    let log = ended(&world, spec).await?;
    assert!(log.contains("node \"gpu-nowhere\" does not exist in this cluster"), "{log}");

    // No NVML library, and one that is none.
    let agent = world.rig.process("agent-gpu-a30").context("agent")?;
    agent.terminate().await?;
    let spec = agent_spec(&world, "without", "gpu-a30")
        .args(["--node-name=gpu-a30", "--nvml-library=/nowhere/libnvidia-ml.so.1"]);
    let log = ended(&world, spec).await?;
    assert!(log.contains("cannot load the NVIDIA driver library /nowhere/libnvidia-ml.so.1"), "{log}");
    let (status, reason, message) = ready_condition(&world, "gpu-a30").await?;
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NVMLUnavailable"));
    assert!(message.contains("name another with --nvml-library"), "{message}");

    // A state that the simulated driver cannot read.
    let state = slicegate_rig::operator::gpu_state(&world.rig, "gpu-a30").join("state.json");
    let sound = std::fs::read(&state)?;
    std::fs::write(&state, "{\"version\": 1, \"gpus\": [")?;
    let nvml = format!("--nvml-library={}", world.operator.nvml().display());
    let spec = agent_spec(&world, "corrupt", "gpu-a30").arg("--node-name=gpu-a30").arg(&nvml);
    let log = ended(&world, spec).await?;
    assert!(log.contains("state.json") && log.contains("remove it to start with empty GPUs"), "{log}");
    assert!(log.contains("NVML does not start"), "{log}");

    // With all of that put right, the node is as good as new.
    std::fs::write(&state, sound)?;
    agent.restart().await?;
    world
        .until("the node is ready again", || async {
            Ok(ready_condition(&world, "gpu-a30").await?.0 == "True")
        })
        .await?;
    world.submit(&job("default", "after", 1, &[("1g.6gb", 1)], "0.2")).await?;
    world.until("a Job runs there", || world.job_done("default", "after")).await?;
    world.rig.down().await
}

fn agent_spec(world: &World, name: &str, identity: &str) -> ProcessSpec {
    let dir = world.rig.dir();
    ProcessSpec::new(name, world.operator.slicegate())
        .args(["agent", "--kubelet=none", "--listen=127.0.0.1:0"])
        .arg(format!("--state-dir={}", dir.join("agents").join(name).display()))
        .env(
            "KUBECONFIG",
            dir.join("kubeconfigs").join(format!("slicegate-agent-{identity}")).display().to_string(),
        )
        .env("SLICEGATE_NVML_SIM_CONFIG", dir.join(format!("gpus/{identity}.json")).display().to_string())
}

/// The log of a process that is to end with an error by itself.
async fn ended(world: &World, spec: ProcessSpec) -> Result<String> {
    let process: Process = world.rig.spawn(spec)?;
    process.wait(Duration::from_secs(30)).await?;
    assert!(
        process.exit_status().is_some_and(|status| status.code() == Some(1)),
        "{:?}",
        process.exit_status()
    );
    Ok(std::fs::read_to_string(process.log_path())?)
}

async fn ready_condition(world: &World, node: &str) -> Result<(String, String, String)> {
    let status = world.mig_node(node).await?.status.context("status")?;
    let condition = status.conditions.into_iter().find(|c| c.type_ == "Ready").context("condition Ready")?;
    Ok((condition.status, condition.reason, condition.message))
}
