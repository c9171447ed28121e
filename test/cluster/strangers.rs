//! Pods that take slices past the queue, from a namespace that has opted out: they are noticed, and whom they robbed still
//! gets what was promised.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use slicegate::api::kueue::CheckState;
use slicegate::api::mig_node::{SliceState, SliceStatus};
use slicegate_rig::operator::GpuNode;

use crate::support::{World, get, job};

const NODE: &str = "gpu-a30";
const FREE: &str = "opted-out";

/// One A30, a namespace that has opted out, and a Job whose pods somebody else keeps back while slices stand ready for them.
async fn robbed(pods: u32, seconds: &str) -> Result<World> {
    let world = World::with(vec![GpuNode::new(NODE, "A30-24GB", 1, "NVIDIA-A30")]).await?;
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": FREE, "labels": {"slicegate.dev/managed": "false"}},
    });
    world.rig.apply_objects(vec![namespace]).await?;
    let mut job = job("default", "robbed", pods, &[("1g.6gb", 1)], seconds);
    job["spec"]["template"]["spec"]["schedulingGates"] = json!([{"name": "example.com/later"}]);
    world.submit(&job).await?;
    let count = usize::try_from(pods)?;
    world
        .until("its slices are idle", || async {
            let slices = slices(&world).await?;
            Ok(slices.iter().filter(|slice| slice.state == SliceState::Idle).count() == count)
        })
        .await?;
    Ok(world)
}

async fn slices(world: &World) -> Result<Vec<SliceStatus>> {
    Ok(world.mig_node(NODE).await?.status.map(|status| status.slices).unwrap_or_default())
}

/// A pod that takes one of the slices.
async fn stranger(world: &World) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger", "namespace": FREE},
        "spec": {"containers": [{"name": "a", "image": "x", "resources": {"limits": {"nvidia.com/mig-1g.6gb": 1}}}]},
    });
    world.rig.apply_objects(vec![pod]).await?;
    world
        .until("the stranger has a slice", || async {
            Ok(slices(world).await?.iter().any(|slice| slice.pod.as_deref() == Some("opted-out/stranger")))
        })
        .await
}

/// Waits until the controller's metric counts so many taken slices.
async fn until_counted(world: &World, count: u32) -> Result<()> {
    let port = world.rig.process("controller").and_then(|p| p.spec().port).context("port")?;
    let line = format!("slicegate_slices_taken{{profile=\"1g.6gb\"}} {count}\n");
    world
        .until(&format!("{count} slices are counted as taken"), || async {
            Ok(get(port, "/metrics").await?.contains(&line))
        })
        .await
}

/// Lets the pods of the Job go, as whoever kept them back.
async fn let_go(world: &World) -> Result<()> {
    let ungate: Value =
        json!({"spec": {"schedulingGates": [{"$patch": "delete", "name": "example.com/later"}]}});
    let api = world.api::<Pod>("default");
    for pod in world.pods("default").await? {
        api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(ungate.clone())).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_past_the_queue_is_noticed_and_the_robbed_workload_still_gets_a_slice() -> Result<()> {
    let world = robbed(1, "0.2").await?;
    stranger(&world).await?;
    for (namespace, object) in [(FREE, "stranger"), ("default", NODE)] {
        let note = world.event(namespace, object, "SliceTaken").await?;
        assert!(note.contains("past the queue") && note.contains("1g.6gb"), "{note}");
    }
    until_counted(&world, 1).await?;
    world
        .until("the robbed Job is complete", || async {
            let_go(&world).await?;
            world.job_done("default", "robbed").await
        })
        .await?;
    let slices = slices(&world).await?;
    assert!(slices.iter().any(|slice| slice.pod.as_deref() == Some("opted-out/stranger")), "{slices:?}");
    world.api::<Pod>(FREE).delete("stranger", &DeleteParams::default()).await?;
    until_counted(&world, 0).await?;
    world.until_released().await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_another_the_robbed_workload_gives_way_and_runs_when_the_stranger_has_gone()
-> Result<()> {
    let world = robbed(4, "1000").await?;
    stranger(&world).await?;
    until_counted(&world, 1).await?;
    // Nothing of it runs yet: it gives its quota back and waits its turn.
    let waits =
        "Waiting for capacity: what is claimed and in use on the nodes of flavor a30 leaves too little for";
    world
        .until("it is told what it waits for", || async {
            let told = world.check("default", "robbed").await?;
            Ok(told.is_some_and(|(state, text)| state == CheckState::Pending && text.starts_with(waits)))
        })
        .await?;
    assert!(slices(&world).await?.iter().any(|slice| slice.pod.as_deref() == Some("opted-out/stranger")));
    world.api::<Pod>(FREE).delete("stranger", &DeleteParams::default()).await?;
    world
        .until("the Job holds all four slices", || async {
            let_go(&world).await?;
            let holders: Vec<_> = slices(&world).await?.into_iter().filter_map(|slice| slice.pod).collect();
            Ok(holders.len() == 4 && holders.iter().all(|pod| pod.starts_with("default/robbed-")))
        })
        .await?;
    until_counted(&world, 0).await?;
    world.rig.down().await
}
