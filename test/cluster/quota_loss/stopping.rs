//! Queues that an administrator stops. Hold keeps new workloads out and takes the quota of those that are not admitted yet,
//! without an eviction, so that Kueue leaves our check as it was; HoldAndDrain evicts what runs, too.

use anyhow::Result;
use kube::ResourceExt;
use serde_json::json;
use slicegate::api::kueue::CheckState;

use super::other_check::{place_with_other, says, until_ready};
use super::{Holder, slow_to_stop, workload};
use crate::queues;
use crate::watched::Watched;

/// A kind of queue: both are called after the test or `mig`.
#[derive(Clone, Copy)]
enum Queue {
    Local,
    Cluster,
}

impl Queue {
    async fn stop(self, place: &Watched, policy: &str) -> Result<()> {
        let patch = json!({"spec": {"stopPolicy": policy}});
        match self {
            Self::Local => {
                queues::patch(&place.client, "LocalQueue", Some(place.name()), "mig", &patch).await
            }
            Self::Cluster => queues::patch(&place.client, "ClusterQueue", None, place.name(), &patch).await,
        }
    }
}

async fn hold(name: &str, queue: Queue) -> Result<()> {
    let place = place_with_other(name).await?;
    place.submit(&slow_to_stop(&place, "runs", 1)).await?;
    says(&place, "runs", "Ready").await?;
    let runs = Holder::of(&place, "runs", 1).await?;
    // It has its slice, and is not admitted only because of the other check.
    place.submit(&slow_to_stop(&place, "waits", 1)).await?;
    until_ready(&place, "waits").await?;
    let uid = workload(&place, "waits").await?.uid().unwrap_or_default();
    assert_eq!(place.claims_of(&uid).await?.len(), 1);

    queue.stop(&place, "Hold").await?;
    place.until("its slice is given back", || async { Ok(place.claims_of(&uid).await?.is_empty()) }).await?;
    let withdrawn = (CheckState::Pending, "Quota was withdrawn; the slices were given back.".to_owned());
    assert_eq!(place.told("waits").await?, Some(withdrawn));
    assert_eq!(
        (runs.claimed(&place).await?, runs.running(&place).await?),
        (1, (1, 0)),
        "what runs is left alone"
    );

    // However short the stop is, nothing is admitted on the strength of an old answer.
    for policy in ["None", "Hold", "None", "Hold", "None"] {
        queue.stop(&place, policy).await?;
    }
    until_ready(&place, "waits").await?;
    says(&place, "waits", "Ready").await?;
    place.until_running("waits", 1).await?;
    place.leave().await
}

async fn drain(name: &str, queue: Queue) -> Result<()> {
    let place = super::one_gpu(name).await?;
    place.submit(&slow_to_stop(&place, "runs", 2)).await?;
    let runs = Holder::of(&place, "runs", 2).await?;
    queue.stop(&place, "HoldAndDrain").await?;
    runs.gives_back(&place).await?;
    place.until_released().await?;
    queue.stop(&place, "None").await?;
    place.until_running("runs", 2).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_of_a_local_queue_takes_back_what_is_not_admitted_yet_and_leaves_what_runs() -> Result<()> {
    hold("hold-local", Queue::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_of_a_cluster_queue_takes_back_what_is_not_admitted_yet_and_leaves_what_runs() -> Result<()> {
    hold("hold-cluster", Queue::Cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_of_a_local_queue_takes_the_slices_back_when_the_last_pod_is_gone() -> Result<()> {
    drain("drain-local", Queue::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_of_a_cluster_queue_takes_the_slices_back_when_the_last_pod_is_gone() -> Result<()> {
    drain("drain-cluster", Queue::Cluster).await
}
