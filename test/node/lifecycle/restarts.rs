//! Programs of the node that end and start again while pods run.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use slicegate::api::names::{GPU_MEMORY, GPU_MEMORY_QUOTA_LABEL};

use super::history::History;
use crate::support::{container, job, on_the_node};

const RESOURCE: &str = "nvidia.com/mig-1g.10gb";

#[test]
fn a_kubelet_restart_disturbs_no_pod_and_the_slices_are_back_at_once() {
    on_the_node("kubelet-restart", async |world, namespace| {
        let one = world.start(namespace, "one", "1g.10gb").await?;
        let history = History::of(world, RESOURCE).await?;
        ensure!(history.last() == (1, "slicegate-agent".to_owned()), "{:?}", history.last());
        let (agent, _) = world.agent().await?;
        world.real.node.restart_kubelet().await?;
        world
            .until("the agent has noticed", || async {
                let log = world.agent_log().await?;
                // It may look at once, or find nobody there yet.
                Ok(["registering again", "devices cannot be offered"].iter().any(|said| log.contains(said)))
            })
            .await?;
        world.until("the slice is allocatable", || async { Ok(history.last().0 == 1) }).await?;
        world.is_undisturbed(namespace, &one).await?;
        // A resource that no plugin stands for outlasts the kubelet, which lets pods in that ask for it.
        ensure!(world.shown(GPU_MEMORY).await? == (160, 160), "{:?}", world.shown(GPU_MEMORY).await?);
        let labels = Patch::Merge(json!({"metadata": {"labels": {GPU_MEMORY_QUOTA_LABEL: "enabled"}}}));
        let namespaces = Api::<Namespace>::all(world.client.clone());
        namespaces.patch(namespace, &PatchParams::default(), &labels).await?;
        world
            .until("pods are given GPU memory", || async {
                let asks = job(namespace, "asks", &[container("main", "exit 0", &[("1g.10gb", 1)])]);
                let mut pod = json!({"metadata": {"name": "asks"}, "spec": asks["spec"]["template"]["spec"]});
                pod["apiVersion"] = json!("v1");
                let dry_run = PostParams { dry_run: true, ..PostParams::default() };
                let pod: Pod = serde_json::from_value(pod)?;
                let made =
                    Api::<Pod>::namespaced(world.client.clone(), namespace).create(&dry_run, &pod).await?;
                Ok(memory_of(&made).is_some())
            })
            .await?;
        // Only what is registered can be given to anybody.
        let two = world.start(namespace, "two", "1g.10gb").await?;
        let pod = world.pod_in(namespace, "two", "Running").await?;
        ensure!(memory_of(&pod).is_some_and(|gib| gib.0 == "10"), "{:?}", pod.spec);
        ensure!(two.uuid != one.uuid && two.token != one.token, "{one:?}\n{two:?}");
        // What the GPUs could hold at most is shown whatever there is.
        ensure!(world.shown(RESOURCE).await? == (14, 2), "{:?}", world.shown(RESOURCE).await?);
        ensure!(world.agent().await?.0 == agent, "the agent was started again");
        history.rose_by_the_agent()?;
        world.is_undisturbed(namespace, &one).await?;
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}

fn memory_of(pod: &Pod) -> Option<&Quantity> {
    pod.spec.as_ref()?.containers.first()?.resources.as_ref()?.requests.as_ref()?.get(GPU_MEMORY)
}

#[test]
fn a_containerd_restart_disturbs_no_pod() {
    on_the_node("containerd-restart", async |world, namespace| {
        let one = world.start(namespace, "one", "1g.10gb").await?;
        world.real.node.restart_containerd().await?;
        let two = world.start(namespace, "two", "1g.10gb").await?;
        ensure!(two.uuid != one.uuid, "{one:?}\n{two:?}");
        world.knows_its_slice(namespace, &two).await?;
        world.is_undisturbed(namespace, &one).await?;
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}

#[test]
fn an_agent_that_ends_or_is_killed_and_comes_back_disturbs_no_pod() {
    on_the_node("agent-restart", async |world, namespace| {
        let one = world.start(namespace, "one", "1g.10gb").await?;
        let history = History::of(world, RESOURCE).await?;
        // In good order: its pod is deleted, and another one comes.
        world.real.restart_agent(30).await?;
        world.until("the slice is allocatable", || async { Ok(history.last().0 == 1) }).await?;
        world.is_undisturbed(namespace, &one).await?;
        let two = world.start(namespace, "two", "1g.10gb").await?;
        ensure!(two.uuid != one.uuid && two.token != one.token, "{one:?}\n{two:?}");
        // Killed: the same pod's container starts again.
        let (container, restarts) = world.agent().await?;
        world.kill_container(&container).await?;
        world
            .until("the agent has started again", || async {
                let (now, count) = world.agent().await?;
                Ok(now != container && count == restarts + 1)
            })
            .await?;
        world.real.until_agent("Ready").await?;
        let three = world.start(namespace, "three", "1g.10gb").await?;
        ensure!(three.uuid != one.uuid && three.uuid != two.uuid, "{one:?}\n{two:?}\n{three:?}");
        for holder in [&one, &two] {
            world.is_undisturbed(namespace, holder).await?;
        }
        history.rose_by_the_agent()?;
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}

#[test]
fn an_agent_upgrade_disturbs_no_pod() {
    on_the_node("agent-upgrade", async |world, namespace| {
        let one = world.start(namespace, "one", "1g.10gb").await?;
        let history = History::of(world, RESOURCE).await?;
        let before = world.real.agent_pod().await?;
        world.real.agent_args(&["--rescan-seconds=20"]).await?;
        ensure!(world.real.agent_pod().await? != before, "the agent was not replaced");
        world.until("the slice is allocatable", || async { Ok(history.last().0 == 1) }).await?;
        world.is_undisturbed(namespace, &one).await?;
        let two = world.start(namespace, "two", "1g.10gb").await?;
        ensure!(two.uuid != one.uuid && two.token != one.token, "{one:?}\n{two:?}");
        history.rose_by_the_agent()?;
        world.is_undisturbed(namespace, &one).await?;
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}
