//! Pods that do not become ready in time (`waitForPodsReady`).

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::half_of_an_a30;
use crate::shared::Group;
use crate::watched::Watched;

static CLUSTER: Group = Group::with(&[], |options| {
    options.kueue(&json!({"waitForPodsReady": {
        "timeout": "5s", "blockAdmission": false, "requeuingStrategy": {"backoffBaseSeconds": 1},
    }}))
});

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_not_ready_in_time_cost_the_slices_and_the_next_attempt_gets_them_again() -> Result<()>
{
    let place = Watched::enter(&CLUSTER, "not-in-time", vec![half_of_an_a30("not-in-time")]).await?;
    place.queue(json!({}), &[("2g.12gb", 2)]).await?;
    // Somebody else keeps the pods back.
    let mut job = place.job("job", 2, &[("2g.12gb", 1)]);
    job["spec"]["template"]["spec"]["schedulingGates"] = json!([{"name": "example.com/later"}]);
    place.submit(&job).await?;
    let evicted = || {
        let versions = place.workloads().versions("job");
        versions.iter().any(|v| v.condition("Evicted").is_some_and(|c| c["reason"] == "PodsReadyTimeout"))
    };
    place.until("its time is over", || async { Ok(evicted()) }).await?;
    place
        .until("its slices have been given back", || async {
            let versions = place.workloads().versions("job");
            let lost = versions.iter().rposition(|v| v.is("Evicted") && !v.is("QuotaReserved"));
            let nodes = place.mig_nodes().await?;
            let claimed = nodes.iter().any(|n| n.name_any() == place.name() && !n.spec.claims.is_empty());
            Ok(lost.is_some_and(|lost| !claimed || versions[lost..].iter().any(|v| v.is("QuotaReserved"))))
        })
        .await?;
    place
        .until("the Job runs at last", || async {
            let ungate =
                json!({"spec": {"schedulingGates": [{"$patch": "delete", "name": "example.com/later"}]}});
            for pod in place.pods(place.name()).await? {
                let api = place.api::<Pod>(place.name());
                api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(ungate.clone()))
                    .await?;
            }
            Ok(place.running("job").await?.len() == 2)
        })
        .await?;
    place.leave().await
}
