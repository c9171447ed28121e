//! Workloads over several nodes: all of their pods get a place or none, whatever happens in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use slicegate::api::kueue::CheckState;
use slicegate_rig::operator::GpuNode;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::checker::Checker;
use crate::kinds::KINDS;
use crate::shared::{Held, calls, counted, one_a30};
use crate::support::{World, job};

/// How many pods hold slices on each node.
fn by_node(held: &BTreeMap<String, BTreeSet<Held>>) -> BTreeMap<&str, u32> {
    held.values().fold(BTreeMap::new(), |mut sum, slices| {
        *sum.entry(slices.first().unwrap().node.as_str()).or_default() += 1;
        sum
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_no_node_can_hold_alone_is_placed_over_several_and_another_one_not_by_halves() -> Result<()>
{
    let here = KINDS.enter("spread", vec![one_a30("spread-1"), one_a30("spread-2")], &[]).await?;
    here.submit(&job("spread", "three", 3, &[("2g.12gb", 1)], "1000")).await?;
    let held = here.until_held_by(3).await?;
    let claims: BTreeMap<_, _> =
        here.claims().await?.into_iter().map(|((node, ..), pods)| (node, pods)).collect();
    let claims: BTreeMap<_, _> = claims.iter().map(|(node, pods)| (node.as_str(), *pods)).collect();
    assert_eq!(by_node(&held), claims);
    assert_eq!(claims.len(), 2);
    // Room for one, where two are wanted.
    here.submit(&job("spread", "two", 2, &[("2g.12gb", 1)], "0.2")).await?;
    let told = here
        .until("it is told what it waits for", || async {
            Ok(here.check("spread", "two").await?.filter(|(_, message)| !message.is_empty()))
        })
        .await?;
    let waits = "Waiting for capacity: what is claimed and in use on the nodes of flavor spread leaves too little for 2 pods with 1 × \
                 2g.12gb each.";
    assert_eq!(told, (CheckState::Pending, waits.to_owned()));
    assert_eq!(here.claimed().await?, 3);
    here.end_pod(held.keys().next().unwrap(), 0).await?;
    here.until_done("two").await?;
    for pod in held.keys().skip(1) {
        here.end_pod(pod, 0).await?;
    }
    here.until_done("three").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_late_or_again_go_to_the_node_where_a_claim_is_free() -> Result<()> {
    let nodes = vec![counted(one_a30("late-1")), counted(one_a30("late-2"))];
    let here = KINDS.enter("late", nodes, &[]).await?;
    let mut job = job("late", "whole", 2, &[("4g.24gb", 1)], "1000");
    job["spec"]["completions"] = json!(4);
    here.submit(&job).await?;
    let mut held = here.until_held_by(2).await?;
    // One that has succeeded, one that was deleted, one that has succeeded: another comes in the place of each.
    for (turn, node) in ["late-2", "late-1", "late-1"].into_iter().enumerate() {
        let (leaver, slices) = held.iter().find(|(_, slices)| slices.first().unwrap().node == node).unwrap();
        if turn == 1 {
            here.kubectl(&format!("delete pod {leaver}")).await?;
        } else {
            here.end_pod(leaver, 0).await?;
        }
        let now = here
            .until("another is there", || async {
                Ok(Some(here.held().await?).filter(|now| now.len() == 2 && !now.contains_key(leaver)))
            })
            .await?;
        let (_, successor) = now.iter().find(|(pod, _)| !held.contains_key(*pod)).unwrap();
        assert_eq!(successor, slices);
        held = now;
    }
    for pod in held.keys() {
        here.end_pod(pod, 0).await?;
    }
    here.until_done("whole").await?;
    for node in ["late-1", "late-2"] {
        assert_eq!(calls(&here, node)?, (1, 0));
    }
    here.leave().await
}

/// Makes the API server take its time over each write to a MIGNode's `spec`: it asks somebody who never answers, and goes on
/// without an answer after `seconds`.
struct Delay {
    silence: JoinHandle<()>,
}

impl Delay {
    async fn of(world: &World, node: &str, seconds: u32) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let silence = tokio::spawn(async move {
            let mut callers: Vec<TcpStream> = Vec::new();
            while let Ok((caller, _)) = listener.accept().await {
                callers.push(caller);
            }
        });
        world
            .rig
            .apply_objects(vec![json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingWebhookConfiguration",
                "metadata": {"name": "delay"},
                "webhooks": [{
                    "name": "delay.example.com",
                    "clientConfig": {"url": format!("https://127.0.0.1:{port}/")},
                    "rules": [{
                        "apiGroups": ["slicegate.dev"], "apiVersions": ["*"], "resources": ["mignodes"],
                        "operations": ["UPDATE"],
                    }],
                    "matchConditions": [{"name": "node", "expression": format!("request.name == '{node}'")}],
                    "failurePolicy": "Ignore",
                    "timeoutSeconds": seconds,
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                }],
            })])
            .await?;
        Ok(Self { silence })
    }

    async fn end(self, world: &World) -> Result<()> {
        world.rig.kubectl(["delete", "validatingwebhookconfiguration", "delay"]).await?;
        self.silence.abort();
        Ok(())
    }
}

const LEFT: &str = "left";
const RIGHT: &str = "right";

async fn claims_on(world: &World, node: &str) -> Result<usize> {
    Ok(world.mig_node(node).await?.spec.claims.len())
}

/// A cluster whose controller was killed when a Job of two pods had its claim on the one node and not yet on the other.
async fn half_written() -> Result<(World, Checker)> {
    let world = World::with(vec![one_a30(LEFT), one_a30(RIGHT)]).await?;
    let checker = Checker::start(&world);
    let delay = Delay::of(&world, RIGHT, 10).await?;
    world.submit(&job("default", "both", 2, &[("4g.24gb", 1)], "0.2")).await?;
    world.until("the first half is written", || async { Ok(claims_on(&world, LEFT).await? == 1) }).await?;
    world.rig.process("controller").context("controller")?.kill().await?;
    delay.end(&world).await?;
    assert_eq!((claims_on(&world, LEFT).await?, claims_on(&world, RIGHT).await?), (1, 0));
    Ok((world, checker))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_a_crash_left_half_written_is_completed() -> Result<()> {
    let (world, checker) = half_written().await?;
    world.rig.restart("controller").await?;
    world.until("the Job is complete", || world.job_done("default", "both")).await?;
    let pods = world.pods("default").await?;
    let nodes: BTreeSet<_> = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.as_deref()).collect();
    assert_eq!(nodes, BTreeSet::from([LEFT, RIGHT]));
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_a_crash_left_half_written_is_undone_when_the_other_half_cannot_be_had()
-> Result<()> {
    let (world, checker) = half_written().await?;
    world.rig.kubectl(["cordon", RIGHT]).await?;
    world.rig.restart("controller").await?;
    world.until("the first half is given back", || async { Ok(claims_on(&world, LEFT).await? == 0) }).await?;
    world
        .until("it is told what it waits for", || async {
            let told = world.check("default", "both").await?;
            Ok(told.is_some_and(|(state, message)| state == CheckState::Pending && !message.is_empty()))
        })
        .await?;
    assert!(world.pods("default").await?.is_empty(), "nothing has run");
    world.rig.kubectl(["uncordon", RIGHT]).await?;
    world.until("the Job is complete", || world.job_done("default", "both")).await?;
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_at_any_moment_of_a_reservation_over_nodes_leaves_no_trace() -> Result<()>
{
    // Slices take long enough to make for a kill to come in between.
    let nodes =
        vec![one_a30("one").slow(50, 50), one_a30("two").slow(50, 50), GpuNode::a30("three").slow(50, 50)];
    let world = World::with(nodes).await?;
    let checker = Checker::start(&world);
    let controller = world.rig.process("controller").context("controller")?;
    // In turn all of the GPUs by quarters and whole, so that slices are made and destroyed each time.
    for round in 0..6_u32 {
        let name = format!("round-{round}");
        let (pods, profile) = if round % 2 == 0 { (2, "4g.24gb") } else { (8, "1g.6gb") };
        world.submit(&job("default", &name, pods, &[(profile, 1)], "0.3")).await?;
        tokio::time::sleep(Duration::from_millis(u64::from(40 * round))).await;
        controller.kill().await?;
        controller.restart().await?;
        world.until(&format!("{name} is complete"), || world.job_done("default", &name)).await?;
    }
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}
