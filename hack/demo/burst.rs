//! The burst that InstaSlice was measured with: 50 one-slice pods at once on 4 nodes with 2 A100-40GB each, 1.0 s for every
//! NVML create. Beside it the floor: the same Jobs through the same Kueue, on a resource that is simply there.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::try_join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use slicegate_rig::operator::{GpuNode, Operator};
use slicegate_rig::{NodeSpec, Rig};

use crate::timeline::{Phase, Timeline};
use crate::{percentile, until};

const JOBS: usize = 50;

const QUEUES: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {name: a100-40gb}
spec: {nodeLabels: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-40GB}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {name: floor}
spec: {nodeLabels: {example.com/floor: 'yes'}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: burst}
spec:
  namespaceSelector: {}
  admissionChecksStrategy: {admissionChecks: [{name: slicegate}]}
  resourceGroups:
  - coveredResources: [cpu, memory, nvidia.com/mig-1g.5gb]
    flavors:
    - name: a100-40gb
      resources:
      - {name: cpu, nominalQuota: 1000}
      - {name: memory, nominalQuota: 1Ti}
      - {name: nvidia.com/mig-1g.5gb, nominalQuota: 56}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: floor}
spec:
  namespaceSelector: {}
  resourceGroups:
  - coveredResources: [cpu, memory, example.com/slice]
    flavors:
    - name: floor
      resources:
      - {name: cpu, nominalQuota: 1000}
      - {name: memory, nominalQuota: 1Ti}
      - {name: example.com/slice, nominalQuota: 56}
---
apiVersion: v1
kind: Namespace
metadata: {name: burst}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: burst, namespace: burst}
spec: {clusterQueue: burst}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: floor, namespace: burst}
spec: {clusterQueue: floor}
";

/// Runs floor and burst and prints both.
pub async fn run(rig: &Rig, operator: &Operator) -> Result<()> {
    rig.apply_yaml(QUEUES).await?;
    let client = rig.client().await?;
    let nodes: Vec<GpuNode> = (1..=4)
        .map(|n| GpuNode::new(&format!("burst-{n}"), "A100-40GB", 2, "NVIDIA-A100-SXM4-40GB").slow(1000, 100))
        .collect();
    let specs: Vec<NodeSpec> = nodes.iter().map(|n| n.node.clone()).collect();
    rig.add_nodes(&specs).await?;
    try_join_all(nodes.iter().map(|node| operator.start_agent(rig, node))).await?;
    let floor: Vec<NodeSpec> =
        (1..=4).map(|n| NodeSpec::new(format!("floor-{n}")).label("example.com/floor", "yes")).collect();
    rig.add_nodes(&floor).await?;
    for node in &floor {
        let resources = json!({"status": {"capacity": {"example.com/slice": "14"}, "allocatable": {"example.com/slice": "14"}}});
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.patch_status(&node.name, &PatchParams::default(), &Patch::Merge(resources)).await?;
    }

    println!("\n{JOBS} one-slice Jobs at once on 4 nodes × 2 A100-40GB, 1.0 s per NVML create:");
    let floor = measure(rig, "floor", "example.com/slice").await?;
    let timeline = Timeline::follow(client.clone(), "burst");
    let burst = measure(rig, "burst", "nvidia.com/mig-1g.5gb").await?;
    until("all slices of the burst are released", || timeline.count("burst-", Phase::Released) == JOBS)
        .await?;
    let times = timeline.between("burst-", Phase::Reserved, Phase::Ready);

    // 50 slices on 8 GPUs, seven at most on each, one after another.
    let nvml = Duration::from_secs(7);
    let goal = nvml + floor * 2;
    println!("  floor, without Slicegate: all Running after {:>5.2} s", floor.as_secs_f64());
    println!("  with Slicegate:           all Running after {:>5.2} s", burst.as_secs_f64());
    println!(
        "  goal, NVML time (7 creates on a GPU) + 2 × floor: {:.2} s: {}",
        goal.as_secs_f64(),
        if burst <= goal { "reached" } else { "missed" }
    );
    println!(
        "  quota reserved → Ready: p50 {} ms, p99 {} ms; InstaSlice on this work: all Running after 17.0–17.6 s",
        percentile(&times, 50),
        percentile(&times, 99)
    );
    let left: usize = timeline.nodes().iter().map(|n| n.spec.claims.len()).sum();
    println!("  left behind: {left} claims");
    if left > 0 {
        bail!("{left} claims were left behind");
    }
    Ok(())
}

/// Submits the Jobs at once and waits until all their pods run; from the first submission to the last pod Running.
async fn measure(rig: &Rig, queue: &str, resource: &str) -> Result<Duration> {
    let client = rig.client().await?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), "burst");
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, "burst");
    let begun = Instant::now();
    try_join_all((0..JOBS).map(|n| {
        let jobs = &jobs;
        async move {
            let job = json!({
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": format!("{queue}-{n}"), "labels": {"kueue.x-k8s.io/queue-name": queue}},
                "spec": {"template": {
                    "metadata": {"annotations": {"slicegate.dev/run-seconds": "20"}, "labels": {"measured": queue}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "example.com/vectoradd",
                        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {resource: 1}}}]},
                }},
            });
            jobs.create(&PostParams::default(), &serde_json::from_value(job)?).await?;
            anyhow::Ok(())
        }
    }))
    .await?;
    let wanted = kube::api::ListParams::default().labels(&format!("measured={queue}"));
    loop {
        let listed = pods.list(&wanted).await?;
        let running = listed
            .items
            .iter()
            .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
        if running.count() == JOBS {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > Duration::from_mins(2) {
            bail!("only some of the {JOBS} pods of {queue} run after two minutes");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
