//! What the check says, when, and how often.

mod stale_views;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use slicegate_rig::operator::GpuNode;

use crate::queues;
use crate::shared::Group;
use crate::support::job;
use crate::watched::Watched;
use crate::workload_checker::{Version, seconds};

static CLUSTER: Group = Group::new(&[]);

/// One A30 in a queue, a quarter of it in use, so that nothing finds room that wants the whole.
async fn crowded(name: &str, policy: Value, quotas: &[(&str, u32)]) -> Result<Watched> {
    let place = Watched::enter(&CLUSTER, name, vec![GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30")]).await?;
    place.queue(policy, quotas).await?;
    place.submit(&place.job("quarter", 1, &[("1g.6gb", 1)])).await?;
    place.until_running("quarter", 1).await?;
    Ok(place)
}

/// What a check says: state, message, since when.
type Said = (String, String, String);

/// What the check said in turn while the workload had quota, without what Kueue wrote.
fn told(versions: &[Version], check: &str) -> Vec<Said> {
    let mut told: Vec<Said> = Vec::new();
    for version in versions.iter().filter(|v| v.holds()) {
        let Some(entry) = version.check(check).filter(|c| c["message"] != "") else { continue };
        if entry["message"].as_str().is_some_and(|m| m.starts_with("Reset to")) {
            continue;
        }
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let said = (text("state"), text("message"), text("lastTransitionTime"));
        if told.last() != Some(&said) {
            told.push(said);
        }
    }
    told
}

/// From reservation to Retry, in seconds, for each attempt.
fn holds(versions: &[Version], check: &str) -> Vec<i64> {
    let retried = versions.iter().filter(|v| v.check(check).is_some_and(|c| c["state"] == "Retry"));
    let mut seen = BTreeSet::new();
    retried
        .filter_map(|v| Some((v.since("QuotaReserved")?, seconds(&v.check(check)?["lastTransitionTime"])?)))
        .filter(|(since, _)| seen.insert(*since))
        .map(|(since, at)| at - since)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_finds_no_room_says_why_once_and_then_only_waits() -> Result<()> {
    let name = "says-why";
    let place =
        crowded(name, json!({"holdSeconds": 6, "maxHoldSeconds": 6}), &[("4g.24gb", 1), ("1g.6gb", 4)])
            .await?;
    place.submit(&place.job("whole", 1, &[("4g.24gb", 1)])).await?;
    place
        .until("it is told why", || async { Ok(place.told("whole").await?.is_some_and(|t| !t.1.is_empty())) })
        .await?;
    // Meanwhile others come and go, which makes the controller decide anew each time.
    for round in 0..3 {
        let other = format!("other-{round}");
        place.submit(&job(name, &other, 1, &[("1g.6gb", 1)], "0.2")).await?;
        place.until(&format!("{other} is complete"), || place.job_done(name, &other)).await?;
    }
    place
        .until("its time is over", || async {
            Ok(!holds(&place.workloads().versions("whole"), name).is_empty())
        })
        .await?;
    let versions = place.workloads().versions("whole");
    let told = told(&versions, name);
    let why = format!(
        "Waiting for capacity: what is claimed and in use on the nodes of flavor {name} leaves too little for 1 pod with 1 × \
         4g.24gb."
    );
    let states: Vec<_> =
        told.iter().take(2).map(|(state, message, _)| (state.as_str(), message.as_str())).collect();
    assert_eq!(states, [("Pending", why.as_str()), ("Retry", why.as_str())], "{told:?}");
    // Two writes, one for each thing that there is to say: between them, nobody changes the Workload at all.
    let waiting = versions.iter().filter(|v| {
        v.holds() && v.check(name).is_some_and(|c| c["state"] == "Pending" && c["message"] == why.as_str())
    });
    let first = waiting.clone().next().and_then(|v| v.since("QuotaReserved")).context("a reservation")?;
    let waiting: BTreeSet<_> = waiting
        .filter(|v| v.since("QuotaReserved") == Some(first))
        .map(|v| v.0["metadata"]["resourceVersion"].to_string())
        .collect();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_retry_holds_quota_twice_as_long_up_to_the_maximum() -> Result<()> {
    let name = "holds-longer";
    let place =
        crowded(name, json!({"holdSeconds": 1, "maxHoldSeconds": 3}), &[("4g.24gb", 1), ("1g.6gb", 4)])
            .await?;
    place.submit(&place.job("whole", 1, &[("4g.24gb", 1)])).await?;
    let retries = || holds(&place.workloads().versions("whole"), name);
    place.until("it has been queued again four times", || async { Ok(retries().len() >= 4) }).await?;
    let (holds, versions) = (retries(), place.workloads().versions("whole"));
    for (hold, least) in holds.iter().zip([1, 2, 3, 3]) {
        assert!(*hold >= least, "held for {holds:?} seconds");
    }
    // No faster than that: Kueue evicts as often as it is asked to, and counts.
    let evictions: BTreeSet<_> =
        versions.iter().filter(|v| v.is("Evicted")).filter_map(|v| v.since("Evicted")).collect();
    assert!(evictions.len() <= holds.len() + 1, "{} evictions, held for {holds:?}", evictions.len());
    let counted = versions.iter().filter_map(|v| v.check(name)?["retryCount"].as_u64()).max();
    assert!(counted.is_some_and(|count| count >= 3), "{counted:?}");
    place.leave().await
}

/// Kueue puts a workload that a check has failed behind those that came before the failure. That helps those that are at hand:
/// in a StrictFIFO queue, all. In a BestEffortFIFO queue those that found no quota are looked at again only a second after some
/// has become free (`pkg/cache/queue/inadmissible_workloads.go`, `requeueBatchPeriod`), when the first has it back.
#[tokio::test(flavor = "multi_thread")]
async fn between_two_attempts_the_quota_is_free_for_others() -> Result<()> {
    let name = "takes-turns";
    let place =
        crowded(name, json!({"holdSeconds": 2, "maxHoldSeconds": 600}), &[("4g.24gb", 1), ("1g.6gb", 2)])
            .await?;
    // A queue of its own with quota for one pod, whichever slices that wants.
    let quotas = [("cpu", 1), ("4g.24gb", 1), ("1g.6gb", 1)];
    let mut queue = queues::cluster_queue("one-by-one", &[name], &[(name, &quotas)]);
    queue["spec"]["queueingStrategy"] = json!("StrictFIFO");
    place.rig().apply_objects(vec![queue, queues::local_queue(name, "one-by-one", "one-by-one")]).await?;
    let submit = async |name: &str, profile: &str| {
        let mut job = place.job(name, 1, &[(profile, 1)]);
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!("one-by-one");
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("1");
        place.submit(&job).await
    };
    submit("whole", "4g.24gb").await?;
    place
        .until("it is told why", || async { Ok(place.told("whole").await?.is_some_and(|t| !t.1.is_empty())) })
        .await?;
    submit("small", "1g.6gb").await?;
    place.until_running("small", 1).await?;
    let whole = place.workload_of(name, "whole").await?.and_then(|w| w.status).context("whole")?;
    assert!(whole.admission.is_none(), "it has no quota now");
    // It is not lost: its turn comes again.
    place.api::<Job>(name).delete("small", &DeleteParams::background()).await?;
    place
        .until("it has its turn again", || async {
            let versions = place.workloads().versions("whole");
            let turns: BTreeSet<_> =
                versions.iter().filter(|v| v.holds()).map(|v| v.since("QuotaReserved")).collect();
            Ok(turns.len() >= 2)
        })
        .await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_cluster_could_run_is_rejected_and_an_event_says_why() -> Result<()> {
    let name = "rejected";
    let place = Watched::enter(&CLUSTER, name, vec![GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30")]).await?;
    place.queue(json!({}), &[("1g.6gb", 2_000_000_000), ("huge", 8), ("1g", 8), ("1g.6gb.you", 8)]).await?;
    let cases = [
        ("no-memory", "1g", json!(1), "resource nvidia.com/mig-1g: \"1g\" is not a MIG profile name"),
        ("no-slices", "huge", json!(1), "resource nvidia.com/mig-huge: \"huge\" is not a MIG profile name"),
        (
            "no-attribute",
            "1g.6gb.you",
            json!(1),
            "resource nvidia.com/mig-1g.6gb.you: \"1g.6gb.you\" is not a MIG profile name",
        ),
    ];
    for (job, profile, quantity, _) in &cases {
        let mut job = place.job(job, 1, &[]);
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] =
            json!({format!("nvidia.com/mig-{profile}"): quantity});
        place.submit(&job).await?;
    }
    for (job, _, _, why) in &cases {
        let workload = place
            .until(&format!("{job} is deactivated"), || async {
                Ok(place.workload_of(name, job).await?.filter(|w| w.spec.active == Some(false)))
            })
            .await?;
        let workload = workload.metadata.name.unwrap_or_default();
        let note = place.event(name, &workload, "AdmissionCheckRejected").await?;
        assert!(note.contains(why), "{note}");
        place
            .until(&format!("{job} gives its quota back"), || async {
                let status = place.workload_of(name, job).await?.and_then(|w| w.status);
                Ok(status.is_some_and(|s| s.admission.is_none()))
            })
            .await?;
        let versions = place.workloads().versions(job);
        let verdicts = versions.iter().filter_map(|v| v.check(name)?["state"].as_str());
        let verdicts: BTreeSet<_> = verdicts.collect();
        assert!(verdicts.contains("Rejected") && !verdicts.contains("Ready"), "{job}: {verdicts:?}");
    }
    // A part of a slice never comes so far: the API server counts these resources in whole numbers.
    let half = place.job("half", 1, &[]);
    let mut half = half;
    half["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] =
        json!({"nvidia.com/mig-1g.6gb": "500m"});
    let refused = format!("{:#}", place.submit(&half).await.unwrap_err());
    assert!(refused.contains("must be an integer"), "{refused}");
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_no_node_offers_today_is_awaited_and_not_rejected() -> Result<()> {
    let name = "not-yet";
    let place = Watched::enter(&CLUSTER, name, vec![GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30")]).await?;
    place.queue(json!({"holdSeconds": 1, "maxHoldSeconds": 600}), &[("1g.10gb", 8)]).await?;
    place.submit(&place.job("early", 1, &[("1g.10gb", 1)])).await?;
    place
        .until("it has been queued again", || async {
            Ok(!holds(&place.workloads().versions("early"), name).is_empty())
        })
        .await?;
    place.add_nodes(vec![GpuNode::new("not-yet-a100", "A100-80GB", 1, "NVIDIA-A100-SXM4-80GB")]).await?;
    place.until_running("early", 1).await?;
    let said: BTreeSet<String> = told(&place.workloads().versions("early"), name)
        .iter()
        .map(|(state, message, _)| format!("{state}: {message}"))
        .collect();
    let why =
        format!("No node of flavor {name} offers MIG profile 1g.10gb; offered there: 1g.6gb, 1g.6gb+me, ");
    assert!(said.iter().any(|s| s.starts_with(&format!("Pending: {why}"))), "{said:?}");
    assert!(!said.iter().any(|s| s.starts_with("Rejected")), "{said:?}");
    place.leave().await
}
