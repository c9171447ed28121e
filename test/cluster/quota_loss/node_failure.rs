//! Nodes that fail under what runs on them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use slicegate_rig::Signal;
use tokio::task::JoinHandle;

use super::{CLUSTER, half_of_an_a30};
use crate::watched::Watched;

async fn two_nodes(name: &str) -> Result<Watched> {
    let nodes = ["a", "b"].map(|node| half_of_an_a30(&format!("{name}-{node}")));
    let place = Watched::enter(&CLUSTER, name, nodes.into()).await?;
    place.queue(json!({}), &[("4g.24gb", 2)]).await?;
    Ok(place)
}

/// A Job whose pods Kubernetes gives up as soon as their node is lost.
fn impatient(place: &Watched, name: &str, pods: u32) -> Value {
    let mut job = place.job(name, pods, &[("4g.24gb", 1)]);
    let gone =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0});
    job["spec"]["template"]["spec"]["tolerations"] =
        json!([gone("node.kubernetes.io/not-ready"), gone("node.kubernetes.io/unreachable")]);
    job
}

/// The node that a Job's only pod that is not being deleted runs on.
async fn node_of(place: &Watched, job: &str) -> Result<String> {
    place
        .until(&format!("{job} runs"), || async {
            let mut pods = place.running(job).await?;
            pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            Ok(pods.pop().and_then(|pod| pod.spec?.node_name))
        })
        .await
}

/// A node that has fallen silent, as long as this lives.
struct Silence(JoinHandle<()>);

impl Drop for Silence {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A node falls silent: nothing on it answers any more, neither its agent nor its kubelet.
async fn silence(place: &Watched, node: &str) -> Result<Silence> {
    place.rig().process(&format!("agent-{node}")).context("agent")?.signal(Signal::KILL);
    let nodes: Api<Node> = Api::all(place.client.clone());
    let unmanaged = json!({"metadata": {"annotations": {"kwok.x-k8s.io/node": null}}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(unmanaged)).await?;
    let not_ready = json!({"status": {"conditions": [{
        "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "Played by the test.",
    }]}});
    let (name, patch) = (node.to_owned(), Patch::Strategic(not_ready));
    let api = nodes.clone();
    // KWOK has one more heartbeat in its queue, which comes when it comes.
    let silence = Silence(tokio::spawn(async move {
        loop {
            let _ = api.patch_status(&name, &PatchParams::default(), &patch).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }));
    place
        .until("Kubernetes gives the node up", || async {
            let taints = nodes.get(node).await?.spec.and_then(|spec| spec.taints).unwrap_or_default();
            Ok(taints.iter().any(|t| t.key == "node.kubernetes.io/not-ready" && t.effect == "NoExecute"))
        })
        .await?;
    Ok(silence)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_place_of_one_on_a_failed_node_gets_a_slice_on_another() -> Result<()> {
    let place = two_nodes("failed-node").await?;
    place.submit(&impatient(&place, "job", 1)).await?;
    let uid = place.until_running("job", 1).await?;
    let first = node_of(&place, "job").await?;
    let _silence = silence(&place, &first).await?;
    let second = place
        .until("it runs on another node", || async {
            Ok(Some(node_of(&place, "job").await?).filter(|node| *node != first))
        })
        .await?;
    let claims: Vec<_> =
        place.claims_of(&uid).await?.into_iter().map(|claim| (claim.node, claim.pods)).collect();
    assert_eq!(claims, [(second, 1)], "the claim has moved");
    let evicted = place.workloads().versions("job").iter().any(|v| v.is("Evicted"));
    assert!(!evicted, "the workload is not queued again for that");
    place.leave().await
}

/// What a Job's workload was told when it was queued again, once it was.
async fn until_queued_again(place: &Watched, job: &str) -> Result<String> {
    place
        .until(&format!("{job} is queued again"), || async {
            let versions = place.workloads().versions(job);
            let entry = versions.iter().filter_map(|v| v.check(place.name())).find(|c| c["state"] == "Retry");
            Ok(entry.and_then(|entry| entry["message"].as_str()).map(str::to_owned))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_another_node_the_workload_waits_for_its_hold_and_is_queued_again() -> Result<()> {
    let name = "no-other-node";
    let nodes = ["a", "b"].map(|node| half_of_an_a30(&format!("{name}-{node}")));
    let place = Watched::enter(&CLUSTER, name, nodes.into()).await?;
    place.queue(json!({"holdSeconds": 1, "maxHoldSeconds": 1}), &[("4g.24gb", 2)]).await?;
    place.submit(&impatient(&place, "job", 2)).await?;
    place.until_running("job", 2).await?;
    let _silence = silence(&place, "no-other-node-a").await?;
    let told = until_queued_again(&place, "job").await?;
    let why = "A pod waits for a slice that cannot be had. Pod set main asks for 2 pods with 1 × 4g.24gb each; the nodes of flavor \
               no-other-node hold at most 1 pod even when empty.";
    assert_eq!(told, why);
    // What ran on the other node has to stop; it all starts again when there is room for all of it.
    place.add_nodes(vec![half_of_an_a30("no-other-node-c")]).await?;
    place
        .until("it runs on what is left and what has come", || async {
            let mut pods = place.running("job").await?;
            pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            let on: BTreeSet<_> = pods.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
            Ok(on == BTreeSet::from(["no-other-node-b".to_owned(), "no-other-node-c".to_owned()]))
        })
        .await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_of_which_nothing_is_left_running_is_queued_again_after_the_first_hold() -> Result<()> {
    let name = "nothing-left";
    let place = Watched::enter(&CLUSTER, name, vec![half_of_an_a30(name)]).await?;
    place.queue(json!({"holdSeconds": 1, "maxHoldSeconds": 600}), &[("4g.24gb", 2)]).await?;
    place.submit(&impatient(&place, "job", 1)).await?;
    place.until_running("job", 1).await?;
    let _silence = silence(&place, name).await?;
    let told = until_queued_again(&place, "job").await?;
    assert!(
        told.starts_with("A pod waits for a slice that cannot be had. Every node of flavor nothing-left "),
        "{told}"
    );
    place.add_nodes(vec![half_of_an_a30("nothing-left-b")]).await?;
    assert_eq!(node_of(&place, "job").await?, "nothing-left-b");
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_deleted_takes_its_slices_with_it_and_the_job_goes_on_elsewhere() -> Result<()> {
    let place = two_nodes("deleted-node").await?;
    place.submit(&impatient(&place, "job", 1)).await?;
    let uid = place.until_running("job", 1).await?;
    let first = node_of(&place, "job").await?;
    let pod = place.running("job").await?.pop().map(|pod| pod.name_any()).unwrap_or_default();
    place.rig().process(&format!("agent-{first}")).context("agent")?.signal(Signal::KILL);
    Api::<Node>::all(place.client.clone()).delete(&first, &DeleteParams::default()).await?;
    // Kubernetes collects the pods of nodes that are gone, after a minute; an administrator does not wait so long.
    place.api::<Pod>(place.name()).delete(&pod, &DeleteParams::default().grace_period(0)).await?;
    let second = node_of(&place, "job").await?;
    assert_ne!(first, second);
    place
        .until("nothing is left of the node", || async {
            let there = place.mig_nodes().await?.iter().any(|node| node.name_any() == first);
            let claims: Vec<_> = place.claims_of(&uid).await?.into_iter().map(|c| (c.node, c.pods)).collect();
            Ok(!there && claims == [(second.clone(), 1)])
        })
        .await?;
    place.leave().await
}
