//! ResourceQuotas: nothing is admitted whose pods they would refuse, and nothing waits that fits.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Event, ResourceQuota};
use kube::ResourceExt;
use serde_json::{Value, json};
use slicegate::api::kueue::CheckState;
use slicegate_rig::Framework;
use slicegate_rig::operator::GpuNode;

use crate::shared::Group;
use crate::support::job;
use crate::watched::Watched;

static CLUSTER: Group = Group::new(&[Framework::JobSet]);

const MIG: &str = "requests.nvidia.com/mig-1g.6gb";

/// So many A30s, of four slices each.
fn a30s(name: &str, gpus: u32) -> GpuNode {
    GpuNode::new(name, "A30-24GB", gpus, "NVIDIA-A30")
}

fn quota(name: &str, hard: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}})
}

/// A place with a queue that lends plenty, and this quota, whose figures the API server knows.
async fn enter(name: &str, gpus: u32, policy: Value, hard: Value) -> Result<Watched> {
    let place = Watched::enter(&CLUSTER, name, vec![a30s(name, gpus)]).await?;
    place.queue(policy, &[("1g.6gb", 100)]).await?;
    apply(&place, quota("gpu", &hard)).await?;
    Ok(place)
}

/// Applies an object that is no job, and waits for the figures if it is a quota.
async fn apply(place: &Watched, mut object: Value) -> Result<()> {
    object["metadata"]["namespace"] = json!(place.name());
    let hard = object["spec"]["hard"].clone();
    place.rig().apply_objects(vec![object]).await?;
    if hard.is_null() {
        return Ok(());
    }
    place
        .until("the quota has figures", || async {
            let quotas = place.list::<ResourceQuota>(place.name()).await?;
            let said = |q: &ResourceQuota| q.status.as_ref().and_then(|s| s.hard.clone());
            Ok(quotas
                .iter()
                .any(|q| said(q).is_some_and(|said| said.len() == hard.as_object().unwrap().len())))
        })
        .await
}

async fn used(place: &Watched, resource: &str) -> Result<String> {
    let quotas = place.list::<ResourceQuota>(place.name()).await?;
    let quota = quotas.into_iter().find(|q| q.name_any() == "gpu").context("the quota")?;
    let used = quota.status.and_then(|s| s.used).unwrap_or_default();
    Ok(used.get(resource).map_or_else(String::new, |q| q.0.clone()))
}

/// What the API server has refused to let in.
async fn refusals(place: &Watched) -> Result<Vec<String>> {
    let events = place.list::<Event>(place.name()).await?;
    let failed = events.into_iter().filter(|e| e.reason.as_deref() == Some("FailedCreate"));
    Ok(failed.filter_map(|e| e.message).collect())
}

async fn waiting(place: &Watched, jobs: &[String]) -> Result<Vec<String>> {
    let mut waiting = Vec::new();
    for job in jobs {
        let told = place.told(job).await?;
        waiting.extend(told.filter(|(state, _)| *state == CheckState::Pending).map(|(_, message)| message));
    }
    Ok(waiting)
}

fn waits_for(resource: &str, namespace: &str) -> String {
    format!(
        "Waiting for ResourceQuota gpu: too little {resource} is left in namespace {namespace}, counting the pods that workloads \
         before it will create."
    )
}

async fn until_told(place: &Watched, job: &str, message: &str) -> Result<()> {
    let told = || async { Ok(place.told(job).await?.is_some_and(|(_, said)| said == message)) };
    place.until(&format!("{job} is told: {message}"), told).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_racing_jobs_fill_a_namespace_to_its_last_slice_and_none_is_refused() -> Result<()> {
    let name = "racing";
    let place = enter(name, 5, json!({"holdSeconds": 600}), json!({MIG: 7, "pods": 50})).await?;
    let jobs: Vec<String> = (0..20).map(|i| format!("race-{i}")).collect();
    let all: Vec<Value> = jobs.iter().map(|job| place.job(job, 1, &[("1g.6gb", 1)])).collect();
    futures::future::try_join_all(all.iter().map(|job| place.submit(job))).await?;
    let message = waits_for(MIG, name);
    place
        .until("seven run, and the others are told why they wait", || async {
            let waiting = waiting(&place, &jobs).await?;
            Ok(used(&place, MIG).await? == "7"
                && waiting.len() == 13
                && waiting.iter().all(|w| *w == message))
        })
        .await?;
    // Room for all: nothing waits that fits.
    apply(&place, quota("gpu", &json!({MIG: 20, "pods": 50}))).await?;
    place.until("all run", || async { Ok(used(&place, MIG).await? == "20") }).await?;
    place.until("all hold slices", || async { Ok(place.held().await?.len() == 20) }).await?;
    assert_eq!(refusals(&place).await?, Vec::<String>::new());
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn as_jobs_end_others_take_their_place_and_none_is_refused() -> Result<()> {
    let name = "churning";
    let place = enter(name, 3, json!({"holdSeconds": 600}), json!({MIG: 4})).await?;
    let jobs: Vec<String> = (0..20).map(|i| format!("turn-{i}")).collect();
    for (i, name) in jobs.iter().enumerate() {
        // Of one and of two pods, each a moment long.
        let pods = 1 + u32::try_from(i % 2)?;
        place.submit(&job(place.name(), name, pods, &[("1g.6gb", 1)], "0.3")).await?;
    }
    for job in &jobs {
        place.until(&format!("{job} is complete"), || place.job_done(name, job)).await?;
    }
    assert_eq!(refusals(&place).await?, Vec::<String>::new());
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_exist_before_they_are_admitted_are_not_counted_twice() -> Result<()> {
    let place = enter("existing", 1, json!({}), json!({MIG: 3})).await?;
    let template = place.job("template", 1, &[("1g.6gb", 1)])["spec"]["template"]["spec"].clone();
    let mut pod = json!({"metadata": {"labels": {"app": "server"}}, "spec": template});
    pod["spec"].as_object_mut().unwrap().remove("restartPolicy");
    place
        .apply(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "server"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "server"}}, "template": pod},
        }))
        .await?;
    place.until_held_by(2).await?;
    place.kubectl("delete deployment server").await?;
    place.until("its pods are gone", || async { Ok(used(&place, MIG).await? == "0") }).await?;
    let template = place.job("template", 1, &[("1g.6gb", 1)])["spec"]["template"]["spec"].clone();
    for name in ["left", "right"] {
        place
            .apply(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name,
                    "labels": {"kueue.x-k8s.io/pod-group-name": "pair"},
                    "annotations": {
                        "kueue.x-k8s.io/pod-group-total-count": "2",
                        "slicegate.dev/run-seconds": "1000",
                    },
                },
                "spec": template,
            }))
            .await?;
    }
    place.until_held_by(2).await?;
    // One is left, and two are asked for.
    place.submit(&place.job("two", 2, &[("1g.6gb", 1)])).await?;
    until_told(&place, "two", &waits_for(MIG, "existing")).await?;
    place.submit(&place.job("one", 1, &[("1g.6gb", 1)])).await?;
    place.until_running("one", 1).await?;
    assert_eq!(refusals(&place).await?, Vec::<String>::new());
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_limit_range_fills_in_counts_and_what_it_does_not_is_asked_for() -> Result<()> {
    let name = "limited";
    let place = enter(name, 1, json!({}), json!({"limits.memory": "2560Mi"})).await?;
    place.submit(&place.job("bare", 1, &[("1g.6gb", 1)])).await?;
    until_told(
        &place,
        "bare",
        "ResourceQuota gpu of namespace limited refuses pods of which a container does not name limits.memory, as main does \
         not. Name it, or give the namespace a LimitRange with a default.",
    )
    .await?;
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "defaults"},
        "spec": {"limits": [{"type": "Container", "default": {"memory": "1Gi"}}]},
    });
    apply(&place, range).await?;
    place.until_running("bare", 1).await?;
    place.submit(&place.job("second", 1, &[("1g.6gb", 1)])).await?;
    place.until_running("second", 1).await?;
    assert_eq!(used(&place, "limits.memory").await?, "2Gi");
    place.submit(&place.job("third", 1, &[("1g.6gb", 1)])).await?;
    until_told(&place, "third", &waits_for("limits.memory", name)).await?;
    assert_eq!(refusals(&place).await?, Vec::<String>::new());
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_tell_which_jobs_a_quota_counts() -> Result<()> {
    let place = enter("scoped", 1, json!({}), json!({MIG: 9})).await?;
    let mut deadline = quota("deadline", &json!({MIG: 1}));
    deadline["spec"]["scopes"] = json!(["Terminating"]);
    apply(&place, deadline).await?;
    let bounded = |name: &str| {
        let mut job = place.job(name, 1, &[("1g.6gb", 1)]);
        job["spec"]["template"]["spec"]["activeDeadlineSeconds"] = json!(3600);
        job
    };
    place.submit(&bounded("bounded")).await?;
    place.until_running("bounded", 1).await?;
    place.submit(&bounded("another")).await?;
    until_told(&place, "another", &waits_for(MIG, "scoped").replace("gpu", "deadline")).await?;
    place.submit(&place.job("boundless", 1, &[("1g.6gb", 1)])).await?;
    place.until_running("boundless", 1).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_more_than_is_allowed_at_all_is_said_and_rejected_only_if_the_policy_says_so() -> Result<()>
{
    let name = "greedy";
    let place = enter(name, 1, json!({}), json!({MIG: 1})).await?;
    let never = "ResourceQuota gpu of namespace greedy allows less requests.nvidia.com/mig-1g.6gb than the workload asks for: it \
                 can never run. Ask for less, or have the quota raised.";
    place.submit(&place.job("patient", 2, &[("1g.6gb", 1)])).await?;
    until_told(&place, "patient", never).await?;
    let text = explain(&place, "patient").await?;
    assert!(text.contains("Cause: quota."), "{text}");
    let line = text.lines().find(|line| line.contains(MIG) && line.starts_with("gpu")).context("a line")?;
    let columns: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(columns, ["gpu", MIG, "0", "0", "2", "1", "exceeded"], "{text}");
    // With room for it, it runs.
    apply(&place, quota("gpu", &json!({MIG: 2}))).await?;
    place.until_running("patient", 2).await?;
    place.queue(json!({"quotaOverHard": "Reject"}), &[("1g.6gb", 100)]).await?;
    place.submit(&place.job("strict", 3, &[("1g.6gb", 1)])).await?;
    place
        .until("Kueue has deactivated it", || async {
            let workload = place.workload_of(name, "strict").await?;
            Ok(workload.is_some_and(|w| w.spec.active == Some(false)))
        })
        .await?;
    place.leave().await
}

async fn explain(place: &Watched, job: &str) -> Result<String> {
    let output = tokio::process::Command::new(place.operator.kubectl_slices())
        .env("KUBECONFIG", place.rig().kubeconfig())
        .args(["explain", job, "-n", place.name()])
        .output()
        .await?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_may_have_it_reported_only() -> Result<()> {
    let place = enter("reported", 1, json!({"quota": "Report"}), json!({MIG: 1})).await?;
    place.submit(&place.job("job", 2, &[("1g.6gb", 1)])).await?;
    let workload = || async { Ok(place.workload_of("reported", "job").await?.map(|w| w.name_any())) };
    let workload = place.until("a Workload", workload).await?;
    let note = place.event("reported", &workload, "OverQuota").await?;
    assert!(note.ends_with("It is let in all the same, as its SlicePolicy says (quota: Report)."), "{note}");
    place.until_running("job", 1).await?;
    place.until("the second pod is refused", || async { Ok(!refusals(&place).await?.is_empty()) }).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_job_set_that_ask_for_no_slices_count_too() -> Result<()> {
    let name = "mixed";
    let place = enter(name, 1, json!({}), json!({"pods": 3})).await?;
    let worker = place.job("template", 1, &[("1g.6gb", 1)])["spec"].clone();
    let mut leader = worker.clone();
    leader["template"]["spec"]["containers"][0]["resources"]["limits"] = json!({});
    place
        .apply(json!({
            "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "set"},
            "spec": {"replicatedJobs": [
                {"name": "leader", "replicas": 1, "template": {"spec": leader}},
                {"name": "worker", "replicas": 1, "template": {"spec": worker}},
            ]},
        }))
        .await?;
    place.until("both run", || async { Ok(used(&place, "pods").await? == "2") }).await?;
    place.until_held_by(1).await?;
    place.submit(&place.job("two", 2, &[("1g.6gb", 1)])).await?;
    until_told(&place, "two", &waits_for("pods", name)).await?;
    // Two exist and nothing is in flight: there is room for one more.
    place.submit(&place.job("one", 1, &[("1g.6gb", 1)])).await?;
    place.until_running("one", 1).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_of_three_budgets_does_what_it_says() -> Result<()> {
    const TEAM: &str = "team-budgets";
    let node = GpuNode::new("budgets", "A100-80GB", 1, "NVIDIA-A100-SXM4-80GB");
    let place = Watched::enter(&CLUSTER, "budgets", vec![node]).await?;
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/three-budgets.yaml");
    place.rig().apply_yaml(&std::fs::read_to_string(sample)?).await?;
    let message = waits_for("requests.nvidia.com/mig-1g.10gb", TEAM);
    let told = || async { Ok(place.check(TEAM, "second").await?.is_some_and(|(_, said)| said == message)) };
    place.until("the second is told what it waits for", told).await?;
    place.until("the first is complete", || place.job_done(TEAM, "first")).await?;
    place.until("the second is complete", || place.job_done(TEAM, "second")).await?;
    let events = place.list::<Event>(TEAM).await?;
    assert!(events.iter().all(|event| event.reason.as_deref() != Some("FailedCreate")), "{events:?}");
    place.leave().await
}
