//! Elastic Jobs: another Workload takes the place of the first when the Job grows.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use slicegate::api::kueue::{CheckState, Workload};

use super::KINDS;
use crate::checker::Checker;
use crate::shared::{calls, counted, is_gated, one_a30};
use crate::support::{World, job};

fn elastic(namespace: &str, pods: u32) -> Value {
    let mut job = job(namespace, "elastic", pods, &[("1g.6gb", 1)], "1000");
    job["metadata"]["annotations"] = json!({"kueue.x-k8s.io/elastic-job": "true"});
    job["spec"]["completions"] = json!(20);
    job
}

fn scale(pods: u32) -> String {
    format!("patch job elastic --type=merge -p={{\"spec\":{{\"parallelism\":{pods}}}}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elastic_job_grows_and_shrinks_under_its_running_pods() -> Result<()> {
    let here = KINDS.enter("elastic", vec![counted(one_a30("elastic"))], &[]).await?;
    here.submit(&elastic("elastic", 2)).await?;
    let two = here.until_held_by(2).await?;
    here.kubectl(&scale(4)).await?;
    let four = here.until_held_by(4).await?;
    assert!(two.iter().all(|(pod, slices)| four.get(pod) == Some(slices)), "{two:?} {four:?}");
    here.until("the second Workload has all the claims", || async {
        let claims = here.claims().await?;
        Ok(claims.len() == 1 && claims.values().sum::<u32>() == 4)
    })
    .await?;
    assert_eq!(here.list::<Workload>("elastic").await?.len(), 2);
    here.kubectl(&scale(1)).await?;
    let one = here.until_held_by(1).await?;
    assert!(one.iter().all(|(pod, slices)| four.get(pod) == Some(slices)), "{four:?} {one:?}");
    here.until("claims that nobody needs are given back", || async { Ok(here.claimed().await? == 1) })
        .await?;
    here.kubectl(&scale(3)).await?;
    let three = here.until_held_by(3).await?;
    assert!(one.iter().all(|(pod, slices)| three.get(pod) == Some(slices)), "{one:?} {three:?}");
    // Four slices serve all of it.
    assert_eq!(calls(&here, "elastic")?, (4, 0));
    here.kubectl("delete job elastic").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elastic_job_that_cannot_grow_keeps_what_it_has() -> Result<()> {
    let here = KINDS.enter("elastic-full", vec![counted(one_a30("elastic-full"))], &[]).await?;
    here.submit(&elastic("elastic-full", 2)).await?;
    let two = here.until_held_by(2).await?;
    here.kubectl(&scale(6)).await?;
    here.until("the second Workload is told what it waits for", || async {
        let workloads = here.list::<Workload>("elastic-full").await?;
        let told = workloads.iter().filter_map(|w| w.status.as_ref()).flat_map(|s| &s.admission_checks);
        Ok(told
            .into_iter()
            .any(|c| c.state == CheckState::Pending && c.message.starts_with("Pod set main asks for 6")))
    })
    .await?;
    let pods = here.staying().await?;
    assert_eq!(pods.iter().filter(|pod| is_gated(pod)).count(), 4);
    assert_eq!(here.held().await?, two);
    // As many as there is room for.
    here.kubectl(&scale(4)).await?;
    let four = here.until_held_by(4).await?;
    assert!(two.iter().all(|(pod, slices)| four.get(pod) == Some(slices)), "{two:?} {four:?}");
    assert_eq!(calls(&here, "elastic-full")?, (4, 0));
    here.kubectl("delete job elastic").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elastic_job_that_has_grown_keeps_nothing_when_it_is_evicted() -> Result<()> {
    let here = KINDS.enter("elastic-evicted", vec![one_a30("elastic-evicted")], &[]).await?;
    here.submit(&elastic("elastic-evicted", 1)).await?;
    here.until_held_by(1).await?;
    here.kubectl(&scale(3)).await?;
    here.until_held_by(3).await?;
    here.kubectl("patch localqueue mig --type=merge -p={\"spec\":{\"stopPolicy\":\"HoldAndDrain\"}}").await?;
    here.until("all claims are gone", || async { Ok(here.claimed().await? == 0) }).await?;
    assert!(here.held().await?.is_empty());
    here.kubectl("delete job elastic").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elastic_job_that_grows_over_nodes_while_no_controller_runs_keeps_its_slices() -> Result<()> {
    let world = World::with(vec![one_a30("first"), one_a30("second")]).await?;
    let checker = Checker::start(&world);
    let slices = async || {
        let nodes = world.mig_nodes().await?;
        let slices = nodes.into_iter().flat_map(|n| n.status.into_iter().flat_map(|s| s.slices));
        anyhow::Ok(slices.filter_map(|s| Some((s.pod?, s.uuid?))).collect::<BTreeSet<_>>())
    };
    let mut job = job("default", "elastic", 2, &[("2g.12gb", 1)], "1000");
    job["metadata"]["annotations"] = json!({"kueue.x-k8s.io/elastic-job": "true"});
    job["spec"]["completions"] = json!(20);
    world.submit(&job).await?;
    world.until("two pods hold slices", || async { Ok(slices().await?.len() == 2) }).await?;
    let two = slices().await?;
    let controller = world.rig.process("controller").context("controller")?;
    controller.kill().await?;
    world.rig.kubectl(scale(4).split(' ')).await?;
    // Kueue gives the new size quota, and is done with the old Workload, whoever looks on.
    world
        .until("the first Workload is finished", || async {
            let workloads = world.list::<Workload>("default").await?;
            let conditions = workloads.iter().filter_map(|w| w.status.as_ref()).flat_map(|s| &s.conditions);
            Ok(conditions.into_iter().any(|c| c.type_ == "Finished" && c.status == "True"))
        })
        .await?;
    controller.restart().await?;
    world.until("four pods hold slices", || async { Ok(slices().await?.len() == 4) }).await?;
    assert!(slices().await?.is_superset(&two));
    world.rig.kubectl(["delete", "job", "elastic"]).await?;
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}
