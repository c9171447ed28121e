//! Slices and GPUs that fail in pods' hands.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DeleteParams;
use slicegate::api::kueue::Workload;
use slicegate::api::mig_node::{Health, SliceState};
use slicegate_rig::real_operator::Gpus;

use super::Holder;
use crate::support::{World, on_a_node_with, on_the_node};

#[test]
fn an_xid_in_one_slice_fails_it_and_others_run_on() {
    on_the_node("xid-slice", async |world, namespace| {
        let one = world.start(namespace, "one", "1g.10gb").await?;
        let beside = world.start(namespace, "beside", "1g.10gb").await?;
        ensure!(one.gpu == beside.gpu, "not on the same GPU: {one:?}\n{beside:?}");
        let id = world.slice_of(&one).await?.and_then(|s| s.gpu_instance_id);
        world.real.gpu_state()?.xid(&one.gpu, 48, id, None)?;
        is_told(world, namespace, "one", &one, "XID 48").await?;
        let next = moves_on(world, namespace, "one", &one).await?;
        ensure!(next.uuid != one.uuid && next.uuid != beside.uuid, "{one:?}\n{next:?}");
        world.is_undisturbed(namespace, &beside).await?;
        world.nothing_leaks(&[&next, &beside]).await
    });
}

#[test]
fn an_xid_of_a_gpu_fails_its_slices_and_other_gpus_run_on() {
    on_a_node_with(Gpus::a100(3), "xid-gpu", async |world, namespace| {
        let (whole, one) = on_two_gpus(world, namespace).await?;
        world.real.gpu_state()?.xid(&one.gpu, 79, None, None)?;
        is_told(world, namespace, "one", &one, "XID 79").await?;
        let next = moves_on(world, namespace, "one", &one).await?;
        ensure!(next.gpu != one.gpu && next.gpu != whole.gpu, "{one:?}\n{next:?}");
        world.is_undisturbed(namespace, &whole).await?;
        world.real.gpu_state()?.reset_gpu(&one.gpu)?;
        is_healthy_again(world, &one.gpu).await?;
        world.nothing_leaks(&[&next, &whole]).await
    });
}

#[test]
fn a_lost_gpu_fails_its_slices_and_other_gpus_run_on() {
    on_a_node_with(Gpus::a100(3), "lost-gpu", async |world, namespace| {
        let (whole, one) = on_two_gpus(world, namespace).await?;
        world.real.gpu_state()?.lose_gpu(&one.gpu)?;
        // That is the last that NVML reports of it.
        is_told(world, namespace, "one", &one, "XID 79").await?;
        world
            .until("the MIGNode says that the GPU does not answer", || async {
                let conditions = world.mig_node().await?.status.unwrap_or_default().conditions;
                Ok(conditions.iter().any(|c| c.type_ == "Ready" && c.message.contains("does not answer")))
            })
            .await?;
        let next = moves_on(world, namespace, "one", &one).await?;
        ensure!(next.gpu != one.gpu && next.gpu != whole.gpu, "{one:?}\n{next:?}");
        world.is_undisturbed(namespace, &whole).await?;
        world.real.gpu_state()?.reset_gpu(&one.gpu)?;
        is_healthy_again(world, &one.gpu).await?;
        world.nothing_leaks(&[&next, &whole]).await
    });
}

/// Lets a Job have a GPU of its own, and a Job `one` a slice on another.
async fn on_two_gpus(world: &World<'_>, namespace: &str) -> Result<(Holder, Holder)> {
    let whole = world.start(namespace, "whole", "7g.80gb").await?;
    let one = world.start(namespace, "one", "1g.10gb").await?;
    Ok((whole, one))
}

/// Checks that a Job's slice is Failed, and that the readers of its pod's and Workload's Events know why.
async fn is_told(world: &World<'_>, namespace: &str, job: &str, holder: &Holder, why: &str) -> Result<()> {
    world
        .until("the slice is Failed", || async {
            let slice = world.slice_of(holder).await?;
            Ok(slice
                .is_some_and(|s| s.state == SliceState::Failed && s.message.is_some_and(|m| m.contains(why))))
        })
        .await?;
    let workloads = world.list::<Workload>(namespace).await?;
    let of_job = |w: &&Workload| w.owner_references().iter().any(|owner| owner.name == job);
    let workload = workloads.iter().find(of_job).context("the Job's Workload")?.name_any();
    for object in [holder.pod.as_str(), &workload] {
        let told = world.event(namespace, object, "SliceFailed").await?;
        ensure!(told.contains(why) && told.contains("gets a slice that works"), "{object}: {told}");
    }
    Ok(())
}

/// Ends a pod as its program would without its slice, and waits for the next one.
async fn moves_on(world: &World<'_>, namespace: &str, job: &str, before: &Holder) -> Result<Holder> {
    world.api::<Pod>(namespace).delete(&before.pod, &DeleteParams::default()).await?;
    let next = world.next_holder(namespace, job, Some(before)).await?;
    world.knows_its_slice(namespace, &next).await?;
    Ok(next)
}

async fn is_healthy_again(world: &World<'_>, gpu: &str) -> Result<()> {
    world
        .until("the GPU is healthy again", || async {
            let status = world.mig_node().await?.status.unwrap_or_default();
            Ok(status.gpus.iter().any(|g| g.uuid == gpu && g.health == Health::Healthy))
        })
        .await
}
