//! The least that any check costs: one that is answered as soon as it is seen, by the same kind of write as ours.

use std::collections::BTreeSet;

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use slicegate::api::kueue::{AdmissionCheck, CheckState, Workload};

use super::stage::{LEAST, NAMESPACE};
use crate::watch::Watches;

/// Answers the check `least` until it is dropped.
pub async fn answer(client: &Client) -> Result<Watches> {
    let checks: Api<AdmissionCheck> = Api::all(client.clone());
    let active = Condition {
        type_: "Active".to_owned(),
        status: "True".to_owned(),
        reason: "Active".to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::now()),
    };
    let patch = json!({"status": {"conditions": [active]}});
    checks.patch_status(LEAST, &PatchParams::default(), &Patch::Merge(patch)).await?;
    let workloads: Api<Workload> = Api::namespaced(client.clone(), NAMESPACE);
    let answering = tokio::spawn(async move {
        let mut events = std::pin::pin!(
            watcher(workloads.clone(), watcher::Config::default()).default_backoff().applied_objects()
        );
        let mut answered = BTreeSet::new();
        while let Some(event) = events.next().await {
            let Ok(workload) = event else { continue };
            let key = (workload.uid(), workload.resource_version());
            if is_due(&workload) && answered.insert(key) {
                let workloads = workloads.clone();
                tokio::spawn(async move {
                    // One that has changed meanwhile comes again.
                    let _ = make_ready(&workloads, &workload).await;
                });
            }
        }
    });
    Ok(Watches(vec![answering]))
}

fn is_due(workload: &Workload) -> bool {
    workload.status.as_ref().is_some_and(|status| {
        status.conditions.iter().any(|c| c.type_ == "QuotaReserved" && c.status == "True")
            && status.admission_checks.iter().any(|c| c.name == LEAST && c.state == CheckState::Pending)
    })
}

async fn make_ready(workloads: &Api<Workload>, workload: &Workload) -> kube::Result<Workload> {
    let check = json!({
        "name": LEAST,
        "state": "Ready",
        "message": "",
        "lastTransitionTime": Time(Timestamp::now()),
        "podSetUpdates": [],
        "requeueAfterSeconds": 0,
    });
    let patch = json!({
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {"name": workload.name_any(), "resourceVersion": workload.resource_version()},
        "status": {"admissionChecks": [check]},
    });
    let parameters = PatchParams::apply("example.com/least").force();
    workloads.patch_status(&workload.name_any(), &parameters, &Patch::Apply(patch)).await
}
