//! Several AdmissionChecks and SlicePolicies of ours in one cluster.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use slicegate::api::kueue::CheckState;
use slicegate_rig::operator::GpuNode;

use crate::queues;
use crate::shared::Group;
use crate::support::job;
use crate::watched::Watched;
use crate::workload_checker::seconds;

static CLUSTER: Group = Group::new(&[]);

/// An A30 in pools: labels that policies select.
fn a30(name: &str, pools: &[&str]) -> GpuNode {
    let mut node = GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30");
    for pool in pools {
        node.node = node.node.label(format!("pool-{pool}"), "yes");
    }
    node
}

/// A policy for the nodes of a pool.
fn pool(name: &str) -> Value {
    json!({"nodeSelector": {format!("pool-{name}"): "yes"}})
}

async fn nodes_of(place: &Watched, job: &str) -> Result<BTreeSet<String>> {
    let pods = place.running(job).await?;
    Ok(pods.into_iter().filter_map(|pod| pod.spec?.node_name).collect())
}

/// Names and states of the checks of a Job's Workload.
async fn checks_of(place: &Watched, job: &str) -> Result<Vec<(String, CheckState)>> {
    let status = place.workload_of(place.name(), job).await?.and_then(|w| w.status).context("status")?;
    Ok(status.admission_checks.into_iter().map(|c| (c.name, c.state)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_flavor_has_its_own_check_with_its_own_nodes() -> Result<()> {
    let name = "own-nodes";
    // The flavors do not tell the nodes apart; only the policies of their checks do.
    let place =
        Watched::enter(&CLUSTER, name, vec![a30("own-red", &["red"]), a30("own-blue", &["blue"])]).await?;
    let mut objects = Vec::new();
    for colour in ["red", "blue"] {
        objects.extend(queues::check(&format!("own-{colour}"), &pool(colour)));
        objects.push(queues::flavor(&format!("own-{colour}"), &place.nodes_label()));
    }
    let quota: &[(&str, u32)] = &[("2g.12gb", 2)];
    let mut queue = queues::cluster_queue(name, &[], &[("own-red", quota), ("own-blue", quota)]);
    queue["spec"]["admissionChecksStrategy"]["admissionChecks"] =
        json!(["own-red", "own-blue"].map(|check| json!({"name": check, "onFlavors": [check]})));
    objects.extend([queue, queues::local_queue(name, "mig", name)]);
    place.rig().apply_objects(objects).await?;
    // Kueue takes the first flavor that has quota.
    for (job, of) in [("first", "own-red"), ("second", "own-blue")] {
        place.submit(&place.job(job, 2, &[("2g.12gb", 1)])).await?;
        place.until_running(job, 2).await?;
        assert_eq!(nodes_of(&place, job).await?, BTreeSet::from([of.to_owned()]), "{job}");
        assert_eq!(checks_of(&place, job).await?, [(of.to_owned(), CheckState::Ready)], "{job}");
    }
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_with_different_checks_share_nodes_and_nothing_is_lent_twice() -> Result<()> {
    let name = "shared-nodes";
    let place =
        Watched::enter(&CLUSTER, name, vec![a30("shared-nodes-a", &[]), a30("shared-nodes-b", &[])]).await?;
    let mut objects = vec![queues::flavor(name, &place.nodes_label())];
    for side in ["left", "right"] {
        objects.extend(queues::check(side, &json!({})));
        // Each may have all that there is.
        objects.push(queues::cluster_queue(side, &[side], &[(name, &[("1g.6gb", 8)])]));
        objects.push(queues::local_queue(name, side, side));
    }
    place.rig().apply_objects(objects).await?;
    let names: Vec<String> = (0..8).map(|number| format!("job-{number}")).collect();
    for (number, each) in names.iter().enumerate() {
        let mut job = job(name, each, 2, &[("1g.6gb", 1)], "1");
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!(["left", "right"][number % 2]);
        place.submit(&job).await?;
    }
    // Twice what fits: the judges watch that no slice is promised twice.
    for job in &names {
        place.until(&format!("{job} is complete"), || place.job_done(name, job)).await?;
    }
    place.until_released().await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_our_checks_on_one_queue_agree_on_nodes_that_both_allow() -> Result<()> {
    let name = "both";
    let nodes = vec![
        a30("both-left", &["left"]),
        a30("both-middle", &["left", "right"]),
        a30("both-right", &["right"]),
    ];
    let place = Watched::enter(&CLUSTER, name, nodes).await?;
    let mut objects = vec![queues::flavor(name, &place.nodes_label())];
    for side in ["left", "right"] {
        objects.extend(queues::check(&format!("both-{side}"), &pool(side)));
    }
    let checks = ["both-left", "both-right"];
    objects.push(queues::cluster_queue(name, &checks, &[(name, &[("2g.12gb", 6)])]));
    objects.push(queues::local_queue(name, "mig", name));
    place.rig().apply_objects(objects).await?;
    place.submit(&place.job("fits", 2, &[("2g.12gb", 1)])).await?;
    place.until_running("fits", 2).await?;
    assert_eq!(nodes_of(&place, "fits").await?, BTreeSet::from(["both-middle".to_owned()]));
    assert_eq!(checks_of(&place, "fits").await?, checks.map(|check| (check.to_owned(), CheckState::Ready)));
    // There is no more where both allow it, and both say so.
    place.submit(&place.job("waits", 1, &[("2g.12gb", 1)])).await?;
    let why = "Waiting for capacity: what is claimed and in use on the nodes of flavor both leaves too little for 1 pod with 1 × \
               2g.12gb.";
    place
        .until("both say why it waits", || async {
            let workload =
                place.workload_of(name, "waits").await?.and_then(|w| w.status).context("status")?;
            let says = |check: &str| {
                let mut entries = workload.admission_checks.iter();
                entries.any(|c| c.name == check && c.state == CheckState::Pending && c.message == why)
            };
            Ok(checks.into_iter().all(says))
        })
        .await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_without_its_policy_stops_its_own_queue_and_no_other() -> Result<()> {
    let name = "one-bad";
    let place = Watched::enter(&CLUSTER, name, vec![a30(name, &[])]).await?;
    place.queue(json!({}), &[("1g.6gb", 4)]).await?;
    let quota: &[(&str, u32)] = &[("1g.6gb", 4)];
    let queue = queues::cluster_queue("bad-policy", &["bad-policy"], &[(name, quota)]);
    let objects =
        vec![queues::check_only("bad-policy"), queue, queues::local_queue(name, "bad", "bad-policy")];
    place.rig().apply_objects(objects).await?;
    place.until("its check is inactive", || place.check_condition("bad-policy", "False")).await?;
    let active = async |queue: &str| {
        let queue = queues::object(&place.client, "ClusterQueue", None).get(queue).await?;
        let conditions = queue.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let active = conditions.into_iter().find(|c| c["type"] == "Active").context("condition Active")?;
        anyhow::Ok((active["status"] == "True", active["message"].as_str().unwrap_or_default().to_owned()))
    };
    let message = place
        .until("Kueue stops its queue", || async {
            let (active, message) = active("bad-policy").await?;
            Ok((!active).then_some(message))
        })
        .await?;
    assert!(message.contains("inactive AdmissionCheck(s): bad-policy"), "{message}");
    place.until("the other queue goes on", || async { Ok(active(name).await?.0) }).await?;
    let mut stopped = job(name, "stopped", 1, &[("1g.6gb", 1)], "0.2");
    stopped["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!("bad");
    place.submit(&stopped).await?;
    place.submit(&job(name, "sound", 1, &[("1g.6gb", 1)], "0.2")).await?;
    place.until("the other's Job is complete", || place.job_done(name, "sound")).await?;
    let reserved = place.workloads().versions("stopped").iter().any(|v| v.is("QuotaReserved"));
    assert!(!reserved, "a stopped queue reserves nothing");
    // With the policy it goes on.
    place.rig().apply_objects(queues::check("bad-policy", &json!({}))).await?;
    place.until("its Job is complete", || place.job_done(name, "stopped")).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_queue_holds_as_long_as_its_policy_says_and_the_shorter_of_two_counts() -> Result<()> {
    let name = "holds";
    let place = Watched::enter(&CLUSTER, name, vec![a30(name, &[])]).await?;
    let quota: &[(&str, u32)] = &[("4g.24gb", 2)];
    let mut objects = vec![queues::flavor(name, &place.nodes_label())];
    for (check, hold) in [("hold-short", 2), ("hold-long", 600)] {
        objects.extend(queues::check(check, &json!({"holdSeconds": hold, "maxHoldSeconds": 600})));
    }
    let asked: [(&str, &[&str]); 3] = [
        ("hold-long", &["hold-long"]),
        ("hold-short", &["hold-short"]),
        ("hold-both", &["hold-long", "hold-short"]),
    ];
    for (queue, checks) in asked {
        objects.push(queues::cluster_queue(queue, checks, &[(name, quota)]));
        objects.push(queues::local_queue(name, queue, queue));
    }
    place.rig().apply_objects(objects).await?;
    let submit = async |job: &str, queue: &str| {
        let mut job = place.job(job, 1, &[("4g.24gb", 1)]);
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!(queue);
        place.submit(&job).await
    };
    submit("occupant", "hold-long").await?;
    place.until_running("occupant", 1).await?;
    for (queue, _) in asked {
        submit(&format!("in-{queue}"), queue).await?;
    }
    // The first of its checks says Retry; to evict it, one is enough.
    let retried = |job: &str| {
        let versions = place.workloads().versions(job);
        let entries = versions.iter().flat_map(|v| asked.iter().map(move |(check, _)| (v, v.check(check))));
        let (version, entry) = entries.into_iter().find(|(_, c)| c.is_some_and(|c| c["state"] == "Retry"))?;
        Some(seconds(&entry?["lastTransitionTime"])? - version.since("QuotaReserved")?)
    };
    for job in ["in-hold-short", "in-hold-both"] {
        let held = place.until(&format!("{job} is queued again"), || async { Ok(retried(job)) }).await?;
        assert!(held >= 2, "{job} was held for {held} s");
    }
    assert_eq!(retried("in-hold-long"), None, "its time is not over for long");
    let told = place.workloads().versions("in-hold-long");
    let told = told.last().and_then(|v| v.check("hold-long").cloned()).context("its check")?;
    assert_eq!(
        (&told["state"], told["message"].as_str().is_some_and(|m| m.starts_with("Waiting"))),
        (&json!("Pending"), true)
    );
    place.leave().await
}
