//! Jobs: how many pods at a time, how many in all, and what becomes of those that fail.

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use serde_json::json;
use slicegate::api::kueue::CheckState;

use super::KINDS;
use crate::shared::{calls, counted, is_gated, one_a30};
use crate::support::job;

#[tokio::test(flavor = "multi_thread")]
async fn each_index_of_an_indexed_job_has_a_slice_of_its_own() -> Result<()> {
    let here = KINDS.enter("indexed", vec![counted(one_a30("indexed"))], &[]).await?;
    let mut job = job("indexed", "sweep", 4, &[("1g.6gb", 1)], "1000");
    job["spec"]["completionMode"] = json!("Indexed");
    here.submit(&job).await?;
    let held = here.until_held_by(4).await?;
    assert_eq!(held.values().flatten().collect::<BTreeSet<_>>().len(), 4, "{held:?}");
    assert_eq!(calls(&here, "indexed")?, (4, 0));
    let pods = here.staying().await?;
    let indexes: BTreeSet<_> = pods
        .iter()
        .filter_map(|pod| pod.annotations().get("batch.kubernetes.io/job-completion-index"))
        .collect();
    assert_eq!(indexes.len(), 4, "{indexes:?}");
    here.kubectl("delete job sweep").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_follow_others_in_a_job_get_their_slices_without_an_nvml_call() -> Result<()> {
    let here = KINDS.enter("completions", vec![counted(one_a30("completions"))], &[]).await?;
    let mut job = job("completions", "batch", 2, &[("1g.6gb", 1)], "0.3");
    job["spec"]["completions"] = json!(5);
    here.submit(&job).await?;
    here.until_done("batch").await?;
    assert_eq!(here.pods("completions").await?.len(), 5);
    assert_eq!(calls(&here, "completions")?, (2, 0));
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gives_back_what_pods_that_are_done_will_not_need_again() -> Result<()> {
    let here = KINDS.enter("reclaim", vec![counted(one_a30("reclaim"))], &[("2g.12gb", 2)]).await?;
    here.submit(&job("reclaim", "pair", 2, &[("2g.12gb", 1)], "1000")).await?;
    let held = here.until_held_by(2).await?;
    here.submit(&job("reclaim", "next", 1, &[("2g.12gb", 1)], "0.2")).await?;
    let first = held.keys().next().unwrap();
    here.end_pod(first, 0).await?;
    // It takes the place of the one that is done, beside the one that runs on.
    here.until_done("next").await?;
    let left = here.until_held_by(1).await?;
    assert_eq!(left.first_key_value(), held.last_key_value());
    here.until("the claim of the one that is done is gone", || async { Ok(here.claimed().await? == 1) })
        .await?;
    assert_eq!(calls(&here, "reclaim")?, (2, 0));
    here.end_pod(held.keys().next_back().unwrap(), 0).await?;
    here.until_done("pair").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_place_of_one_that_failed_gets_its_slice() -> Result<()> {
    let here = KINDS.enter("retried", vec![counted(one_a30("retried"))], &[]).await?;
    here.submit(&job("retried", "flaky", 2, &[("2g.12gb", 1)], "1000")).await?;
    let before = here.until_held_by(2).await?;
    let victim = before.keys().next().unwrap();
    here.end_pod(victim, 1).await?;
    let after = here
        .until("another has taken its place", || async {
            Ok(Some(here.held().await?).filter(|held| held.len() == 2 && !held.contains_key(victim)))
        })
        .await?;
    let slices =
        |held: &std::collections::BTreeMap<String, _>| held.values().cloned().collect::<BTreeSet<_>>();
    assert_eq!(slices(&after), slices(&before));
    assert_eq!(here.claimed().await?, 2);
    assert_eq!(calls(&here, "retried")?, (2, 0));
    for pod in after.keys() {
        here.end_pod(pod, 0).await?;
    }
    here.until_done("flaky").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_place_of_one_that_is_still_stopping_waits_for_its_slice() -> Result<()> {
    let here = KINDS.enter("overlap", vec![counted(one_a30("overlap"))], &[]).await?;
    // The Job controller puts another pod in the place of a deleted one after 10 s, whether it is gone or not.
    let mut job = job("overlap", "whole", 1, &[("4g.24gb", 1)], "1000");
    job["spec"]["template"]["metadata"]["annotations"]["slicegate.dev/stop-seconds"] = json!("13");
    here.submit(&job).await?;
    let before = here.until_held_by(1).await?;
    let (old, slice) = before.first_key_value().unwrap();
    here.kubectl(&format!("delete pod {old} --wait=false")).await?;
    let seen_together = std::cell::Cell::new(false);
    let after = here
        .until("the slice has changed hands", || async {
            let pods = here.pods("overlap").await?;
            let is_there = pods.iter().any(|pod| pod.name_any() == *old);
            if let Some(new) = pods.iter().find(|pod| pod.name_any() != *old)
                && is_there
            {
                assert!(is_gated(new), "the slice of {old} is not free yet");
                seen_together.set(true);
            }
            Ok(Some(here.held().await?).filter(|held| held.len() == 1 && !held.contains_key(old)))
        })
        .await?;
    assert!(seen_together.get(), "the two never overlapped");
    assert_eq!(after.values().next(), Some(slice));
    assert_eq!(calls(&here, "overlap")?, (1, 0));
    here.kubectl("delete job whole").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_failed_for_good_keeps_nothing() -> Result<()> {
    let here = KINDS.enter("failing", vec![one_a30("failing")], &[]).await?;
    let mut job = job("failing", "broken", 2, &[("1g.6gb", 1)], "0.2");
    job["spec"]["backoffLimit"] = json!(0);
    job["spec"]["template"]["metadata"]["annotations"]["slicegate.dev/exit-code"] = json!("3");
    here.submit(&job).await?;
    here.until("the Job has failed", || async {
        let job = here.api::<Job>("failing").get("broken").await?;
        let conditions = job.status.and_then(|s| s.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|c| c.type_ == "Failed" && c.status == "True"))
    })
    .await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_admitted_in_part_claims_for_that_part_only() -> Result<()> {
    let here = KINDS.enter("partial", vec![counted(one_a30("partial"))], &[("1g.6gb", 3)]).await?;
    let mut job = job("partial", "flexible", 4, &[("1g.6gb", 1)], "1000");
    job["metadata"]["annotations"] = json!({"kueue.x-k8s.io/job-min-parallelism": "2"});
    here.submit(&job).await?;
    let held = here.until_held_by(3).await?;
    assert_eq!(here.claimed().await?, 3);
    assert_eq!(calls(&here, "partial")?, (3, 0));
    for pod in held.keys() {
        here.end_pod(pod, 0).await?;
    }
    let last = here
        .until("the fourth pod runs", || async {
            Ok(here.held().await?.into_keys().find(|pod| !held.contains_key(pod)))
        })
        .await?;
    here.end_pod(&last, 0).await?;
    here.until_done("flexible").await?;
    assert_eq!(calls(&here, "partial")?, (3, 0));
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_asks_for_no_slice_is_ready_at_once() -> Result<()> {
    let here = KINDS.enter("plain", vec![one_a30("plain")], &[]).await?;
    here.submit(&job("plain", "cpu-only", 2, &[], "0.2")).await?;
    here.until_done("cpu-only").await?;
    let (state, message) = here.check("plain", "cpu-only").await?.unwrap();
    assert_eq!((state, message.as_str()), (CheckState::Ready, "No MIG slices asked for."));
    assert_eq!(here.claimed().await?, 0);
    here.leave().await
}
