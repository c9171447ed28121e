//! Nodes that fail under what runs on them.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use slicegate_rig::Signal;

use super::{CLUSTER, half_of_an_a30};
use crate::shared::Place;

async fn two_nodes(name: &str) -> Result<Place> {
    let nodes = ["a", "b"].map(|node| half_of_an_a30(&format!("{name}-{node}")));
    let place = CLUSTER.place(name, nodes.into()).await?;
    place.queue(json!({}), &[("4g.24gb", 2)]).await?;
    Ok(place)
}

/// A Job whose pods Kubernetes gives up as soon as their node is lost.
fn impatient(place: &Place, name: &str) -> Value {
    let mut job = place.job(name, 1, &[("4g.24gb", 1)]);
    let gone = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0});
    job["spec"]["template"]["spec"]["tolerations"] =
        json!([gone("node.kubernetes.io/not-ready"), gone("node.kubernetes.io/unreachable")]);
    job
}

/// The node that a Job's only pod that is not being deleted runs on.
async fn node_of(place: &Place, job: &str) -> Result<String> {
    place
        .until(&format!("{job} runs"), || async {
            let mut pods = place.running(job).await?;
            pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            Ok(pods.pop().and_then(|pod| pod.spec?.node_name))
        })
        .await
}

/// A node falls silent: nothing on it answers any more, neither its agent nor its kubelet.
async fn silence(place: &Place, node: &str) -> Result<()> {
    place.rig.process(&format!("agent-{node}")).context("agent")?.signal(Signal::KILL);
    let nodes: Api<Node> = Api::all(place.client.clone());
    let unmanaged = json!({"metadata": {"annotations": {"kwok.x-k8s.io/node": null}}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(unmanaged)).await?;
    place
        .until("the node is not ready", || async {
            // A last heartbeat may come in between.
            let now = Timestamp::now();
            let condition = json!({
                "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "Played by the test.",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            });
            let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
            nodes.patch_status(node, &PatchParams::default(), &patch).await?;
            let taints = nodes.get(node).await?.spec.and_then(|spec| spec.taints).unwrap_or_default();
            Ok(taints.iter().any(|t| t.key == "node.kubernetes.io/not-ready" && t.effect == "NoExecute"))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_place_of_one_on_a_failed_node_gets_a_slice_on_another() -> Result<()> {
    let place = two_nodes("failed-node").await?;
    place.submit(&impatient(&place, "job")).await?;
    let uid = place.until_running("job", 1).await?;
    let first = node_of(&place, "job").await?;
    silence(&place, &first).await?;
    let second = node_of(&place, "job").await?;
    assert_ne!(first, second);
    let claims: Vec<_> = place.claims(&uid).await?.into_iter().map(|claim| (claim.node, claim.pods)).collect();
    assert_eq!(claims, [(second, 1)], "the claim has moved");
    let evicted = place.workloads().versions("job").iter().any(|v| v.is("Evicted"));
    assert!(!evicted, "the workload is not queued again for that");
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_another_node_the_workload_is_queued_again_after_its_hold() -> Result<()> {
    let name = "no-other-node";
    let place = CLUSTER.place(name, vec![half_of_an_a30(name)]).await?;
    place.queue(json!({"holdSeconds": 1, "maxHoldSeconds": 600}), &[("4g.24gb", 2)]).await?;
    place.submit(&impatient(&place, "job")).await?;
    place.until_running("job", 1).await?;
    silence(&place, name).await?;
    let retry = || {
        let versions = place.workloads().versions("job");
        let entry = versions.iter().filter_map(|v| v.check(name)).find(|c| c["state"] == "Retry").cloned();
        entry.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
    };
    let told = place.until("it is queued again", || async { Ok(retry()) }).await?;
    assert!(told.starts_with("A pod waits for a slice that cannot be had. "), "{told}");
    // A node that can have it comes.
    place.add_nodes(vec![half_of_an_a30("another-node")]).await?;
    assert_eq!(node_of(&place, "job").await?, "another-node");
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_deleted_takes_its_slices_with_it_and_the_job_goes_on_elsewhere() -> Result<()> {
    let place = two_nodes("deleted-node").await?;
    place.submit(&impatient(&place, "job")).await?;
    let uid = place.until_running("job", 1).await?;
    let first = node_of(&place, "job").await?;
    let pod = place.running("job").await?.pop().map(|pod| pod.name_any()).unwrap_or_default();
    place.rig.process(&format!("agent-{first}")).context("agent")?.signal(Signal::KILL);
    Api::<Node>::all(place.client.clone()).delete(&first, &DeleteParams::default()).await?;
    // Kubernetes collects the pods of nodes that are gone, after a minute; an administrator does not wait so long.
    place.api::<Pod>(&place.name).delete(&pod, &DeleteParams::default().grace_period(0)).await?;
    let second = node_of(&place, "job").await?;
    assert_ne!(first, second);
    place
        .until("nothing is left of the node", || async {
            let there = place.mig_nodes().await?.iter().any(|node| node.name_any() == first);
            let claims: Vec<_> = place.claims(&uid).await?.into_iter().map(|c| (c.node, c.pods)).collect();
            Ok(!there && claims == [(second.clone(), 1)])
        })
        .await?;
    place.leave().await
}
