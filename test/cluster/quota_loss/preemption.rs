//! Somebody who has a better right to the quota.

use anyhow::Result;
use serde_json::{Value, json};

use super::{CLUSTER, Holder, half_of_an_a30, one_gpu, slow_to_stop};
use crate::queues;
use crate::watched::Watched;

fn priority(name: &str, value: i32) -> Value {
    json!({
        "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass", "metadata": {"name": name},
        "value": value,
    })
}

/// The preemptor has quota long before the pods that are in its way are gone. It says what it waits for, is not queued again,
/// and has the slices as soon as they are free.
async fn takes_over(place: &Watched, victim: &Holder, preemptor: &str) -> Result<()> {
    let waits = format!(
        "Waiting for capacity: what is claimed and in use on the nodes of flavor {} leaves too little for 2 pods with 1 × 2g.12gb each.",
        place.name()
    );
    let said =
        || place.workloads().versions(preemptor).into_iter().filter_map(|v| v.check(place.name()).cloned());
    place
        .until("the preemptor is told what it waits for", || async {
            Ok(said().any(|c| c["message"] == waits))
        })
        .await?;
    victim.gives_back(place).await?;
    place.until_running(preemptor, 2).await?;
    assert!(!said().any(|c| c["state"] == "Retry" || c["retryCount"].is_number()), "it was queued again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_priority_gets_the_slices_when_the_last_pod_of_the_lower_is_gone() -> Result<()> {
    let name = "by-priority";
    let place = one_gpu(name).await?;
    let preemption = json!({"spec": {"preemption": {"withinClusterQueue": "LowerPriority"}}});
    queues::patch(&place.client, "ClusterQueue", None, name, &preemption).await?;
    place.rig().apply_objects(vec![priority("low", 1), priority("high", 1000)]).await?;
    let with = |priority: &str| {
        let mut job = slow_to_stop(&place, priority, 2);
        job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] = json!(priority);
        job
    };
    place.submit(&with("low")).await?;
    let low = Holder::of(&place, "low", 2).await?;
    place.submit(&with("high")).await?;
    takes_over(&place, &low, "high").await?;
    assert_eq!(low.running(&place).await?, (0, 0));
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cohort_lent_comes_back_when_the_last_pod_of_the_borrower_is_gone() -> Result<()> {
    let name = "by-reclaim";
    let place = Watched::enter(&CLUSTER, name, vec![half_of_an_a30(name)]).await?;
    place.queue(json!({}), &[("2g.12gb", 2)]).await?;
    let mut borrowing = queues::cluster_queue("borrower", &[name], &[(name, &[("2g.12gb", 0)])]);
    borrowing["spec"]["cohortName"] = json!(name);
    place.rig().apply_objects(vec![borrowing, queues::local_queue(name, "borrower", "borrower")]).await?;
    let lends = json!({"spec": {"cohortName": name, "preemption": {"reclaimWithinCohort": "Any"}}});
    queues::patch(&place.client, "ClusterQueue", None, name, &lends).await?;
    let mut job = slow_to_stop(&place, "borrowed", 2);
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!("borrower");
    place.submit(&job).await?;
    let victim = Holder::of(&place, "borrowed", 2).await?;
    place.submit(&slow_to_stop(&place, "owner", 2)).await?;
    takes_over(&place, &victim, "owner").await?;
    place.leave().await
}
