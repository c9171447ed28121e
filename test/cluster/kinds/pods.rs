//! Pods by themselves, in groups, and those of Deployments and StatefulSets.

use std::collections::BTreeSet;

use anyhow::Result;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{KINDS, endless, template};
use crate::shared::{Place, calls, counted, one_a30, phase};
use crate::support::job;

fn pod(name: &str, mut template: Value) -> Value {
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["name"] = json!(name);
    template
}

/// One of a group of so many pods.
fn member(name: &str, group: &str, of: u32, template: Value) -> Value {
    let mut pod = pod(name, template);
    pod["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] = json!(group);
    pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] = json!(of.to_string());
    pod
}

async fn until_succeeded(here: &Place, name: &str) -> Result<()> {
    here.until(&format!("pod {name} has succeeded"), || async {
        let pods = here.pods(&here.namespace).await?;
        Ok(pods.iter().any(|pod| pod.name_any() == name && phase(pod) == "Succeeded"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_pod_runs_and_gives_its_slice_back() -> Result<()> {
    let here = KINDS.enter("single", vec![counted(one_a30("single"))], &[]).await?;
    here.apply(pod("alone", template(&[("2g.12gb", 1)], &json!({"slicegate.dev/run-seconds": "0.2"}))))
        .await?;
    until_succeeded(&here, "alone").await?;
    assert_eq!(calls(&here, "single")?, (1, 0));
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_group_that_is_done_makes_room_while_the_others_run_on() -> Result<()> {
    let here = KINDS.enter("group", vec![counted(one_a30("group"))], &[("1g.6gb", 3)]).await?;
    for name in ["one", "two", "three"] {
        here.apply(member(name, "trio", 3, endless(&[("1g.6gb", 1)]))).await?;
    }
    let before = here.until_held_by(3).await?;
    here.submit(&job("group", "next", 1, &[("1g.6gb", 1)], "0.2")).await?;
    here.end_pod("one", 0).await?;
    here.until_done("next").await?;
    let after = here.until_held_by(2).await?;
    assert!(after.iter().all(|(pod, slices)| before[pod] == *slices), "{after:?}");
    here.until("the claim of the one that is done is gone", || async { Ok(here.claimed().await? == 2) })
        .await?;
    assert_eq!(calls(&here, "group")?, (3, 0));
    for name in ["two", "three"] {
        here.end_pod(name, 0).await?;
    }
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_place_of_one_of_its_group_that_failed_gets_its_slice() -> Result<()> {
    let here = KINDS.enter("group-retry", vec![counted(one_a30("group-retry"))], &[]).await?;
    for name in ["one", "two"] {
        here.apply(member(name, "duo", 2, endless(&[("2g.12gb", 1)]))).await?;
    }
    let before = here.until_held_by(2).await?;
    here.end_pod("one", 1).await?;
    here.until_held_by(1).await?;
    here.apply(member("one-again", "duo", 2, endless(&[("2g.12gb", 1)]))).await?;
    let after = here.until_held_by(2).await?;
    assert_eq!(after["one-again"], before["one"]);
    assert_eq!(after["two"], before["two"]);
    assert_eq!(calls(&here, "group-retry")?, (2, 0));
    for name in ["one-again", "two"] {
        here.end_pod(name, 0).await?;
    }
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_scaled_up_and_down_and_its_other_pods_notice_nothing() -> Result<()> {
    let here = KINDS.enter("deployment", vec![counted(one_a30("deployment"))], &[]).await?;
    let mut pod = endless(&[("1g.6gb", 1)]);
    pod["metadata"]["labels"] = json!({"app": "server"});
    pod["spec"].as_object_mut().unwrap().remove("restartPolicy");
    here.apply(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "server"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "server"}}, "template": pod},
    }))
    .await?;
    let two = here.until_held_by(2).await?;
    here.kubectl("scale deployment server --replicas=4").await?;
    let four = here.until_held_by(4).await?;
    assert!(two.iter().all(|(pod, slices)| four.get(pod) == Some(slices)), "{two:?} {four:?}");
    here.kubectl("scale deployment server --replicas=1").await?;
    let one = here.until_held_by(1).await?;
    assert!(one.iter().all(|(pod, slices)| four.get(pod) == Some(slices)), "{four:?} {one:?}");
    here.until("the claims of the others are gone", || async { Ok(here.claimed().await? == 1) }).await?;
    // One that is deleted is followed by another, on a slice that is there.
    here.kubectl(&format!("delete pod {}", one.keys().next().unwrap())).await?;
    here.until("another runs", || async { Ok(here.held().await?.keys().any(|pod| !four.contains_key(pod))) })
        .await?;
    assert_eq!(calls(&here, "deployment")?, (4, 0));
    here.kubectl("delete deployment server").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_stateful_set_comes_back_on_its_slice() -> Result<()> {
    let here = KINDS.enter("stateful", vec![counted(one_a30("stateful"))], &[]).await?;
    let mut pod = endless(&[("2g.12gb", 1)]);
    pod["metadata"]["labels"] = json!({"app": "store"});
    pod["spec"].as_object_mut().unwrap().remove("restartPolicy");
    here.apply(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "store"},
        "spec": {"replicas": 2, "serviceName": "store", "selector": {"matchLabels": {"app": "store"}}, "template": pod},
    }))
    .await?;
    let before = here.until_held_by(2).await?;
    let uids = async || {
        let pods = here.pods("stateful").await?;
        anyhow::Ok(pods.into_iter().filter_map(|pod| pod.metadata.uid).collect::<BTreeSet<_>>())
    };
    let first = uids().await?;
    here.kubectl("delete pod store-1").await?;
    here.until("another pod has come", || async {
        let now = uids().await?;
        Ok(now.len() == 2 && now != first)
    })
    .await?;
    assert_eq!(here.until_held_by(2).await?, before);
    assert_eq!(calls(&here, "stateful")?, (2, 0));
    here.kubectl("delete statefulset store").await?;
    here.leave().await
}
