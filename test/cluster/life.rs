//! The life of a workload, for the kinds that the samples show.

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use nvml_sim::StateDir;
use serde_json::json;
use slicegate::api::kueue::CheckState;
use slicegate_rig::operator::{GpuNode, gpu_state, three_nodes};

use crate::checker::Checker;
use crate::support::{World, get, job};

#[tokio::test(flavor = "multi_thread")]
async fn the_samples_run_and_leave_nothing_claimed() -> Result<()> {
    let world = World::with(three_nodes()).await?;
    let checker = Checker::start(&world);
    world.rig.apply_kustomize("samples").await?;
    for name in ["vectoradd", "sweep", "vllm-batch"] {
        world.until(&format!("{name} is complete"), || world.job_done("default", name)).await?;
    }
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
    world
        .until("the plain pod has run", || async {
            let pods = world.pods("default").await?;
            Ok(pods.iter().any(|p| p.metadata.name.as_deref() == Some("pipeline") && phase(p) == "Succeeded"))
        })
        .await?;
    let pods = world.pods("default").await?;
    let nodes_of = |prefix: &str| -> BTreeSet<String> {
        let of_job =
            pods.iter().filter(|p| p.metadata.name.as_deref().unwrap_or_default().starts_with(prefix));
        of_job.filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect()
    };
    assert_eq!(nodes_of("sweep"), BTreeSet::from(["gpu-a100".to_owned(), "gpu-h100".to_owned()]));
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_slice_is_reused_without_an_nvml_call() -> Result<()> {
    let mut node = GpuNode::a30("gpu-a30");
    // A fault that never comes makes the simulator count the calls.
    let never = |function: &str| json!({"function": function, "nth": 1_000_000, "code": 999, "times": 1});
    let (create, destroy) = ("nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceDestroy");
    node.faults = vec![never(create), never(destroy)];
    let world = World::with(vec![node]).await?;
    let calls = || -> Result<(u64, u64)> {
        let state = StateDir::open(gpu_state(&world.rig, "gpu-a30")).read()?;
        let count = |name: &str| state.calls.get(name).copied().unwrap_or(0);
        Ok((count(create), count(destroy)))
    };
    for round in 0..3 {
        let name = format!("round-{round}");
        world.submit(&job("default", &name, 1, &[("2g.12gb", 1)], "0.2")).await?;
        world.until(&format!("{name} is complete"), || world.job_done("default", &name)).await?;
        world.until_released().await?;
        assert_eq!(calls()?, (1, 0), "after {name}");
    }
    // One that is in the way of another profile goes.
    world.submit(&job("default", "whole", 2, &[("4g.24gb", 1)], "0.2")).await?;
    world.until("the large one is complete", || world.job_done("default", "whole")).await?;
    assert_eq!(calls()?, (3, 1));
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_different_pods_is_placed_together() -> Result<()> {
    let world = World::with(vec![GpuNode::a100("gpu-a100")]).await?;
    for (name, profile) in [("leader", "1g.10gb"), ("worker", "3g.40gb")] {
        world
            .rig
            .apply_objects(vec![json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default",
                    "labels": {"kueue.x-k8s.io/queue-name": "mig", "kueue.x-k8s.io/pod-group-name": "duo"},
                    "annotations": {"kueue.x-k8s.io/pod-group-total-count": "2", "slicegate.dev/run-seconds": "0.5"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": name, "image": "x",
                    "resources": {"requests": {"cpu": "100m"}, "limits": {format!("nvidia.com/mig-{profile}"): 1}}}]},
            })])
            .await?;
    }
    world
        .until("both pods have run", || async {
            let pods = world.pods("default").await?;
            let done = pods
                .iter()
                .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded"));
            Ok(done.count() == 2)
        })
        .await?;
    world.until_released().await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_that_is_withdrawn_gives_the_slices_back_and_comes_again() -> Result<()> {
    // Making a slice takes long enough to withdraw the quota meanwhile.
    let world = World::with(vec![GpuNode::a30("gpu-a30").slow(1500, 0)]).await?;
    world.submit(&job("default", "held", 1, &[("4g.24gb", 1)], "0.5")).await?;
    world
        .until("the slice is claimed", || async {
            Ok(!world.mig_node("gpu-a30").await?.spec.claims.is_empty())
        })
        .await?;
    let queue = async |policy: &str| {
        let queues = kube::discovery::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(
            "kueue.x-k8s.io",
            "v1beta2",
            "LocalQueue",
        ));
        let queues: Api<kube::core::DynamicObject> =
            Api::namespaced_with(world.client.clone(), "default", &queues);
        let patch = Patch::Merge(json!({"spec": {"stopPolicy": policy}}));
        queues.patch("mig", &PatchParams::default(), &patch).await
    };
    queue("HoldAndDrain").await?;
    world.until_released().await?;
    let workload = world.workload_of("default", "held").await?.unwrap();
    assert!(workload.status.is_some_and(|s| s.admission.is_none()), "quota is gone");
    assert_ne!(world.check("default", "held").await?.map(|(state, _)| state), Some(CheckState::Ready));
    assert!(world.pods("default").await?.is_empty(), "nothing has run");
    queue("None").await?;
    world.until("the Job is complete", || world.job_done("default", "held")).await?;
    world.until_released().await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_finds_no_room_is_queued_again_and_gets_its_turn() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a30")]).await?;
    world
        .rig
        .apply_yaml("{apiVersion: slicegate.dev/v1alpha1, kind: SlicePolicy, metadata: {name: default}, spec: {holdSeconds: 1, maxHoldSeconds: 2}}")
        .await?;
    // Quota for two whole A30 and for eight quarters, which do not go together.
    world.submit(&job("default", "quarters", 8, &[("1g.6gb", 1)], "6")).await?;
    world
        .until("the quarters are in use", || async {
            let status = world.mig_node("gpu-a30").await?.status.unwrap_or_default();
            Ok(status.summary.is_some_and(|s| s.in_use == 8))
        })
        .await?;
    world.submit(&job("default", "whole", 1, &[("4g.24gb", 1)], "0.5")).await?;
    let told = world
        .until("it is told what it waits for", || async {
            Ok(world
                .check("default", "whole")
                .await?
                .map(|(_, message)| message)
                .filter(|m| m.starts_with("Waiting")))
        })
        .await?;
    assert_eq!(
        told,
        "Waiting for capacity: what is claimed and in use on the nodes of flavor a30 leaves too little for 1 pod with 1 × 4g.24gb."
    );
    world
        .until("it has been queued again", || async {
            let workload = world.workload_of("default", "whole").await?;
            let checks = workload.and_then(|w| w.status).map(|s| s.admission_checks).unwrap_or_default();
            Ok(checks.iter().any(|c| c.retry_count.unwrap_or(0) >= 1))
        })
        .await?;
    world
        .until("both are complete", || async {
            Ok(world.job_done("default", "quarters").await? && world.job_done("default", "whole").await?)
        })
        .await?;
    world.until_released().await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_somebody_else_made_is_reported_and_left_alone() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a30")]).await?;
    let gpus = StateDir::open(gpu_state(&world.rig, "gpu-a30"));
    let uuid = gpus.read()?.gpus[0].uuid.clone();
    let foreign = gpus.create_instance(&uuid, "1g.6gb", Some(1))?;
    // The agent looks at the GPUs anew when it starts.
    world.rig.restart("agent-gpu-a30").await?;
    world
        .until("it is reported", || async {
            let status = world.mig_node("gpu-a30").await?.status.unwrap_or_default();
            Ok(status.foreign.iter().any(|f| f.gpu == uuid && f.profile == "1g.6gb" && f.start == 1))
        })
        .await?;
    // Seven quarters are left of two GPUs, and one whole GPU.
    world.submit(&job("default", "quarters", 7, &[("1g.6gb", 1)], "0.5")).await?;
    world.until("seven run beside it", || world.job_done("default", "quarters")).await?;
    world.submit(&job("default", "whole", 1, &[("4g.24gb", 1)], "0.2")).await?;
    world.until("a whole one runs on the other GPU", || world.job_done("default", "whole")).await?;
    world.until_released().await?;
    let left: Vec<_> = gpus.instances()?.into_iter().filter(|i| i.gpu_uuid == uuid && i.start == 1).collect();
    assert_eq!(left, [foreign]);
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_served() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a30")]).await?;
    world.submit(&job("default", "one", 1, &[("1g.6gb", 1)], "0.2")).await?;
    world.until("it is complete", || world.job_done("default", "one")).await?;
    for (process, metrics) in [
        (
            "controller",
            &[
                "slicegate_check_transitions_total{from=\"Pending\",state=\"Ready\"} 1",
                "slicegate_reserve_to_ready_milliseconds_count 1",
                "slicegate_writes_total{",
                "slicegate_plan_seconds_count",
            ][..],
        ),
        (
            "agent-gpu-a30",
            &[
                "slicegate_agent_slices{profile=\"1g.6gb\",state=\"Idle\"} 1",
                "slicegate_nvml_call_seconds_count{call=\"create_gpu_instance\",result=\"ok\"} 1",
            ],
        ),
    ] {
        let port = world.rig.process(process).and_then(|p| p.spec().port).expect("port");
        assert!(get(port, "/healthz").await?.ends_with("ok\n"), "{process}");
        assert!(get(port, "/readyz").await?.starts_with("HTTP/1.1 200"), "{process}");
        for metric in metrics {
            world
                .until(&format!("{process} shows {metric}"), || async {
                    Ok(get(port, "/metrics").await?.contains(metric))
                })
                .await?;
        }
    }
    world.rig.down().await
}
