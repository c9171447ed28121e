//! A large request among small ones, of which there is always one there.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use slicegate::api::kueue::CheckState;
use slicegate_rig::operator::GpuNode;

use crate::checker::Checker;
use crate::support::{World, get, job};

const NODE: &str = "gpu-a100";

/// Small jobs without end: each runs for six seconds, and one comes every second, so the GPU is never empty by itself.
async fn stream(world: &World, submitted: &Cell<u32>) -> Result<()> {
    loop {
        let name = format!("small-{:03}", submitted.get());
        world.submit(&job("default", &name, 1, &[("1g.10gb", 1)], "6")).await?;
        submitted.set(submitted.get() + 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_gpu_is_had_through_a_stream_of_small_jobs() -> Result<()> {
    let world = World::with(vec![GpuNode::new(NODE, "A100-80GB", 1, "NVIDIA-A100-SXM4-80GB")]).await?;
    let checker = Checker::start(&world);
    let policy = json!({
        "apiVersion": "slicegate.dev/v1alpha1", "kind": "SlicePolicy", "metadata": {"name": "default"},
        "spec": {"holdSeconds": 2, "maxHoldSeconds": 2, "keepRoom": {"afterSeconds": 5}},
    });
    world.rig.apply_objects(vec![policy]).await?;
    let submitted = Cell::new(0_u32);
    let large = async {
        world.until("some small jobs run", || async { Ok(submitted.get() >= 4) }).await?;
        world.submit(&job("default", "large", 1, &[("7g.80gb", 1)], "0.5")).await?;
        world
            .until("room is kept for it, and it says so", || async {
                let (state, message) = world.check("default", "large").await?.context("check")?;
                Ok(state == CheckState::Pending
                    && message.ends_with(&format!("Room is being kept for it on {NODE}.")))
            })
            .await?;
        let holds = world.mig_node(NODE).await?.spec.holds;
        assert_eq!(holds.iter().map(|h| (h.start, h.size)).collect::<Vec<_>>(), [(0, 8)]);
        let workload = world.workload_of("default", "large").await?.context("workload")?;
        assert_eq!(Some(&holds[0].workload.uid), workload.metadata.uid.as_ref());
        let retries = workload.status.context("status")?.admission_checks[0].retry_count;
        assert!(retries.unwrap_or(0) >= 2, "it was queued again before its time had come: {retries:?}");
        let port = world.rig.process("controller").and_then(|p| p.spec().port).context("port")?;
        assert!(get(port, "/metrics").await?.contains("slicegate_held_units 8\n"));
        let late = world.until("a small one is told why it waits", || async {
            let mut told = None;
            for at in 0..submitted.get() {
                let check = world.check("default", &format!("small-{at:03}")).await?;
                told = told
                    .or(check.map(|(_, message)| message).filter(|message| message.contains("Free room")));
            }
            Ok(told)
        });
        let kept = format!("Free room on {NODE} is being kept for workloads that have waited longer.");
        assert!(late.await?.ends_with(&kept));
        world.until("the large one is complete", || world.job_done("default", "large")).await
    };
    tokio::select! {
        ended = stream(&world, &submitted) => ended?,
        ended = large => ended?,
    }
    for at in 0..submitted.get() {
        let name = format!("small-{at:03}");
        world.until(&format!("{name} is complete"), || world.job_done("default", &name)).await?;
    }
    world.until_released().await?;
    assert_eq!(world.mig_node(NODE).await?.spec.holds, []);
    checker.finish(&world).await?;
    world.rig.down().await
}
