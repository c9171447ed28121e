//! How pods end, and what becomes of their slices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;
use serde_json::json;
use slicegate::api::mig_node::SliceState;
use slicegate_rig::real_operator::Gpus;

use super::STAY;
use crate::support::{EMULATED, NODE, World, container, job, on_a_node_with, on_the_node};

/// A process as NVML lists it. The simulator takes any number for one.
const PROCESS: u32 = 4711;

#[test]
fn a_pod_deleted_while_its_slice_is_made_leaves_nothing_behind() {
    let latency_ms = BTreeMap::from([("nvmlDeviceCreateGpuInstanceWithPlacement".to_owned(), 3000)]);
    on_a_node_with(Gpus { latency_ms, ..Gpus::a100(2) }, "early-end", async |world, namespace| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "early", "namespace": namespace, "labels": {"kueue.x-k8s.io/queue-name": "mig"}},
            "spec": {"restartPolicy": "Never", "containers": [container("main", STAY, &[("1g.10gb", 1)])]},
        });
        world.create::<Pod>(&pod).await?;
        until_creating(world, "1g.10gb").await?;
        world.api::<Pod>(namespace).delete("early", &DeleteParams::default()).await?;
        world.submit(namespace, "suspended", "2g.20gb", STAY).await?;
        until_creating(world, "2g.20gb").await?;
        world.end(namespace, "suspended").await?;
        world.nothing_leaks(&[]).await?;

        // What was made on their behalf serves others.
        let made: Vec<_> = world
            .real
            .gpu_state()?
            .instances()?
            .iter()
            .filter_map(|i| i.mig_uuid().map(str::to_owned))
            .collect();
        let later = world.start(namespace, "later", "1g.10gb").await?;
        ensure!(made.contains(&later.uuid), "{later:?} is none of {made:?}");
        world.nothing_leaks(&[&later]).await
    });
}

async fn until_creating(world: &World<'_>, profile: &str) -> anyhow::Result<()> {
    world
        .until(&format!("a slice of {profile} is being made"), || async {
            Ok(world.slices().await?.iter().any(|s| s.profile == profile && s.state == SliceState::Creating))
        })
        .await
}

#[test]
fn a_slice_whose_pod_was_deleted_by_force_is_lent_to_nobody_until_its_process_ends() {
    on_the_node("by-force", async |world, namespace| {
        let one = world.start(namespace, "one", "1g.10gb").await?;
        world.real.gpu_state()?.add_process(&one.uuid, PROCESS)?;
        world.api::<Job>(namespace).delete("one", &DeleteParams::background()).await?;
        let by_force = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        world.api::<Pod>(namespace).delete(&one.pod, &by_force).await?;
        world
            .until("the slice is the process's", || async {
                let slice = world.slice_of(&one).await?;
                Ok(slice.is_some_and(|s| s.state == SliceState::InUse && s.process == Some(PROCESS)))
            })
            .await?;
        let two = world.start(namespace, "two", "1g.10gb").await?;
        ensure!(two.uuid != one.uuid, "{one:?}\n{two:?}");
        let told = world.event("default", NODE, "SliceTaken").await?;
        ensure!(told.contains(&PROCESS.to_string()) && told.contains("end the process"), "{told}");
        let slice = world.slice_of(&one).await?.context("the slice")?;
        ensure!(slice.process == Some(PROCESS) && slice.uuid.as_ref() == Some(&one.uuid), "{slice:?}");

        world.real.gpu_state()?.remove_process(&one.uuid, PROCESS)?;
        let ended = Instant::now();
        world.nothing_leaks(&[&two]).await?;
        // Not only at the next full look at the GPUs, thirty seconds later.
        ensure!(ended.elapsed() < Duration::from_secs(15), "the slice was free after {:?}", ended.elapsed());
        let three = world.start(namespace, "three", "1g.10gb").await?;
        ensure!(three.uuid == one.uuid, "the free slice was not used again: {one:?}\n{three:?}");
        world.is_undisturbed(namespace, &two).await
    });
}

#[test]
fn a_pod_that_ends_gracefully_keeps_its_slice_to_its_last_moment() {
    const SLOW: &str =
        "trap 'echo asked; sleep 6; echo last; exit 0' TERM; echo here; while :; do sleep 0.1; done";
    on_the_node("graceful", async |world, namespace| {
        let other = world.start(namespace, "other", "7g.80gb").await?;
        let mut job = job(namespace, "slow", &[container("main", SLOW, &[("7g.80gb", 1)])]);
        job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(60);
        world.create::<Job>(&job).await?;
        let slow = world.holder(namespace, "slow").await?;
        world.submit(namespace, "next", "7g.80gb", STAY).await?;
        world.api::<Job>(namespace).delete("slow", &DeleteParams::background()).await?;
        world.says(namespace, &slow.pod, "main", |line| line == "asked").await?;
        let last = loop {
            let slice = world.slice_of(&slow).await?.context("the slice")?;
            let waits = world.is_waiting(namespace, "next").await?;
            let log = world.real.node.logs(namespace, &slow.pod, "main")?;
            if let Some(last) = said(&log, "last")? {
                break last;
            }
            ensure!(waits, "next was admitted while {slow:?} was there");
            let is_its = slice.state == SliceState::InUse
                && slice.pod == Some(format!("{namespace}/{}", slow.pod))
                && slice.uuid.as_ref() == Some(&slow.uuid);
            ensure!(is_its, "{slice:?} is not {slow:?}'s");
        };
        let next = world.holder(namespace, "next").await?;
        ensure!(next.gpu == slow.gpu && next.gpu != other.gpu, "{slow:?}\n{next:?}");
        world.says(namespace, &next.pod, "main", |line| line == "here").await?;
        let log = world.real.node.logs(namespace, &next.pod, "main")?;
        let first = said(&log, "here")?.context("next said nothing")?;
        ensure!(first > last, "next ran at {first}, {slow:?} until {last}");
        world.is_undisturbed(namespace, &other).await
    });
}

/// When a container wrote a line.
fn said(log: &str, what: &str) -> anyhow::Result<Option<Timestamp>> {
    let line = log.lines().find(|line| line.splitn(4, ' ').nth(3) == Some(what));
    Ok(line.and_then(|line| line.split(' ').next()).map(str::parse).transpose()?)
}

#[test]
fn a_slice_that_nvml_will_not_destroy_is_retried_and_reported_and_blocks_nobody_else() {
    // Six failures are retried within thirteen seconds: 0.2 s, then twice as long each time.
    let faults = vec![json!({"function": "nvmlComputeInstanceDestroy", "nth": 1, "code": 19, "times": 6})];
    on_a_node_with(Gpus { faults, ..Gpus::a100(2) }, "not-destroyed", async |world, namespace| {
        let (whole, small) = in_the_way(world, namespace).await?;
        world
            .until("the failure is reported", || async {
                let slice = world.slice_of(&small).await?;
                Ok(slice.is_some_and(|s| {
                    s.state == SliceState::Failed
                        && s.message.is_some_and(|m| m.contains("IN_USE") && m.contains("holds it"))
                }))
            })
            .await?;
        nobody_else_waits(world, namespace).await?;
        let next = world.holder(namespace, "big").await?;
        ensure!(next.gpu == small.gpu && next.uuid != small.uuid, "{small:?}\n{next:?}");
        let failures = world.agent_log().await?.matches("operation failed").count();
        ensure!(failures == 6, "{failures} failures");
        world.is_undisturbed(namespace, &whole).await?;
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}

#[test]
fn a_process_in_an_idle_slice_keeps_it_from_being_destroyed_and_blocks_nobody_else() {
    on_the_node("stray-process", async |world, namespace| {
        let whole = world.start(namespace, "whole", "7g.80gb").await?;
        let small = world.start(namespace, "small", "1g.10gb").await?;
        world.end(namespace, "small").await?;
        world.nothing_leaks(&[&whole]).await?;
        // The agent does not know of it.
        world.real.gpu_state()?.add_process(&small.uuid, PROCESS)?;
        world.submit(namespace, "big", "7g.80gb", STAY).await?;
        world
            .until("the process is reported", || async {
                let slice = world.slice_of(&small).await?;
                Ok(slice.is_some_and(|s| s.process == Some(PROCESS) && s.message.is_some()))
            })
            .await?;
        nobody_else_waits(world, namespace).await?;
        ensure!(world.is_waiting(namespace, "big").await?, "big was admitted");
        let told = world.event("default", NODE, "SliceTaken").await?;
        ensure!(told.contains(&PROCESS.to_string()), "{told}");
        world.real.gpu_state()?.remove_process(&small.uuid, PROCESS)?;
        let big = world.holder(namespace, "big").await?;
        ensure!(big.gpu == small.gpu, "{small:?}\n{big:?}");
        world.is_undisturbed(namespace, &whole).await?;
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}

/// Lets a Job `big` want a whole GPU on which there is an idle slice, while another Job has the other GPU. Returns who has
/// that, and who had the slice.
async fn in_the_way(world: &World<'_>, namespace: &str) -> anyhow::Result<(super::Holder, super::Holder)> {
    let whole = world.start(namespace, "whole", "7g.80gb").await?;
    let small = world.start(namespace, "small", "1g.10gb").await?;
    world.end(namespace, "small").await?;
    world.submit(namespace, "big", "7g.80gb", STAY).await?;
    Ok((whole, small))
}

/// A Job of the same queue runs on another node.
async fn nobody_else_waits(world: &World<'_>, namespace: &str) -> anyhow::Result<()> {
    world.submit(namespace, "beside", "1g.6gb", STAY).await?;
    let pod = world.pod_in(namespace, "beside", "Running").await?;
    let node = pod.spec.and_then(|spec| spec.node_name);
    ensure!(node.as_deref() == Some(EMULATED), "{node:?}");
    world.end(namespace, "beside").await
}
