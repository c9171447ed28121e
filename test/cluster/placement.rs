//! Mixes for which it matters where each slice goes.

use anyhow::Result;
use slicegate::api::kueue::CheckState;
use slicegate_rig::operator::GpuNode;

use crate::checker::Checker;
use crate::support::{World, job};

/// A node with so many A100.
fn a100s(count: u32) -> GpuNode {
    GpuNode::new("gpu-a100", "A100-80GB", count, "NVIDIA-A100-SXM4-80GB")
}

async fn until_ready(world: &World, name: &str) -> Result<()> {
    let ready = || async {
        Ok(world.check("default", name).await?.is_some_and(|(state, _)| state == CheckState::Ready))
    };
    world.until(&format!("{name} has its slices"), ready).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mix_that_first_fit_refuses_is_admitted() -> Result<()> {
    let world = World::with(vec![a100s(1)]).await?;
    let checker = Checker::start(&world);
    // The 4g starts at 0 and nowhere else: where the first place that fits is the one of the 2g.
    let mix = [("pair", "2g.20gb"), ("single", "1g.10gb"), ("half", "4g.40gb")];
    for (name, profile) in mix {
        world.submit(&job("default", name, 1, &[(profile, 1)], "15")).await?;
        until_ready(&world, name).await?;
    }
    let node = world.mig_node("gpu-a100").await?;
    assert_eq!(node.spec.claims.len(), mix.len(), "they have the GPU to themselves, at the same time");
    for (name, _) in mix {
        world.until(&format!("{name} is complete"), || world.job_done("default", name)).await?;
    }
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_that_fit_only_together_are_found_room_for_together() -> Result<()> {
    let world = World::with(vec![a100s(2)]).await?;
    let checker = Checker::start(&world);
    // Each +me needs a GPU of its own. Placed one after another, largest first, the others leave room on one only.
    let slices = [("1g.10gb.me", 2), ("2g.20gb", 2), ("3g.40gb", 1)];
    world.submit(&job("default", "engines", 1, &slices, "0.5")).await?;
    world.until("it is complete", || world.job_done("default", "engines")).await?;
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}
