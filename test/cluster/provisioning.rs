//! Nodes that are still coming, by Kueue's ProvisioningRequest check beside ours, and flavors with a topology, which we refuse.
//! The tests play the cluster autoscaler.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use slicegate::api::kueue::{AdmissionCheck, CheckState};
use slicegate_rig::operator::GpuNode;

use crate::queues;
use crate::shared::Group;
use crate::watched::Watched;

static CLUSTER: Group = Group::with(&[], |options| {
    options.manifest(
        "k8s.io/autoscaler/cluster-autoscaler/apis",
        "config/crd/autoscaling.x-k8s.io_provisioningrequests.yaml",
    )
});

const KUEUE: &str = "kueue.x-k8s.io/v1beta2";

fn a30(name: &str, pool: &str) -> GpuNode {
    let mut node = GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30");
    node.node = node.node.label("pool", pool);
    node
}

/// A queue whose flavor has no nodes yet, with a check that has them brought, beside ours.
async fn autoscaled(name: &str, nodes: Vec<GpuNode>, policy: Value) -> Result<Watched> {
    let place = Watched::enter(&CLUSTER, name, nodes).await?;
    place.queue(policy, &[("2g.12gb", 8)]).await?;
    let brings = brings(name);
    let config = json!({
        "apiVersion": KUEUE, "kind": "ProvisioningRequestConfig", "metadata": {"name": brings},
        "spec": {
            "provisioningClassName": "queued.example.com",
            "podSetUpdates": {"nodeSelector": [{"key": "pool", "valueFromProvisioningClassDetail": "Pool"}]},
        },
    });
    let check = json!({
        "apiVersion": KUEUE, "kind": "AdmissionCheck", "metadata": {"name": brings},
        "spec": {
            "controllerName": "kueue.x-k8s.io/provisioning-request",
            "parameters": {"apiGroup": "kueue.x-k8s.io", "kind": "ProvisioningRequestConfig", "name": brings},
        },
    });
    let queue = queues::cluster_queue(name, &[name, &brings], &[(name, &[("2g.12gb", 8)])]);
    place.rig().apply_objects(vec![config, check, queue]).await?;
    place.until("Kueue's check is active", || place.check_condition(&brings, "True")).await?;
    Ok(place)
}

fn brings(name: &str) -> String {
    format!("{name}-brings")
}

/// What a cluster autoscaler does: it answers the ProvisioningRequests of a namespace.
async fn answer(place: &Watched, condition: &str, pool: Option<&str>) -> Result<()> {
    let kind =
        ApiResource::from_gvk(&GroupVersionKind::gvk("autoscaling.x-k8s.io", "v1", "ProvisioningRequest"));
    let requests: Api<DynamicObject> = Api::namespaced_with(place.client.clone(), place.name(), &kind);
    place
        .until(&format!("a ProvisioningRequest is {condition}"), || async {
            let request =
                requests.list(&ListParams::default()).await?.items.pop().context("no request yet")?;
            let mut conditions = request.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.push(json!({
                "type": condition, "status": "True", "reason": "Played", "message": "Said by the test.",
                "lastTransitionTime": Timestamp::now(),
            }));
            let mut status = json!({"conditions": conditions});
            if let Some(pool) = pool {
                status["provisioningClassDetails"] = json!({"Pool": pool});
            }
            let patch = Patch::Merge(json!({
                "metadata": {"resourceVersion": request.resource_version()}, "status": status,
            }));
            requests.patch_status(&request.name_any(), &PatchParams::default(), &patch).await?;
            Ok(true)
        })
        .await
}

/// Waits until the workload has had quota for so many seconds.
async fn until_reserved_for(place: &Watched, job: &str, seconds: i64) -> Result<()> {
    place
        .until(&format!("{job} has had quota for {seconds} s"), || async {
            let versions = place.workloads().versions(job);
            let since = versions.iter().filter(|v| v.holds()).find_map(|v| v.since("QuotaReserved"));
            Ok(since.is_some_and(|since| Timestamp::now().as_second() - since > seconds))
        })
        .await
}

fn never_retried(place: &Watched, job: &str) -> bool {
    let versions = place.workloads().versions(job);
    !versions.iter().any(|v| v.check(place.name()).is_some_and(|c| c["state"] == "Retry") || v.is("Evicted"))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nodes_are_coming_the_workload_waits_without_end_and_runs_when_they_are_there() -> Result<()> {
    let name = "coming";
    let place = autoscaled(name, vec![], json!({"holdSeconds": 1, "maxHoldSeconds": 1})).await?;
    place.submit(&place.job("job", 2, &[("2g.12gb", 1)])).await?;
    answer(&place, "Accepted", None).await?;
    until_reserved_for(&place, "job", 3).await?;
    let waits = format!("Waiting for AdmissionCheck {} to bring nodes.", brings(name));
    assert_eq!(place.told("job").await?, Some((CheckState::Pending, waits)));
    assert!(never_retried(&place, "job"), "three times the hold, and still it waits");
    place.add_nodes(vec![a30(name, "any")]).await?;
    answer(&place, "Provisioned", Some("any")).await?;
    place.until_running("job", 2).await?;
    assert!(never_retried(&place, "job"));
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_were_brought_may_take_as_long_as_the_longest_hold_to_register() -> Result<()> {
    let name = "late";
    let place = autoscaled(name, vec![], json!({"holdSeconds": 1, "maxHoldSeconds": 600})).await?;
    place.submit(&place.job("job", 2, &[("2g.12gb", 1)])).await?;
    answer(&place, "Provisioned", Some("any")).await?;
    place
        .until("it is told what is missing", || async {
            let told = place.told("job").await?;
            Ok(told.is_some_and(|(_, text)| {
                text.starts_with(&format!("No node with a MIGNode matches flavor {name}"))
            }))
        })
        .await?;
    until_reserved_for(&place, "job", 3).await?;
    assert!(never_retried(&place, "job"), "giving up would send the nodes away");
    place.add_nodes(vec![a30(name, "any")]).await?;
    place.until_running("job", 2).await?;
    assert!(never_retried(&place, "job"));
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_go_to_the_nodes_that_the_provisioning_check_has_named() -> Result<()> {
    let name = "named-pool";
    // The other pool is half used already, so that it would be the better place.
    let nodes = vec![a30("named-pool-other", "other"), a30("named-pool-new", "new")];
    let place = autoscaled(name, nodes, json!({})).await?;
    place.submit(&place.job("job", 2, &[("2g.12gb", 1)])).await?;
    answer(&place, "Provisioned", Some("new")).await?;
    place.until_running("job", 2).await?;
    let mut on: BTreeMap<String, usize> = BTreeMap::new();
    for pod in place.running("job").await? {
        *on.entry(pod.spec.and_then(|spec| spec.node_name).unwrap_or_default()).or_default() += 1;
    }
    assert_eq!(on, BTreeMap::from([("named-pool-new".to_owned(), 2)]));
    place.leave().await
}

/// Kueue assigns a topology before it asks us, from what nodes have, and slices that are not there yet count as none.
#[tokio::test(flavor = "multi_thread")]
async fn a_flavor_with_a_topology_is_refused_where_it_is_listed_and_to_each_workload() -> Result<()> {
    let name = "racks";
    let place = Watched::enter(&CLUSTER, name, vec![GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30")]).await?;
    place.queue(json!({"holdSeconds": 2, "maxHoldSeconds": 600}), &[("2g.12gb", 2)]).await?;
    let topology = json!({
        "apiVersion": KUEUE, "kind": "Topology", "metadata": {"name": name},
        "spec": {"levels": [{"nodeLabel": "kubernetes.io/hostname"}]},
    });
    let mut flavor = queues::flavor("racks-tas", &place.nodes_label());
    flavor["spec"]["topologyName"] = json!(name);
    let queue = queues::cluster_queue("racks-tas", &[name], &[("racks-tas", &[("2g.12gb", 2)])]);
    let local = queues::local_queue(name, "racks-tas", "racks-tas");
    place.rig().apply_objects(vec![topology, flavor, queue, local]).await?;
    place
        .until("the AdmissionCheck says where it does not work", || async {
            let check: AdmissionCheck = Api::all(place.client.clone()).get(name).await?;
            let conditions = check.status.map(|s| s.conditions).unwrap_or_default();
            let active = conditions.iter().find(|c| c.type_ == "Active").context("condition Active")?;
            let place = "but not in flavor racks-tas of ClusterQueue racks-tas: Topology-Aware Scheduling";
            Ok(active.status == "True" && active.message.contains(place))
        })
        .await?;
    // A slice that is there already, from another queue: Kueue assigns it, and we refuse.
    place.submit(&crate::support::job(name, "plain", 1, &[("2g.12gb", 1)], "0.2")).await?;
    place.until("the flavor without topology works", || place.job_done(name, "plain")).await?;
    place.until_released().await?;
    let mut refused = place.job("refused", 1, &[("2g.12gb", 1)]);
    refused["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!("racks-tas");
    place.submit(&refused).await?;
    let why = "ResourceFlavor racks-tas uses Topology-Aware Scheduling, which counts slices that do not exist yet as zero; use a \
               flavor without topologyName for MIG.";
    place
        .until("the workload is told", || async {
            Ok(place.told("refused").await? == Some((CheckState::Pending, why.to_owned())))
        })
        .await?;
    // It keeps its quota no longer than others do.
    place.until("it is queued again", || async { Ok(!never_retried(&place, "refused")) }).await?;
    let states = place.workloads().versions("refused");
    let refused = |state: &str| states.iter().any(|v| v.check(name).is_some_and(|c| c["state"] == state));
    assert!(!refused("Ready") && !refused("Rejected"));
    place.leave().await
}
