//! Workloads and Jobs that somebody ends.

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PropagationPolicy};
use serde_json::json;
use slicegate::api::kueue::Workload;

use super::{Holder, one_gpu, patch_workload, slow_to_stop};

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_workload_gives_its_slices_back_when_the_last_pod_is_gone() -> Result<()> {
    let place = one_gpu("deactivated").await?;
    place.submit(&slow_to_stop(&place, "job", 2)).await?;
    let holder = Holder::of(&place, "job", 2).await?;
    patch_workload(&place, "job", &json!({"spec": {"active": false}})).await?;
    holder.gives_back(&place).await?;
    place.until_released().await?;
    patch_workload(&place, "job", &json!({"spec": {"active": true}})).await?;
    place.until_running("job", 2).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_workload_gives_its_slices_back_when_the_last_pod_is_gone() -> Result<()> {
    let place = one_gpu("workload-deleted").await?;
    place.submit(&slow_to_stop(&place, "job", 2)).await?;
    let holder = Holder::of(&place, "job", 2).await?;
    let name = super::workload(&place, "job").await?.metadata.name.unwrap_or_default();
    place.api::<Workload>(place.name()).delete(&name, &DeleteParams::default()).await?;
    holder.gives_back(&place).await?;
    // Kueue makes another for the Job, which has its turn.
    let uid = place.until_running("job", 2).await?;
    assert_ne!(uid, holder.uid);
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_job_gives_its_slices_back_when_the_last_pod_is_gone() -> Result<()> {
    let place = one_gpu("job-deleted").await?;
    place.submit(&slow_to_stop(&place, "job", 2)).await?;
    let holder = Holder::of(&place, "job", 2).await?;
    place.api::<Job>(place.name()).delete("job", &DeleteParams::background()).await?;
    holder.gives_back(&place).await?;
    place.until_released().await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_outlive_their_job_keep_their_slices() -> Result<()> {
    let place = one_gpu("orphans").await?;
    place.submit(&slow_to_stop(&place, "job", 2)).await?;
    let holder = Holder::of(&place, "job", 2).await?;
    let orphaning =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    place.api::<Job>(place.name()).delete("job", &orphaning).await?;
    place
        .until("the Workload is over", || async {
            let versions = place.workloads().versions("job");
            let deleted = place.list::<Workload>(place.name()).await?.is_empty();
            Ok(deleted || versions.iter().any(|v| v.is("Finished")))
        })
        .await?;
    // Another Job, to see that the controller has gone over its books since then: it finds no room.
    let elsewhere =
        crate::queues::cluster_queue("orphans-too", &[place.name()], &[(place.name(), &[("2g.12gb", 2)])]);
    let local = crate::queues::local_queue(place.name(), "too", "orphans-too");
    place.rig().apply_objects(vec![elsewhere, local]).await?;
    let mut next = slow_to_stop(&place, "next", 2);
    next["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!("too");
    place.submit(&next).await?;
    place
        .until("the next is told to wait", || async {
            Ok(place.told("next").await?.is_some_and(|(_, text)| text.starts_with("Waiting for capacity")))
        })
        .await?;
    assert_eq!((holder.claimed(&place).await?, holder.running(&place).await?), (2, (2, 0)));
    for pod in place.pods(place.name()).await? {
        let name = pod.metadata.name.unwrap_or_default();
        place.api::<Pod>(place.name()).delete(&name, &DeleteParams::default()).await?;
    }
    holder.gives_back(&place).await?;
    place.until_running("next", 2).await?;
    place.leave().await
}
