//! JobSets and LeaderWorkerSets: several pod sets as one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use kube::ResourceExt;
use serde_json::{Value, json};
use slicegate_rig::operator::GpuNode;

use super::{KINDS, endless};
use crate::shared::{calls, counted, one_a30, phase};

fn replicated(name: &str, replicas: u32, parallelism: u32, template: &Value) -> Value {
    json!({
        "name": name,
        "replicas": replicas,
        "template": {"spec": {"parallelism": parallelism, "completions": parallelism, "backoffLimit": 0, "template": template}},
    })
}

fn job_set(name: &str, jobs: &[Value], restarts: u32) -> Value {
    json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": name},
        "spec": {"failurePolicy": {"maxRestarts": restarts}, "replicatedJobs": jobs},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_gpu_and_its_workers_start_together() -> Result<()> {
    let here =
        KINDS.enter("jobset", vec![counted(one_a30("jobset-1")), counted(one_a30("jobset-2"))], &[]).await?;
    let jobs =
        [replicated("leader", 1, 1, &endless(&[])), replicated("workers", 2, 2, &endless(&[("2g.12gb", 1)]))];
    here.apply(job_set("train", &jobs, 0)).await?;
    // Four halves on two nodes of one GPU each.
    let held = here.until_held_by(4).await?;
    assert!(held.keys().all(|pod| pod.starts_with("train-workers-")), "{held:?}");
    let by_pod_set: BTreeMap<String, u32> =
        here.claims().await?.into_iter().fold(BTreeMap::new(), |mut sum, ((_, _, pod_set), pods)| {
            *sum.entry(pod_set).or_default() += pods;
            sum
        });
    assert_eq!(by_pod_set, BTreeMap::from([("workers".to_owned(), 4)]));
    here.until("the leader runs", || async {
        let pods = here.pods("jobset").await?;
        Ok(pods.iter().any(|p| p.name_any().starts_with("train-leader-") && phase(p) == "Running"))
    })
    .await?;
    let pods = here.pods("jobset").await?;
    // One of the two Jobs of workers ends: its two slices are free, the others' are not.
    let of_first: Vec<_> = held.keys().filter(|pod| pod.starts_with("train-workers-0-")).collect();
    for pod in &of_first {
        here.end_pod(pod, 0).await?;
    }
    here.until("two claims are given back", || async { Ok(here.claimed().await? == 2) }).await?;
    let left = here.until_held_by(2).await?;
    assert!(left.iter().all(|(pod, slices)| held[pod] == *slices), "{left:?}");
    for pod in pods.iter().map(ResourceExt::name_any).filter(|pod| !of_first.contains(&pod)) {
        here.end_pod(&pod, 0).await?;
    }
    for node in ["jobset-1", "jobset-2"] {
        assert_eq!(calls(&here, node)?, (2, 0));
    }
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_set_that_starts_over_does_so_on_its_slices() -> Result<()> {
    let here = KINDS.enter("jobset-restart", vec![counted(one_a30("jobset-restart"))], &[]).await?;
    here.apply(job_set("train", &[replicated("workers", 2, 1, &endless(&[("2g.12gb", 1)]))], 1)).await?;
    let before = here.until_held_by(2).await?;
    here.end_pod(before.keys().next().unwrap(), 1).await?;
    let after = here
        .until("all pods are others", || async {
            let held = here.held().await?;
            Ok(Some(held).filter(|held| held.len() == 2 && held.keys().all(|pod| !before.contains_key(pod))))
        })
        .await?;
    let slices = |held: &BTreeMap<String, _>| held.values().cloned().collect::<BTreeSet<_>>();
    assert_eq!(slices(&after), slices(&before));
    assert_eq!(calls(&here, "jobset-restart")?, (2, 0));
    here.kubectl("delete jobset train").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_a_leader_worker_set_are_placed_each_as_a_whole() -> Result<()> {
    let here = KINDS.enter("lws", vec![counted(one_a30("lws-1")), counted(one_a30("lws-2"))], &[]).await?;
    let mut pod = endless(&[("2g.12gb", 1)]);
    pod["spec"].as_object_mut().unwrap().remove("restartPolicy");
    here.apply(json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": {"name": "serve"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "leaderTemplate": pod, "workerTemplate": pod}},
    }))
    .await?;
    let one = here.until_held_by(2).await?;
    assert_eq!(one.keys().collect::<Vec<_>>(), ["serve-0", "serve-0-1"]);
    here.kubectl("scale leaderworkerset serve --replicas=2").await?;
    let two = here.until_held_by(4).await?;
    assert!(one.iter().all(|(pod, slices)| two[pod] == *slices), "{one:?} {two:?}");
    assert_eq!(here.claimed().await?, 4);
    here.kubectl("scale leaderworkerset serve --replicas=1").await?;
    here.until("the second group's claims are gone", || async { Ok(here.claimed().await? == 2) }).await?;
    assert_eq!(here.until_held_by(2).await?, one);
    // A worker that is lost costs its group, which starts over where it was.
    here.kubectl("delete pod serve-0-1").await?;
    let uids = |pods: Vec<k8s_openapi::api::core::v1::Pod>| -> BTreeSet<_> {
        pods.into_iter().filter_map(|pod| pod.metadata.uid).collect()
    };
    let first = uids(here.pods("lws").await?);
    here.until("the group has started over", || async {
        let now = uids(here.staying().await?);
        Ok(now.len() == 2 && now.is_disjoint(&first) && here.held().await?.len() == 2)
    })
    .await?;
    let made: u64 = calls(&here, "lws-1")?.0 + calls(&here, "lws-2")?.0;
    assert_eq!(made, 4);
    here.kubectl("delete leaderworkerset serve").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_samples_of_sets_run() -> Result<()> {
    let nodes = vec![GpuNode::new("set-samples", "A100-80GB", 3, "NVIDIA-A100-SXM4-80GB")];
    let here = KINDS.enter("set-samples", nodes, &[]).await?;
    let sample = async |file: &str| {
        let text = std::fs::read_to_string(here.rig().repo().root().join("samples").join(file))?;
        here.rig().apply_yaml(&text.replace("namespace: default", "namespace: set-samples")).await
    };
    sample("jobset.yaml").await?;
    sample("vllm-lws.yaml").await?;
    here.until("the group runs", || async {
        let held = here.held().await?;
        let group = held.iter().filter(|(pod, _)| pod.starts_with("vllm-group-"));
        Ok(group.flat_map(|(_, slices)| slices).filter(|slice| slice.profile == "7g.80gb").count() == 2)
    })
    .await?;
    here.until("the search is complete", || async {
        Ok(here.kubectl("get jobset search -o=jsonpath={.status.terminalState}").await? == "Completed")
    })
    .await?;
    here.kubectl("delete leaderworkerset vllm-group").await?;
    here.leave().await
}
