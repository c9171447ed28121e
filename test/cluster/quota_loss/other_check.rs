//! An AdmissionCheck of someone else's, which the test plays.

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{CLUSTER, Holder, half_of_an_a30, slow_to_stop, workload};
use crate::queues;
use crate::shared::Group;
use crate::watched::Watched;
use crate::workload_checker::Version;

/// An A30 in a queue that also asks a check which the test plays.
pub async fn place_with_other(name: &str) -> Result<Watched> {
    place_in(&CLUSTER, name).await
}

/// The same in any cluster.
pub async fn place_in(cluster: &'static Group, name: &str) -> Result<Watched> {
    let place = Watched::enter(cluster, name, vec![half_of_an_a30(name)]).await?;
    place.queue(json!({}), &[("2g.12gb", 2)]).await?;
    let other = other(&place);
    let played = json!({
        "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "AdmissionCheck", "metadata": {"name": other},
        "spec": {"controllerName": "example.com/played"},
    });
    let queue = queues::cluster_queue(name, &[name, &other], &[(name, &[("2g.12gb", 2)])]);
    place.rig().apply_objects(vec![played, queue]).await?;
    let active = json!({"status": {"conditions": [{
        "type": "Active", "status": "True", "reason": "Played", "message": "", "lastTransitionTime": Timestamp::now(),
    }]}});
    queues::object(&place.client, "AdmissionCheck", None)
        .patch_status(&other, &PatchParams::default(), &Patch::Merge(active))
        .await?;
    Ok(place)
}

pub fn other(place: &Watched) -> String {
    format!("{}-other", place.name())
}

/// Sets the state of the played check on a Job's Workload.
pub async fn says(place: &Watched, job: &str, state: &str) -> Result<()> {
    let other = other(place);
    place
        .until(&format!("{other} says {state} to {job}"), || async {
            let workload = workload(place, job).await?;
            let status = workload.status.as_ref().context("status")?;
            let index = status.admission_checks.iter().position(|c| c.name == other).context("its entry")?;
            let at = format!("/status/admissionChecks/{index}");
            let patch: Value = json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": workload.resource_version()},
                {"op": "replace", "path": format!("{at}/state"), "value": state},
                {"op": "replace", "path": format!("{at}/message"), "value": "Said by the test."},
                {"op": "replace", "path": format!("{at}/lastTransitionTime"), "value": Timestamp::now()},
            ]);
            let patch = Patch::Json::<()>(serde_json::from_value(patch)?);
            let workloads = queues::object(&place.client, "Workload", Some(place.name()));
            workloads.patch_status(&workload.name_any(), &PatchParams::default(), &patch).await?;
            Ok(true)
        })
        .await
}

/// Waits until our check is Ready for a Job.
pub async fn until_ready(place: &Watched, job: &str) -> Result<()> {
    place
        .until(&format!("our check is Ready for {job}"), || async {
            Ok(place
                .told(job)
                .await?
                .is_some_and(|(state, _)| state == slicegate::api::kueue::CheckState::Ready))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_another_check_retries_before_admission_the_slices_are_given_back_and_had_again() -> Result<()> {
    let place = place_with_other("other-waits").await?;
    place.submit(&slow_to_stop(&place, "job", 2)).await?;
    until_ready(&place, "job").await?;
    let uid = workload(&place, "job").await?.uid().unwrap_or_default();
    assert_eq!(place.claims_of(&uid).await?.iter().map(|claim| claim.pods).sum::<u32>(), 2);
    says(&place, "job", "Retry").await?;
    place
        .until("it has another reservation", || async {
            let versions = place.workloads().versions("job");
            let lost = versions.iter().position(|v| v.is("Evicted") && !v.is("QuotaReserved"));
            Ok(lost.is_some_and(|lost| versions[lost..].iter().any(Version::holds)))
        })
        .await?;
    until_ready(&place, "job").await?;
    let ours = workload(&place, "job").await?.status.context("status")?.admission_checks;
    let ours = ours.iter().find(|c| c.name == place.name()).context("our check")?;
    assert_eq!(ours.retry_count.unwrap_or(0), 0, "it was not we who failed");
    says(&place, "job", "Ready").await?;
    place.until_running("job", 2).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_another_check_retries_after_admission_the_slices_stay_until_the_last_pod_is_gone() -> Result<()>
{
    let place = place_with_other("other-retries").await?;
    place.submit(&slow_to_stop(&place, "job", 2)).await?;
    says(&place, "job", "Ready").await?;
    let holder = Holder::of(&place, "job", 2).await?;
    says(&place, "job", "Retry").await?;
    holder.gives_back(&place).await?;
    // The quota came back at once, to the same workload; the slices only now.
    until_ready(&place, "job").await?;
    says(&place, "job", "Ready").await?;
    place.until_running("job", 2).await?;
    let retried = place.workloads().versions("job").iter().any(|v| {
        v.check(place.name())
            .is_some_and(|c| c["state"] == "Retry" || c["retryCount"].as_u64().unwrap_or(0) > 0)
    });
    assert!(!retried, "our check never failed");
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_another_check_rejects_the_slices_are_given_back_for_good() -> Result<()> {
    let place = place_with_other("other-rejects").await?;
    place.submit(&slow_to_stop(&place, "job", 2)).await?;
    says(&place, "job", "Ready").await?;
    let holder = Holder::of(&place, "job", 2).await?;
    says(&place, "job", "Rejected").await?;
    holder.gives_back(&place).await?;
    place.until_released().await?;
    let workload = workload(&place, "job").await?;
    assert_eq!(workload.spec.active, Some(false));
    assert!(workload.status.is_some_and(|s| s.admission.is_none()), "quota is gone");
    place.leave().await
}
