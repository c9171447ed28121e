//! Who else has a hand in the GPUs, and what the GPUs lack, is said in a condition of the MIGNode and in an Event on it, with what
//! to do; and it is said no longer when it is over.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use slicegate::api::MIGNode;
use slicegate::api::mig_node::SliceState;
use slicegate_rig::OtherPlugin;

use crate::support::{EMULATED, NODE, World, container, job, on_the_node};

const OURS: &str = "nvidia.com/mig-1g.10gb";
/// Ends well only with a slice of ours.
const NEEDS_ONE: &str = "env | grep SLICEGATE_MIG_";
const STAYS: &str = "exec sleep 1000";

/// The message of a condition, once it has that reason; an Event says so, too.
async fn told(world: &World<'_>, condition: &str, reason: &str) -> Result<String> {
    let message = world
        .until(&format!("{condition} is {reason}"), || async {
            Ok(world.condition(condition).await?.filter(|c| c.reason == reason).map(|c| c.message))
        })
        .await?;
    world.event("default", NODE, reason).await?;
    Ok(message)
}

/// Waits until a condition's message contains some words.
async fn until_told(world: &World<'_>, condition: &str, words: &str) -> Result<()> {
    world
        .until(&format!("{condition} says {words:?}"), || async {
            Ok(world.condition(condition).await?.is_some_and(|c| c.message.contains(words)))
        })
        .await
}

/// Waits until there is no conflict any more.
async fn until_peace(world: &World<'_>) -> Result<()> {
    world
        .until("there is no conflict", || async {
            let conflict = world.condition("Conflict").await?;
            Ok(conflict.is_some_and(|c| c.status == "False" && c.reason == "NoConflict"))
        })
        .await
}

fn ensure_all(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not said: {text}");
    }
    Ok(())
}

/// Runs a Job that needs a slice to its end.
async fn run(world: &World<'_>, namespace: &str, name: &str) -> Result<()> {
    let main = container("main", NEEDS_ONE, &[("1g.10gb", 1)]);
    world.create::<Job>(&job(namespace, name, &[main])).await?;
    world.pod_in(namespace, name, "Succeeded").await?;
    Ok(())
}

/// The UUIDs of the node's GPUs, by index.
fn gpus(world: &World<'_>) -> Result<Vec<String>> {
    Ok(world.real.gpu_state()?.read()?.gpus.into_iter().map(|gpu| gpu.uuid).collect())
}

fn mig_enabled(world: &World<'_>, gpu: usize) -> Result<bool> {
    Ok(world.real.gpu_state()?.read()?.gpus[gpu].mig_enabled)
}

#[test]
fn another_device_plugin_for_our_resource_is_told_and_the_kubelet_goes_on_giving_our_devices() {
    on_the_node("other-plugin", async |world, namespace| {
        run(world, namespace, "before").await?;
        world.until("one slice is shown", || async { Ok(world.shown(OURS).await? == (14, 1)) }).await?;
        let node = &world.real.node;
        let other = OtherPlugin::start(node, "nvidia-mig-1g.10gb.sock", OURS, &["MIG-a", "MIG-b"]).await?;
        let message = told(world, "Conflict", "OtherDevicePlugin").await?;
        ensure_all(&message, &["nvidia.com/gpu.deploy.device-plugin=false", "devicePlugin.enabled=false"])?;
        // Its devices may have been seen first.
        until_told(world, "Conflict", "nvidia-mig-1g.10gb.sock").await?;
        run(world, namespace, "during").await?;
        drop(other);
        until_peace(world).await?;
        run(world, namespace, "after").await?;
        world
            .until("what there is is shown", || async {
                let slices = u32::try_from(world.slices().await?.len())?;
                Ok(world.shown(OURS).await? == (14, slices))
            })
            .await?;
        // What the kubelet itself writes at its next turn is the same.
        world.real.node.restart_kubelet().await?;
        world.real.until_agent("Ready").await?;
        run(world, namespace, "at-last").await?;
        world.clear(namespace).await
    });
}

#[test]
fn a_plugin_that_comes_and_goes_leaves_our_devices_usable() {
    on_the_node("comes-and-goes", async |world, namespace| {
        run(world, namespace, "before").await?;
        // Under a name that says nothing; its devices do.
        for round in 0..2 {
            let other = OtherPlugin::start(&world.real.node, "other.sock", OURS, &["x"]).await?;
            drop(other);
            run(world, namespace, &format!("after-{round}")).await?;
        }
        until_peace(world).await?;
        world.clear(namespace).await
    });
}

#[test]
fn a_label_for_mig_manager_is_told() {
    on_the_node("mig-manager", async |world, _| {
        let nodes: Api<Node> = Api::all(world.client.clone());
        let label =
            |value: Value| Patch::Merge(json!({"metadata": {"labels": {"nvidia.com/mig.config": value}}}));
        nodes.patch(NODE, &PatchParams::default(), &label(json!("all-1g.10gb"))).await?;
        let message = told(world, "Conflict", "MIGManager").await?;
        ensure_all(
            &message,
            &[
                "nvidia.com/mig.config=all-1g.10gb",
                "nvidia.com/gpu.deploy.mig-manager=false",
                "migManager.enabled=false",
            ],
        )?;
        nodes.patch(NODE, &PatchParams::default(), &label(Value::Null)).await?;
        until_peace(world).await
    });
}

#[test]
fn a_slice_that_somebody_destroyed_is_told_and_made_again() {
    on_the_node("meddled", async |world, namespace| {
        run(world, namespace, "before").await?;
        let idle = world
            .until("the slice is idle", || async {
                Ok(world.slices().await?.into_iter().find(|s| s.state == SliceState::Idle))
            })
            .await?;
        world.real.gpu_state()?.destroy_instance(&idle.gpu, idle.gpu_instance_id.context("its id")?)?;
        let message = told(world, "Conflict", "GeometryChanged").await?;
        ensure_all(&message, &["1 of Slicegate's MIG instances on GPU", "What is wanted is made again"])?;
        world
            .until("it is made again", || async {
                let slices = world.slices().await?;
                Ok(slices
                    .iter()
                    .any(|s| s.state == SliceState::Idle && s.uuid.is_some() && s.uuid != idle.uuid))
            })
            .await?;
        run(world, namespace, "after").await?;
        // It has happened, and is told for ten minutes or as long as the agent runs.
        world.real.restart_agent(1).await?;
        until_peace(world).await?;
        world.clear(namespace).await
    });
}

#[test]
fn an_instance_that_somebody_made_is_foreign_untouched_and_in_the_way() {
    on_the_node("foreign", async |world, namespace| {
        let state = world.real.gpu_state()?;
        let uuids = gpus(world)?;
        let foreign = state.create_instance(&uuids[0], "3g.40gb", Some(4))?;
        world
            .until("it is reported", || async {
                let status = world.mig_node().await?.status.unwrap_or_default();
                let places: Vec<_> =
                    status.foreign.iter().map(|f| (&*f.gpu, &*f.profile, f.start, f.size)).collect();
                Ok(places == [(uuids[0].as_str(), "3g.40gb", 4, 4)])
            })
            .await?;
        let whole = || [container("main", STAYS, &[("7g.80gb", 1)])];
        world.create::<Job>(&job(namespace, "first", &whole())).await?;
        world.pod_in(namespace, "first", "Running").await?;
        let slices = world.slices().await?;
        ensure!(slices.iter().all(|slice| slice.gpu == uuids[1]), "{slices:?}");
        world.create::<Job>(&job(namespace, "second", &whole())).await?;
        world
            .until("the second one waits", || async {
                let told = world.check_message(namespace, "second").await?;
                Ok(told.is_some_and(|message| message.starts_with("Waiting for free slices")))
            })
            .await?;
        ensure!(state.instances()?.contains(&foreign), "the foreign instance was touched");
        state.destroy_instance(&uuids[0], foreign.gpu_instance_id)?;
        world.pod_in(namespace, "second", "Running").await?;
        ensure!(world.mig_node().await?.status.unwrap_or_default().foreign.is_empty(), "still reported");
        world.clear(namespace).await
    });
}

#[test]
fn mig_mode_that_is_off_is_told_with_the_command_and_turned_on_only_where_that_is_allowed() {
    on_the_node("mig-mode", async |world, namespace| {
        world.real.agent_args(&["--rescan-seconds=1"]).await?;
        let (state, uuid) = (world.real.gpu_state()?, gpus(world)?.remove(1));
        state.set_mig_mode(&uuid, false)?;
        state.add_process(&uuid, 4711)?;
        let message = told(world, "Ready", "SomeGPUsUnusable").await?;
        ensure_all(&message, &["MIG mode is off on GPU 1:", "nvidia-smi -i 1 -mig 1"])?;
        run(world, namespace, "on-the-other").await?;

        world.real.roll_agent_out(&["--rescan-seconds=1", "--enable-mig-mode"]).await?;
        until_told(world, "Ready", "process 4711 computes on it").await?;
        ensure!(!mig_enabled(world, 1)?, "MIG mode was turned on under a process");
        state.remove_process(&uuid, 4711)?;
        world.real.until_agent("Ready").await?;
        ensure!(mig_enabled(world, 1)?, "MIG mode is not on");

        // Passed through to a virtual machine, an A100 cannot be reset from where the agent is.
        world.real.reconfigure(|config| config["gpus"][0]["passthrough"] = json!(true))?;
        world.real.replace_agent(1).await?;
        world.real.until_agent("Ready").await?;
        state.set_mig_mode(&uuid, false)?;
        until_told(world, "Ready", "MIG mode of GPU 1 is pending: RESET_REQUIRED (16)").await?;
        ensure_all(&told(world, "Ready", "SomeGPUsUnusable").await?, &["nvidia-smi -r -i 1"])?;
        state.reset_gpu(&uuid)?;
        world.real.until_agent("Ready").await?;
        ensure!(mig_enabled(world, 1)?, "MIG mode is not on");
        world.clear(namespace).await
    });
}

#[test]
fn gpus_without_mig_are_told_and_left_alone() {
    on_the_node("without-mig", async |world, namespace| {
        let group = |mode: &str| json!({"model": "A100-80GB", "count": 1, "migMode": mode});
        let modes = |modes: [&str; 2]| {
            world.real.reconfigure(|config| config["gpus"] = json!(modes.map(group)))?;
            anyhow::Ok(())
        };
        modes(["enabled", "unsupported"])?;
        world.real.replace_agent(1).await?;
        let message = told(world, "Ready", "SomeGPUsUnusable").await?;
        ensure_all(&message, &["GPU 1", "does not support MIG"])?;
        run(world, namespace, "on-the-other").await?;
        modes(["unsupported", "unsupported"])?;
        world.real.replace_agent(1).await?;
        let message = told(world, "Ready", "NoUsableGPU").await?;
        ensure_all(&message, &["supports MIG", "slicegate.dev/agent=paused"])?;
        modes(["enabled", "enabled"])?;
        world.real.restart_agent(1).await?;
        world.clear(namespace).await
    });
}

#[test]
fn whole_gpus_and_pods_that_have_one_are_told_and_keep_their_mig_mode() {
    on_the_node("whole-gpus", async |world, namespace| {
        world.real.agent_args(&["--rescan-seconds=1", "--enable-mig-mode"]).await?;
        let whole =
            OtherPlugin::start(&world.real.node, "whole.sock", "nvidia.com/gpu", &["GPU-a", "GPU-b"]).await?;
        let message = told(world, "Conflict", "WholeGPUs").await?;
        ensure_all(
            &message,
            &["2 whole GPUs (nvidia.com/gpu)", "nvidia.com/gpu.deploy.device-plugin=false"],
        )?;
        let (state, uuid) = (world.real.gpu_state()?, gpus(world)?.remove(1));
        state.set_mig_mode(&uuid, false)?;
        until_told(world, "Ready", "is left so: the node offers 2 whole GPUs").await?;

        let mut main = container("main", STAYS, &[]);
        main["resources"]["limits"] = json!({"nvidia.com/gpu": 1});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "train", "namespace": namespace},
            "spec": {"containers": [main], "terminationGracePeriodSeconds": 1},
        });
        world.create::<Pod>(&pod).await?;
        world.pod_in(namespace, "train", "Running").await?;
        until_told(world, "Conflict", &format!("Pod {namespace}/train has a whole GPU")).await?;
        until_told(world, "Ready", &format!("is left so: pod {namespace}/train has a whole GPU")).await?;
        ensure!(!mig_enabled(world, 1)?, "MIG mode was turned on under a pod");

        world.api::<Pod>(namespace).delete("train", &DeleteParams::default()).await?;
        drop(whole);
        until_peace(world).await?;
        world.real.until_agent("Ready").await?;
        ensure!(mig_enabled(world, 1)?, "MIG mode is not on");
        world.clear(namespace).await
    });
}

#[test]
fn a_driver_that_is_too_old_is_told_with_what_it_lacks() {
    on_the_node("old-driver", async |world, namespace| {
        let folder = world.real.simulator()?;
        let (library, kept) = (folder.join("libnvml_sim.so"), folder.join("kept.so"));
        let (source, old) = (folder.join("old.c"), folder.join("old.so"));
        fs::write(
            &source,
            "int nvmlInit_v2(void) { return 0; }\n\
             int nvmlInitWithFlags(unsigned flags) { return 0; }\n\
             int nvmlShutdown(void) { return 0; }\n",
        )?;
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&old, &source]).status()?;
        ensure!(built.success(), "cc cannot build a library");
        fs::rename(&library, &kept)?;
        fs::rename(&old, &library)?;
        let agent =
            ["delete", "pod", "--namespace=slicegate-system", "--selector=app.kubernetes.io/component=agent"];
        world.real.rig.kubectl(agent).await?;
        let message = told(world, "Ready", "NVMLUnavailable").await?;
        ensure_all(
            &message,
            &["too old for MIG", "nvmlDeviceCreateGpuInstanceWithPlacement", "install driver 525 or later"],
        )?;
        fs::rename(&kept, &library)?;
        world.real.rig.kubectl(agent).await?;
        world.real.until_agent("Ready").await?;
        run(world, namespace, "after").await
    });
}

#[test]
fn a_controller_of_another_version_is_told() {
    on_the_node("version-skew", async |world, _| {
        let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), "slicegate-system");
        let scale = async |replicas: u32| {
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            deployments.patch("slicegate-controller", &PatchParams::default(), &patch).await
        };
        // On the emulated node it would only seem to run.
        world.real.rig.kubectl(["cordon", EMULATED]).await?;
        // The one that runs would put its own mark right.
        scale(0).await?;
        world
            .until("the controller is gone", || async {
                let pods = world.list::<Pod>("slicegate-system").await?;
                Ok(!pods.iter().any(|pod| pod.name_any().starts_with("slicegate-controller")))
            })
            .await?;
        let nodes: Api<MIGNode> = Api::all(world.client.clone());
        let mark = json!({"metadata": {"annotations": {"slicegate.dev/controller-version": "9.9.9"}}});
        nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(mark)).await?;
        let message = told(world, "Conflict", "VersionSkew").await?;
        ensure_all(&message, &["9.9.9", env!("CARGO_PKG_VERSION"), "finish the update"])?;
        scale(1).await?;
        until_peace(world).await
    });
}
