//! Where it is measured: nodes, queues, and what the API server is told to write down.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use slicegate::api::SlicePolicy;
use slicegate_rig::operator::{GpuNode, Operator};
use slicegate_rig::{NodeSpec, Options, Rig};

/// Nodes for the Jobs.
pub const NODES: usize = 20;
/// 8 A100-80GB with seven slices each.
pub const SLICES_PER_NODE: usize = 56;
/// What the Jobs ask for with Slicegate.
pub const RESOURCE: &str = "nvidia.com/mig-1g.10gb";
/// What they ask for without: a resource that is simply there.
pub const PLAIN_RESOURCE: &str = "example.com/slice";
/// Where everything is submitted.
pub const NAMESPACE: &str = "bench";
/// The check that is answered at once.
pub const LEAST: &str = "least";
/// Nodes with one GPU, for preemption.
const SMALL_NODES: [&str; 2] = ["small-1", "small-2"];

/// What all queues share: one flavor, and so the same nodes.
const AROUND: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {name: bench}
spec: {nodeLabels: {example.com/bench: 'yes'}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: AdmissionCheck
metadata: {name: least}
spec: {controllerName: example.com/least}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: WorkloadPriorityClass
metadata: {name: urgent}
value: 1000
---
apiVersion: v1
kind: Namespace
metadata: {name: bench}
";

/// A ClusterQueue that differs from the others in its check and in what it calls a slice, and in nothing else.
fn queue(name: &str, check: Option<&str>, resource: &str) -> String {
    let checks = check.map_or_else(String::new, |check| {
        format!("  admissionChecksStrategy: {{admissionChecks: [{{name: {check}}}]}}\n")
    });
    format!(
        "---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {{name: {name}}}
spec:
  namespaceSelector: {{}}
{checks}  resourceGroups:
  - coveredResources: [cpu, memory, {resource}]
    flavors:
    - name: bench
      resources:
      - {{name: cpu, nominalQuota: 1280}}
      - {{name: memory, nominalQuota: 10Ti}}
      - {{name: {resource}, nominalQuota: 1120}}
"
    )
}

/// The API server's record of what controller and agents ask of it; nobody else's requests are written down, nor reads.
const AUDIT_POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "omitStages": ["RequestReceived"],
  "rules": [
    {"level": "Metadata", "userGroups": ["system:serviceaccounts:slicegate-system"],
     "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
    {"level": "None"}
  ]
}"#;

/// The record's file.
pub fn audit_log(dir: &Path) -> PathBuf {
    dir.join("audit.log")
}

/// Has the API server write down our requests.
pub fn options(options: Options) -> Result<Options> {
    std::fs::create_dir_all(&options.dir)?;
    let policy = options.dir.join("audit-policy.json");
    std::fs::write(&policy, AUDIT_POLICY).with_context(|| format!("write {}", policy.display()))?;
    let log = audit_log(&options.dir);
    if log.exists() {
        std::fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
    }
    let (policy, log) = (policy.display().to_string(), log.display().to_string());
    Ok(options
        .extra_arg("kube-apiserver", format!("--audit-policy-file={policy}"))
        .extra_arg("kube-apiserver", format!("--audit-log-path={log}")))
}

/// Brings up nodes, queues, controller and agents.
pub async fn set_up(rig: &Rig, operator: &Operator) -> Result<()> {
    rig.apply_kustomize("config/emulated").await?;
    rig.apply_kustomize("kueue").await?;
    let queues = [
        queue("plain", None, PLAIN_RESOURCE),
        queue(LEAST, Some(LEAST), PLAIN_RESOURCE),
        queue("slicegate", Some("slicegate"), RESOURCE),
    ];
    rig.apply_yaml(&format!("{AROUND}{}", queues.concat())).await?;
    let queues = ["plain", LEAST, "slicegate"].map(local_queue).into_iter();
    let small = SMALL_NODES.into_iter().flat_map(small_queue);
    rig.apply_objects(queues.chain(small).collect()).await?;

    let bench = (1..=NODES).map(|n| GpuNode::a100(&format!("bench-{n}"))).map(|mut node| {
        node.node = node.node.label("example.com/bench", "yes");
        node
    });
    let small = SMALL_NODES.iter().map(|name| {
        let mut node = GpuNode::new(name, "A100-80GB", 1, "NVIDIA-A100-SXM4-80GB");
        node.node = node.node.label("example.com/small", *name);
        node
    });
    let nodes: Vec<GpuNode> = bench.chain(small).collect();
    let specs: Vec<NodeSpec> = nodes.iter().map(|n| n.node.clone()).collect();
    let (controller, added) = futures::join!(operator.start_controller(rig), rig.add_nodes(&specs));
    added?;
    controller?;
    try_join_all(nodes.iter().map(|node| operator.start_agent(rig, node))).await?;

    let client = rig.client().await?;
    let api: Api<Node> = Api::all(client.clone());
    let count = SLICES_PER_NODE.to_string();
    let resources =
        json!({"status": {"capacity": {PLAIN_RESOURCE: count}, "allocatable": {PLAIN_RESOURCE: count}}});
    for node in nodes.iter().take(NODES) {
        api.patch_status(node.name(), &PatchParams::default(), &Patch::Merge(&resources)).await?;
    }
    Ok(())
}

/// How long slices that nobody claims are kept.
pub async fn keep_idle_slices(client: &Client, seconds: u32) -> Result<()> {
    let policies: Api<SlicePolicy> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"spec": {"idleSliceRetentionSeconds": seconds}}));
    super::until_answered(async || policies.patch("default", &PatchParams::default(), &patch).await).await?;
    Ok(())
}

fn local_queue(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"clusterQueue": name},
    })
}

/// Flavor, ClusterQueue and LocalQueue of a node with one GPU, where the more urgent preempts.
fn small_queue(name: &str) -> [serde_json::Value; 3] {
    let quota = |resource: &str, quota: &str| json!({"name": resource, "nominalQuota": quota});
    [
        json!({
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "ResourceFlavor",
            "metadata": {"name": name},
            "spec": {"nodeLabels": {"example.com/small": name}},
        }),
        json!({
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "admissionChecksStrategy": {"admissionChecks": [{"name": "slicegate"}]},
                "resourceGroups": [{
                    "coveredResources": ["cpu", "memory", RESOURCE, "nvidia.com/mig-7g.80gb"],
                    "flavors": [{"name": name, "resources": [
                        quota("cpu", "7"),
                        quota("memory", "64Gi"),
                        quota(RESOURCE, "7"),
                        quota("nvidia.com/mig-7g.80gb", "1"),
                    ]}],
                }],
            },
        }),
        local_queue(name),
    ]
}
