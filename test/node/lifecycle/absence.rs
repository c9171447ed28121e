//! A node whose agent is away for a while, because somebody wants it so.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use slicegate::api::mig_node::SliceState;

use super::history::History;
use super::remade::is_made_again;
use super::{STAY, SYSTEM};
use crate::support::{NODE, World, on_the_node};

#[test]
fn the_agent_lets_go_of_the_driver_for_its_upgrade_and_comes_back_after_it() {
    on_the_node("driver-upgrade", async |world, namespace| {
        let one = world.start_lasting(namespace, "one", "1g.10gb").await?;
        let history = History::of(world, "nvidia.com/mig-1g.10gb").await?;
        let rig = world.real.rig;
        rig.kubectl(&["label", "node", NODE, "slicegate.dev/agent=paused"]).await?;
        world.real.until_agent("AgentStopped").await?;
        is_away(world).await?;
        world.until("NVML is closed", || async { Ok(world.real.gpu_state()?.sessions()? == 0) }).await?;
        // The kubelet's own update: its devices have nobody who answers for them.
        world.until("the node shows no slice", || async { Ok(history.last().0 == 0) }).await?;
        world.submit(namespace, "new", "1g.10gb", STAY).await?;
        world.submit(namespace, "elsewhere", "1g.6gb", STAY).await?;
        world.pod_in(namespace, "elsewhere", "Running").await?;
        ensure!(world.is_waiting(namespace, "new").await?, "new was admitted without an agent");
        ensure!(world.mig_node().await?.spec.claims.len() == 1, "something was placed without an agent");
        let slice = world.slice_of(&one).await?;
        let is_its =
            slice.is_some_and(|s| s.state == SliceState::InUse && s.uuid.as_ref() == Some(&one.uuid));
        ensure!(is_its, "the MIGNode has forgotten {one:?}");
        world.is_undisturbed(namespace, &one).await?;

        world.real.gpu_state()?.reload_driver()?;
        ensure!(world.real.gpu_state()?.instances()?.is_empty(), "the reload left an instance");
        rig.kubectl(&["label", "node", NODE, "slicegate.dev/agent-"]).await?;
        let again = is_made_again(world, namespace, &one).await?;
        let new = world.holder(namespace, "new").await?;
        ensure!(new.uuid != again.uuid && new.token != again.token, "{again:?}\n{new:?}");
        let log = world.agent_log().await?;
        ensure!(log.find("slice made") < log.find("registering with the kubelet"), "{log}");
        ensure!(history.was(0), "the node showed slices all the time");
        history.rose_by_the_agent()?;
        world.end(namespace, "elsewhere").await?;
        world.nothing_leaks(&[&again, &new]).await
    });
}

#[test]
fn an_agent_that_was_taken_off_its_node_and_comes_back_leaks_and_loses_nothing() {
    on_the_node("agent-away", async |world, namespace| {
        let rig = world.real.rig;
        let kept = world.start(namespace, "kept", "1g.10gb").await?;
        world.start(namespace, "first", "1g.10gb").await?;
        world.start(namespace, "second", "2g.20gb").await?;
        let before = instances(world)?;
        ensure!(before.len() == 3, "{before:?}");

        // By its node's label; a pod ends meanwhile.
        rig.kubectl(&["label", "node", NODE, "nvidia.com/gpu.present-"]).await?;
        is_away(world).await?;
        world.end(namespace, "first").await?;
        world.is_undisturbed(namespace, &kept).await?;
        rig.kubectl(&["label", "node", NODE, "nvidia.com/gpu.present=true"]).await?;
        world.real.until_agent("Ready").await?;
        let second = world.holder(namespace, "second").await?;
        world.nothing_leaks(&[&kept, &second]).await?;

        // With its DaemonSet; another pod ends meanwhile, and another wants a slice.
        rig.kubectl(&["delete", "daemonset", "-n", SYSTEM, "slicegate-agent"]).await?;
        is_away(world).await?;
        world.end(namespace, "second").await?;
        world.submit(namespace, "third", "1g.10gb", STAY).await?;
        world.is_undisturbed(namespace, &kept).await?;
        rig.apply_kustomize("test/node/install").await?;
        world.real.until_agent("Ready").await?;
        let third = world.holder(namespace, "third").await?;
        world.nothing_leaks(&[&kept, &third]).await?;
        world.is_undisturbed(namespace, &kept).await?;
        ensure!(before == instances(world)?, "slices were made or destroyed without need: {before:?}");
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}

/// Waits until the real node has no agent.
async fn is_away(world: &World<'_>) -> Result<()> {
    let agents = ListParams::default()
        .labels("app.kubernetes.io/component=agent")
        .fields(&format!("spec.nodeName={NODE}"));
    world
        .until("the agent is gone", || async {
            Ok(world.api::<Pod>(SYSTEM).list(&agents).await?.items.is_empty())
        })
        .await
}

/// The MIG devices that there are.
fn instances(world: &World<'_>) -> Result<BTreeSet<String>> {
    let instances = world.real.gpu_state()?.instances()?;
    Ok(instances.iter().filter_map(|i| i.mig_uuid().map(str::to_owned)).collect())
}
